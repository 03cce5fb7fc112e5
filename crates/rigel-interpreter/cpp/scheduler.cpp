#include "scheduler.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>

#include "bulk_copy.h"
#include "context_switch.h"
#include "mbarrier.h"
#include "memory.h"
#include "report.h"
#include "settings.h"
#include "stack_overflow.h"
#include "stacks.h"
#include "thread_order.h"
#include "twin_parts.h"
#include "warpgroup.h"
#include "work.h"

namespace interpreter {

Scheduler scheduler;
Thread* current = nullptr;
Settings settings;
Random shuffle_source;

namespace {

// Blocks that run side by side. More find more interleavings, fewer keep caches warm.
constexpr uint32_t kMaxResidentBlocks = 8, kMaxResidentThreads = 4096;
constexpr size_t kShiftBytes = 5 * 64;
// Yields in a row, per live thread, after which nothing is expected to change.
constexpr uint64_t kIdleYieldsPerThread = 2000;

void thread_main() {
    const Grid& grid = *current->warp->block->grid;
    grid.kernel->call(grid.kernel->function, const_cast<void**>(grid.arguments.data()));
    scheduler.exit_thread();
}

uint3 coordinates(uint64_t index, dim3 size) {
    return {static_cast<unsigned>(index % size.x), static_cast<unsigned>(index / size.x % size.y),
            static_cast<unsigned>(index / size.x / size.y)};
}

uint64_t count(dim3 size) { return static_cast<uint64_t>(size.x) * size.y * size.z; }

void prepare(Grid& grid) {
    const auto threads = static_cast<uint32_t>(count(grid.block_size));
    grid.blocks = count(grid.size);
    grid.order.resize(grid.blocks / count(grid.cluster_size));
    std::iota(grid.order.begin(), grid.order.end(), 0u);
    uint32_t most = std::min(kMaxResidentBlocks, std::max(2u, kMaxResidentThreads / threads));
    if (settings.seed != 0) {
        for (size_t i = grid.order.size(); i > 1; i--)
            std::swap(grid.order[i - 1], grid.order[shuffle_source.below(i)]);
        most = 1 + static_cast<uint32_t>(shuffle_source.below(most));
    }
    most = std::max(most, static_cast<uint32_t>(count(grid.cluster_size)));
    grid.max_resident = grid.cooperative ? static_cast<uint32_t>(grid.blocks) : most;
}

}  // namespace

bool Scheduler::run(const std::vector<Grid*>& chain) {
    if (free_arenas_.empty())
        for (uint32_t arena = 0; arena < kArenas; arena++)
            free_arenas_.push_back(static_cast<uint32_t>(kArenas) - 1 - arena);
    watch_for_stack_overflow();
    chain_ = chain;
    failed_ = false;
    idle_yields_ = 0;
    watching_registers = false;
    for (Grid* grid : chain_) prepare(*grid);
    starts_due_ = true;
    while (!failed_) {
        if (starts_due_) start_blocks();
        if (ready_.empty() && finish_a_bulk_copy()) continue;
        if (ready_.empty() && wake_one_that_gives_up()) continue;
        if (ready_.empty()) {
            if (!std::all_of(chain_.begin(), chain_.end(), [](Grid* grid) { return grid->done(); }))
                report_stuck("deadlock");
            break;
        }
        current = pick();
        rigel_switch_context(&main_stack_, current->stack_pointer);
        current = nullptr;
    }
    main_stack_ = nullptr;
    forget_bulk_copies();
    release_everything();
    return !failed_;
}

// Nothing can go on. On a GPU the bound of a wait would end now.
bool Scheduler::wake_one_that_gives_up() {
    for (Block* block : resident_)
        for (Thread& thread : block->threads)
            if (thread.gives_up && !thread.has_given_up) {
                thread.has_given_up = true;
                wake(thread);
                return true;
            }
    return false;
}

// From the main loop, where no thread runs that a failed check could end.
bool Scheduler::finish_a_bulk_copy() {
    main_stack_ = nullptr;
    bool finished = true;
    try {
        finished = complete_a_bulk_copy();
    } catch (const CheckFailed&) {
        failed_ = true;
        current = nullptr;
    }
    return finished;
}

// ---- blocks
// ----------------------------------------------------------------------------------------------------------

bool Scheduler::may_start(size_t position) const {
    if (position == 0) return true;
    const Grid& ahead = *chain_[position - 1];
    return ahead.triggered == ahead.blocks;
}

void Scheduler::start_blocks() {
    starts_due_ = false;
    resident_.erase(std::remove_if(resident_.begin(), resident_.end(),
                                   [this](Block* block) { return block->live_threads == 0 && (release(block), true); }),
                    resident_.end());
    for (size_t position = 0; position < chain_.size() && may_start(position); position++) {
        Grid& grid = *chain_[position];
        const auto blocks = static_cast<uint32_t>(count(grid.cluster_size));
        while (grid.started < grid.blocks && grid.resident + blocks <= grid.max_resident &&
               free_arenas_.size() >= blocks)
            start_cluster(grid);
    }
}

void Scheduler::start_cluster(Grid& grid) {
    const dim3 each = grid.cluster_size;
    const dim3 clusters{grid.size.x / each.x, grid.size.y / each.y, grid.size.z / each.z};
    const uint3 at = coordinates(grid.order[grid.started / count(each)], clusters);
    auto cluster = std::make_shared<Cluster>();
    cluster->first = history.next_serial();
    for (uint64_t rank = 0; rank < count(each); rank++) {
        const uint3 in_cluster = coordinates(rank, each);
        const uint64_t x = at.x * each.x + in_cluster.x, y = at.y * each.y + in_cluster.y,
                       z = at.z * each.z + in_cluster.z;
        start_block(grid, x + (y + z * grid.size.y) * grid.size.x, cluster);
    }
}

void Scheduler::start_block(Grid& grid, uint64_t index, const std::shared_ptr<Cluster>& cluster) {
    const auto threads = static_cast<uint32_t>(count(grid.block_size));
    const Agents agents{threads};
    auto* block = new Block;
    resident_.push_back(block);
    block->grid = &grid;
    block->index = index;
    block->cluster = cluster;
    block->rank = static_cast<uint32_t>(cluster->blocks.size());
    cluster->blocks.push_back(block);
    cluster->live_threads += threads;
    grid.started++;
    grid.resident++;
    block->first = history.begin_block(grid.work, block->index, agents.count());
    block->live_threads = threads;
    block->arena = free_arenas_.back();
    free_arenas_.pop_back();

    const size_t arena = block->arena * kArenaBytes + kArenaMargin;
    std::memset(shared_memory.base + arena, 0xff, grid.shared_bytes);  // NaN in every floating-point format
    std::memset(shared_memory.written + arena, 0, grid.shared_bytes);
    forget_messages(shared_memory.base + arena, grid.shared_bytes);

    Ref<BlockClocks> clocks(new BlockClocks);
    clocks->of.assign(agents.count(), 0);
    Ref<View> view(new View);
    view->own_block = Ref<const BlockClocks>(clocks.get());
    view->finished = grid.known_at_start;

    const uint3 block_at = coordinates(block->index, grid.size);
    block->warps.resize(agents.warps());
    block->warpgroups.resize(agents.warpgroups());
    block->threads = std::vector<Thread>(threads);
    for (uint32_t index = 0; index < threads; index++) {
        Thread& thread = block->threads[index];
        thread.stack = take_stack();
        auto* top = new (thread.stack + kStackBytes - kBuiltinBytes) BuiltinVariables;
        *top = {coordinates(index, grid.block_size), block_at, grid.block_size, grid.size, shared_memory.base + arena};
        // Frames of different threads at different distances from a power of two: else they would share cache sets.
        thread.stack_pointer = fresh_context(reinterpret_cast<uint8_t*>(top) - index % 32 * kShiftBytes, thread_main);
        Warp& warp = block->warps[index / 32];
        warp.block = block;
        warp.first_thread = index / 32 * 32;
        warp.existing |= 1u << index % 32;
        thread.warp = &warp;
        thread.lane = index % 32;
        thread.index = index;
        thread.view = Ref<const View>(view.get());
    }
    for (Warp& warp : block->warps) {
        warp.ready = warp.existing;
        add_ready(warp);
    }
}

const Block* Scheduler::find_block(Serial first) const {
    for (const Block* block : resident_)
        if (block->first == first && block->live_threads > 0) return block;
    return nullptr;
}

void Scheduler::finish_block(Block& block) {
    check_bulk_copies_at_end(block);
    check_mbarriers_at_end(block);
    block.cluster->blocks[block.rank] = nullptr;
    Grid& grid = *block.grid;
    grid.finished++;
    grid.resident--;
    if (!block.triggered) {
        block.triggered = true;
        grid.triggered++;
    }
    starts_due_ = true;
    if (grid.done()) finish_grid(grid);
}

void Scheduler::finish_grid(Grid& grid) {
    grid.known_at_end = with_finished(grid.known_at_end, grid.work);
    for (Grid* later : chain_) {
        if (later->ahead != &grid) continue;
        for (Thread* thread : later->waiting_for_grid_ahead) wake(*thread);
        later->waiting_for_grid_ahead.clear();
    }
}

void Scheduler::release(Block* block) {
    if (running_warp_ && running_warp_->block == block) running_warp_ = nullptr;
    free_arenas_.push_back(block->arena);
    for (Thread& thread : block->threads) give_back_stack(thread.stack);
    delete block;
}

void Scheduler::release_everything() {
    for (Block* block : resident_) release(block);
    resident_.clear();
    ready_.clear();
}

// ---- threads
// ---------------------------------------------------------------------------------------------------------

void Scheduler::add_ready(Warp& warp) {
    if (warp.ready_index >= 0) return;
    warp.ready_index = static_cast<int>(ready_.size());
    ready_.push_back(&warp);
}

Thread* Scheduler::pick() {
    Warp* warp = running_warp_;
    const bool shuffled = settings.seed != 0;
    if (!warp || warp->ready == 0 || leave_warp_ || (shuffled && shuffle_source.below(16) == 0)) {
        cursor_ = shuffled ? shuffle_source.below(ready_.size()) : (cursor_ + 1) % ready_.size();
        warp = running_warp_ = ready_[cursor_];
        leave_warp_ = false;
    }
    // The next ready lane after a rotation: of the last lane, or of a random number.
    const uint32_t turn = shuffled ? static_cast<uint32_t>(shuffle_source.below(32)) : (warp->last_lane + 1) % 32;
    const uint32_t turned = turn ? warp->ready >> turn | warp->ready << (32 - turn) : warp->ready;
    const uint32_t lane = (static_cast<uint32_t>(__builtin_ctz(turned)) + turn) % 32;
    warp->last_lane = lane;
    warp->ready &= ~(1u << lane);
    if (warp->ready == 0) {
        ready_.back()->ready_index = warp->ready_index;
        ready_[static_cast<size_t>(warp->ready_index)] = ready_.back();
        ready_.pop_back();
        warp->ready_index = -1;
    }
    return &warp->block->threads[warp->first_thread + lane];
}

// The running thread cannot go on now: continue another one, or the main loop when it has something to do.
void Scheduler::switch_from(Thread& thread) {
    complete_bulk_copies_at_random();
    if (ready_.empty() || starts_due_) {
        rigel_switch_context(&thread.stack_pointer, main_stack_);
        return;
    }
    Thread* next = pick();
    if (next == &thread) return;
    current = next;
    rigel_switch_context(&thread.stack_pointer, next->stack_pointer);
}

void Scheduler::block(const char* waits_for, Site site) {
    Thread& thread = *current;
    thread.waits_for = waits_for;
    thread.waits_at = site;
    switch_from(thread);
}

void Scheduler::wake(Thread& thread) { wake(*thread.warp, 1u << thread.lane); }

void Scheduler::wake(Warp& warp, uint32_t lanes) {
    note_progress();
    warp.ready |= lanes;
    add_ready(warp);
}

void Scheduler::yield(const char* waits_for, Site site) {
    Thread& thread = *current;
    uint64_t live = 0;
    for (const Block* block : resident_) live += block->live_threads;
    thread.waits_for = waits_for;
    thread.waits_at = site;
    if (++idle_yields_ > kIdleYieldsPerThread * live) {
        report_stuck("livelock");
        abandon();
    }
    thread.warp->ready |= 1u << thread.lane;
    add_ready(*thread.warp);
    leave_warp_ = true;
    switch_from(thread);
}

void Scheduler::abandon() {
    if (!main_stack_) throw CheckFailed{};
    failed_ = true;
    void* never_resumed;
    rigel_switch_context(&never_resumed, main_stack_);
    __builtin_unreachable();
}

void Scheduler::exit_thread() {
    Thread& thread = *current;
    Warp& warp = *thread.warp;
    Block& block = *warp.block;
    thread.waits_for = "nothing (it has returned)";
    thread.waits_at = 0;
    finish_copies(thread);
    warp.exited |= 1u << thread.lane;
    block.live_threads--;
    note_progress();
    check_collectives_at_exit(thread);
    leave_barriers(thread);
    leave_bulk_copies(thread);
    leave_warpgroup(thread);
    leave_cluster(thread);
    Grid& grid = *block.grid;
    grid.known_at_end = join(grid.known_at_end, thread.view->finished);
    if (block.live_threads == 0) finish_block(block);
    switch_from(thread);
    __builtin_unreachable();
}

// ---- when nothing can go on
// ------------------------------------------------------------------------------------------

void Scheduler::report_stuck(const char* kind) {
    failed_ = true;
    struct Place {
        std::string what;
        std::vector<uint32_t> threads;
    };
    std::string message = text("%s: no thread can go on", kind);
    uint64_t unstarted = 0;
    for (const Grid* grid : chain_) unstarted += grid->blocks - grid->started;
    size_t described = 0;
    for (const Block* block : resident_) {
        if (block->live_threads == 0) continue;
        if (++described > 4) {
            message += "\n  ... and further blocks";
            break;
        }
        std::map<std::pair<std::string, Site>, std::vector<uint32_t>> places;
        for (const Thread& thread : block->threads) places[{thread.waits_for, thread.waits_at}].push_back(thread.index);
        const uint3 at = coordinates(block->index, block->grid->size);
        message += text("\n  block (%u,%u,%u) of %s (work %lu):", at.x, at.y, at.z, block->grid->kernel->name,
                        static_cast<unsigned long>(block->grid->work));
        for (const auto& [place, threads] : places) {
            message += text("\n    %zu thread%s wait for %s", threads.size(), threads.size() == 1 ? "" : "s",
                            place.first.c_str());
            if (place.second) message += ", at " + source_line(place.second);
            message += "; threads";
            for (size_t i = 0; i < threads.size();) {
                size_t last = i;
                while (last + 1 < threads.size() && threads[last + 1] == threads[last] + 1) last++;
                message += last > i ? text(" %u-%u", threads[i], threads[last]) : text(" %u", threads[i]);
                i = last + 1;
            }
        }
        message += describe_mbarriers(*block);
    }
    if (unstarted)
        message += text(
            "\n  %lu blocks have not started: a device runs as many at a time as fit, so a block may wait for "
            "another only in a cooperative launch",
            static_cast<unsigned long>(unstarted));
    report(message);
}

}  // namespace interpreter
