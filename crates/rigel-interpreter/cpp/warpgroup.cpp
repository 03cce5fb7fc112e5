// wgmma and setmaxnreg: what the four warps of a warpgroup execute together, what is under way, and what may not be
// touched meanwhile.
#include "warpgroup.h"

#include <algorithm>
#include <cstring>

#include "access.h"
#include "memory.h"
#include "report.h"
#include "scheduler.h"
#include "settings.h"
#include "thread_order.h"
#include "twin_parts.h"

namespace interpreter {

bool watching_registers = false;

namespace {

Block& own_block() { return *current->warp->block; }
Warpgroup& own_warpgroup() { return own_block().warpgroups[current->index / 128]; }

// All 128 threads arrive with their operands; the last computes for all.
template <class Operands, class Compute>
void all_together(const char* what, Operands& operands, Site site, Compute compute) {
    Thread& thread = *current;
    Block& block = own_block();
    Warpgroup& group = own_warpgroup();
    const uint32_t first = thread.index / 128 * 128;
    if (first + 128 > block.threads.size())
        fail(site, text("%s: threads %u and up are not a whole warpgroup", what, first));
    for (uint32_t warp = first / 32; warp < first / 32 + 4; warp++)
        if (block.warps[warp].exited) fail(site, text("%s: threads of the warpgroup have returned", what));
    if (group.arrived == 0) {
        group.what = what;
        group.site = site;
    } else if (group.what != what || (group.site != site && source_line(group.site) != source_line(site))) {
        fail(site, text("divergent warpgroup: thread %u is at %s while others wait", thread.index, what),
             {text("%u threads are at %s, at ", group.arrived, group.what) + source_line(group.site)});
    }
    group.operands[thread.index - first] = &operands;
    if (++group.arrived < 128) {
        scheduler.block(what, site);
        return;
    }
    group.arrived = 0;
    compute(reinterpret_cast<Operands**>(group.operands));
    for (uint32_t index = first; index < first + 128; index++)
        if (index != thread.index) scheduler.wake(block.threads[index]);
}

void compute_through(Warpgroup& group, Clock clock) {
    while (!group.pending.empty() && group.pending.front()->clock <= clock) {
        compute(*group.pending.front());
        group.pending.pop_front();
    }
}

// ---- registers
// -------------------------------------------------------------------------------------------------------

bool overlap(const MatrixRegisters& of, const uint8_t* begin, size_t bytes) {
    return begin < of.begin + of.bytes && of.begin < begin + bytes;
}

// The registers are handed to an instruction, which writes them where `use` is its clock.
void hand_over(Thread& thread, const void* registers, size_t bytes, Clock use, const char* what, Site site) {
    const auto* const begin = static_cast<const uint8_t*>(registers);
    if (!thread.warpgroup_fenced) fail(site, "wgmma without a warpgroup_fence before it");
    auto& known = thread.matrix_registers;
    for (const MatrixRegisters& of : known)
        if (of.written && overlap(of, begin, bytes))
            fail(site, text("missing warpgroup_fence: %s have been written since the last one", what));
    // What lay at the same place of the stack before is gone.
    known.erase(std::remove_if(known.begin(), known.end(), [&](const auto& of) { return overlap(of, begin, bytes); }),
                known.end());
    known.push_back({begin, bytes, use, false});
}

// ---- operands in shared memory
// ---------------------------------------------------------------------------------------

// Reads of rows first .. end of an operand by the tensor cores, for one warp: in the name of its first thread, which
// must know of what was written there.
void check_operand(const Thread& reader, uint64_t descriptor, int major, uint32_t first, uint32_t end, Site site) {
    constexpr int kMajorK = 0;
    const uint8_t* const arena = shared_memory.base + reader.warp->block->arena * kArenaBytes;
    const uint32_t row_step = major == kMajorK ? 1 : 8, k_step = major == kMajorK ? 8 : 1;
    const Access access{const_cast<Thread*>(&reader), Agent::Matrix, Does::Read, site};
    for (uint32_t r = first; r < end; r += row_step)
        for (uint32_t k = 0; k < kMatrixDepth; k += k_step)
            check_shared(arena + operand_address(descriptor, major, r, k), 16, access);
}

void check_descriptor(uint64_t descriptor, int major, const char* operand, Site site) {
    if (const char* problem = descriptor_problem(descriptor, major))
        fail(site, text("wgmma: the descriptor of %s (%#lx) has %s", operand, static_cast<unsigned long>(descriptor),
                        problem));
}

struct Multiplication {
    float* d;
    const uint32_t* a_registers;  // nullptr: A lies in shared memory
    uint64_t a, b;
    uint32_t accumulate;
};

void multiply(Multiplication own, uint32_t columns, int major_a, int major_b, Element element, Site site) {
    all_together("wgmma.mma_async", own, site, [&](Multiplication** of) {
        Block& block = own_block();
        Warpgroup& group = own_warpgroup();
        Thread* const threads = &block.threads[current->index / 128 * 128];
        if (++group.issued > kLastClock)
            fail(site, "a warpgroup has issued more MMA instructions than the race checker can count");
        watching_registers = true;
        auto operation = std::make_shared<MatrixOperation>();
        operation->a_in_registers = own.a_registers != nullptr;
        operation->a = own.a;
        operation->b = own.b;
        operation->major_a = major_a;
        operation->major_b = major_b;
        operation->columns = columns;
        operation->accumulate = own.accumulate != 0;
        operation->element = element;
        operation->arena = shared_memory.base + block.arena * kArenaBytes;
        operation->clock = group.issued;
        Thread* const last = current;
        for (uint32_t index = 0; index < 128; index++) {
            const Multiplication& its = *of[index];
            if (its.a != own.a || its.b != own.b || its.accumulate != own.accumulate)
                fail(site,
                     text("wgmma: descriptors or the accumulate flag of threads %u and %u of the warpgroup differ",
                          index, last->index % 128));
            current = &threads[index];
            hand_over(threads[index], its.d, columns / 2 * sizeof(float), group.issued, "its sums", site);
            operation->sums[index] = its.d;
            if (!its.a_registers) continue;
            hand_over(threads[index], its.a_registers, 4 * sizeof(uint32_t), 0, "the registers of A", site);
            std::memcpy(operation->a_registers[index], its.a_registers, sizeof operation->a_registers[index]);
        }
        current = last;
        check_descriptor(own.b, major_b, "B", site);
        if (!operation->a_in_registers) check_descriptor(own.a, major_a, "A", site);
        for (uint32_t warp = 0; warp < 4; warp++) {
            const Thread& reader = threads[32 * warp];
            if (!operation->a_in_registers) check_operand(reader, own.a, major_a, 16 * warp, 16 * warp + 16, site);
            // Warps that know the same need not be asked again.
            if (warp == 0 || reader.view.get() != threads[0].view.get())
                check_operand(reader, own.b, major_b, 0, columns, site);
        }
        group.pending.push_back(std::move(operation));
        block.grid->counters.warpgroup_instructions++;
        if (settings.async == AsyncPolicy::Eager ||
            (settings.async == AsyncPolicy::Random && shuffle_source.below(2) == 0))
            compute_through(group, group.issued);
    });
}

struct Nothing {};

}  // namespace

void warpgroup_multiply(float* d, uint32_t columns, uint64_t a, uint64_t b, uint32_t accumulate, int major_a,
                        int major_b, Element element) {
    multiply({d, nullptr, a, b, accumulate}, columns, major_a, major_b, element, RIGEL_CALLER);
}
void warpgroup_multiply(float* d, uint32_t columns, const uint32_t* a, uint64_t b, uint32_t accumulate, int major_b,
                        Element element) {
    multiply({d, a, 0, b, accumulate}, columns, 0, major_b, element, RIGEL_CALLER);
}

void check_registers(const void* address, size_t bytes, bool writes, Site site) {
    Thread& thread = *current;
    for (MatrixRegisters& of : thread.matrix_registers) {
        if (!overlap(of, static_cast<const uint8_t*>(address), bytes)) continue;
        if (of.last_use > thread.matrix_seen)
            fail(site,
                 text("%s of a wgmma's sums before a warpgroup_wait that covers it", writes ? "a write" : "a read"));
        if (writes) of.written = true;
    }
}

void warpgroup_fence() {
    Thread& thread = *current;
    thread.warpgroup_fenced = true;
    for (MatrixRegisters& of : thread.matrix_registers) of.written = false;
}

void warpgroup_commit() {
    Nothing none;
    all_together("wgmma.commit_group", none, RIGEL_CALLER, [](Nothing**) {
        Warpgroup& group = own_warpgroup();
        group.group_ends.push_back(group.issued);
    });
}

// A thread's wait is its own: all have come to the same instruction before, and meet again at the next.
void warpgroup_wait(int pending) {
    Thread& thread = *current;
    Warpgroup& group = own_warpgroup();
    if (group.group_ends.size() <= static_cast<size_t>(pending)) return;
    const Clock through = group.group_ends[group.group_ends.size() - 1 - static_cast<size_t>(pending)];
    compute_through(group, through);
    thread.matrix_seen = std::max(thread.matrix_seen, through);
    learn_agent(thread, own_block().agents().matrix(thread.index / 128), through);
}

void leave_warpgroup(Thread& thread) {
    const Block& block = *thread.warp->block;
    const Warpgroup& group = block.warpgroups[thread.index / 128];
    if (group.arrived)
        fail(group.site, text("divergent warpgroup: thread %u returns while %u threads wait at %s", thread.index,
                              group.arrived, group.what));
    if (group.issued > thread.matrix_seen)
        fail(0, "a thread returns before its warpgroup's MMA instructions have been waited for");
}

// ---- setmaxnreg
// ------------------------------------------------------------------------------------------------------

namespace {
// Of each thread at the start: what the launch's threads can have at most, in steps of 8. The compiler may have given
// less.
uint32_t registers_at_start(const Block& block) {
    return std::min<uint32_t>(256, (65536 / static_cast<uint32_t>(block.threads.size())) & ~7u);
}
uint32_t registers_of(const Block& block, const Warpgroup& group) {
    return group.registers ? group.registers : registers_at_start(block);
}
}  // namespace

void warpgroup_registers(uint32_t registers, RegisterChange change) {
    const Site site = RIGEL_CALLER;
    Nothing none;
    const char* const name = change == RegisterChange::Increase ? "setmaxnreg.inc" : "setmaxnreg.dec";
    if (registers < 24 || registers > 256 || registers % 8)
        fail(site, text("%s: %u registers, multiples of 8 from 24 to 256 are allowed", name, registers));
    all_together(name, none, site, [&](Nothing**) {
        const Block& block = own_block();
        const uint32_t now = registers_of(block, own_warpgroup());
        if (change == RegisterChange::Increase ? registers < now : registers > now)
            fail(site, text("%s to %u registers from %u", name, registers, now));
    });
    Block& block = own_block();
    Warpgroup& own = own_warpgroup();
    const auto fits = [&] {
        uint32_t taken = registers;
        for (const Warpgroup& other : block.warpgroups)
            if (&other != &own) taken += registers_of(block, other);
        return taken <= registers_at_start(block) * static_cast<uint32_t>(block.warpgroups.size());
    };
    while (change == RegisterChange::Increase && !fits()) {
        block.waiting_for_registers.push_back(current);
        scheduler.block("registers of other warpgroups (setmaxnreg.inc)", site);
    }
    own.registers = registers;
    for (Thread* thread : block.waiting_for_registers) scheduler.wake(*thread);
    block.waiting_for_registers.clear();
}

}  // namespace interpreter
