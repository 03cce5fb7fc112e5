// The product of a few rows of activations with a weight matrix: decode. gemv.cu and gemv_normed.cu make kernels of it.
#pragma once
#include "common/epilogue.cuh"
#include "common/multiply_add.cuh"
#include "common/vector.cuh"
#include "ptx/ptx.cuh"

static constexpr uint32_t kWarps = 8;
static constexpr uint32_t kThreads = kWarps * 32;
static constexpr uint32_t kStep = 32;  // of k: 4 lanes x 8 elements
static constexpr uint32_t kSlab = 4 * kStep;  // consecutive k of one warp, before the next warp's turn
static constexpr uint32_t kLoads = 8;  // 16-byte loads of weights that a thread has in flight

// Where gemv finds its activations. A type of them has
//   Element                                          their type, and that of the tensor cores' operands
//   ahead(k, shared)                                 reads ahead of grid_dependency_wait() what no kernel writes
//   begin<kRowTiles>(count, k, g, shared)            afterwards: of each tile the row that lane group g multiplies, its
//                                                    first element; of rows past the end the last
//   load(pointer)                                    eight elements of it
// `shared` is theirs.
template <class T, uint32_t kRowTiles>
struct LaneRows {
    const T* of[kRowTiles];
    DEVICE LaneRows in(const T* first, size_t pitch, uint32_t count, uint32_t g) {
        LaneRows m;
#pragma unroll
        for (uint32_t tile = 0; tile < kRowTiles; tile++) m.of[tile] = first + min(tile * 8 + g, count - 1) * pitch;
        return m;
    }
};

// T [m, k], written by earlier work on the stream.
template <class T>
struct RowsInMemory {
    using Element = T;
    const T* x;
    METHOD void ahead(uint32_t, uint8_t*) const {}
    template <uint32_t kRowTiles>
    METHOD LaneRows<T, kRowTiles> begin(uint32_t count, uint32_t k, uint32_t g, uint8_t*) const {
        return LaneRows<T, kRowTiles>::in(x, k, count, g);
    }
    DEVICE uint4 load(const T* from) { return load_global_16(from); }
};

// Where gemv finds its weights, and how they become operands. A type of them has
//   Row                            what a lane keeps of a row
//   Loaded                         what it loads for kVector consecutive k of a row
//   row(row, k)                    a row of them
//   load(row, k, policy)           those from k on, read once
//   none()                         in their place, zeros
//   operands(g, g8, even, odd)     from those of rows g and g + 8, the A operands of two m16n8k16: of the first and third
//                                  pair of k, and of the second and fourth
// Dense: T [n, k].
template <class T>
struct DenseWeights {
    using Row = const T*;
    using Loaded = uint4;
    const T* weights;
    METHOD Row row(uint32_t row, uint32_t k) const { return weights + static_cast<size_t>(row) * k; }
    DEVICE Loaded load(Row row, uint32_t at_k, uint64_t policy) { return load_once_16(row + at_k, policy); }
    DEVICE Loaded none() { return zero_vector(); }
    DEVICE void operands(const Loaded& low, const Loaded& high, uint32_t (&even)[4], uint32_t (&odd)[4]) {
        even[0] = low.x, even[1] = high.x, even[2] = low.y, even[3] = high.y;
        odd[0] = low.z, odd[1] = high.z, odd[2] = low.w, odd[3] = high.w;
    }
};

