// targets: sm_80 compute_80 sm_90
// One tiny kernel for each function of kernels/ptx/async_copy.cuh and address.cuh: tests/kernels/conformance.rs says
// what it must give, on the interpreter and on a GPU.
#include "ptx/ptx.cuh"

// Every third lane reads half of its bytes (4: none), the rest is zero.
KERNEL(conform_copy_async_4, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    SHARED_MEMORY(shared);
    uint32_t* words = reinterpret_cast<uint32_t*>(shared);
    copy_async_4(shared_address(words + 1 * lane), in + 1 * lane, lane % 3 == 0 ? 0 : 4);
    copy_async_commit();
    copy_async_wait<0>();
    out[1 * lane + 0] = words[1 * lane + 0];
}
REGISTER_KERNEL(conform_copy_async_4)

// Every third lane reads half of its bytes (4: none), the rest is zero.
KERNEL(conform_copy_async_8, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    SHARED_MEMORY(shared);
    uint32_t* words = reinterpret_cast<uint32_t*>(shared);
    copy_async_8(shared_address(words + 2 * lane), in + 2 * lane, lane % 3 == 0 ? 4 : 8);
    copy_async_commit();
    copy_async_wait<0>();
    out[2 * lane + 0] = words[2 * lane + 0];
    out[2 * lane + 1] = words[2 * lane + 1];
}
REGISTER_KERNEL(conform_copy_async_8)

// Every third lane reads half of its bytes (4: none), the rest is zero.
KERNEL(conform_copy_async_16, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    SHARED_MEMORY(shared);
    uint32_t* words = reinterpret_cast<uint32_t*>(shared);
    copy_async_16(shared_address(words + 4 * lane), in + 4 * lane, lane % 3 == 0 ? 8 : 16);
    copy_async_commit();
    copy_async_wait<0>();
    out[4 * lane + 0] = words[4 * lane + 0];
    out[4 * lane + 1] = words[4 * lane + 1];
    out[4 * lane + 2] = words[4 * lane + 2];
    out[4 * lane + 3] = words[4 * lane + 3];
}
REGISTER_KERNEL(conform_copy_async_16)

// Two groups: after the first wait the older one is there, after the second both.
KERNEL(conform_copy_async_groups, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    SHARED_MEMORY(shared);
    uint32_t* words = reinterpret_cast<uint32_t*>(shared);
    copy_async_4(shared_address(words + lane), in + lane);
    copy_async_commit();
    copy_async_4(shared_address(words + 32 + lane), in + 32 + lane);
    copy_async_commit();
    copy_async_wait<1>();
    out[lane] = words[lane];
    copy_async_wait<0>();
    out[32 + lane] = words[32 + lane];
}
REGISTER_KERNEL(conform_copy_async_groups)

KERNEL(conform_copy_async_wait_all, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    SHARED_MEMORY(shared);
    uint32_t* words = reinterpret_cast<uint32_t*>(shared);
    copy_async_4(shared_address(words + lane), in + lane);
    copy_async_wait_all();
    out[lane] = words[lane];
}
REGISTER_KERNEL(conform_copy_async_wait_all)
