// The parts of instructions' twins that the scheduler calls when a thread ends.
#pragma once
#include "grid.h"

namespace interpreter {

void finish_copies(Thread& thread);               // async_copy.cpp: a thread's copies end before it does
void check_collectives_at_exit(Thread& thread);   // collectives.cpp: no one may be waiting for this lane
void leave_barriers(Thread& thread);              // barriers.cpp: barriers no longer wait for this thread
void forget_messages(const void* from, size_t bytes);  // atomics.cpp: what was released at freed addresses

}  // namespace interpreter
