#include "context_switch.h"

#include <cstdint>
#include <cstring>

namespace interpreter {

#if defined(__x86_64__)

// System V ABI: rbp, rbx, r12 to r15 survive calls; rdi and rsi are the arguments. The control words of x87 and SSE
// survive too, but kernels do not change them.
asm(R"(
    .text
    .p2align 4
    .globl rigel_switch_context
    .hidden rigel_switch_context
    .type rigel_switch_context, @function
rigel_switch_context:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size rigel_switch_context, . - rigel_switch_context
)");

void* fresh_context(void* stack_top, void (*entry)()) {
    auto* slot = static_cast<void**>(stack_top);
    *--slot = nullptr;  // where `entry` would return to; keeps the stack aligned as after a call
    *--slot = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; saved++) *--slot = nullptr;
    return slot;
}

#elif defined(__aarch64__)

// AAPCS64: x19 to x30 and d8 to d15 survive calls; x0 and x1 are the arguments.
asm(R"(
    .text
    .p2align 4
    .globl rigel_switch_context
    .hidden rigel_switch_context
    .type rigel_switch_context, %function
rigel_switch_context:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size rigel_switch_context, . - rigel_switch_context
)");

void* fresh_context(void* stack_top, void (*entry)()) {
    auto* frame = reinterpret_cast<void**>(static_cast<uint8_t*>(stack_top) - 160);
    std::memset(frame, 0, 160);
    frame[11] = reinterpret_cast<void*>(entry);  // x30, the return address
    return frame;
}

#else
#error "the interpreter has a context switch for x86-64 and aarch64; add this machine's"
#endif

}  // namespace interpreter
