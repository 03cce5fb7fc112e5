// targets: sm_80 compute_80 sm_90
// Log-probabilities of given tokens, and the best ones, for many rows of logits: the scores of a prompt.
#include "common/logprobs.cuh"
#include "ptx/ptx.cuh"

// LogprobsRow of the launcher. `logits_row` is kNoToken for a row that does nothing.
struct alignas(16) LogprobsRow {
    uint32_t logits_row, target, top, unused;
};

// Computes: out[r] = the log-probabilities of row r's target and of its `top` best tokens: common/logprobs.cuh. A row
// that names a logits row that is not there gets out[r].top = kNoToken. Shapes:
//   rows    LogprobsRow [gridDim.x]         written by earlier work on the stream, as are the logits up to the next
//   logits  f32 [logits_rows, pitch]        multiple of 4 past the vocabulary
//   out     RowLogprobs [gridDim.x]
//
// Grid: (rows), 512 threads.
// Smem: SelectMemory.
// Bytes: 16 + 4 vocabulary read, 8 + 8 top written for each row; all visits after the first are of L2.
// FLOPs: about 15 a token.
// Alignment: pitch a multiple of 4; logits and rows 16 bytes.
// Registers: at most 64 (logprobs_rows)
KERNEL(logprobs_rows, kBlock, 1)
(const LogprobsRow* rows, const float* logits, RowLogprobs* out, uint32_t logits_rows, uint32_t vocabulary,
 uint32_t pitch) {
    SHARED_MEMORY(shared);
    grid_dependency_launch();
    grid_dependency_wait();
    const uint4 row = load_global_16(rows + blockIdx.x);
    if (row.x == kNoToken) return;
    if (row.x >= logits_rows) {
        if (threadIdx.x == 0) out[blockIdx.x].top = kNoToken;
        return;
    }
    write_logprobs(*reinterpret_cast<SelectMemory*>(shared), logits + static_cast<size_t>(row.x) * pitch, vocabulary,
                   row.y, row.z, out[blockIdx.x]);
}
REGISTER_KERNEL(logprobs_rows)
