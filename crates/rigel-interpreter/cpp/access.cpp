#include "access.h"

#include <cstring>

#include "memory.h"
#include "report.h"
#include "scheduler.h"

namespace interpreter {

namespace {
const char* name_of(Does does) {
    static const char* const names[] = {"read",        "read",         "read",         "write",
                                        "atomic read", "atomic write", "atomic update"};
    return names[static_cast<int>(does)];
}

// Arguments too large for registers stay where the launch put them, and may be read.
bool in_arguments(const void* address, size_t bytes) {
    const auto& arguments = current->warp->block->grid->argument_bytes;
    const auto* p = static_cast<const uint8_t*>(address);
    return p >= arguments.data() && p + bytes <= arguments.data() + arguments.size();
}
}  // namespace

void check_alignment(const void* address, size_t alignment, const char* what, Site site) {
    if (reinterpret_cast<uintptr_t>(address) % alignment)
        fail(site, text("misaligned %s: %p is not a multiple of %zu", what, address, alignment));
}

void check_global(const void* address, size_t bytes, const Access& access) {
    Region& memory = device_memory;
    const size_t at = memory.offset(address);
    if (at >= memory.bytes)
        fail(access.site,
             text("%s of %zu bytes at %p, which is not global memory", name_of(access.does), bytes, address));
    if (!memory.all_written(at, bytes)) {
        if (!allocations.inside(at, bytes))
            fail(access.site, text("out-of-bounds global %s of %zu bytes at %p", name_of(access.does), bytes, address),
                 {allocations.nearest(at)});
        if (access.reads() && access.does != Does::CopyRead)
            fail(access.site,
                 text("uninitialised global %s of %zu bytes at %p: no one has written them", name_of(access.does),
                      bytes, address),
                 {allocations.nearest(at)});
        if (access.writes()) std::memset(memory.written + at, 1, bytes);
    }
    LaunchCounters& counters = access.thread->warp->block->grid->counters;
    if (access.reads()) {
        counters.requested_read += bytes;
        counters.read.add(at, bytes);
    }
    if (access.writes()) {
        counters.requested_written += bytes;
        counters.written.add(at, bytes);
    }
    check_races(memory.cells, at, bytes, access, access.thread->view->finished->floor, Memory::Global, at);
}

namespace {
// The block of this thread's cluster whose shared memory lies there; nullptr: none.
const Block* owner(size_t offset, const Block& own) {
    if (offset / kArenaBytes == own.arena) return &own;
    for (const Block* block : own.cluster->blocks)
        if (block && offset / kArenaBytes == block->arena) return block;
    return nullptr;
}
}  // namespace

void check_shared(const void* address, size_t bytes, const Access& access) {
    Region& memory = shared_memory;
    const size_t at = memory.offset(address);
    const Block* found = owner(at, *access.thread->warp->block);
    if (!found)
        fail(access.site, text("%s of %zu bytes in the shared memory of another block", name_of(access.does), bytes));
    const Block& block = *found;
    const size_t in_arena = at - block.arena * kArenaBytes;
    const size_t in_block = in_arena - kArenaMargin;
    if (in_arena < kArenaMargin || in_block + bytes > block.grid->shared_bytes)
        fail(access.site,
             text("out-of-bounds shared %s of %zu bytes at byte %td of the %u bytes that the launch gave",
                  name_of(access.does), bytes, static_cast<ptrdiff_t>(in_block), block.grid->shared_bytes));
    if (access.reads()) {
        if (!memory.all_written(at, bytes))
            fail(access.site, text("uninitialised shared %s of %zu bytes at byte %zu: no thread has written them",
                                   name_of(access.does), bytes, in_block));
    } else {
        std::memset(memory.written + at, 1, bytes);
    }
    check_races(memory.cells, at, bytes, access, block.cluster->first, Memory::Shared, in_block);
}

void check_global_or_shared(const void* address, size_t bytes, const Access& access) {
    check_alignment(address, bytes, name_of(access.does), access.site);
    if (shared_memory.holds(address))
        check_shared(address, bytes, access);
    else
        check_global(address, bytes, access);
}

void check_access(const void* address, size_t bytes, Does does, Site site) {
    if (!current) return;  // not a kernel: a static constructor
    const Access access{current, Agent::Thread, does, site};
    if (shared_memory.holds(address)) return check_shared(address, bytes, access);
    if (device_memory.holds(address)) return check_global(address, bytes, access);
    if (does == Does::Read && (in_arguments(address, bytes) || in_this_library(address))) return;  // constants
    fail(site, text("%s of %zu bytes at %p, which is neither global nor shared memory nor this thread's own",
                    name_of(does), bytes, address));
}

}  // namespace interpreter