// Computes: out[m, n] = epilogue(sum over k of x[m, k] weights[n, k])
// Shapes:
//   x        the rows, T [m, k], from memory (RowsInMemory) or normalised by the block itself (gemv_normed.cu)
//   weights  [n, k] as Weights has them (DenseWeights); written before this stream's work began
//   output   what the epilogue takes: see common/epilogue.cuh
//
// A block computes 16 kColumnTiles columns for up to 8 kRowTiles rows with the tensor cores, the weights as their A
// operand and the activations as B (m16n8k16). Lane 4 g + t loads 8 consecutive k of weight rows g and g + 8 and of
// activation row g, 16 bytes each, straight into the operands' registers: the instruction sums over k, so which k
// stands in which of its slots is free as long as A and B agree, and no shared memory or shuffle is needed.
//
// Order of the sum: k is cut into slabs of 128, dealt to the 8 warps in turn; each warp adds its slabs in ascending
// order, 32 k a step, then the 8 partial sums are added in the order of the warps. It depends on `k` alone: a row
// has the same bits with any number of rows beside it and in either tile shape.
//
// Bytes in flight: a lane holds kLoads = 8 slots of 16 bytes of weights and loads a slot's next bytes right after
// it multiplied with the last. So whenever a warp waits for memory, 32 x 8 x 16 = 4 KiB of its weights are under way or
// have just come: 8 warps make 32 KiB a block, and the registers leave room for 3 blocks on an SM (2 with
// 16 rows): 32 KiB for a grid of one block each, 64 to 96 KiB for the model's. The first 32 KiB are asked for before
// the work ahead in the stream is done. (H200: 4.8 TB/s x 0.7 us / 132 SMs = 25 KiB keep memory busy.)
//
// The partial sums meet in shared memory; a thread then finishes one pair of columns of one row. What the epilogue adds
// is read ahead: what belongs to columns before the wait, the rest before the main loop. A row's position, behind which
// its rotation lies, is asked for ahead of the activations, so that it is there when they are.
//
// Grid: (ceil(n / (16 kColumnTiles))), 256 threads.
// Smem: 8 x 8 kRowTiles x (16 kColumnTiles + 4) floats.
// Bytes: (n k + m k + m n + the epilogue's) x sizeof(T), activations counted once.
// FLOPs: 2 m n k.
// Alignment: n and k multiples of 8; all buffers 16 bytes.
template <class Epilogue, uint32_t kRowTiles, uint32_t kColumnTiles, class Rows, class Weights>
DEVICE void gemv(const Rows& x, const Weights& weights,
                 const typename Epilogue::template Output<typename Rows::Element>& output, uint32_t m, uint32_t n,
                 uint32_t k) {
    using T = typename Rows::Element;
    constexpr uint32_t kSlots = kLoads / (2 * kColumnTiles);  // steps in flight
    constexpr uint32_t kTileM = 8 * kRowTiles, kTileN = 16 * kColumnTiles;
    constexpr uint32_t kPitch = kTileN + 4;  // floats; the 4 spread a fragment's rows over the banks
    constexpr uint32_t kPairs = kTileM * kTileN / 2;
    static_assert(kPairs <= kThreads, "a thread finishes at most one pair");
    SHARED_MEMORY(shared);
    float* const partial = reinterpret_cast<float*>(shared);

    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const uint32_t first_column = blockIdx.x * kTileN;
    const uint64_t evict_first = l2_evict_first();

    // Rows past the end read the last one instead; what comes of them is not stored.
    typename Weights::Row weight_rows[kColumnTiles][2];
#pragma unroll
    for (uint32_t tile = 0; tile < kColumnTiles; tile++) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t column = min(first_column + tile * 16 + half * 8 + g, n - 1);
            weight_rows[tile][half] = weights.row(column, k);
        }
    }
    // The first k of this warp's step number `step`, and this lane's.
    const auto first_k = [&](uint32_t step) {
        return (step / (kSlab / kStep) * kWarps + warp) * kSlab + step % (kSlab / kStep) * kStep;
    };
    const auto lane_k = [&](uint32_t step) { return first_k(step) + t * kVector; };

    typename Weights::Loaded a[kSlots][kColumnTiles][2];
    uint4 b[kSlots][kRowTiles];
    const auto load_weights = [&](uint32_t slot, uint32_t at_k) {
#pragma unroll
        for (uint32_t tile = 0; tile < kColumnTiles; tile++) {
#pragma unroll
            for (uint32_t half = 0; half < 2; half++) {
                a[slot][tile][half] =
                    at_k < k ? Weights::load(weight_rows[tile][half], at_k, evict_first) : Weights::none();
            }
        }
    };

