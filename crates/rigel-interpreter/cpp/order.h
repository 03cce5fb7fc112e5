// Which access happens before which: vector clocks.
//
// An *agent* is what acts on memory: each CUDA thread is two, the thread itself and its asynchronous copies; each warp
// is some that its threads' bulk copies take turns at, each warpgroup one for its MMA instructions. A block's agents
// have consecutive serial numbers, counted from the start of the process (Agents, in grid.h). An agent's clock counts
// its synchronising actions. *Work* is what a stream runs: a grid, a copy, a fill. All accesses of finished work are
// known at once to whoever knows that it finished.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "counted.h"

namespace interpreter {

enum class Memory { Shared, Global };
inline const char* name_of(Memory memory) { return memory == Memory::Shared ? "shared" : "global"; }

using Clock = uint32_t;
using Serial = uint64_t;

// Which work is known to have finished.
struct FinishedWork : Counted {
    std::vector<uint64_t> through;  // by stream: all of its work up to this sequence number
    std::vector<uint64_t> besides;  // identities of further finished work (programmatic dependent launch)
    Serial floor = 0;  // every agent with a smaller serial belongs to finished work

    size_t floor_work = 0;  // index of the oldest work not known to have finished

    bool knows(uint32_t stream, uint64_t sequence, uint64_t identity) const;
    bool covers(const FinishedWork& other) const;
    void tidy();  // after `through` or `besides` grew
};
Ref<const FinishedWork> join(const Ref<const FinishedWork>& a, const Ref<const FinishedWork>& b);
Ref<const FinishedWork> with_finished(const Ref<const FinishedWork>& known, uint64_t identity);

// The clocks of one block's agents.
struct BlockClocks : Counted {
    std::vector<Clock> of;
};
struct OtherBlock {
    Serial first;  // serial of the block's first agent
    Ref<const BlockClocks> clocks;
};

// What a thread knows of the rest of the world, apart from its own clock.
struct View : Counted {
    Ref<const BlockClocks> own_block;
    std::vector<OtherBlock> other_blocks;  // sorted by `first`; learnt through flags and counters
    Ref<const FinishedWork> finished;
};

// What a releasing action leaves at an address for those who acquire from it.
struct Message : Counted {
    std::vector<OtherBlock> blocks;  // sorted by `first`
    Ref<const FinishedWork> finished;
};
Ref<const Message> join(const Ref<const Message>& a, const Ref<const Message>& b);
void learn(std::vector<OtherBlock>& known, const OtherBlock& news);

// One access as the shadow memory remembers it: who (36 bits), when (22), how (2), and which bytes of the cell (4).
using Stamp = uint64_t;
constexpr Stamp kStampBytes = 0xf, kStampWrite = 1 << 4, kStampAtomic = 1 << 5;
constexpr int kClockShift = 6, kSerialShift = 28;
constexpr Clock kLastClock = (1u << (kSerialShift - kClockShift)) - 1;
inline Stamp make_stamp(Serial serial, Clock clock, Stamp how) {
    return serial << kSerialShift | static_cast<Stamp>(clock) << kClockShift | how;
}
inline Serial serial_of(Stamp stamp) { return stamp >> kSerialShift; }
inline Clock clock_of(Stamp stamp) { return static_cast<Clock>(stamp >> kClockShift) & kLastClock; }

}  // namespace interpreter
