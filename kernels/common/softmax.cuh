// Softmax over scores that come piece by piece, as a state that pieces are merged into. Prefill, decode and the merge
// of a decode's splits share it.
//
// Scores are in the log2 domain: the softmax of scores s in base e is that of s log2(e) in base 2, and exp2 is one
// instruction. A state stands for a set of keys: max = their largest score, sum = sum of exp2(score - max). The
// weighted sum of values that goes with it is relative to the same max; where a state's max rises, its sum and its
// weighted values are multiplied by exp2(old max - new max).
//
// A masked score is -infinity. A state of no visible key, max = -infinity and sum = 0, is a neutral element: nothing
// here makes NaN of it, and what is merged with it keeps its bits.
#pragma once
#include "ptx/ptx.cuh"

static constexpr float kMasked = -__builtin_inff();

struct SoftmaxState {
    float max;
    float sum;
};

DEVICE SoftmaxState no_keys() { return SoftmaxState{kMasked, 0.0f}; }

// What scores are taken relative to: the max, or 0 where there is none, so that exp2(-infinity - 0) = 0 and not
// exp2(-infinity + infinity) = NaN.
DEVICE float reference(float max) { return max == kMasked ? 0.0f : max; }

// Raises the max of `state` to that of more scores and rescales the sum. Returns the factor for weighted values.
DEVICE float raise(SoftmaxState& state, float max_score) {
    const float raised = fmaxf(state.max, max_score);
    const float factor = exp2_approx(state.max - reference(raised));
    state.max = raised;
    state.sum *= factor;
    return factor;
}

// Factors for the weighted values of the two sides of a merge.
struct MergeFactors {
    float own;
    float other;
};

// Adds the keys of `other` to `state`.
DEVICE MergeFactors merge(SoftmaxState& state, const SoftmaxState& other) {
    const float own = raise(state, other.max);
    const float factor = exp2_approx(other.max - reference(state.max));
    state.sum += factor * other.sum;
    return MergeFactors{own, factor};
}

// What the weighted values of a finished state are multiplied by; 0 where there was no key.
DEVICE float normaliser(const SoftmaxState& state) { return state.sum > 0.0f ? reciprocal_approx(state.sum) : 0.0f; }
