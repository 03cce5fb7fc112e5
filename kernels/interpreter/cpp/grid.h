// What runs: grids of blocks of warps of threads.
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "counters.h"
#include "order.h"
#include "site.h"
#include "twins.h"

namespace interpreter {

struct Block;
struct Grid;
struct Warp;
struct Thread;

struct AsyncCopy {
    uint8_t* destination;
    const uint8_t* source;
    uint32_t bytes, bytes_read;
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
};

struct Barrier {
    uint32_t arrived = 0;
    uint32_t expected = 0;  // 0: every thread that has not exited
    Site site = 0;          // of the first to arrive
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
    std::vector<Thread> threads;
    Barrier barriers[16];
};

struct Grid {
    const Kernel* kernel = nullptr;
    dim3 size, block_size;
    uint32_t shared_bytes = 0;
    std::vector<uint8_t> argument_bytes;
    std::vector<void*> arguments;
    bool cooperative = false;
    bool starts_early = false;  // launched with programmatic stream serialization

    uint64_t work = 0;  // identity in the history
    Ref<const FinishedWork> known_at_start;
    Ref<const FinishedWork> known_at_end;  // joined over its threads as they exit
    Grid* ahead = nullptr;                 // the grid that griddepcontrol.wait waits for, if it still matters

    std::vector<uint32_t> order;  // of block starts
    uint64_t blocks = 0, started = 0, finished = 0, triggered = 0;
    uint32_t resident = 0, most_resident = 0;
    LaunchCounters counters;
    std::vector<Thread*> waiting_for_grid_ahead;
    bool done() const { return finished == blocks; }
};

}  // namespace interpreter
