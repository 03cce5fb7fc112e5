// cp.async.bulk, cp.async.bulk.tensor and st.async. As for cp.async, the checks are made when a copy is asked for, in
// the name of the agent of its warp's bulk copies, and the bytes move when the policy says: when nothing else can run
// or a wait needs them, at once, or at random.
#include "bulk_copy.h"

#include <algorithm>
#include <cstring>

#include "access.h"
#include "mbarrier.h"
#include "memory.h"
#include "report.h"
#include "scheduler.h"
#include "settings.h"
#include "shared_address.h"
#include "tensor_map.h"
#include "thread_order.h"
#include "twin_parts.h"

namespace interpreter {

namespace {

using Kind = BulkCopy::Kind;

std::vector<std::shared_ptr<BulkCopy>> under_way;  // oldest first

void move(const BulkCopy& copy) {
    for (const BulkCopy::Target& target : copy.targets) {
        for (const BulkCopy::Piece& piece : target.pieces) {
            if (copy.kind == Kind::FromRegisters) {
                std::memcpy(piece.shared, copy.value, piece.bytes);
            } else if (copy.kind == Kind::Store) {
                if (piece.global) std::memcpy(piece.global, piece.shared, piece.bytes);
            } else if (!piece.global) {
                std::memset(piece.shared, 0, piece.bytes);
            } else {
                std::memcpy(piece.shared, piece.global, piece.bytes);
                // Bytes that no one has written arrive as NaN, not as what the region holds.
                const size_t at = device_memory.offset(piece.global);
                if (!device_memory.all_written(at, piece.bytes))
                    for (uint32_t i = 0; i < piece.bytes; i++)
                        if (!device_memory.written[at + i]) piece.shared[i] = 0xff;
            }
        }
    }
}

void complete(BulkCopy& copy) {
    if (copy.done) return;
    copy.done = true;
    move(copy);
    Block& own = *copy.issuer->warp->block;
    own.bulk_copies_pending--;
    scheduler.note_progress();
    Thread* const running = current;
    current = copy.issuer;  // in whose name a check would fail
    const Serial agent = own.agents().bulk_copies(copy.issuer->index / 32, copy.turn);
    for (const BulkCopy::Target& target : copy.targets) {
        if (target.block != &own) target.block->bulk_copies_pending--;
        if (copy.kind == Kind::Store) continue;
        // The engine that copies tells every block alike; a store of another block is known to a wait of the cluster's
        // scope.
        const Scope scope = copy.kind == Kind::FromRegisters && target.block != &own ? Scope::Cluster : Scope::Block;
        mbarrier_complete(*target.block, target.barrier, copy.bytes, message_of_agent(own, agent, copy.clock), scope,
                          copy.site);
    }
    current = running;
    copy.targets.clear();
}

void forget_completed() {
    under_way.erase(std::remove_if(under_way.begin(), under_way.end(), [](const auto& copy) { return copy->done; }),
                    under_way.end());
}

void remove(size_t index) { under_way.erase(under_way.begin() + static_cast<ptrdiff_t>(index)); }

void begin(const std::shared_ptr<BulkCopy>& copy) {
    Block& own = *current->warp->block;
    own.bulk_copies_pending++;
    for (const BulkCopy::Target& target : copy->targets)
        if (target.block != &own) target.block->bulk_copies_pending++;
    if (settings.async == AsyncPolicy::Eager)
        complete(*copy);
    else
        under_way.push_back(copy);
}

std::shared_ptr<BulkCopy> make_copy(Kind kind, Site site) {
    auto copy = std::make_shared<BulkCopy>();
    copy->kind = kind;
    copy->issuer = current;
    copy->site = site;
    Warp& warp = *current->warp;
    copy->turn = warp.bulk_turn = (warp.bulk_turn + 1) % Agents::kBulkTurns;
    copy->clock = ++warp.bulk_clocks[copy->turn];
    if (copy->clock + 1 >= kLastClock)
        fail(site, "a warp has asked for more bulk copies than the race checker can count");
    return copy;
}

Access access_of(Does does, Site site) { return {current, Agent::BulkCopy, does, site}; }

void check_shared_side(const BulkCopy& copy, uint8_t* place, Site site) {
    check_shared(place, copy.bytes, access_of(copy.kind == Kind::Store ? Does::Read : Does::Write, site));
}

void check_map(const EncodedTensorMap& map, const void* at, int dimensions, uint32_t shared, Site site) {
    if (map.mark != EncodedTensorMap::kMark) fail(site, text("%p is not a tensor map", at));
    if (map.dimensions != dimensions)
        fail(site, text("%d coordinates for a tensor map of %u dimensions", dimensions, map.dimensions));
    const uint32_t alignment = map.swizzle ? 128u << map.swizzle : 128;
    if (shared % alignment)
        fail(site, text("a box at shared address %#x, which is not aligned to %u for its swizzle", shared, alignment));
}

// The box at `corner`, row by row: `visit(bytes from the box's start, global address or nullptr, bytes)`, of stretches
// that lie inside of the tensor or outside of it.
template <class Visit>
void walk_box(const EncodedTensorMap& map, const int* corner, Visit visit) {
    const uint32_t row_bytes = map.box[0] * map.element_bytes;
    uint32_t rows = 1;
    for (int i = 1; i < map.dimensions; i++) rows *= map.box[i];
    const int64_t width = static_cast<int64_t>(map.sizes[0]) + 1;
    // Elements of a row ahead of the tensor, in it and behind it.
    const int64_t first = corner[0], end = first + map.box[0];
    const int64_t in_first = std::clamp<int64_t>(first, 0, width), in_end = std::clamp<int64_t>(end, 0, width);
    for (uint32_t row = 0; row < rows; row++) {
        uint64_t address = map.base;
        bool inside = in_first < in_end;
        uint32_t rest = row;
        for (int i = 1; i < map.dimensions; i++) {
            const int64_t at = corner[i] + static_cast<int64_t>(rest % map.box[i]);
            rest /= map.box[i];
            inside = inside && at >= 0 && at <= static_cast<int64_t>(map.sizes[i]);
            address += static_cast<uint64_t>(at) * map.strides[i - 1];
        }
        const uint32_t start = row * row_bytes, bytes = map.element_bytes;
        if (!inside) {
            visit(start, nullptr, row_bytes);
            continue;
        }
        const auto ahead = static_cast<uint32_t>(in_first - first) * bytes,
                   within = static_cast<uint32_t>(in_end - in_first) * bytes;
        if (ahead) visit(start, nullptr, ahead);
        visit(start + ahead, reinterpret_cast<uint8_t*>(address + static_cast<uint64_t>(in_first) * bytes), within);
        if (ahead + within < row_bytes) visit(start + ahead + within, nullptr, row_bytes - ahead - within);
    }
}

uint32_t box_bytes(const EncodedTensorMap& map) {
    uint32_t bytes = map.element_bytes;
    for (int i = 0; i < map.dimensions; i++) bytes *= map.box[i];
    return bytes;
}

// Cuts a stretch of the box into pieces that the swizzle keeps together.
void add_pieces(std::vector<BulkCopy::Piece>& pieces, const EncodedTensorMap& map, uint8_t* arena, uint32_t shared,
                uint32_t start, uint8_t* global, uint32_t bytes) {
    while (bytes > 0) {
        const uint32_t address = shared + start;
        const uint32_t here = map.swizzle ? std::min(bytes, 16 - address % 16) : bytes;
        pieces.push_back({arena + swizzled(address, map.swizzle), global, here});
        start += here;
        bytes -= here;
        if (global) global += here;
    }
}

// Earlier grids store in the ordinary way, for all that a kernel knows of them.
void check_fence_behind_wait(Site site) {
    if (current->waited_without_fence)
        fail(site,
             "missing proxy fence: a bulk load behind grid_dependency_wait, of what earlier work may have stored in "
             "the ordinary way",
             {"fence_proxy_async_global comes between the two, in the thread that asks for the load"});
}

void load_box(uint32_t shared, const void* map_address, const int* at, int dimensions, uint32_t barrier,
              uint32_t blocks, Site site) {
    EncodedTensorMap map;
    std::memcpy(&map, map_address, sizeof map);
    check_map(map, map_address, dimensions, without_rank(shared), site);
    check_fence_behind_wait(site);
    Cluster& cluster = *current->warp->block->cluster;
    if (blocks >> cluster.blocks.size() || blocks == 0)
        fail(site, text("a multicast to blocks %#x of a cluster of %zu", blocks, cluster.blocks.size()));
    auto copy = make_copy(Kind::Load, site);
    copy->bytes = box_bytes(map);
    walk_box(map, at, [&](uint32_t, uint8_t* global, uint32_t bytes) {
        if (global) check_global(global, bytes, access_of(Does::CopyRead, site));
    });
    for (uint32_t rank = 0; blocks >> rank; rank++) {
        if (!(blocks >> rank & 1)) continue;
        Block& block = block_of_address(without_rank(shared) | (rank + 1) << kRankShift, site);
        uint8_t* const arena = shared_memory.base + block.arena * kArenaBytes;
        check_shared_side(*copy, arena + without_rank(shared), site);
        check_mbarrier_for_copies(block, barrier, site);
        copy->targets.push_back({&block, without_rank(barrier), {}});
        walk_box(map, at, [&](uint32_t start, uint8_t* global, uint32_t bytes) {
            add_pieces(copy->targets.back().pieces, map, arena, without_rank(shared), start, global, bytes);
        });
    }
    begin(copy);
}

// Where a load goes that is not multicast: to the block that its address names.
uint32_t only_block(uint32_t shared, Site site) { return 1u << block_of_address(shared, site).rank; }

void check_bulk(const void* global, uint32_t shared, uint32_t bytes, Site site) {
    if (bytes == 0 || bytes % 16 || shared % 16 || reinterpret_cast<uintptr_t>(global) % 16)
        fail(site, text("a bulk copy of %u bytes between %p and shared address %#x: all must be multiples of 16", bytes,
                        global, shared));
}

}  // namespace

void fence_proxy_async_shared() { fence_proxy(*current, Memory::Shared); }

void fence_proxy_async_global() {
    fence_proxy(*current, Memory::Global);
    current->waited_without_fence = false;
}

void bulk_load(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier) {
    const Site site = RIGEL_CALLER;
    check_bulk(global, shared, bytes, site);
    check_fence_behind_wait(site);
    Block& block = block_of_address(shared, site);
    auto copy = make_copy(Kind::Load, site);
    copy->bytes = bytes;
    check_global(global, bytes, access_of(Does::Read, site));
    uint8_t* const place = shared_pointer(shared, site);
    check_shared_side(*copy, place, site);
    check_mbarrier_for_copies(block, barrier, site);
    copy->targets.push_back(
        {&block, without_rank(barrier), {{place, static_cast<uint8_t*>(const_cast<void*>(global)), bytes}}});
    begin(copy);
}

void tensor_load(uint32_t shared, const void* map, const int* at, int dimensions, uint32_t barrier) {
    const Site site = RIGEL_CALLER;
    load_box(shared, map, at, dimensions, barrier, only_block(shared, site), site);
}

void tensor_load_multicast(uint32_t shared, const void* map, const int* at, int dimensions, uint32_t barrier,
                           uint32_t blocks) {
    load_box(shared, map, at, dimensions, barrier, blocks, RIGEL_CALLER);
}

void store_async(uint32_t shared, const void* value, uint32_t bytes, uint32_t barrier) {
    const Site site = RIGEL_CALLER;
    Block& block = block_of_address(shared, site);
    if (&block_of_address(barrier, site) != &block)
        fail(site, "the place and the mbarrier of a store_async lie in different blocks");
    auto copy = make_copy(Kind::FromRegisters, site);
    copy->bytes = bytes;
    std::memcpy(copy->value, value, bytes);
    uint8_t* const place = shared_pointer(shared, site);
    check_alignment(place, bytes, "written", site);
    check_shared_side(*copy, place, site);
    check_mbarrier_for_copies(block, barrier, site);
    copy->targets.push_back({&block, without_rank(barrier), {{place, nullptr, bytes}}});
    begin(copy);
}

namespace {
void begin_store(const std::shared_ptr<BulkCopy>& copy) {
    current->warp->bulk_clocks[copy->turn] = copy->clock + 1;  // the accesses of global memory
    current->open_bulk_stores.push_back(copy);
}
}  // namespace

void bulk_store(void* global, uint32_t shared, uint32_t bytes) {
    const Site site = RIGEL_CALLER;
    check_bulk(global, shared, bytes, site);
    auto copy = make_copy(Kind::Store, site);
    copy->bytes = bytes;
    uint8_t* const place = shared_pointer(shared, site);
    check_shared_side(*copy, place, site);
    copy->targets.push_back({current->warp->block, 0, {{place, static_cast<uint8_t*>(global), bytes}}});
    begin_store(copy);
    check_global(global, bytes, access_of(Does::Write, site));
    begin(copy);
}

void tensor_store(const void* map_address, const int* at, int dimensions, uint32_t shared) {
    const Site site = RIGEL_CALLER;
    EncodedTensorMap map;
    std::memcpy(&map, map_address, sizeof map);
    check_map(map, map_address, dimensions, shared, site);
    auto copy = make_copy(Kind::Store, site);
    copy->bytes = box_bytes(map);
    uint8_t* const arena = shared_pointer(shared, site) - without_rank(shared);
    check_shared_side(*copy, arena + shared, site);
    copy->targets.push_back({current->warp->block, 0, {}});
    begin_store(copy);
    walk_box(map, at, [&](uint32_t start, uint8_t* global, uint32_t bytes) {
        if (!global) return;
        check_global(global, bytes, access_of(Does::Write, site));
        add_pieces(copy->targets[0].pieces, map, arena, shared, start, global, bytes);
    });
    begin(copy);
}

void bulk_commit() {
    Thread& thread = *current;
    thread.bulk_store_groups.push_back(std::move(thread.open_bulk_stores));
    thread.open_bulk_stores.clear();
}

void bulk_wait(int pending, BulkWait until) {
    Thread& thread = *current;
    const Agents agents = thread.warp->block->agents();
    const auto& groups = thread.bulk_store_groups;
    size_t& finished = until == BulkWait::Read ? thread.bulk_groups_read : thread.bulk_groups_written;
    for (; finished + static_cast<size_t>(pending) < groups.size(); finished++) {
        for (const auto& copy : groups[finished]) {
            complete(*copy);
            const Serial agent = agents.bulk_copies(thread.index / 32, copy->turn);
            learn_agent(thread, agent, until == BulkWait::Read ? copy->clock : copy->clock + 1);
        }
    }
    thread.bulk_groups_read = std::max(thread.bulk_groups_read, thread.bulk_groups_written);
    forget_completed();
}

void leave_bulk_copies(Thread& thread) {
    auto& groups = thread.bulk_store_groups;
    groups.push_back(std::move(thread.open_bulk_stores));
    for (size_t group = thread.bulk_groups_read; group < groups.size(); group++)
        if (!groups[group].empty())
            fail(groups[group][0]->site, "a thread returns before it has waited for its bulk store",
                 {"shared memory is gone with the block: bulk_commit, then bulk_wait_read or bulk_wait"});
}

// ---- for the scheduler
// -----------------------------------------------------------------------------------------------

bool complete_a_bulk_copy() {
    if (under_way.empty()) return false;
    const size_t index = settings.async == AsyncPolicy::Random ? shuffle_source.below(under_way.size()) : 0;
    const std::shared_ptr<BulkCopy> copy = under_way[index];
    remove(index);
    complete(*copy);
    return true;
}

void complete_bulk_copies_at_random() {
    if (settings.async == AsyncPolicy::Random && !under_way.empty() && shuffle_source.below(4) == 0)
        complete_a_bulk_copy();
}

void check_bulk_copies_at_end(const Block& block) {
    if (block.bulk_copies_pending == 0) return;
    // What left its registers for another block arrives whether or not it has ended: here, at the latest as it does.
    for (const auto& copy : under_way) {
        const Block& own = *copy->issuer->warp->block;
        if (copy->kind == Kind::FromRegisters && &own == &block && copy->targets[0].block != &block) complete(*copy);
    }
    forget_completed();
    for (const auto& copy : under_way) {
        const bool reaches = std::any_of(copy->targets.begin(), copy->targets.end(),
                                         [&](const auto& target) { return target.block == &block; });
        if (!copy->done && (reaches || copy->issuer->warp->block == &block))
            fail(copy->site,
                 copy->kind == Kind::FromRegisters ? "the block ends while this store is on its way to it"
                                                   : "the block ends while this bulk load is under way",
                 {"someone must wait at its mbarrier"});
    }
}

void forget_bulk_copies() { under_way.clear(); }

}  // namespace interpreter
