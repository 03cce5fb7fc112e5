#include "races.h"

#include <algorithm>
#include <cstring>

#include "address_space.h"
#include "report.h"
#include "scheduler.h"
#include "settings.h"
#include "work.h"

namespace interpreter {

namespace {

// Is the agent's access of another block, or of other work, known to this thread to have happened?
__attribute__((noinline)) bool known_from_elsewhere(Stamp old, const Thread& thread) {
    const BlockOfWork& block = history.block_of(serial_of(old));
    const auto& others = thread.view->other_blocks;
    auto at = std::lower_bound(others.begin(), others.end(), block.first,
                               [](const OtherBlock& other, Serial first) { return other.first < first; });
    if (at != others.end() && at->first == block.first && clock_of(old) <= at->clocks->of[serial_of(old) - block.first])
        return true;
    const Work& work = history.work(block.work);
    return thread.view->finished->knows(work.stream, work.sequence, work.identity);
}

// The same, where that can be told without a search: the work is known to have finished, or it is of the same block.
inline bool known_at_once(Stamp old, const Thread& thread, Serial floor, bool* elsewhere) {
    const Serial serial = serial_of(old);
    if (serial < floor) return true;
    const auto& clocks = thread.view->own_block->of;
    const uint64_t agent = serial - thread.warp->block->first;
    *elsewhere = agent >= clocks.size();
    if (*elsewhere) return false;
    if (agent == Agents::thread(thread.index)) return true;
    if (agent == Agents::copies(thread.index)) return clock_of(old) <= thread.copies_seen;
    return clock_of(old) <= clocks[agent];
}

inline bool happened_before(Stamp old, const Thread& thread, Serial floor) {
    bool elsewhere = false;
    return known_at_once(old, thread, floor, &elsewhere) || (elsewhere && known_from_elsewhere(old, thread));
}

// What this thread knows of the clock of an agent of a block that runs; 0 where it knows nothing.
Clock known_clock(const Thread& thread, Serial first, Serial agent) {
    const Block& block = *thread.warp->block;
    if (first == block.first) return thread.view->own_block->of[agent];
    for (const OtherBlock& other : thread.view->other_blocks)
        if (other.first == first) return other.clocks->of[agent];
    return 0;
}

}  // namespace

__attribute__((noinline)) bool ready_for_async_proxy(Stamp old, Memory memory, const Thread& reader) {
    const BlockOfWork& written_by = history.block_of(serial_of(old));
    if (written_by.work != reader.warp->block->grid->work) return true;
    const Block* block =
        written_by.first == reader.warp->block->first ? reader.warp->block : scheduler.find_block(written_by.first);
    if (!block) return true;
    const Serial agent = serial_of(old) - written_by.first;
    if (!block->agents().of_generic_proxy(agent)) return true;
    const bool copy = agent % 2 != 0;
    const Thread& writer = block->threads[agent / 2];
    // The first fence behind the store: both of its clocks only rise.
    const auto& fences = writer.proxy_fences[static_cast<int>(memory)];
    const auto fence =
        std::lower_bound(fences.begin(), fences.end(), clock_of(old),
                         [copy](const ProxyFence& of, Clock stored) { return (copy ? of.copies : of.clock) < stored; });
    if (fence == fences.end()) return false;
    return &writer == &reader || fence->clock <= known_clock(reader, written_by.first, Agents::thread(writer.index));
}

namespace {

const char* verb(Stamp how, const char* atomic, const char* write, const char* read) {
    return how & kStampAtomic ? atomic : how & kStampWrite ? write : read;
}

std::string whose(Agent agent) {
    switch (agent) {
        case Agent::AsyncCopy: return "the access is an asynchronous copy's; ";
        case Agent::BulkCopy: return "the access is a bulk copy's; ";
        case Agent::Matrix: return "the access is a MMA instruction's; ";
        default: return "";
    }
}

[[noreturn]] void report_race(Stamp old, Site old_site, Stamp mine, const Access& access, Memory memory,
                              size_t offset) {
    const BlockOfWork& other = history.block_of(serial_of(old));
    const BlockOfWork& own = history.block_of(serial_of(mine));
    std::string why;
    if (other.first == own.first)
        why = "no barrier orders the two";
    else if (other.work == own.work)
        why = "no barrier reaches across blocks, and no fence and flag (or release and acquire) order the two";
    else if (history.work(other.work).stream == history.work(own.work).stream)
        why =
            "the earlier grid has not been waited for: griddepcontrol.wait must come first (in every grid between, "
            "too)";
    else
        why = "the two are in different streams, and no event or synchronisation orders them";
    const Block& block = *access.thread->warp->block;
    const Serial agent = serial_of(old) - other.first;
    if (other.first == own.first && access.agent == Agent::Thread && agent == Agents::copies(access.thread->index))
        why = "the thread has not waited for its own asynchronous copy";
    else if (other.first == own.first && !block.agents().of_generic_proxy(agent))
        why = "no wait for what the other belongs to, and then a barrier, order the two";
    fail(access.site,
         text("race in %s memory: an access at byte %zu %s what is not ordered after %s", name_of(memory), offset,
              verb(mine, "updates", "writes", "reads"), verb(old, "an atomic update", "a write", "a read")),
         {"the other: " + history.describe_agent(serial_of(old)) + " " +
              verb(old, "updated it", "wrote it", "read it") + at_line(old_site),
          whose(access.agent) + why});
}

inline bool same_agent(Stamp a, Stamp b) { return (a ^ b) >> kSerialShift == 0; }

// One cell, one access. `mine` carries the mask of the bytes touched.
inline void visit(Cell& cell, Stamp mine, const Access& access, Serial floor, Memory memory, size_t offset) {
    const bool writes = mine & kStampWrite;
    int place = -1;
    for (int slot = 0; slot < kSlots; slot++) {
        const Stamp old = cell.stamp[slot];
        if (old == 0) {
            place = slot;
            continue;
        }
        const Stamp common = old & mine & kStampBytes;
        const bool covered = common == (old & kStampBytes);
        const bool conflict = common && ((old | mine) & kStampWrite) && !(old & mine & kStampAtomic);
        bool ordered = access.agent == Agent::Thread && same_agent(old, mine), elsewhere;
        if (!ordered && conflict) ordered = happened_before(old, *access.thread, floor);
        // Two reads: the order only tells whether the old one still has to be remembered, which is not worth a search.
        if (!ordered && !conflict && covered) ordered = known_at_once(old, *access.thread, floor, &elsewhere);
        if (conflict && !ordered) report_race(old, cell.site[slot], mine, access, memory, offset);
        // An atomic update is an mbarrier's, which needs no fence once it is initialised.
        if (conflict && of_async_proxy(access.agent) && (old & kStampWrite) && !(old & kStampAtomic) &&
            !ready_for_async_proxy(old, memory, *access.thread))
            fail(access.site,
                 text("missing proxy fence: the asynchronous proxy %s byte %zu of %s memory, which an ordinary store "
                      "wrote",
                      writes ? "writes" : "reads", offset, name_of(memory)),
                 {"the store: " + history.describe_agent(serial_of(old)) + at_line(cell.site[slot]),
                  whose(access.agent) + "the thread that stored must call " +
                      (memory == Memory::Shared ? "fence_proxy_async_shared (for an mbarrier mbarrier_init_fence)"
                                                : "fence_proxy_async_global") +
                      " before the barrier that orders the two"});
        if (access.does == Does::ReadOnlyLoad && (old & kStampWrite) && common &&
            serial_of(old) >= access.thread->warp->block->first &&
            history.block_of(serial_of(old)).work == history.block_of(serial_of(mine)).work)
            fail(access.site, "a read-only load (ld.global.nc) of bytes that this grid has written",
                 {"the write: " + history.describe_agent(serial_of(old)) + at_line(cell.site[slot])});
        // Whoever conflicts with an access that this one covers and follows conflicts with this one too.
        if (ordered && covered && (writes || !(old & kStampWrite))) {
            cell.stamp[slot] = 0;
            place = slot;
        }
    }
    if (place < 0) {
        place = static_cast<int>(shuffle_source.below(kSlots));
        if (!writes)
            for (int tries = 0; tries < kSlots && (cell.stamp[place] & kStampWrite); tries++)
                place = (place + 1) % kSlots;
    }
    cell.stamp[place] = mine;
    cell.site[place] = access.site;
}

// Part of 16 bytes, or all of them where their cells are split.
__attribute__((noinline)) void visit_cells(Cell& first, Cell* others, size_t offset, size_t bytes, Stamp mine,
                                           const Access& access, Serial floor, Memory memory, size_t reported_offset) {
    if (!first.split) {
        first.split = 1;
        std::fill_n(others, kCellsOfGranule - 1, first);
    }
    for (size_t at = offset; at < offset + bytes;) {
        const size_t number = at / kCellBytes, in_cell = at % kCellBytes;
        const size_t here = std::min(kCellBytes - in_cell, offset + bytes - at);
        const Stamp mask = ((1u << here) - 1) << in_cell;
        visit(number == 0 ? first : others[number - 1], mine | mask, access, floor, memory,
              reported_offset + at - offset);
        at += here;
    }
    if (bytes < kGranuleBytes) return;
    const bool alike = std::all_of(others, others + kCellsOfGranule - 1,
                                   [&](const Cell& other) { return std::memcmp(&other, &first, sizeof first) == 0; });
    if (alike) first.split = 0;
}

}  // namespace

void check_races(const Cells& cells, size_t offset, size_t bytes, const Access& access, Serial floor, Memory memory,
                 size_t reported_offset) {
    const Thread& thread = *access.thread;
    const Block& block = *thread.warp->block;
    Serial agent = Agents::thread(thread.index);
    Clock clock = thread.clock;
    switch (access.agent) {
        case Agent::Thread: break;
        case Agent::AsyncCopy:
            agent = Agents::copies(thread.index);
            clock = thread.copies_issued;
            break;
        case Agent::BulkCopy:
            agent = block.agents().bulk_copies(thread.index / 32, thread.warp->bulk_turn);
            clock = thread.warp->bulk_clocks[thread.warp->bulk_turn];
            break;
        case Agent::Matrix:
            agent = block.agents().matrix(thread.index / 128);
            clock = block.warpgroups[thread.index / 128].issued;
            break;
    }
    const Stamp mine = make_stamp(block.first + agent, clock,
                                  (access.writes() ? kStampWrite : 0) | (access.atomic() ? kStampAtomic : 0));
    const size_t end = offset + bytes;
    while (offset < end) {
        const size_t granule = offset / kGranuleBytes, in_granule = offset % kGranuleBytes;
        const size_t here = std::min(kGranuleBytes - in_granule, end - offset);
        Cell& first = cells.first[granule];
        if (here == kGranuleBytes && !first.split)
            visit(first, mine | kStampBytes, access, floor, memory, reported_offset);
        else
            visit_cells(first, cells.others + granule * (kCellsOfGranule - 1), in_granule, here, mine, access, floor,
                        memory, reported_offset);
        offset += here;
        reported_offset += here;
    }
}

void Cells::reserve(size_t region_bytes) {
    const size_t granules = region_bytes / kGranuleBytes;
    first = static_cast<Cell*>(reserve_addresses(granules * sizeof(Cell)));
    others = static_cast<Cell*>(reserve_addresses(granules * (kCellsOfGranule - 1) * sizeof(Cell)));
}

void Cells::forget(size_t offset, size_t bytes) {
    const size_t granule = offset / kGranuleBytes, granules = bytes / kGranuleBytes;
    clear(first + granule, granules * sizeof(Cell));
    // In use only where the first is split, which none is now.
    discard(others + granule * (kCellsOfGranule - 1), granules * (kCellsOfGranule - 1) * sizeof(Cell));
}

}  // namespace interpreter
