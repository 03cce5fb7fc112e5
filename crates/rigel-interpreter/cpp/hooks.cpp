// Kernel files are compiled with -fsanitize=thread,alignment, which puts a call before every load and store. The calls
// are meant for sanitizer libraries; here they are answered by the interpreter's own checks, and no such library is
// linked. Everything but the first test of each hook is out of line: most accesses go to the thread's own stack.
#include <cstring>

#include "access.h"
#include "report.h"
#include "scheduler.h"
#include "warpgroup.h"

using namespace interpreter;

namespace {
inline bool on_own_stack(const void* address) {
    const auto frame = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    return ((reinterpret_cast<uintptr_t>(address) ^ frame) & ~(kStackBytes - 1)) == 0;
}
// On the stack lie the registers that MMA instructions work on.
inline void own_stack(const void* address, size_t bytes, Does does, const void* caller) {
    if (watching_registers && current) check_registers(address, bytes, does == Does::Write, site_of(caller));
}
inline void hook(const void* address, size_t bytes, Does does, const void* caller) {
    if (on_own_stack(address)) return own_stack(address, bytes, does, caller);
    check_access(address, bytes, does, site_of(caller));
}
inline void aligned_hook(const void* address, size_t bytes, Does does, const void* caller) {
    if (on_own_stack(address)) return own_stack(address, bytes, does, caller);
    if (current) check_alignment(address, bytes, does == Does::Write ? "write" : "read", site_of(caller));
    check_access(address, bytes, does, site_of(caller));
}
}  // namespace

#define CALLER __builtin_return_address(0)
#define HOOKS(n)                                                                      \
    void __tsan_read##n(void* p) { aligned_hook(p, n, Does::Read, CALLER); }          \
    void __tsan_write##n(void* p) { aligned_hook(p, n, Does::Write, CALLER); }        \
    void __tsan_unaligned_read##n(void* p) { hook(p, n, Does::Read, CALLER); }        \
    void __tsan_unaligned_write##n(void* p) { hook(p, n, Does::Write, CALLER); }      \
    void __tsan_volatile_read##n(void* p) { aligned_hook(p, n, Does::Read, CALLER); } \
    void __tsan_volatile_write##n(void* p) { aligned_hook(p, n, Does::Write, CALLER); }

#pragma GCC visibility push(hidden)
extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t n) { hook(p, n, Does::Read, CALLER); }
void __tsan_write_range(void* p, size_t n) { hook(p, n, Does::Write, CALLER); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// -fsanitize=alignment: a pointer is dereferenced that is not aligned for its type.
struct TypeMismatch {
    struct {
        const char* file;
        uint32_t line, column;
    } location;
    const void* type;
    unsigned char log_alignment;
    unsigned char kind;
};
void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t pointer) {
    if (!current) return;
    check_alignment(reinterpret_cast<void*>(pointer), size_t{1} << data->log_alignment,
                    data->kind == 1 ? "write" : "read", site_of(CALLER));
}
}
#pragma GCC visibility pop
