// A pipeline of stages in shared memory between one producer thread, which fills them by asynchronous copies, and
// consumer warps. Each stage has two mbarriers: `full` completes with the bytes of the copies; `empty` completes when
// every consumer has released the stage. Producer and consumers each keep a PipelineState and meet nowhere else.
#pragma once
#include "ptx/ptx.cuh"

// Stage of a producer or consumer, and the parity of its barriers' current phase.
template <uint32_t kStages>
struct PipelineState {
    uint32_t stage = 0;
    uint32_t parity = 0;
    METHOD void advance() {
        const bool last = stage == kStages - 1;
        stage = last ? 0 : stage + 1;
        parity ^= last ? 1 : 0;
    }
};

// The barriers of a pipeline, at this shared memory address, aligned to 8.
template <uint32_t kStages>
struct Pipeline {
    static constexpr uint32_t kBytes = 2 * kStages * 8;  // of the barriers
    using State = PipelineState<kStages>;
    uint32_t barriers;

    METHOD uint32_t full(const State& state) const { return barriers + state.stage * 8; }
    METHOD uint32_t empty(const State& state) const { return barriers + (kStages + state.stage) * 8; }

    // By one thread, before mbarrier_init_fence and a barrier of the block. `consumers` arrivals release a stage.
    METHOD void init(uint32_t consumers) const {
#pragma unroll
        for (uint32_t stage = 0; stage < kStages; stage++) {
            mbarrier_init(barriers + stage * 8, 1);
            mbarrier_init(barriers + (kStages + stage) * 8, consumers);
        }
    }
    // Producer: waits until the stage is empty and expects `bytes` of copies, which the caller then starts.
    METHOD void producer_acquire(const State& state, uint32_t bytes) const {
        // The phase before the first one of a new barrier counts as complete.
        mbarrier_wait(empty(state), state.parity ^ 1, "empty");
        mbarrier_arrive_expect(full(state), bytes);
    }
    // Consumer: waits until the stage is full.
    METHOD void consumer_wait(const State& state, const char* name = "full") const {
        mbarrier_wait(full(state), state.parity, name);
    }
    // Consumer: releases the stage; one of `consumers` arrivals.
    METHOD void consumer_release(const State& state) const { mbarrier_arrive(empty(state)); }
};
