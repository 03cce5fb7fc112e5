// A thread that outgrows its stack runs into the guard page below it: a report instead of the end of the process.
#pragma once

namespace interpreter {

// To be called by each operating-system thread before it runs kernels.
void watch_for_stack_overflow();

}  // namespace interpreter
