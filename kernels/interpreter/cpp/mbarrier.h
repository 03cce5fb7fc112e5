// Barriers in shared memory that count arrivals and bytes: what copies and the scheduler need of them.
#pragma once
#include "grid.h"

namespace interpreter {

// That there is one, and that the running thread's copies may count at it.
void check_mbarrier_for_copies(Block& block, uint32_t address, Site site);
// `bytes` of a copy have come for the barrier at this address of the block; `message` is what the copy publishes.
void mbarrier_complete(Block& block, uint32_t address, uint32_t bytes, const Ref<const Message>& message, Site site);

}  // namespace interpreter
