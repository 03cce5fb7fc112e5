#include "stacks.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "twins.h"

namespace interpreter {

namespace {
constexpr size_t kStacksAtOnce = 256;
// Each guard page splits a mapping in two, and Linux allows a process 65,530 mappings: beyond this many, none.
constexpr size_t kGuardedStacks = 16384;
std::vector<uint8_t*> free_stacks;
size_t made = 0;

void make_stacks() {
    const size_t bytes = (kStacksAtOnce + 1) * kStackBytes;
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        std::perror("rigel interpreter: cannot map stacks for threads");
        std::abort();
    }
    const uintptr_t first = (reinterpret_cast<uintptr_t>(at) + kStackBytes - 1) & ~(kStackBytes - 1);
    for (size_t i = 0; i < kStacksAtOnce; i++) {
        auto* stack = reinterpret_cast<uint8_t*>(first + (kStacksAtOnce - 1 - i) * kStackBytes);
        if (made++ < kGuardedStacks) mprotect(stack, kGuardBytes, PROT_NONE);
        free_stacks.push_back(stack);
    }
}
}  // namespace

uint8_t* take_stack() {
    if (free_stacks.empty()) make_stacks();
    uint8_t* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
}

void give_back_stack(uint8_t* stack) { free_stacks.push_back(stack); }

}  // namespace interpreter
