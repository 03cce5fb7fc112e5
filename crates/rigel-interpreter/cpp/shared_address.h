// Addresses of the shared window as instructions take them: the place in the block's arena, and for a block of the
// cluster its rank plus one above it.
#pragma once
#include "grid.h"

namespace interpreter {

constexpr int kRankShift = 24;

// Where it lies: in this block's shared memory, or where it names a rank, in that block's.
uint8_t* shared_pointer(uint32_t address, Site site);
// The block that it lies in. Ends the launch with a report where that has ended or is none of the cluster's.
Block& block_of_address(uint32_t address, Site site);
inline uint32_t without_rank(uint32_t address) { return address & ((1u << kRankShift) - 1); }

}  // namespace interpreter
