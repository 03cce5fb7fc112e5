// Log-probabilities from one row of raw logits.
#pragma once
#include "common/logits.cuh"

static constexpr uint32_t kMaxTop = 32;
static constexpr uint32_t kNoToken = 0xffffffffu;

// RowLogprobs of the launcher.
struct RowLogprobs {
    float target;     // of the token asked for; NaN without
    uint32_t top;     // how many follow; kNoToken where the logits are not finite
    uint32_t unused[2];
    uint32_t ids[kMaxTop];
    float logprobs[kMaxTop];
};

// A row of raw logits, its largest first: elements of common/select.cuh.
struct RawRow {
    static constexpr uint32_t kFirstCode = 0;
    const float* logits;
    uint32_t vocabulary;
    uint32_t best;  // ordered_bits of the largest
    DEVICE uint64_t mass(uint32_t) { return 0; }
};
template <class F>
DEVICE void each_element(const RawRow& row, F f) {
    each_group(row.logits, row.vocabulary, 0, groups_of(row.vocabulary), [&](uint32_t id, const float (&x)[kGroup]) {
#pragma unroll
        for (uint32_t i = 0; i < kGroup; i++) f(row.best - ordered_bits(x[i]), id + i);
    });
}

// out.target = x[target] - max(x) - ln(sum(exp(x - max(x)))), and the same of the `top` best tokens, best first, the
// lower id first among equals, out.top = min(top, vocabulary) of them; out.top = kNoToken alone where x holds NaN or
// +inf or nothing above -inf. For a target that is no token, out.target = NaN. The whole block takes part and visits
// the row twice, for the maximum and for the rest, and more often only where thousands of tokens are about as good as
// the last of the best.
DEVICE void write_logprobs(SelectMemory& memory, const float* logits, uint32_t vocabulary, uint32_t target,
                           uint32_t top, RowLogprobs& out) {
    const uint32_t groups = groups_of(vocabulary);
    Best own{0, 0};
    each_group(logits, vocabulary, 0, groups, [&](uint32_t, const float (&x)[kGroup]) {
#pragma unroll
        for (uint32_t i = 0; i < kGroup; i++) own.key = max(own.key, ordered_bits_nan_first(x[i]));
    });
    const uint32_t best = block_best(memory, own).key;
    if (!is_finite_key(best)) {
        if (threadIdx.x == 0) out.top = kNoToken;
        return;
    }
    const float largest = from_ordered_bits(best);
    const RawRow row{logits, vocabulary, best};
    const uint32_t count = min(min(top, kMaxTop), vocabulary);
    Kept kept{kLastKey, true};
    uint64_t bound = 0;
    if (count != 0) {
        bound = bound_of_first<RawRow>(memory, own.key == 0 ? kNoCode : best - own.key, count);
        clear_list(memory);
        block_sync();
    }
    uint64_t sum = 0;
    each_element(row, [&](uint32_t code, uint32_t id) {
        sum += mass_of(from_ordered_bits(best - code) - largest);
        if (count != 0 && rank_key(code, id) <= bound) append(memory, rank_key(code, id));
    });
    sum = block_sum_64(memory, sum);
    const float normalizer = natural_log(static_cast<float>(sum) * (1.0f / (uint64_t{1} << kMassBits)));
    const auto logprob = [&](float x) { return (x - largest) - normalizer; };
    if (threadIdx.x == 0) {
        out.target = __uint_as_float(0x7fc00000u);
        if (target < vocabulary) out.target = logprob(__uint_as_float(load_global_4(logits + target)));
        out.top = count;
    }
    if (count == 0) return;

    if (memory.list_length > kSortRoom) {
        // Many near the count-th: of the list, or of the row where the list has no room for them, to the end.
        kept.listed = memory.list_length <= kListRoom;
        keep_first(memory, row, kept, count, 0.0f, 0);
        // From the list to its beginning, by way of the bins.
        block_sync();
        if (threadIdx.x == 0) memory.ranks[0] = 0;
        block_sync();
        each_kept(memory, row, kept, [&](uint32_t code, uint32_t id) {
            memory.sorted[atomic_add_shared(&memory.ranks[0], 1)] = rank_key(code, id);
        });
        block_sync();
        if (threadIdx.x < count) memory.list[threadIdx.x] = memory.sorted[threadIdx.x];
        if (threadIdx.x == 0) memory.list_length = count;
        block_sync();
    }
    sort_list(memory, memory.list_length);
    if (threadIdx.x < count) {
        const uint64_t key = memory.sorted[threadIdx.x];
        out.ids[threadIdx.x] = id_in(key);
        out.logprobs[threadIdx.x] = logprob(from_ordered_bits(best - code_in(key)));
    }
}
