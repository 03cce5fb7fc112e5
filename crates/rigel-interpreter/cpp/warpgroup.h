// Matrix instructions of a warpgroup: what computes them, and what watches the registers that they work on.
#pragma once
#include <cstddef>

#include "grid.h"

namespace interpreter {

// One wgmma.mma_async that was issued. The checks of its operands in shared memory were made then; it reads them when
// it is computed.
struct MatrixOperation {
    float* sums[128];            // of each thread; the accumulators
    uint32_t a_registers[128][4];
    bool a_in_registers;
    uint64_t a, b;               // descriptors
    int major_a, major_b;
    uint32_t columns;
    bool accumulate;
    Element element;
    const uint8_t* arena;        // the block's
    Clock clock;                 // of the warpgroup's agent
};

// Operands in shared memory.
constexpr uint32_t kMatrixDepth = 16;  // k of an instruction
// Address of element (r, k) of an operand, r along M or N; aligned pieces of `operand_piece_bytes` lie together.
uint32_t operand_address(uint64_t descriptor, int major, uint32_t r, uint32_t k);
// What is wrong with a descriptor; nullptr: nothing.
const char* descriptor_problem(uint64_t descriptor, int major);
void compute(const MatrixOperation& operation);

// Registers in flight. Set while the run has MMA instructions: then accesses of a thread's own stack are looked at.
extern bool watching_registers;
void check_registers(const void* address, size_t bytes, bool writes, Site site);

}  // namespace interpreter
