// targets: sm_80 compute_80 sm_90
// Embedding lookup.
#include "common/vector.cuh"
#include "ptx/ptx.cuh"

static constexpr uint32_t kThreads = 128;
static constexpr uint32_t kSampled = 1u << 31;  // SAMPLED of the launcher

// Computes: out[r, :] = table[id, :], where id is ids[r], or, where that has its highest bit set, sampled[ids[r]
// without the bit]: the token that `sample` wrote there in the step before, so that a step can be given to the stream
// before that token has reached the host. A row whose id is not below `vocabulary` becomes NaN, which the sampler
// reports for that row alone. Shapes:
//   ids      u32 [rows]                  written by earlier work on the stream
//   sampled  u32 [sampled_len]           written by earlier work on the stream; null where `sampled_len` is 0
//   table    16-bit [vocabulary, width]  bf16 or f16: elements are only copied
//   out      16-bit [rows, width]
//
// Grid: (rows, ceil(width / 8 / 128)), 128 threads, one 16-byte vector a thread.
// Bytes: rows x (4 + 2 width) read, 4 more for each sampled id, rows x 2 width written.
// FLOPs: 0.
// Alignment: width a multiple of 8; table and out 16 bytes.
// Registers: at most 24 (embed_gather)
KERNEL(embed_gather, kThreads)
(const uint32_t* ids, const uint32_t* sampled, const uint16_t* table, uint16_t* out, uint32_t sampled_len,
 uint32_t vocabulary, uint32_t width) {
    grid_dependency_launch();
    const uint32_t column = (blockIdx.y * kThreads + threadIdx.x) * kVector;
    grid_dependency_wait();
    if (column >= width) return;
    uint32_t id = load_global_4(ids + blockIdx.x);
    if (id & kSampled) {
        const uint32_t index = id & ~kSampled;
        // Itself no id: the vocabulary is smaller.
        if (index < sampled_len) id = load_global_4(sampled + index);
    }
    uint4 row;
    if (id < vocabulary) {
        row = load_readonly_16(table + static_cast<size_t>(id) * width + column);
    } else {
        row.x = row.y = row.z = row.w = 0x7fff7fffu;  // NaN in bf16 and in f16
    }
    store_global_16(out + static_cast<size_t>(blockIdx.x) * width + column, row);
}
REGISTER_KERNEL(embed_gather)
