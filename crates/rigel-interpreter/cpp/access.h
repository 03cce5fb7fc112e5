// The checks of one access by the running thread, whatever it goes to.
#pragma once
#include <cstddef>

#include "races.h"

namespace interpreter {

// A load or store of compiled kernel code, at any address. Returns to the kernel when all is well.
void check_access(const void* address, size_t bytes, Does does, Site site);
// An access that must go to global or to shared memory, aligned to its own size.
void check_global(const void* address, size_t bytes, const Access& access);
void check_shared(const void* address, size_t bytes, const Access& access);
// Either of the two: atomics, flags.
void check_global_or_shared(const void* address, size_t bytes, const Access& access);
void check_alignment(const void* address, size_t alignment, const char* what, Site site);

}  // namespace interpreter
