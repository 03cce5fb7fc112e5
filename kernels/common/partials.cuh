// Partial results of attention: what splits leave for their merge.
#pragma once
#include "common/softmax.cuh"
#include "common/vector.cuh"

// One workspace of f32: weighted values [rows, heads, splits, head_dim], then states [rows, heads, splits] of
// (max, sum); `count` is rows x heads x splits. Float: `float`, or `const float` for who reads them alone.
template <class Float>
struct Partials {
    Float* values;
    Float* states;
    DEVICE Partials in(Float* workspace, size_t count, uint32_t head_dim) {
        return Partials{workspace, workspace + count * head_dim};
    }
};

// Two or four neighbouring columns of f32, as the words that are moved together.
DEVICE uint2 words_of(const float (&columns)[2]) {
    uint2 words;
    words.x = __float_as_uint(columns[0]), words.y = __float_as_uint(columns[1]);
    return words;
}
DEVICE uint4 words_of(const float (&columns)[4]) {
    uint4 words;
    words.x = __float_as_uint(columns[0]), words.y = __float_as_uint(columns[1]);
    words.z = __float_as_uint(columns[2]), words.w = __float_as_uint(columns[3]);
    return words;
}
DEVICE void store_columns(float* target, const float (&columns)[2]) { store_global_8(target, words_of(columns)); }
DEVICE void store_columns(float* target, const float (&columns)[4]) { store_global_16(target, words_of(columns)); }
DEVICE void load_columns(const float* source, float (&columns)[2]) {
    const uint2 words = load_global_8(source);
    columns[0] = __uint_as_float(words.x), columns[1] = __uint_as_float(words.y);
}
DEVICE void load_columns(const float* source, float (&columns)[4]) {
    const uint4 words = load_global_16(source);
    columns[0] = __uint_as_float(words.x), columns[1] = __uint_as_float(words.y);
    columns[2] = __uint_as_float(words.z), columns[3] = __uint_as_float(words.w);
}
DEVICE void load_shared_columns(const float* source, float (&columns)[2]) {
    const float2 two = *reinterpret_cast<const float2*>(source);
    columns[0] = two.x, columns[1] = two.y;
}
DEVICE void load_shared_columns(const float* source, float (&columns)[4]) {
    const float4 four = *reinterpret_cast<const float4*>(source);
    columns[0] = four.x, columns[1] = four.y, columns[2] = four.z, columns[3] = four.w;
}
// The same columns of an output of T, rounded.
template <class T>
DEVICE void store_rounded(T* target, const float (&columns)[2]) {
    store_global_4(target, pack<T>(columns[0], columns[1]));
}
template <class T>
DEVICE void store_rounded(T* target, const float (&columns)[4]) {
    uint2 packed;
    packed.x = pack<T>(columns[0], columns[1]), packed.y = pack<T>(columns[2], columns[3]);
    store_global_8(target, packed);
}

// (max, sum), packed.
DEVICE uint2 words_of(const SoftmaxState& state) {
    const float pair[2] = {state.max, state.sum};
    return words_of(pair);
}

// The result of one row over some keys, distributed over a warp: every lane has the state, lane l the weighted values
// of columns kOwn l .. kOwn (l + 1).
template <uint32_t kHeadDim>
struct RowResult {
    static constexpr uint32_t kOwn = kHeadDim / 32;
    SoftmaxState state;
    float values[kOwn];

    DEVICE uint32_t first_column() { return threadIdx.x % 32 * kOwn; }
    DEVICE RowResult none() { return RowResult{SoftmaxState::none(), {}}; }
    // Reads a row's state and values from shared memory.
    DEVICE RowResult load_shared(const SoftmaxState& state, const float* values) {
        RowResult result{state, {}};
        load_shared_columns(values + first_column(), result.values);
        return result;
    }
    template <class Float>
    DEVICE RowResult load(const Partials<Float>& partials, size_t index) {
        const uint2 words = load_global_8(partials.states + index * 2);
        RowResult result{{__uint_as_float(words.x), __uint_as_float(words.y)}, {}};
        load_columns(partials.values + index * kHeadDim + first_column(), result.values);
        return result;
    }
    METHOD void store(const Partials<float>& partials, size_t index) const {
        store_columns(partials.values + index * kHeadDim + first_column(), values);
        if (threadIdx.x % 32 == 0) store_global_8(partials.states + index * 2, words_of(state));
    }
    // Adds the keys of `other`.
    METHOD void add(const RowResult& other) {
        const MergeFactors factors = state.merge(other.state);
#pragma unroll
        for (uint32_t i = 0; i < kOwn; i++) { values[i] = values[i] * factors.own + other.values[i] * factors.other; }
    }
    // Calls `visit` with partial results first, first + stride, ... below `end`, in this order. A few loads are in
    // flight at a time; past the end, empty results are passed, which change nothing.
    template <class Float, class Visit>
    DEVICE void each(const Partials<Float>& partials, size_t first, size_t end, uint32_t stride, const Visit& visit) {
        constexpr uint32_t kAhead = 4;
        for (size_t index = first; index < end; index += kAhead * stride) {
            RowResult others[kAhead];
#pragma unroll
            for (uint32_t i = 0; i < kAhead; i++) {
                const size_t at = index + i * stride;
                others[i] = at < end ? load(partials, at) : none();
            }
#pragma unroll
            for (uint32_t i = 0; i < kAhead; i++) visit(others[i]);
        }
    }
    // Normalises the row and writes it to T row [kHeadDim].
    template <class T>
    METHOD void finish(T* row) const {
        const float factor = state.normaliser();
        float quotients[kOwn];
#pragma unroll
        for (uint32_t i = 0; i < kOwn; i++) quotients[i] = values[i] * factor;
        store_rounded(row + first_column(), quotients);
    }
};
