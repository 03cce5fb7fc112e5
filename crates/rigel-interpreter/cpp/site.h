// Where in a kernel something happened: a return address into the kernel's machine code, as a distance from the start
// of this library. 0 stands for a driver call.
#pragma once
#include <cstdint>
#include <string>

namespace interpreter {

using Site = uint32_t;

Site site_of(const void* return_address);
// "kernels/norm.cu:72", or "kernels/common/reduce.cuh:31, called from kernels/norm.cu:72" where functions were inlined.
// Instructions' own files (kernels/ptx/) are left out. Runs addr2line; answers are kept.
const std::string& source_line(Site site);
// ", at " and that; nothing for a driver call, which has no line.
std::string at_line(Site site);
bool in_this_library(const void* address);

}  // namespace interpreter
#define RIGEL_CALLER ::interpreter::site_of(__builtin_return_address(0))
