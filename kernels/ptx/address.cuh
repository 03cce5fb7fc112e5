// Addresses in the shared window, as ldmatrix and cp.async take them.
#pragma once
#include "language.cuh"

// The 32-bit shared-window address of a pointer into shared memory.
// PTX ISA: Data Movement and Conversion, cvta.to.shared.
DEVICE uint32_t shared_address(const void* pointer) {
#if ON_GPU
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
#else
    return interpreter::shared_address(pointer);
#endif
}
