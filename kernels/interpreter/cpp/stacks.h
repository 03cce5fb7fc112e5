// Stacks for threads: kStackBytes each, aligned to their size, with a guard page at the low end.
#pragma once
#include <cstdint>

namespace interpreter {

uint8_t* take_stack();
void give_back_stack(uint8_t* stack);

}  // namespace interpreter
