// The parts of instructions' twins that the scheduler calls when a thread ends.
#pragma once
#include "grid.h"

namespace interpreter {

std::string describe_mbarriers(
    const Block& block);  // mbarrier.cpp: those that threads wait at, for the report of a deadlock
void finish_copies(Thread& thread);               // async_copy.cpp: a thread's copies end before it does
void check_collectives_at_exit(Thread& thread);   // collectives.cpp: no one may be waiting for this lane
void leave_barriers(Thread& thread);              // barriers.cpp: barriers no longer wait for this thread
void leave_bulk_copies(Thread& thread);           // bulk_copy.cpp: it has waited for its bulk stores
void leave_warpgroup(Thread& thread);             // warpgroup.cpp: its MMA instructions end before it does
void leave_cluster(Thread& thread);               // cluster.cpp: nor does the barrier of the cluster
void forget_messages(const void* from, size_t bytes);  // atomics.cpp: what was released at freed addresses

}  // namespace interpreter
