// A kernel as the driver hands it out.
#pragma once
#include "api.h"

constexpr int kMaxDynamicSharedBytes = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

struct Function {
    const interpreter::Kernel* kernel;
    int max_shared_bytes = 48 << 10;  // until raised by cuFuncSetAttribute
};

namespace interpreter {

// Where an argument lies among the arguments' bytes: each at the next multiple of its alignment.
size_t argument_offset(const Kernel& kernel, unsigned index);
// Blocks of this shape that an SM of the played device holds, by threads and shared memory (registers are not
// known here).
int resident_blocks(const Function& function, unsigned threads, size_t shared_bytes);

}  // namespace interpreter
