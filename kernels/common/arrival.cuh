// Last-arriver test for several warps of any blocks: the last one continues with what all of them stored.
#pragma once
#include "ptx/ptx.cuh"

// Returns whether this warp is the last of `count` to arrive at `counter`, which is 0 before the first and after the
// last. What each warp stored before arriving is visible to all lanes of the last one. All lanes call it.
DEVICE bool arrives_last(uint32_t* counter, uint32_t count) {
    warp_sync();
    uint32_t arrived = 0;
    if (threadIdx.x % 32 == 0) arrived = atomic_wrap_acq_rel(counter, count - 1);
    const bool is_last = shuffle_from(arrived, 0) == count - 1;
    warp_sync();  // the other lanes too come after the other warps
    return is_last;
}
