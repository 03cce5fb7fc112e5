// What runs: grids of blocks of warps of threads.
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "arguments.h"
#include "counters.h"
#include "order.h"
#include "site.h"
#include "twins.h"

namespace interpreter {

struct Block;
struct BulkCopy;  // bulk_copy.h
struct Grid;
struct MatrixOperation;  // warpgroup.h
struct Warp;
struct Thread;

// The agents of a block of so many threads: how their serial numbers follow on the block's first.
struct Agents {
    uint32_t threads;

    static Serial thread(uint32_t index) { return 2 * index; }
    static Serial copies(uint32_t index) { return 2 * index + 1; }
    // The bulk copies of a warp's threads take turns at some agents: each ends for itself, and to have waited for one
    // says nothing of an earlier one, unless a whole round lies between.
    static constexpr uint32_t kBulkTurns = 8;
    Serial bulk_copies(uint32_t warp, uint32_t turn) const { return 2 * threads + warp * kBulkTurns + turn; }
    uint32_t warp_of_bulk_copies(Serial agent) const { return static_cast<uint32_t>(agent - 2 * threads) / kBulkTurns; }
    Serial matrix(uint32_t warpgroup) const { return bulk_copies(warps(), 0) + warpgroup; }
    uint32_t warps() const { return (threads + 31) / 32; }
    uint32_t warpgroups() const { return (threads + 127) / 128; }
    uint32_t count() const { return static_cast<uint32_t>(matrix(warpgroups())); }
    // Whether what this one writes is ordered by barriers alone, or must be fenced for the asynchronous proxy.
    bool of_generic_proxy(Serial agent) const { return agent < 2 * threads; }
};

struct AsyncCopy {
    uint8_t* destination;
    const uint8_t* source;
    uint32_t bytes, bytes_read;
};

// When a thread last made its writes visible to the asynchronous proxy: its own writes up to `clock`, the writes of
// its cp.async up to `copies`.
struct ProxyFence {
    Clock clock, copies;
};

// Registers of a thread that MMA instructions of its warpgroup work on: on the CPU, variables on its stack.
struct MatrixRegisters {
    const uint8_t* begin;
    size_t bytes;
    Clock last_use;  // by the newest instruction that writes them; 0: they are only read
    bool written;    // otherwise than by MMA instructions, since the last warpgroup_fence
};

struct Thread {
    void* stack_pointer = nullptr;
    uint8_t* stack = nullptr;  // its low end; at the high end lie its BuiltinVariables, where kernels look for them
    Warp* warp = nullptr;
    uint32_t lane = 0, index = 0;  // in the warp, in the block

    Ref<const View> view;  // of all agents but this thread and its copies
    Clock clock = 1;
    Clock copies_issued = 0, copies_seen = 0;  // clock of this thread's asynchronous agent: issued, waited for
    Ref<const Message> released;               // what a relaxed store publishes: the state at the last fence
    Ref<const Message> to_acquire;             // what relaxed loads have seen: acquired by the next fence

    std::vector<AsyncCopy> open_copies;
    std::deque<std::vector<AsyncCopy>> copy_groups;
    std::vector<std::shared_ptr<BulkCopy>> open_bulk_stores;
    std::vector<std::vector<std::shared_ptr<BulkCopy>>> bulk_store_groups;
    size_t bulk_groups_read = 0, bulk_groups_written = 0;  // of them, whose reads and writes it has waited for
    std::vector<ProxyFence> proxy_fences[2];  // by Memory
    bool waited_without_fence = false;  // for earlier grids, and no fence_proxy_async_global since
    std::vector<MatrixRegisters> matrix_registers;
    Clock matrix_seen = 0;          // the newest MMA instruction that this thread has waited for
    bool warpgroup_fenced = false;  // it has called warpgroup_fence
    bool any_at_barrier = false;  // what the last barrier with values found
    bool arrived_at_cluster = false;
    uint64_t cluster_phase = 0;  // that it arrived in

    bool gives_up = false;    // it waits at an mbarrier, and traps where the wait cannot end
    bool has_given_up = false;

