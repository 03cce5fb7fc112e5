// Stacks for threads: kStackBytes each, aligned to their size, with a guard page at the low end.
#pragma once
#include <cstddef>
#include <cstdint>

namespace interpreter {

constexpr size_t kGuardBytes = 4096;

uint8_t* take_stack();
void give_back_stack(uint8_t* stack);

}  // namespace interpreter
