// Online softmax as a mergeable state, shared by prefill, decode and the merge of splits.
//
// Scores are in the log2 domain: softmax in base e of s is softmax in base 2 of s log2(e), and exp2 is one instruction.
// A state stands for a set of keys: max = their largest score, sum = sum of exp2(score - max). The weighted sum of
// values is kept relative to the same max; when the max rises, both are multiplied by exp2(old max - new max).
//
// A masked score is -infinity. The state of no keys (max = -infinity, sum = 0) is the neutral element: it never
// produces NaN, and merging it changes no bit.
#pragma once
#include "ptx/ptx.cuh"

static constexpr float kMasked = -__builtin_inff();

// Subtracted from scores before exp2: the max, or 0 if there is none, because exp2(-infinity + infinity) is NaN.
DEVICE float score_offset(float max) { return max == kMasked ? 0.0f : max; }

// Factors for the weighted values of the two sides of a merge.
struct MergeFactors {
    float own;
    float other;
};

struct SoftmaxState {
    float max;
    float sum;

    // The neutral element.
    DEVICE SoftmaxState none() { return SoftmaxState{kMasked, 0.0f}; }

    // Raises the max to `max_score` if larger, and rescales the sum. Returns the factor for the weighted values.
    METHOD float update_max(float max_score) {
        const float raised = fmaxf(max, max_score);
        const float factor = exp2_approx(max - score_offset(raised));
        max = raised;
        sum *= factor;
        return factor;
    }

    // Adds the keys of `other`.
    METHOD MergeFactors merge(const SoftmaxState& other) {
        const float own = update_max(other.max);
        const float factor = exp2_approx(other.max - score_offset(max));
        sum += factor * other.sum;
        return MergeFactors{own, factor};
    }

    // Factor that normalises the weighted values: 1 / sum, or 0 if there was no key.
    METHOD float normaliser() const { return sum > 0.0f ? reciprocal_approx(sum) : 0.0f; }
};