    const char* waits_for = "its start";
    Site waits_at = 0;
};

// An instruction that lanes of a warp execute together: the last lane to arrive computes for all.
struct Collective {
    uint32_t lanes = 0, arrived = 0;
    const char* what = nullptr;
    Site site = 0;  // of the first to arrive
    void* operands[32];
};

struct Warp {
    Block* block = nullptr;
    uint32_t first_thread = 0;
    uint32_t existing = 0, ready = 0, exited = 0;  // bits by lane
    uint32_t last_lane = 0;                        // that ran
    int ready_index = -1;                          // in the scheduler's list; -1: no lane is ready
    std::vector<std::unique_ptr<Collective>> collectives;
    // Which lanes have arrived at each unfinished barrier, and where.
    uint32_t barrier_lanes[16] = {};
    Site barrier_site[16] = {};
    uint32_t bulk_turn = 0;                       // of its threads' newest bulk copy
    Clock bulk_clocks[Agents::kBulkTurns] = {};   // of the agents of those
};

// Four warps, and their MMA instructions under way.
struct Warpgroup {
    uint32_t arrived = 0;  // at the instruction that they execute together
    const char* what = nullptr;
    Site site = 0;  // of the first to arrive
    void* operands[128];
    Clock issued = 0;                                   // clock of the agent: MMA instructions
    std::deque<std::shared_ptr<MatrixOperation>> pending;  // not computed yet, in order
    std::vector<Clock> group_ends;                      // of each committed group its newest instruction
    uint32_t registers = 0;                             // of each thread; 0: as at the start
};

// A barrier in shared memory that counts arrivals and bytes.
struct Mbarrier {
    uint32_t arrivals = 0;  // a phase
    uint32_t pending = 0;   // of them
    int64_t bytes = 0;      // expected and not yet come
    uint32_t parity = 0;    // of the phase under way
    Stamp initialised = 0;  // by whom and when
    Site initialised_at = 0;
    // A copy whose bytes came in the phase under way, and in one that has ended and that no thread has waited for.
    Site came = 0, came_unseen = 0;
    // What this block's threads and all copies released in the phase under way and the one before; then other blocks'.
    Ref<const Message> gathering, ended, gathering_from_cluster, ended_in_cluster;
    std::vector<Thread*> waiting;
};

// Blocks that run together. Every block is in one, most alone.
struct Cluster {
    std::vector<Block*> blocks;  // by rank; nullptr: it has ended
    Serial first = 0;            // of its first block
    uint32_t live_threads = 0;
    uint32_t arrived = 0;        // at the barrier of the cluster
    uint64_t phase = 0;
    Ref<const Message> gathering, ended;
    std::vector<Thread*> waiting;
};

struct Barrier {
    uint32_t arrived = 0;
    uint32_t expected = 0;  // 0: every thread that has not exited
    Site site = 0;          // of the first to arrive
    bool reduces = false;   // its threads bring a value each
    bool any = false;       // of those that have arrived
    std::vector<Thread*> participants, waiting;
};

struct Block {
    Grid* grid = nullptr;
    uint64_t index = 0;
    Serial first = 0;  // serial of thread 0
    uint32_t live_threads = 0;
    uint32_t arena = 0;  // which slice of the shared region
    bool triggered = false;  // a thread has called griddepcontrol.launch_dependents, or all have returned
    std::vector<Warp> warps;
    std::vector<Warpgroup> warpgroups;
    std::vector<Thread> threads;
    Barrier barriers[16];
    std::unordered_map<uint32_t, Mbarrier> mbarriers;  // by shared address
    std::shared_ptr<Cluster> cluster;
    uint32_t rank = 0;                  // in the cluster
    uint32_t bulk_copies_pending = 0;   // that it asked for, or that touch its shared memory
    std::vector<Thread*> waiting_for_registers;

    Agents agents() const { return {static_cast<uint32_t>(threads.size())}; }
};

struct Grid {
    const Kernel* kernel = nullptr;
    dim3 size, block_size, cluster_size;
    uint32_t shared_bytes = 0;
    ArgumentBytes argument_bytes;
    std::vector<void*> arguments;
    bool cooperative = false;
    bool starts_early = false;  // launched with programmatic stream serialization

    uint64_t work = 0;  // identity in the history
    Ref<const FinishedWork> known_at_start;
    Ref<const FinishedWork> known_at_end;  // joined over its threads as they exit
    Grid* ahead = nullptr;                 // the grid that griddepcontrol.wait waits for, if it still matters

    std::vector<uint32_t> order;  // in which its clusters start
    uint64_t blocks = 0, started = 0, finished = 0, triggered = 0;
    uint32_t resident = 0, max_resident = 0;
    LaunchCounters counters;
    std::vector<Thread*> waiting_for_grid_ahead;
    bool done() const { return finished == blocks; }
};

}  // namespace interpreter