#pragma unroll
    for (uint32_t slot = 0; slot < kSlots; slot++) load_weights(slot, lane_k(slot));
    grid_dependency_launch();

    // This thread's pair of the block's output; without one, it has the last row and columns as far as reading goes.
    const uint32_t own_row = threadIdx.x / (kTileN / 2), own_pair = 2 * (threadIdx.x % (kTileN / 2));
    const uint32_t row = min(own_row, m - 1), column = min(first_column + own_pair, n - 2);
    const auto column_terms = Epilogue::column_terms(output, column);
    uint8_t* const behind_partials = shared + kWarps * kTileM * kPitch * sizeof(float);
    x.ahead(k, behind_partials);
    grid_dependency_wait();
    const auto row_terms = Epilogue::row_terms(output, row);
    const auto activations = x.template begin<kRowTiles>(m, k, g, behind_partials);
    const auto load_activations = [&](uint32_t slot, uint32_t at_k) {
#pragma unroll
        for (uint32_t tile = 0; tile < kRowTiles; tile++) {
            b[slot][tile] = at_k < k ? Rows::load(activations.of[tile] + at_k) : zero_vector();
        }
    };
#pragma unroll
    for (uint32_t slot = 0; slot < kSlots; slot++) load_activations(slot, lane_k(slot));
    const auto pair_terms = Epilogue::pair_terms(output, row_terms, column);

    float sums[kRowTiles][kColumnTiles][4] = {};
    // Equally many iterations for the whole warp: all lanes stay together.
    for (uint32_t first = 0; first_k(first) < k; first += kSlots) {
#pragma unroll
        for (uint32_t slot = 0; slot < kSlots; slot++) {
#pragma unroll
            for (uint32_t tile = 0; tile < kColumnTiles; tile++) {
                uint32_t even[4], odd[4];
                Weights::operands(a[slot][tile][0], a[slot][tile][1], even, odd);
#pragma unroll
                for (uint32_t row_tile = 0; row_tile < kRowTiles; row_tile++) {
                    const uint4& right = b[slot][row_tile];
                    const uint32_t right_even[2] = {right.x, right.y}, right_odd[2] = {right.z, right.w};
                    multiply_add(T{}, sums[row_tile][tile], even, right_even);
                    multiply_add(T{}, sums[row_tile][tile], odd, right_odd);
                }
            }
            const uint32_t at_k = lane_k(first + kSlots + slot);
            load_weights(slot, at_k);
            load_activations(slot, at_k);
        }
    }

    // Sums 0 to 3 of a lane are columns g, g, g + 8, g + 8 of the tile, rows 2 t, 2 t + 1, 2 t, 2 t + 1.
#pragma unroll
    for (uint32_t row_tile = 0; row_tile < kRowTiles; row_tile++) {
#pragma unroll
        for (uint32_t tile = 0; tile < kColumnTiles; tile++) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                const uint32_t row = row_tile * 8 + 2 * t + i % 2, column = tile * 16 + i / 2 * 8 + g;
                partial[(warp * kTileM + row) * kPitch + column] = sums[row_tile][tile][i];
            }
        }
    }
    block_sync();
    if (own_row >= m || first_column + own_pair >= n) return;
    float sum[2] = {};
#pragma unroll
    for (uint32_t w = 0; w < kWarps; w++) {
        const float* const of_warp = partial + (w * kTileM + own_row) * kPitch + own_pair;
        const float2 pair = *reinterpret_cast<const float2*>(of_warp);
        sum[0] += pair.x;
        sum[1] += pair.y;
    }
    Epilogue::template apply<T>(sum, column_terms, pair_terms);
    store_pair<T>(Epilogue::place(output, row_terms, column), sum);
}
