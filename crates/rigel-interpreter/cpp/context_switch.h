// Switching between stacks: the part of the interpreter that is written in assembly.
#pragma once

namespace interpreter {

// Saves the callee-saved registers on the running stack, stores its stack pointer in *save, and continues on the stack
// whose pointer is `resume`.
extern "C" void rigel_switch_context(void** save, void* resume);

// Lays out the top of a new stack so that the first switch to the result calls `entry`, which must not return.
void* fresh_context(void* stack_top, void (*entry)());

}  // namespace interpreter
