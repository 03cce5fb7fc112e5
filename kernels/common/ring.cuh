// A ring of stages in shared memory between one thread that fills them by asynchronous copies and warps that read them.
// Each stage has two mbarriers: `full`, which the copies' bytes complete, and `empty`, at which readers arrive when they
// have read it. Filler and readers go round with a Place each and never meet otherwise.
#pragma once
#include "ptx/ptx.cuh"

template <uint32_t kStages>
struct Ring {
    static constexpr uint32_t kBytes = 2 * kStages * 8;  // of its barriers, aligned to 8

    // Where a filler or reader is: the stage, and the parity of the phase of its barriers that is under way.
    struct Place {
        uint32_t stage = 0;
        uint32_t parity = 0;
        DEVICE void advance(Place& place) {
            const bool last = place.stage == kStages - 1;
            place.stage = last ? 0 : place.stage + 1;
            place.parity ^= last ? 1 : 0;
        }
    };

    DEVICE uint32_t full(uint32_t barriers, const Place& place) { return barriers + place.stage * 8; }
    DEVICE uint32_t empty(uint32_t barriers, const Place& place) { return barriers + (kStages + place.stage) * 8; }

    // By one thread, before mbarrier_init_fence and a barrier of the block: `readers` arrivals empty a stage.
    DEVICE void init(uint32_t barriers, uint32_t readers) {
#pragma unroll
        for (uint32_t stage = 0; stage < kStages; stage++) {
            mbarrier_init(barriers + stage * 8, 1);
            mbarrier_init(barriers + (kStages + stage) * 8, readers);
        }
    }
    // The filler's: waits until the stage is empty, and has its next phase expect `bytes`; the copies follow.
    DEVICE void begin_filling(uint32_t barriers, const Place& place, uint32_t bytes) {
        // Of a new barrier the phase before its first has ended.
        mbarrier_wait(empty(barriers, place), place.parity ^ 1, "empty");
        mbarrier_arrive_expect(full(barriers, place), bytes);
    }
    // The readers': waits until the stage is full.
    DEVICE void begin_reading(uint32_t barriers, const Place& place, const char* name = "full") {
        mbarrier_wait(full(barriers, place), place.parity, name);
    }
    // One of `readers`: the stage is read.
    DEVICE void end_reading(uint32_t barriers, const Place& place) { mbarrier_arrive(empty(barriers, place)); }
};
