// targets: sm_80 compute_80 sm_90
// One tiny kernel for each function that sampling is made of: tests/kernels/sample.rs says what it must give, on the
// interpreter and on a GPU. Those with `count` take that many inputs, one a thread.
#include "common/elementary.cuh"
#include "common/float_key.cuh"
#include "common/philox.cuh"
#include "ptx/ptx.cuh"

// Blocks of four words for counters of four words and keys of two.
KERNEL(conform_philox4x32, 32)(const uint32_t* in, uint32_t* out, uint32_t count) {
    const uint32_t i = blockIdx.x * 32 + threadIdx.x;
    if (i >= count) return;
    const uint32_t* const own = in + 6 * i;
    uint4 counter;
    counter.x = own[0], counter.y = own[1], counter.z = own[2], counter.w = own[3];
    const uint4 block = philox4x32(counter, own[4], own[5]);
    out[4 * i] = block.x, out[4 * i + 1] = block.y, out[4 * i + 2] = block.z, out[4 * i + 3] = block.w;
}
REGISTER_KERNEL(conform_philox4x32)

KERNEL(conform_natural_log, 32)(const uint32_t* in, uint32_t* out, uint32_t count) {
    const uint32_t i = blockIdx.x * 32 + threadIdx.x;
    if (i < count) out[i] = __float_as_uint(natural_log(__uint_as_float(in[i])));
}
REGISTER_KERNEL(conform_natural_log)

KERNEL(conform_log_exponential, 32)(const uint32_t* in, uint32_t* out, uint32_t count) {
    const uint32_t i = blockIdx.x * 32 + threadIdx.x;
    if (i < count) out[i] = __float_as_uint(log_exponential(in[i]));
}
REGISTER_KERNEL(conform_log_exponential)

KERNEL(conform_mass_of, 32)(const uint32_t* in, uint32_t* out, uint32_t count) {
    const uint32_t i = blockIdx.x * 32 + threadIdx.x;
    if (i >= count) return;
    const uint64_t mass = mass_of(__uint_as_float(in[i]));
    out[2 * i] = static_cast<uint32_t>(mass);
    out[2 * i + 1] = static_cast<uint32_t>(mass >> 32);
}
REGISTER_KERNEL(conform_mass_of)

// The key, and whether it leads back.
KERNEL(conform_ordered_bits, 32)(const uint32_t* in, uint32_t* out, uint32_t count) {
    const uint32_t i = blockIdx.x * 32 + threadIdx.x;
    if (i >= count) return;
    const uint32_t key = ordered_bits(__uint_as_float(in[i]));
    out[2 * i] = key;
    out[2 * i + 1] = __float_as_uint(from_ordered_bits(key)) == in[i];
}
REGISTER_KERNEL(conform_ordered_bits)

KERNEL(conform_multiply_rounded, 32)(const uint32_t* in, uint32_t* out, uint32_t count) {
    const uint32_t i = blockIdx.x * 32 + threadIdx.x;
    if (i >= count) return;
    // A subtraction that could be fused with the product, which would not be rounded then.
    const float product = multiply_rounded(__uint_as_float(in[2 * i]), __uint_as_float(in[2 * i + 1]));
    out[2 * i] = __float_as_uint(product);
    out[2 * i + 1] = __float_as_uint(product - 1.0f);
}
REGISTER_KERNEL(conform_multiply_rounded)

// out[0] is the sum of the inputs, the rest what each addition found.
KERNEL(conform_atomic_add_shared, 1024)(const uint32_t* in, uint32_t* out, uint32_t count) {
    SHARED_MEMORY(shared);
    uint32_t* const sum = reinterpret_cast<uint32_t*>(shared);
    if (threadIdx.x == 0) *sum = 0;
    block_sync();
    if (threadIdx.x < count) out[1 + threadIdx.x] = atomic_add_shared(sum, in[threadIdx.x]);
    block_sync();
    if (threadIdx.x == 0) out[0] = *sum;
}
REGISTER_KERNEL(conform_atomic_add_shared)
