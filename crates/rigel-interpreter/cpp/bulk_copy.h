// Bulk copies, and stores that are counted at a barrier as they are: those under way, as the scheduler sees them.
#pragma once
#include "grid.h"

namespace interpreter {

// One that was asked for. The checks were made then; its bytes move when the policy says.
struct BulkCopy {
    enum class Kind {
        Load,           // from global memory to shared memory
        Store,          // the other way
        FromRegisters,  // st.async: to shared memory
    };
    struct Piece {
        uint8_t* shared;
        uint8_t* global;  // nullptr: outside of the tensor, or of registers
        uint32_t bytes;
    };
    struct Target {
        Block* block;
        uint32_t barrier;  // address of its mbarrier
        std::vector<Piece> pieces;
    };
    Kind kind;
    Thread* issuer;
    std::vector<Target> targets;  // of a store one, without a barrier
    uint32_t bytes;               // of each target
    uint32_t turn;                // which of its warp's agents it is
    Clock clock;  // of the agent's accesses of shared memory; a store accesses global memory at clock + 1
    Site site;
    uint8_t value[16];  // of registers
    bool done = false;
};

// Moves one copy's bytes: the oldest, or with the random policy any. False: none is under way.
bool complete_a_bulk_copy();
// With the random policy, now and then the same.
void complete_bulk_copies_at_random();
// A block must not end while copies still need it; what it sent from registers does not.
void check_bulk_copies_at_end(const Block& block);
// A run was given up.
void forget_bulk_copies();

}  // namespace interpreter
