// Barriers of a block: barrier.sync, barrier.red and barrier.arrive.
#include "report.h"
#include "scheduler.h"
#include "thread_order.h"
#include "twin_parts.h"

namespace interpreter {

namespace {

void open_barrier(Block& block, Barrier& barrier) {
    order_among(barrier.participants.data(), barrier.participants.size());
    block.grid->counters.barriers++;
    const size_t id = static_cast<size_t>(&barrier - block.barriers);
    for (Thread* thread : barrier.participants) {
        thread->warp->barrier_lanes[id] = 0;
        // A barrier without values must not overwrite the answer of one with values whose threads have not yet gone on.
        if (barrier.reduces) thread->any_at_barrier = barrier.any;
    }
    for (Thread* thread : barrier.waiting)
        if (thread != current) scheduler.wake(*thread);
    barrier.arrived = 0;
    barrier.any = false;
    barrier.participants.clear();
    barrier.waiting.clear();
}

bool same_line(Site a, Site b) { return a == b || source_line(a) == source_line(b); }

// What a thread brings to a barrier where that matters.
enum class Value { None, False, True };

void arrive_at(uint32_t id, uint32_t expected, BarrierUse use, Value value, const char* what, Site site) {
    Thread& thread = *current;
    Warp& warp = *thread.warp;
    Block& block = *warp.block;
    if (id > 15) fail(site, text("barrier %u does not exist: a block has 16", id));
    Barrier& barrier = block.barriers[id];
    Site& warp_site = warp.barrier_site[id];
    uint32_t& warp_lanes = warp.barrier_lanes[id];
    if (warp.exited & ~warp_lanes)
        fail(site, text("divergent barrier: lane %u is at %s, lanes %08x of its warp have returned", thread.lane, what,
                        warp.exited & ~warp_lanes));
    if (warp_lanes && !same_line(warp_site, site))
        fail(site, text("divergent barrier: lanes of one warp wait for barrier %u at different places", id),
             {"other lanes: at " + source_line(warp_site)});
    if (barrier.arrived) {
        if (barrier.expected != expected)
            fail(site,
                 text("barrier %u: this thread expects %u threads, others expect %u", id, expected, barrier.expected),
                 {"the others: at " + source_line(barrier.site)});
        if (expected == 0 && !same_line(barrier.site, site))
            fail(site, "divergent barrier: threads of the block wait at different block_sync calls",
                 {"other threads: at " + source_line(barrier.site)});
        if (barrier.reduces != (value != Value::None))
            fail(site, text("barrier %u: some of its threads bring a value and some none", id),
                 {"the others: at " + source_line(barrier.site)});
    } else {
        barrier.reduces = value != Value::None;
        barrier.expected = expected;
        barrier.site = site;
    }
    warp_site = site;
    warp_lanes |= 1u << thread.lane;
    barrier.arrived++;
    barrier.any = barrier.any || value == Value::True;
    barrier.participants.push_back(&thread);
    if (use == BarrierUse::Wait) barrier.waiting.push_back(&thread);
    if (barrier.arrived == (expected ? expected : block.live_threads))
        open_barrier(block, barrier);
    else if (use == BarrierUse::Wait)
        scheduler.block(what, site);
}

}  // namespace

void block_sync() { arrive_at(0, 0, BarrierUse::Wait, Value::None, "block_sync", RIGEL_CALLER); }

namespace {
void check_named(uint32_t id, uint32_t threads, Site site) {
    if (threads == 0 || threads % 32)
        fail(site, text("barrier %u: %u threads is not a multiple of the warp size", id, threads));
    if (id == 0) fail(site, "barrier 0 belongs to block_sync; name one of 1 to 15");
}
}  // namespace

void barrier(uint32_t id, uint32_t threads, BarrierUse use) {
    const Site site = RIGEL_CALLER;
    check_named(id, threads, site);
    arrive_at(id, threads, use, Value::None, use == BarrierUse::Wait ? "barrier.sync" : "barrier.arrive", site);
}

bool barrier_any(uint32_t id, uint32_t threads, bool value) {
    const Site site = RIGEL_CALLER;
    check_named(id, threads, site);
    arrive_at(id, threads, BarrierUse::Wait, value ? Value::True : Value::False, "barrier.red", site);
    return current->any_at_barrier;
}

void leave_barriers(Thread& thread) {
    Block& block = *thread.warp->block;
    for (uint32_t id = 0; id < 16; id++) {
        const uint32_t lanes = thread.warp->barrier_lanes[id];
        if (lanes && !(lanes >> thread.lane & 1))
            fail(thread.warp->barrier_site[id],
                 text("divergent barrier: lane %u returns, while lanes %08x of its warp are at the barrier",
                      thread.lane, lanes));
    }
    Barrier& all = block.barriers[0];
    if (all.arrived && all.arrived == block.live_threads) open_barrier(block, all);
}

}  // namespace interpreter
