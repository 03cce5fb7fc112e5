// Instructions in which the lanes of one warp act together. `lanes` has a bit for each lane that takes part; each of
// them must execute the call with the same mask. Shuffles and votes do not order memory; warp_sync does.
#pragma once
#include "language.cuh"

static constexpr uint32_t kAllLanes = 0xffffffffu;

#if ON_GPU
#define RIGEL_SHUFFLE(mode, value, operand, clamp, lanes)            \
    uint32_t bits, result;                                           \
    memcpy(&bits, &value, 4);                                        \
    asm volatile("shfl.sync." mode ".b32 %0, %1, %2, %3, %4;"        \
                 : "=r"(result)                                      \
                 : "r"(bits), "r"(operand), "n"(clamp), "r"(lanes)); \
    T out;                                                           \
    memcpy(&out, &result, 4);                                        \
    return out
#else
#define RIGEL_SHUFFLE(mode, value, operand, clamp, lanes)           \
    uint32_t bits;                                                  \
    __builtin_memcpy(&bits, &value, 4);                             \
    bits = interpreter::shuffle(mode, bits, operand, clamp, lanes); \
    T out;                                                          \
    __builtin_memcpy(&out, &bits, 4);                               \
    return out
#endif

// The shuffles move one 32-bit value of type T between lanes.
// PTX ISA: Data Movement and Conversion, shfl.sync. The fourth operand there is (32 - width) << 8 | clamp; width is 32.

// The value of lane (own lane xor `mask`).
template <class T>
DEVICE T shuffle_xor(T value, uint32_t mask, uint32_t lanes = kAllLanes) {
    static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
    RIGEL_SHUFFLE("bfly", value, mask, 0x1f, lanes);
}
// The value of lane `source`.
template <class T>
DEVICE T shuffle_from(T value, uint32_t source, uint32_t lanes = kAllLanes) {
    static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
    RIGEL_SHUFFLE("idx", value, source, 0x1f, lanes);
}
// The value of the lane `distance` below; the lowest lanes keep their own.
template <class T>
DEVICE T shuffle_up(T value, uint32_t distance, uint32_t lanes = kAllLanes) {
    static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
    RIGEL_SHUFFLE("up", value, distance, 0x00, lanes);
}
// The value of the lane `distance` above; the highest lanes keep their own.
template <class T>
DEVICE T shuffle_down(T value, uint32_t distance, uint32_t lanes = kAllLanes) {
    static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
    RIGEL_SHUFFLE("down", value, distance, 0x1f, lanes);
}
#undef RIGEL_SHUFFLE

// A bit for each lane of `lanes` whose predicate holds. PTX ISA: Parallel Synchronization, vote.sync.ballot.
DEVICE uint32_t warp_ballot(bool predicate, uint32_t lanes = kAllLanes) {
#if ON_GPU
    uint32_t result;
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %1, 0;\nvote.sync.ballot.b32 %0, p, %2;\n}"
                 : "=r"(result)
                 : "r"(static_cast<uint32_t>(predicate)), "r"(lanes));
    return result;
#else
    return interpreter::ballot(predicate, lanes);
#endif
}
// Whether the predicate holds in any lane of `lanes`. PTX ISA: vote.sync.any.
DEVICE bool warp_any(bool predicate, uint32_t lanes = kAllLanes) {
#if ON_GPU
    uint32_t result;
    asm volatile("{\n.reg .pred p, q;\nsetp.ne.u32 p, %1, 0;\nvote.sync.any.pred q, p, %2;\nselp.u32 %0, 1, 0, q;\n}"
                 : "=r"(result)
                 : "r"(static_cast<uint32_t>(predicate)), "r"(lanes));
    return result != 0;
#else
    return interpreter::ballot(predicate, lanes) != 0;
#endif
}
// Whether the predicate holds in every lane of `lanes`. PTX ISA: vote.sync.all.
DEVICE bool warp_all(bool predicate, uint32_t lanes = kAllLanes) {
#if ON_GPU
    uint32_t result;
    asm volatile("{\n.reg .pred p, q;\nsetp.ne.u32 p, %1, 0;\nvote.sync.all.pred q, p, %2;\nselp.u32 %0, 1, 0, q;\n}"
                 : "=r"(result)
                 : "r"(static_cast<uint32_t>(predicate)), "r"(lanes));
    return result != 0;
#else
    return interpreter::ballot(predicate, lanes) == lanes;
#endif
}

// Sum, smallest and largest value over the lanes. PTX ISA: Parallel Synchronization, redux.sync.
DEVICE uint32_t warp_sum_u32(uint32_t value, uint32_t lanes = kAllLanes) {
#if ON_GPU
    uint32_t result;
    asm volatile("redux.sync.add.u32 %0, %1, %2;" : "=r"(result) : "r"(value), "r"(lanes));
    return result;
#else
    return interpreter::reduce(interpreter::Reduction::Add, value, lanes);
#endif
}
DEVICE uint32_t warp_min_u32(uint32_t value, uint32_t lanes = kAllLanes) {
#if ON_GPU
    uint32_t result;
    asm volatile("redux.sync.min.u32 %0, %1, %2;" : "=r"(result) : "r"(value), "r"(lanes));
    return result;
#else
    return interpreter::reduce(interpreter::Reduction::Min, value, lanes);
#endif
}
DEVICE uint32_t warp_max_u32(uint32_t value, uint32_t lanes = kAllLanes) {
#if ON_GPU
    uint32_t result;
    asm volatile("redux.sync.max.u32 %0, %1, %2;" : "=r"(result) : "r"(value), "r"(lanes));
    return result;
#else
    return interpreter::reduce(interpreter::Reduction::Max, value, lanes);
#endif
}

// Waits for the lanes and orders memory among them. PTX ISA: Parallel Synchronization, bar.warp.sync.
DEVICE void warp_sync(uint32_t lanes = kAllLanes) {
#if ON_GPU
    asm volatile("bar.warp.sync %0;" ::"r"(lanes) : "memory");
#else
    interpreter::warp_sync(lanes);
#endif
}
