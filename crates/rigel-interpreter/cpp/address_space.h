// Large stretches of address space, of which the system gives memory for what is touched. They start as zeros.
#pragma once
#include <cstddef>

namespace interpreter {

void* reserve_addresses(size_t bytes);  // prints and aborts where the system refuses
void clear(void* from, size_t bytes);   // zeros again; whole pages go back to the system
void discard(void* from, size_t bytes); // whole pages go back to the system, the rest stays as it is

}  // namespace interpreter
