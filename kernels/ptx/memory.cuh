// Global-memory accesses of 16, 8 and 4 bytes with cache hints. Addresses are aligned to the access.
// PTX ISA: Data Movement and Conversion, ld, ld.global.nc, st, prefetch, createpolicy.
#pragma once
#include "language.cuh"

// 16 bytes, coherent.
DEVICE uint4 load_global_16(const void* address) {
#if ON_GPU
    uint4 value;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(address)
                 : "memory");
    return value;
#else
    return interpreter::load_global<uint4>(address, interpreter::Path::Coherent);
#endif
}
// 16 bytes that no one writes while this grid runs, kept in L1 (ld.global.nc): data that several threads read.
DEVICE uint4 load_readonly_16(const void* address) {
#if ON_GPU
    uint4 value;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
        : "l"(address));
    return value;
#else
    return interpreter::load_global<uint4>(address, interpreter::Path::ReadOnly);
#endif
}
// 16 bytes that no one writes while this grid runs, read once: not kept in L1, first to leave L2.
DEVICE uint4 load_once_16(const void* address, uint64_t evict_first) {
#if ON_GPU
    uint4 value;
    asm("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
        : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
        : "l"(address), "l"(evict_first));
    return value;
#else
    static_cast<void>(evict_first);
    return interpreter::load_global<uint4>(address, interpreter::Path::ReadOnly);
#endif
}
DEVICE void store_global_16(void* address, uint4 value) {
#if ON_GPU
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
                 : "memory");
#else
    interpreter::store_global(address, value);
#endif
}

// 8 bytes, coherent.
DEVICE uint2 load_global_8(const void* address) {
#if ON_GPU
    uint2 value;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(address) : "memory");
    return value;
#else
    return interpreter::load_global<uint2>(address, interpreter::Path::Coherent);
#endif
}
// 8 bytes that no one writes while this grid runs, kept in L1 (ld.global.nc): data that several threads read.
DEVICE uint2 load_readonly_8(const void* address) {
#if ON_GPU
    uint2 value;
    asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(address));
    return value;
#else
    return interpreter::load_global<uint2>(address, interpreter::Path::ReadOnly);
#endif
}
// 8 bytes that no one writes while this grid runs, read once: not kept in L1, first to leave L2.
DEVICE uint2 load_once_8(const void* address, uint64_t evict_first) {
#if ON_GPU
    uint2 value;
    asm("ld.global.nc.L1::no_allocate.L2::cache_hint.v2.u32 {%0, %1}, [%2], %3;"
        : "=r"(value.x), "=r"(value.y)
        : "l"(address), "l"(evict_first));
    return value;
#else
    static_cast<void>(evict_first);
    return interpreter::load_global<uint2>(address, interpreter::Path::ReadOnly);
#endif
}
DEVICE void store_global_8(void* address, uint2 value) {
#if ON_GPU
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(value.x), "r"(value.y) : "memory");
#else
    interpreter::store_global(address, value);
#endif
}

// 4 bytes, coherent.
DEVICE uint32_t load_global_4(const void* address) {
#if ON_GPU
    uint32_t value;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
#else
    return interpreter::load_global<uint32_t>(address, interpreter::Path::Coherent);
#endif
}
// 4 bytes that no one writes while this grid runs, kept in L1 (ld.global.nc): data that several threads read.
DEVICE uint32_t load_readonly_4(const void* address) {
#if ON_GPU
    uint32_t value;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(value) : "l"(address));
    return value;
#else
    return interpreter::load_global<uint32_t>(address, interpreter::Path::ReadOnly);
#endif
}
// 4 bytes that no one writes while this grid runs, read once: not kept in L1, first to leave L2.
DEVICE uint32_t load_once_4(const void* address, uint64_t evict_first) {
#if ON_GPU
    uint32_t value;
    asm("ld.global.nc.L1::no_allocate.L2::cache_hint.u32 %0, [%1], %2;" : "=r"(value) : "l"(address), "l"(evict_first));
    return value;
#else
    static_cast<void>(evict_first);
    return interpreter::load_global<uint32_t>(address, interpreter::Path::ReadOnly);
#endif
}
DEVICE void store_global_4(void* address, uint32_t value) {
#if ON_GPU
    asm volatile("st.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
#else
    interpreter::store_global(address, value);
#endif
}

// The L2 policy "evict first", for the loads that take one; make it once, outside of loops.
DEVICE uint64_t l2_evict_first() {
#if ON_GPU
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
#else
    return 0;
#endif
}

// The L2 policy "evict last", for the loads that take one; make it once, outside of loops.
DEVICE uint64_t l2_evict_last() {
#if ON_GPU
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
#else
    return 0;
#endif
}

// Asks for the cache line of `address` in L2. Touches nothing that the program can see.
DEVICE void prefetch_l2(const void* address) {
#if ON_GPU
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
    interpreter::prefetch(address);
#endif
}
