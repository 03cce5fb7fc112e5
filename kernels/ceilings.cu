// targets: sm_80 compute_80 sm_90
// What a device can do at the best: a read of memory and nothing else, and the clock that it runs at. Measuring only.
#include "ptx/ptx.cuh"

static constexpr uint32_t kThreads = 256;
static constexpr uint32_t kLoads = 8;

// Computes: folded[w] = exclusive or of all words that warp w of the grid reads, so that no load can be left out. All
// warps together read each word once. Shapes:
//   source  u32 [4 vectors]
//   folded  u32 [8 gridDim.x]
//
// Grid: a few blocks for each SM, 256 threads. A thread has 8 loads of 16 bytes in flight; a block's
// loads are adjacent in memory.
// Bytes: 16 vectors read, 32 gridDim.x written.
// FLOPs: 0.
// Alignment: source 16 bytes.
// Registers: at most 40 (read_words)
KERNEL(read_words, kThreads)(const uint32_t* source, uint32_t* folded, uint64_t vectors) {
    grid_dependency_launch();
    grid_dependency_wait();
    const uint64_t evict_first = l2_evict_first();
    const uint64_t stride = static_cast<uint64_t>(gridDim.x) * kThreads * kLoads;
    uint32_t sum = 0;
    for (uint64_t first = static_cast<uint64_t>(blockIdx.x) * kThreads * kLoads + threadIdx.x; first < vectors;
         first += stride) {
        uint4 words[kLoads];
#pragma unroll
        for (uint32_t load = 0; load < kLoads; load++) {
            const uint64_t vector = first + load * kThreads;
            if (vector < vectors) {
                words[load] = load_once_16(source + 4 * vector, evict_first);
            } else {
                words[load].x = words[load].y = words[load].z = words[load].w = 0;
            }
        }
#pragma unroll
        for (uint32_t load = 0; load < kLoads; load++)
            sum ^= words[load].x ^ words[load].y ^ words[load].z ^ words[load].w;
    }
#pragma unroll
    for (uint32_t distance = 16; distance > 0; distance /= 2) sum ^= shuffle_xor(sum, distance);
    if (threadIdx.x % 32 == 0) folded[blockIdx.x * (kThreads / 32) + threadIdx.x / 32] = sum;
}
REGISTER_KERNEL(read_words)

// Computes: passed[0] = cycles, passed[1] = nanoseconds that go by while the grid's one thread waits for at least
// `nanoseconds`: their quotient is the clock in GHz. Shapes:
//   passed  u64 [2]
//
// Grid: (1), 1 thread.
// Bytes: 16 written.
// FLOPs: 0.
// Registers: at most 24 (wait_and_count)
KERNEL(wait_and_count, 1)(uint64_t* passed, uint64_t nanoseconds) {
    // Not early: the clock is that of the work before.
    grid_dependency_wait();
    // The timer may move in steps of a microsecond: both readings are taken as it moves.
    const uint64_t unsettled = global_nanoseconds();
    uint64_t start = unsettled;
    while (start == unsettled) start = global_nanoseconds();
    const uint64_t first_cycle = sm_cycles();
    uint64_t now = start;
    while (now - start < nanoseconds) now = global_nanoseconds();
    passed[0] = sm_cycles() - first_cycle;
    passed[1] = now - start;
}
REGISTER_KERNEL(wait_and_count)
