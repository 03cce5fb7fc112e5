#include "stack_overflow.h"

#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <vector>

#include "report.h"
#include "scheduler.h"
#include "stacks.h"

namespace interpreter {

namespace {
struct sigaction handler_before;

// What the thread was doing: the instruction that faulted, and its frame. Every file is compiled with frame pointers.
const char* fault_instruction;
void* const* fault_frame;

// The report needs more stack than a signal handler has, and the thread has none left.
alignas(16) uint8_t report_stack[256 << 10];

// The innermost place in a kernel file: the fault may be in one of the interpreter's own functions that the kernel
// called.
Site place_in_kernel() {
    const auto* const low = reinterpret_cast<void* const*>(current->stack);
    const auto* const high = reinterpret_cast<void* const*>(current->stack + kStackBytes - kBuiltinBytes);
    std::vector<Site> sites{site_of(fault_instruction + 1)};  // sites are return addresses, one instruction further
    for (void* const* frame = fault_frame; frame >= low && frame + 1 < high && sites.size() < 32;
         frame = static_cast<void* const*>(frame[0])) {
        if (!in_this_library(frame[1])) break;
        sites.push_back(site_of(frame[1]));
    }
    for (Site site : sites)
        if (source_line(site).rfind("crates/rigel-interpreter/cpp/", 0) != 0) return site;
    return sites[0];
}

[[noreturn]] void report_overflow() {
    fail(place_in_kernel(), text("stack overflow: a thread here has %zu KiB", (kStackBytes - kGuardBytes) >> 10),
         {"local arrays too large, or calls without end; a GPU's kernels here may use no local memory at all"});
}

// Goes on at `report_overflow`, outside of the signal handler, on the stack for it.
void continue_with_report(ucontext_t& context) {
    uint8_t* const top = report_stack + sizeof report_stack;
#if defined(__x86_64__)
    auto& registers = context.uc_mcontext.gregs;
    fault_instruction = reinterpret_cast<const char*>(registers[REG_RIP]);
    fault_frame = reinterpret_cast<void* const*>(registers[REG_RBP]);
    registers[REG_RIP] = reinterpret_cast<greg_t>(&report_overflow);
    registers[REG_RSP] = reinterpret_cast<greg_t>(top - 8);  // as after a call
    registers[REG_RBP] = 0;
#elif defined(__aarch64__)
    fault_instruction = reinterpret_cast<const char*>(context.uc_mcontext.pc);
    fault_frame = reinterpret_cast<void* const*>(context.uc_mcontext.regs[29]);
    context.uc_mcontext.pc = reinterpret_cast<uintptr_t>(&report_overflow);
    context.uc_mcontext.sp = reinterpret_cast<uintptr_t>(top);
    context.uc_mcontext.regs[29] = context.uc_mcontext.regs[30] = 0;
#endif
}

// In the C library, which may hold a lock that the report would wait for.
[[noreturn]] void end_the_process() {
    char message[256];
    const int length = std::snprintf(message, sizeof message,
                                     "rigel interpreter: stack overflow in %s, in a function of the C library\n",
                                     current->warp->block->grid->kernel->name);
    if (length > 0 && write(STDERR_FILENO, message, static_cast<size_t>(length)) < 0) _exit(134);
    _exit(134);  // as after an abort
}

const void* instruction_of(const ucontext_t& context) {
#if defined(__x86_64__)
    return reinterpret_cast<const void*>(context.uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
    return reinterpret_cast<const void*>(context.uc_mcontext.pc);
#endif
}

void on_fault(int signal, siginfo_t* info, void* context) {
    const auto* at = static_cast<const uint8_t*>(info->si_addr);
    if (current && current->stack && at >= current->stack && at < current->stack + kGuardBytes) {
        auto& where = *static_cast<ucontext_t*>(context);
        if (!in_this_library(instruction_of(where))) end_the_process();
        return continue_with_report(where);
    }
    if (handler_before.sa_flags & SA_SIGINFO) return handler_before.sa_sigaction(signal, info, context);
    if (handler_before.sa_handler != SIG_DFL && handler_before.sa_handler != SIG_IGN)
        return handler_before.sa_handler(signal);
    sigaction(signal, &handler_before, nullptr);  // returns to the instruction, which faults again
}
}  // namespace

void watch_for_stack_overflow() {
    static thread_local bool watching = false;
    if (watching) return;
    watching = true;
    // The handler cannot run on the stack that overflowed. Rust's threads have one for it already.
    stack_t alternative{};
    if (sigaltstack(nullptr, &alternative) == 0 && alternative.ss_flags & SS_DISABLE) {
        static thread_local uint8_t stack[64 << 10];
        alternative = {stack, 0, sizeof stack};
        sigaltstack(&alternative, nullptr);
    }
    static bool installed = false;
    if (installed) return;
    installed = true;
    struct sigaction handler{};
    handler.sa_sigaction = on_fault;
    handler.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &handler, &handler_before);
}

}  // namespace interpreter
