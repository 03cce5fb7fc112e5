// The kernels that were linked into this library, by name.
#pragma once
#include "twins.h"

namespace interpreter {

const Kernel* find_kernel(const char* name);

}  // namespace interpreter
