// Barriers in shared memory that count arrivals and bytes: what copies and the scheduler need of them.
#pragma once
#include "grid.h"

namespace interpreter {

// That there is one, and that the running thread's copies may count at it.
void check_mbarrier_for_copies(Block& block, uint32_t address, Site site);
// `bytes` of a copy have come for the barrier at this address of the block; `message` is what the copy publishes to
// waits of this scope.
void mbarrier_complete(Block& block, uint32_t address, uint32_t bytes, const Ref<const Message>& message, Scope scope,
                       Site site);

// `rigel_mbarrier_trap` of every module: the address of a record, and whether a thread writes it.
extern uint64_t mbarrier_trap[2];

// A block must not end before someone has waited for what copies brought: they could come later.
void check_mbarriers_at_end(const Block& block);

}  // namespace interpreter
