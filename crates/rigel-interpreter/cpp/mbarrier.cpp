// mbarrier. Its 64 bits in shared memory are what is counted here, written back after each change, so that a store that
// runs over a barrier is noticed: arrivals that are missing (20 bits), arrivals of a phase (20 bits), parity, and a
// mark that it is a barrier.
#include "mbarrier.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "access.h"
#include "memory.h"
#include "report.h"
#include "scheduler.h"
#include "shared_address.h"
#include "thread_order.h"
#include "twin_parts.h"

namespace interpreter {

namespace {

constexpr uint32_t kMaxTileCounters = (1u << 20) - 1;
constexpr int64_t kMaxBytes = (1 << 20) - 1;

uint64_t bits_of(const Mbarrier& barrier) {
    return barrier.pending | static_cast<uint64_t>(barrier.arrivals) << 20 |
           static_cast<uint64_t>(barrier.parity) << 62 | 1ull << 63;
}

uint8_t* place_of(const Block& block, uint32_t address) {
    return shared_memory.base + block.arena * kArenaBytes + without_rank(address);
}

// From the start of the block's shared memory, as reports count.
uint32_t in_block(uint32_t address) { return without_rank(address) - static_cast<uint32_t>(kArenaMargin); }

Mbarrier& find(Block& block, uint32_t address, Site site) {
    const auto at = block.mbarriers.find(without_rank(address));
    if (at == block.mbarriers.end())
        fail(site, text("there is no mbarrier at byte %u: no one has called mbarrier_init", in_block(address)));
    uint64_t bits;
    std::memcpy(&bits, place_of(block, address), sizeof bits);
    if (bits != bits_of(at->second))
        fail(site, text("the mbarrier at byte %u has been overwritten", in_block(address)));
    return at->second;
}

// The phase ends when nothing is missing.
void settle(Block& block, uint32_t address, Mbarrier& barrier) {
    if (barrier.pending == 0 && barrier.bytes == 0) {
        barrier.parity ^= 1;
        barrier.pending = barrier.arrivals;
        if (barrier.came) barrier.came_unseen = barrier.came;
        barrier.came = 0;
        barrier.ended = std::move(barrier.gathering);
        barrier.ended_in_cluster = std::move(barrier.gathering_from_cluster);
        barrier.gathering = barrier.gathering_from_cluster = Ref<const Message>();
        for (Thread* thread : barrier.waiting) scheduler.wake(*thread);
        barrier.waiting.clear();
    }
    const uint64_t bits = bits_of(barrier);
    std::memcpy(place_of(block, address), &bits, sizeof bits);
}

// What of it is about bulk copies and MMA instructions: whoever waited for those may say that they are done without
// ordering anything else. That is what a relaxed arrival passes on, and a relaxed wait takes over.
Ref<const Message> of_asynchronous_agents(const Message& message, const Agents& agents) {
    Ref<Message> part(new Message);
    for (const OtherBlock& block : message.blocks) {
        if (block.clocks->of.size() != agents.count()) continue;  // of a copy or a fill, or of another grid
        Ref<BlockClocks> clocks(new BlockClocks(*block.clocks));
        std::fill_n(clocks->of.begin(), agents.bulk_copies(0, 0), 0);
        part->blocks.push_back({block.first, Ref<const BlockClocks>(clocks.get())});
    }
    return Ref<const Message>(part.get());
}

void arrive(Block& block, uint32_t address, uint32_t expected_bytes, Order order, Site site) {
    Thread& thread = *current;
    uint8_t* const place = place_of(block, address);
    check_alignment(place, 8, "mbarrier", site);
    Mbarrier& barrier = find(block, address, site);
    check_shared(place, 8, {&thread, Agent::Thread, Does::AtomicUpdate, site});
    if (barrier.pending == 0)
        fail(site,
             text("the mbarrier at byte %u counts %u arrivals a phase, and this is one more", in_block(address),
                  barrier.arrivals),
             {text("the phase still expects %ld bytes", static_cast<long>(barrier.bytes))});
    barrier.bytes += expected_bytes;
    if (barrier.bytes > kMaxBytes)
        fail(site, text("the mbarrier at byte %u expects more than %ld bytes", in_block(address),
                        static_cast<long>(kMaxBytes)));
    barrier.pending--;
    Ref<const Message>& gathering = &block == thread.warp->block ? barrier.gathering : barrier.gathering_from_cluster;
    const Ref<const Message> message = publish(thread);
    gathering = join(gathering, order == Order::Relaxed ? of_asynchronous_agents(*message, block.agents()) : message);
    settle(block, address, barrier);
    // Others may run before the next instruction.
    scheduler.yield("its turn after an arrival", site);
}

// Kept for the reports: what a thread waits for is a plain string.
const char* wait_name(uint32_t address, uint32_t parity) {
    static std::map<std::pair<uint32_t, uint32_t>, std::string> names;
    std::string& name = names[{address, parity}];
    if (name.empty()) name = text("the mbarrier at byte %u, parity %u", in_block(address), parity);
    return name.c_str();
}

}  // namespace

void mbarrier_init(uint32_t address, uint32_t arrivals) {
    const Site site = RIGEL_CALLER;
    Block& block = *current->warp->block;
    uint8_t* const place = place_of(block, address);
    check_alignment(place, 8, "mbarrier", site);
    check_shared(place, 8, {current, Agent::Thread, Does::Write, site});
    if (arrivals == 0 || arrivals > kMaxTileCounters)
        fail(site, text("mbarrier_init: %u arrivals, 1 to %u can be counted", arrivals, kMaxTileCounters));
    if (block.mbarriers.count(without_rank(address)))
        fail(site, text("there is an mbarrier at byte %u already", in_block(address)));
    Mbarrier& barrier = block.mbarriers[without_rank(address)];
    barrier.arrivals = barrier.pending = arrivals;
    barrier.initialised = make_stamp(block.first + Agents::thread(current->index), current->clock, kStampWrite);
    barrier.initialised_at = site;
    settle(block, address, barrier);
}

void mbarrier_init_fence() { fence_proxy(*current, Memory::Shared); }

void mbarrier_arrive(uint32_t address, uint32_t expected_bytes) {
    arrive(*current->warp->block, address, expected_bytes, Order::Release, RIGEL_CALLER);
}

void mbarrier_arrive_cluster(uint32_t address, Order order) {
    const Site site = RIGEL_CALLER;
    arrive(block_of_address(address, site), address, 0, order, site);
}

namespace {
// False: the thread has given up.
bool wait_at(uint32_t address, uint32_t parity, Scope scope, Order order, Site site) {
    Thread& thread = *current;
    Block& block = *thread.warp->block;
    uint8_t* const place = place_of(block, address);
    check_alignment(place, 8, "mbarrier", site);
    if (parity > 1) fail(site, text("mbarrier_wait: parity %u", parity));
    for (;;) {
        Mbarrier& barrier = find(block, address, site);
        check_shared(place, 8, {&thread, Agent::Thread, Does::AtomicRead, site});
        if (barrier.parity != parity) {
            barrier.came_unseen = 0;
            const auto take_over = [&](const Ref<const Message>& message) {
                if (!message) return;
                const bool relaxed = order == Order::Relaxed;
                const Ref<const Message> taken = relaxed ? of_asynchronous_agents(*message, block.agents()) : message;
                acquire(thread, *taken);
            };
            take_over(barrier.ended);
            if (scope == Scope::Cluster) take_over(barrier.ended_in_cluster);
            return true;
        }
        if (thread.has_given_up) return false;
        barrier.waiting.push_back(&thread);
        scheduler.block(wait_name(address, parity), site);
    }
}
}  // namespace

uint64_t mbarrier_trap[2] = {};

void mbarrier_wait(uint32_t address, uint32_t parity, Scope scope, Order order) {
    wait_at(address, parity, scope, order, RIGEL_CALLER);
}

void mbarrier_wait_or_trap(uint32_t address, uint32_t parity, Scope scope, Order order, const char* name) {
    const Site site = RIGEL_CALLER;
    Thread& thread = *current;
    thread.gives_up = true;
    const bool ended = wait_at(address, parity, scope, order, site);
    thread.gives_up = false;
    if (ended) return;
    // The words are those of kernels/ptx/mbarrier_trap.cuh.
    if (auto* const record = reinterpret_cast<uint32_t*>(mbarrier_trap[0])) {
        const Block& block = *thread.warp->block;
        const Grid& grid = *block.grid;
        const dim3 size = grid.size;
        const auto index = static_cast<uint32_t>(block.index);
        const uint32_t words[] = {1,
                                  in_block(address),
                                  parity,
                                  index % size.x,
                                  index / size.x % size.y,
                                  index / size.x / size.y,
                                  size.x,
                                  size.y,
                                  size.z,
                                  thread.index,
                                  static_cast<uint32_t>(block.threads.size()),
                                  grid.shared_bytes,
                                  50};
        std::memcpy(record, words, sizeof words);
        std::strncpy(reinterpret_cast<char*>(record + 13), name, 31);
    }
    fail(site, text("trap: the wait for %s, the mbarrier at byte %u, parity %u, cannot end", name, in_block(address),
                    parity));
}

void check_mbarrier_for_copies(Block& block, uint32_t address, Site site) {
    const Mbarrier& barrier = find(block, address, site);
    uint8_t* const place = place_of(block, address);
    check_alignment(place, 8, "mbarrier", site);
    check_shared(place, 8, {current, Agent::BulkCopy, Does::AtomicUpdate, site});
    if (!ready_for_async_proxy(barrier.initialised, Memory::Shared, *current))
        fail(site,
             text("missing proxy fence: a copy counts at the mbarrier at byte %u before its initialisation is known to "
                  "it",
                  in_block(address)),
             {"initialised" + at_line(barrier.initialised_at),
              "the thread that did must call mbarrier_init_fence before the barrier that orders the two"});
}

void mbarrier_complete(Block& block, uint32_t address, uint32_t bytes, const Ref<const Message>& message, Scope scope,
                       Site site) {
    Mbarrier& barrier = find(block, address, site);
    barrier.bytes -= bytes;
    barrier.came = site;
    if (barrier.bytes < -kMaxBytes)
        fail(site, text("the mbarrier at byte %u has counted more bytes than it can", in_block(address)));
    // Bytes may come before the arrival that expects them; not in a phase that no arrival is left for.
    if (barrier.bytes < 0 && barrier.pending == 0)
        fail(site, text("%ld bytes more have come to the mbarrier at byte %u than its phase expects",
                        -static_cast<long>(barrier.bytes), in_block(address)));
    Ref<const Message>& gathering = scope == Scope::Block ? barrier.gathering : barrier.gathering_from_cluster;
    gathering = join(gathering, message);
    settle(block, address, barrier);
}

void check_mbarriers_at_end(const Block& block) {
    for (const auto& [address, barrier] : block.mbarriers)
        for (const Site came : {barrier.came, barrier.came_unseen})
            if (came)
                fail(came,
                     text("the block ends before anyone has waited at the mbarrier at byte %u for what this brought",
                          in_block(address)),
                     {"under another schedule it comes when the block's shared memory is gone"});
}

std::string describe_mbarriers(const Block& block) {
    std::string described;
    for (const auto& [address, barrier] : block.mbarriers)
        if (!barrier.waiting.empty())
            described += text(
                "\n    the mbarrier at byte %u, in a phase of parity %u, lacks %u of %u arrivals and %ld bytes",
                in_block(address), barrier.parity, barrier.pending, barrier.arrivals, static_cast<long>(barrier.bytes));
    return described;
}

}  // namespace interpreter
