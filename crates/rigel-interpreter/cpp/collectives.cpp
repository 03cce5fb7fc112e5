#include "collectives.h"

#include "thread_order.h"
#include "twin_parts.h"

namespace interpreter {

namespace {
Collective& pending(Warp& warp, uint32_t lanes) {
    Collective* empty = nullptr;
    for (auto& collective : warp.collectives) {
        if (collective->arrived == 0)
            empty = collective.get();
        else if (collective->lanes & lanes)
            return *collective;
    }
    if (empty) return *empty;
    warp.collectives.emplace_back(new Collective);
    return *warp.collectives.back();
}

std::string mask(uint32_t lanes) { return text("lanes %08x", lanes); }
}  // namespace

Collective* arrive(const char* what, uint32_t lanes, Alignment alignment, void* operands, Site site) {
    Thread& thread = *current;
    Warp& warp = *thread.warp;
    const uint32_t own = 1u << thread.lane;
    if (!(lanes & own))
        fail(site, text("%s: its mask (%s) lacks the calling lane %u", what, mask(lanes).c_str(), thread.lane));
    if (lanes & ~warp.existing)
        fail(site, text("%s: its mask (%s) names lanes that this warp does not have (%s)", what, mask(lanes).c_str(),
                        mask(warp.existing).c_str()));
    if (lanes & warp.exited)
        fail(site, text("%s: its mask (%s) names lanes that have returned (%s)", what, mask(lanes).c_str(),
                        mask(warp.exited).c_str()));
    Collective& collective = pending(warp, lanes);
    if (collective.arrived == 0) {
        collective.lanes = lanes;
        collective.what = what;
        collective.site = site;
    } else {
        const bool same_place = alignment == Alignment::AnyPlace || collective.site == site ||
                                source_line(collective.site) == source_line(site);
        if (collective.what != what || collective.lanes != lanes || !same_place)
            fail(
                site,
                text("divergent warp: lane %u is at %s (%s) while others wait", thread.lane, what, mask(lanes).c_str()),
                {text("lanes %08x are at %s (%s), at ", collective.arrived, collective.what,
                      mask(collective.lanes).c_str()) +
                 source_line(collective.site)});
    }
    collective.operands[thread.lane] = operands;
    collective.arrived |= own;
    if (collective.arrived == lanes) return &collective;
    scheduler.block(what, site);
    return nullptr;
}

void release(Collective& collective) {
    const uint32_t others = collective.arrived & ~(1u << current->lane);
    collective.arrived = 0;
    if (others) scheduler.wake(*current->warp, others);
}

void check_collectives_at_exit(Thread& thread) {
    for (auto& collective : thread.warp->collectives)
        if (collective->arrived && (collective->lanes >> thread.lane & 1))
            fail(collective->site,
                 text("divergent warp: lane %u returns while lanes %08x wait for it at %s (%s)", thread.lane,
                      collective->arrived, collective->what, mask(collective->lanes).c_str()));
}

// ---- shuffles, votes, reductions
// -------------------------------------------------------------------------------------

namespace {
struct Shuffle {
    uint32_t value, operand, clamp, result;
};

// The lane that `lane` reads from, or itself where the source is out of range. PTX ISA, shfl.sync, with its segments of
// (clamp >> 8 & 31) lanes left out: width is 32.
uint32_t source_lane(char mode, uint32_t lane, const Shuffle& of) {
    const uint32_t last = of.clamp & 0x1f;
    switch (mode) {
        case 'u': return of.operand > lane || lane - of.operand < last ? lane : lane - of.operand;
        case 'd': return lane + of.operand > last ? lane : lane + of.operand;
        case 'b': return (lane ^ of.operand) > last ? lane : lane ^ of.operand;
        default: return of.operand & 0x1f;
    }
}
}  // namespace

uint32_t shuffle(const char* mode, uint32_t value, uint32_t operand, uint32_t clamp, uint32_t lanes) {
    static const char* const names[] = {"shfl.sync.up", "shfl.sync.down", "shfl.sync.bfly", "shfl.sync.idx"};
    const char* name = names[mode[0] == 'u' ? 0 : mode[0] == 'd' ? 1 : mode[0] == 'b' ? 2 : 3];
    const Site site = RIGEL_CALLER;
    Shuffle own{value, operand, clamp, 0};
    together(name, lanes, Alignment::AnyPlace, own, site, [&](Shuffle** of) {
        for (uint32_t left = lanes; left; left &= left - 1) {
            const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(left)),
                           source = source_lane(mode[0], lane, *of[lane]);
            if (!(lanes >> source & 1))
                fail(site, text("%s: lane %u reads from lane %u, which its mask (%s) leaves out", name, lane, source,
                                mask(lanes).c_str()));
            of[lane]->result = of[source]->value;
        }
    });
    return own.result;
}

namespace {
struct Vote {
    bool predicate;
    uint32_t result;
};
struct Reduce {
    Reduction reduction;
    uint32_t value, result;
};
}  // namespace

uint32_t ballot(bool predicate, uint32_t lanes) {
    Vote own{predicate, 0};
    together("vote.sync", lanes, Alignment::AnyPlace, own, RIGEL_CALLER, [&](Vote** of) {
        uint32_t votes = 0;
        for (uint32_t left = lanes; left; left &= left - 1) {
            const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(left));
            if (of[lane]->predicate) votes |= 1u << lane;
        }
        for (uint32_t left = lanes; left; left &= left - 1) of[__builtin_ctz(left)]->result = votes;
    });
    return own.result;
}

uint32_t reduce(Reduction reduction, uint32_t value, uint32_t lanes) {
    Reduce own{reduction, value, 0};
    static const char* const names[] = {"redux.sync.add", "redux.sync.min", "redux.sync.max"};
    together(names[static_cast<int>(reduction)], lanes, Alignment::AnyPlace, own, RIGEL_CALLER, [&](Reduce** of) {
        uint32_t result = of[__builtin_ctz(lanes)]->value;
        for (uint32_t left = lanes & (lanes - 1); left; left &= left - 1) {
            const uint32_t next = of[__builtin_ctz(left)]->value;
            result = reduction == Reduction::Add   ? result + next
                     : reduction == Reduction::Min ? (next < result ? next : result)
                                                   : (next > result ? next : result);
        }
        for (uint32_t left = lanes; left; left &= left - 1) of[__builtin_ctz(left)]->result = result;
    });
    return own.result;
}

void warp_sync(uint32_t lanes) {
    Thread* self = current;
    together("bar.warp.sync", lanes, Alignment::AnyPlace, *self, RIGEL_CALLER, [&](Thread** of) {
        Thread* threads[32];
        size_t count = 0;
        for (uint32_t left = lanes; left; left &= left - 1) threads[count++] = of[__builtin_ctz(left)];
        order_among(threads, count);
    });
}

}  // namespace interpreter
