// The weights of a GEMM's tile on their way: from memory to a stage of shared memory, from there to operands of mma.
#pragma once
#include "common/vector.cuh"
#include "ptx/ptx.cuh"

// How gemm_sm80 has its weights, for a Tile. A type of them has
//   kRowBytes                               bytes of a stage for the kTileK weights of a column
//   Part                                    what a thread copies of every stage
//   part(first, n, k, stage)                  its part of the columns from `first` on, of `n` in all; the first
//                                           stage's weights are at address `stage`
//   copy(part, k_tile, offset)              starts to copy it, for k from kTileK `k_tile` on, to the stage `offset` bytes behind
//                                           the first; zeros, and nothing read, past the last column and k
//   place(warp_column, lane)                where in a stage's weights a lane finds operands of the warp's columns
//   operands(b, stage, place, step, pair)   the B operands of two m16n8k16: k from 16 `step` on, of 16 columns, the
//                                           `pair`-th such of the warp
// Dense: T [n, k], copied 16 bytes at a time, and read by ldmatrix.
template <class T, class Tile>
struct DenseTile {
    const T* weights;

    static constexpr uint32_t kRowBytes = Tile::kRowBytes;
    struct Part {
        uint32_t chunk, column, end, k;
        uint32_t to;
        const T* from;
    };
    METHOD Part part(uint32_t first, uint32_t n, uint32_t k, uint32_t stage) const {
        const uint32_t chunk = threadIdx.x % Tile::kChunks, row = threadIdx.x / Tile::kChunks;
        const uint32_t to = stage + row * kRowBytes + (chunk ^ Tile::swizzle(row)) * 16;
        const T* const from = weights + static_cast<size_t>(first + row) * k + chunk * kVector;
        return Part{chunk, first + row, n, k, to, from};
    }
    DEVICE void copy(const Part& part, uint32_t k_tile, uint32_t offset) {
        const uint32_t at_k = k_tile * Tile::kTileK;
#pragma unroll
        for (uint32_t on = 0; on < Tile::kTileN; on += Tile::kRowsAtOnce) {
            const bool inside = part.column + on < part.end && at_k + part.chunk * kVector < part.k;
            copy_async_16(part.to + offset + on * kRowBytes, part.from + at_k + static_cast<size_t>(on) * part.k,
                          inside ? 16 : 0);
        }
    }
    // A lane addresses row lane % 8 + lane / 16 * 8, chunk lane / 8 % 2, which makes the two halves of b for 8 columns,
    // then for 8 more. A step further along k is two chunks: an xor of the swizzled address with 32 bytes.
    DEVICE uint32_t place(uint32_t warp_column, uint32_t lane) {
        const uint32_t row = lane % 8 + lane / 16 * 8;
        return (warp_column + row) * kRowBytes + (lane / 8 % 2 ^ Tile::swizzle(row)) * 16;
    }
    DEVICE void operands(uint32_t (&b)[4], uint32_t stage, uint32_t place, uint32_t step, uint32_t pair) {
        load_matrix_x4(b, stage + (place ^ step * 32) + pair * 16 * kRowBytes);
    }
};
