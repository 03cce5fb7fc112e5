// The race checker: every 4 bytes of device and shared memory remember their last accesses in a cell, and a new access
// that conflicts with one that it is not ordered after is a race.
#pragma once
#include <cstddef>

#include "order.h"
#include "site.h"

namespace interpreter {

struct Thread;

constexpr size_t kCellBytes = 4;
constexpr size_t kGranuleBytes = 16;
constexpr size_t kCellsOfGranule = kGranuleBytes / kCellBytes;
constexpr int kSlots = 3;

// The newest accesses to 4 bytes, in no order; a stamp of 0 is an empty slot. When more than three unordered accesses
// would have to be kept, one that is only a read is dropped at random: a race may then go unseen at this place, but
// never is one reported that is none.
struct Cell {
    Stamp stamp[kSlots];
    Site site[kSlots];
    uint32_t split;  // see Cells
};

// The cells of a region. Most memory is only ever touched 16 bytes at a time: there one cell stands for four, until a
// narrower access splits them.
struct Cells {
    Cell* first = nullptr;   // of each 16 bytes; all four where it is not split
    Cell* others = nullptr;  // the other three

    void reserve(size_t region_bytes);
    void forget(size_t offset, size_t bytes);  // multiples of kGranuleBytes
};

enum class Agent { Thread, AsyncCopy /* cp.async */, BulkCopy, Matrix /* wgmma */ };
// The asynchronous proxy sees ordinary writes only behind a fence of the thread that made them.
constexpr bool of_async_proxy(Agent agent) { return agent == Agent::BulkCopy || agent == Agent::Matrix; }

enum class Does {
    Read,
    ReadOnlyLoad,  // ld.global.nc
    CopyRead,      // of a box, which may reach bytes that no one has written
    Write,
    AtomicRead,
    AtomicWrite,
    AtomicUpdate
};

struct Access {
    Thread* thread;
    Agent agent;
    Does does;
    Site site;

    bool reads() const { return does != Does::Write && does != Does::AtomicWrite; }
    bool writes() const { return does == Does::Write || does == Does::AtomicWrite || does == Does::AtomicUpdate; }
    bool atomic() const { return does >= Does::AtomicRead; }
};

// Whether what an ordinary store left has been made ready for the asynchronous proxy by its thread, ahead of what
// orders it and the reader. Of earlier work, and of blocks that have ended, nothing is asked.
bool ready_for_async_proxy(Stamp store, Memory memory, const Thread& reader);

// Checks and remembers an access to bytes [offset, offset + bytes) of a region with these cells. Agents with serials
// below `floor` are ordered before it. Ends the launch with a report when it races.
void check_races(const Cells& cells, size_t offset, size_t bytes, const Access& access, Serial floor, Memory memory,
                 size_t reported_offset);

}  // namespace interpreter
