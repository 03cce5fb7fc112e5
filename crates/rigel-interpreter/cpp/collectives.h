// Instructions that lanes of a warp execute together.
#pragma once
#include "grid.h"
#include "report.h"
#include "scheduler.h"

namespace interpreter {

// Whether all lanes must execute the same instruction (.aligned: ldmatrix, mma), or may call it from different places.
enum class Alignment { SameInstruction, AnyPlace };

// The running lane arrives with its operands. Returns the collective when it is the last lane, which then computes for
// all and calls `release`; nullptr when another lane has computed.
Collective* arrive(const char* what, uint32_t lanes, Alignment alignment, void* operands, Site site);
void release(Collective& collective);

// `compute` is run once, by the last lane, with the operands of all lanes by lane number.
template <class Operands, class Compute>
void together(const char* what, uint32_t lanes, Alignment alignment, Operands& operands, Site site, Compute compute) {
    if (Collective* all = arrive(what, lanes, alignment, &operands, site)) {
        compute(reinterpret_cast<Operands**>(all->operands));
        release(*all);
    }
}

}  // namespace interpreter
