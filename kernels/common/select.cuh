// The first k elements of a row by rank, or the fewest whose masses reach a fraction of the whole: exact, ties by id,
// in a few passes of one block, with nothing that depends on the order in which threads run.
//
// An element is a (code, id): the smaller code ranks first, then the smaller id. The two make one whole number, the
// rank key, and no two elements of a row have the same. Codes are f32 in disguise: equal floats and no others have
// equal codes. Counts and masses are added up as integers.
//
// The type of a row of elements has
//
//   each_element(row, f)   calls f(code, id) for each of them, in any order, by any thread, but once
//   Row::mass(code)        an element's mass
//   Row::kFirstCode        the code from which on histograms tell codes apart, 128 to the octave, for 16 octaves
#pragma once
#include "common/elementary.cuh"
#include "ptx/ptx.cuh"

static constexpr uint32_t kBlock = 512;  // threads of a block
static constexpr uint32_t kWarpsOfBlock = kBlock / 32;
static_assert(kWarpsOfBlock <= 32, "a warp puts together what the warps have");
static constexpr uint32_t kBins = 2048;
static constexpr uint32_t kScanners = 256;  // threads that add up the bins
static constexpr uint32_t kBinsOfScanner = kBins / kScanners;
static constexpr uint32_t kListRoom = 2048;
static constexpr uint32_t kSortRoom = kBlock;  // a power of two
static constexpr uint32_t kIdBits = 18;     // ids are below 2^18
static constexpr uint32_t kFirstShift = 16;
static constexpr uint32_t kNoCode = 0xffffffffu;  // of an element that is out of the race
static constexpr uint64_t kLastKey = (uint64_t{1} << (32 + kIdBits)) - 1;

DEVICE uint64_t rank_key(uint32_t code, uint32_t id) { return static_cast<uint64_t>(code) << kIdBits | id; }
DEVICE uint32_t code_in(uint64_t key) { return static_cast<uint32_t>(key >> kIdBits); }
DEVICE uint32_t id_in(uint64_t key) { return static_cast<uint32_t>(key) & ((1u << kIdBits) - 1); }

// Where a bin's count and mass lie: a scanner reads eight bins in a row, and so no two threads of a warp read from one
// bank at a time.
DEVICE uint32_t place_of(uint32_t bin) { return bin ^ (bin / 32 % kBinsOfScanner); }

// A bin of a histogram, as one thread found it.
struct Found {
    uint32_t bin;               // kBins: none
    uint32_t elements;          // in the bin
    uint32_t elements_through;  // in it and ahead of it
    uint32_t unused;
    uint64_t before;            // elements or mass ahead of the bin
};

// Shared memory of the block.
struct SelectMemory {
    union {
        struct {
            uint32_t counts[kBins], masses_low[kBins], masses_high[kBins];
        };
        struct {
            uint64_t sorted[kSortRoom];
            uint32_t ranks[kSortRoom];
        };
    };
    uint64_t list[kListRoom];  // rank keys
    uint64_t warp_masses[kWarpsOfBlock];
    uint32_t warp_counts[kWarpsOfBlock], warp_ids[kWarpsOfBlock];
    Found found[2];
    uint32_t list_length;  // may be more than its room: then the list is of no use
    uint32_t unused[3];
};
static constexpr uint32_t kSelectBytes = 41280;
static_assert(sizeof(SelectMemory) == kSelectBytes, "the launcher counts on it");

// The elements that are kept: those with rank keys up to `last`. They are found in the list where `listed` (with others
// behind them), else in the row.
struct Kept {
    uint64_t last;
    bool listed;
};

DEVICE uint64_t shuffle_xor_64(uint64_t value, uint32_t mask) {
    const uint32_t low = shuffle_xor(static_cast<uint32_t>(value), mask);
    const uint32_t high = shuffle_xor(static_cast<uint32_t>(value >> 32), mask);
    return static_cast<uint64_t>(high) << 32 | low;
}
DEVICE uint64_t shuffle_up_64(uint64_t value, uint32_t distance) {
    const uint32_t low = shuffle_up(static_cast<uint32_t>(value), distance);
    const uint32_t high = shuffle_up(static_cast<uint32_t>(value >> 32), distance);
    return static_cast<uint64_t>(high) << 32 | low;
}
DEVICE uint64_t warp_sum_64(uint64_t value) {
#pragma unroll
    for (uint32_t distance = 16; distance > 0; distance /= 2) value += shuffle_xor_64(value, distance);
    return value;
}
// The sum over the lanes up to and including this one.
DEVICE uint64_t warp_running_sum_64(uint64_t value) {
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        const uint64_t below = shuffle_up_64(value, distance);
        if (threadIdx.x % 32 >= distance) value += below;
    }
    return value;
}

// Of the block's (key, id) pairs the one with the largest key, with the smallest id among those; in every thread.
struct Best {
    uint32_t key, id;
};
DEVICE Best warp_best(Best own) {
    const uint32_t key = warp_max_u32(own.key);
    return Best{key, warp_min_u32(own.key == key ? own.id : 0xffffffffu)};
}
DEVICE Best block_best(SelectMemory& memory, Best own) {
    const Best of_warp = warp_best(own);
    block_sync();  // whoever still reads the scratch of the last time
    if (threadIdx.x % 32 == 0) {
        memory.warp_counts[threadIdx.x / 32] = of_warp.key;
        memory.warp_ids[threadIdx.x / 32] = of_warp.id;
    }
    block_sync();
    const uint32_t warp = threadIdx.x % kWarpsOfBlock;  // some of them twice
    return warp_best(Best{memory.warp_counts[warp], memory.warp_ids[warp]});
}

// The sum over the block, in every thread.
DEVICE uint64_t block_sum_64(SelectMemory& memory, uint64_t own) {
    const uint64_t of_warp = warp_sum_64(own);
    block_sync();
    if (threadIdx.x % 32 == 0) memory.warp_masses[threadIdx.x / 32] = of_warp;
    block_sync();
    const uint32_t lane = threadIdx.x % 32;
    return warp_sum_64(lane < kWarpsOfBlock ? memory.warp_masses[lane] : 0);
}

// Empties the list; a barrier before the first append and one after the last are the caller's.
DEVICE void clear_list(SelectMemory& memory) {
    if (threadIdx.x == 0) memory.list_length = 0;
}
DEVICE void append(SelectMemory& memory, uint64_t key) {
    const uint32_t at = atomic_add_shared(&memory.list_length, 1);
    if (at < kListRoom) memory.list[at] = key;
}

// Calls f(code, id) for each element of the list, or of the row, that is kept; each by one thread.
template <class Row, class F>
DEVICE void each_kept(const SelectMemory& memory, const Row& row, const Kept& kept, F f) {
    if (kept.listed) {
        for (uint32_t at = threadIdx.x; at < memory.list_length; at += kBlock) {
            const uint64_t key = memory.list[at];
            if (key <= kept.last) f(code_in(key), id_in(key));
        }
    } else {
        each_element(row, [&](uint32_t code, uint32_t id) {
            if (rank_key(code, id) <= kept.last) f(code, id);
        });
    }
}

// fraction x total, rounded up, at least 1 and at most total: an element is kept while the mass ahead of it is less.
DEVICE uint64_t share_of(uint64_t total, float fraction) {
    const double share = static_cast<double>(fraction) * static_cast<double>(total);
    const uint64_t whole = static_cast<uint64_t>(share);
    const uint64_t up = static_cast<double>(whole) < share ? whole + 1 : whole;
    return up < 1 ? 1 : min(up, total);
}

// Zeroes the bins; a barrier after it is the caller's.
DEVICE void clear_bins(SelectMemory& memory, Found& found, bool with_masses) {
    for (uint32_t bin = threadIdx.x; bin < kBins; bin += kBlock) {
        memory.counts[bin] = 0;
        if (with_masses) memory.masses_low[bin] = memory.masses_high[bin] = 0;
    }
    if (threadIdx.x == 0) found.bin = kBins;
}

// The bin of a code in the first histogram of a row, and the last key of such a bin.
template <class Row>
DEVICE uint32_t first_bin(uint32_t code) {
    return min((max(code, Row::kFirstCode) - Row::kFirstCode) >> kFirstShift, kBins - 1);
}
template <class Row>
DEVICE uint64_t end_of_first_bin(uint32_t bin) {
    if (bin >= kBins - 1) return kLastKey;
    return rank_key(Row::kFirstCode, 0) + (static_cast<uint64_t>(bin + 1) << (kFirstShift + kIdBits)) - 1;
}

// Finds the bin through which the counts or masses of all bins, and `before` ahead of them, reach `target`; with
// `fraction` above 0 the target is that share of the whole instead, and is returned. Between barriers; the last of them
// makes `found` known to all.
DEVICE uint64_t find_bin(SelectMemory& memory, Found& found, bool by_mass, uint64_t target, float fraction,
                         uint64_t before, uint32_t elements_before) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool scans = threadIdx.x < kScanners;  // whole warps
    const auto value_of = [&](uint32_t bin) -> uint64_t {
        const uint32_t at = place_of(bin);
        return by_mass ? static_cast<uint64_t>(memory.masses_high[at]) << 32 | memory.masses_low[at]
                       : memory.counts[at];
    };
    block_sync();
    uint32_t own_count = 0, through_count = 0;
    uint64_t own_value = 0, through_value = 0;
    if (scans) {
#pragma unroll 1
        for (uint32_t bin = threadIdx.x * kBinsOfScanner; bin < (threadIdx.x + 1) * kBinsOfScanner; bin++) {
            own_count += memory.counts[place_of(bin)];
            own_value += value_of(bin);
        }
        through_count = own_count, through_value = own_value;
#pragma unroll
        for (uint32_t distance = 1; distance < 32; distance *= 2) {
            const uint32_t count_below = shuffle_up(through_count, distance);
            const uint64_t value_below = by_mass ? shuffle_up_64(through_value, distance) : count_below;
            if (lane >= distance) {
                through_count += count_below;
                through_value += value_below;
            }
        }
        if (lane == 31) {
            memory.warp_counts[warp] = through_count;
            memory.warp_masses[warp] = through_value;
        }
    }
    block_sync();
    if (scans) {
        uint64_t total = 0;
        for (uint32_t other = 0; other < kScanners / 32; other++) {
            if (other == warp) through_value += total;
            if (other < warp) through_count += memory.warp_counts[other];
            total += memory.warp_masses[other];
        }
        if (fraction > 0.0f) target = share_of(total, fraction);
        through_count += elements_before;
        through_value += before;
        if (through_value >= target && through_value - own_value < target) {
            // One thread's eight bins hold it: which of them?
            uint32_t count_through = through_count - own_count, bin = threadIdx.x * kBinsOfScanner;
            uint64_t ahead = through_value - own_value;
            for (;; bin++) {
                count_through += memory.counts[place_of(bin)];
                const uint64_t value = value_of(bin);
                if (ahead + value >= target) break;
                ahead += value;
            }
            found.bin = bin;
            found.elements = memory.counts[place_of(bin)];
            found.elements_through = count_through;
            found.before = ahead;
        }
    }
    block_sync();
    return target;
}

// A rank key up to which there are at least `want` elements, and usually not many more, given the first code of those
// that each thread has (kNoCode for none): each is an element, so the want-th of them is far enough. kLastKey where
// fewer than `want` threads have one.
template <class Row>
DEVICE uint64_t bound_of_first(SelectMemory& memory, uint32_t own_first, uint32_t want) {
    Found& found = memory.found[0];
    block_sync();
    clear_bins(memory, found, false);
    block_sync();
    if (own_first != kNoCode) atomic_add_shared(&memory.counts[place_of(first_bin<Row>(own_first))], 1);
    find_bin(memory, found, false, want, 0.0f, 0, 0);
    return end_of_first_bin<Row>(found.bin);
}

// Keeps of `kept` the first `count` elements, or, where `count` is 0, the fewest first elements whose masses add up to
// at least `fraction` of `total` (0: of all of theirs); all of them where there are not as many.
//
// Histograms over narrower and narrower intervals of rank keys lead to the last key to keep. What may still be kept is
// copied into the list as soon as it has room for that; later visits are short. After a `count` of at most kListRoom
// everything that is kept is in the list.
template <class Row>
DEVICE void keep_first(SelectMemory& memory, const Row& row, Kept& kept, uint32_t count, float fraction,
                       uint64_t total) {
    const bool by_mass = count == 0;
    uint64_t low = 0, high = kept.last;  // the last element to keep has its key in this interval
    uint64_t before = 0;                 // elements or mass ahead of it
    uint32_t elements_before = 0;
    uint64_t target = by_mass && total != 0 ? share_of(total, fraction) : count;
    uint32_t shift = 0;
    bool first = true;
    block_sync();  // whoever still reads what an earlier call found
    // Each turn cuts the interval into 2048 parts, so that at most 6 turns lead from 2^50 keys to 1.
#pragma unroll 1
    for (uint32_t parity = 0;; parity ^= 1) {
        Found& found = memory.found[parity];
        clear_bins(memory, found, by_mass);
        block_sync();
        each_kept(memory, row, Kept{high, kept.listed}, [&](uint32_t code, uint32_t id) {
            const uint64_t key = rank_key(code, id);
            if (key < low) return;
            const uint32_t bin = first ? first_bin<Row>(code) : static_cast<uint32_t>((key - low) >> shift);
            const uint32_t at = place_of(bin);
            atomic_add_shared(&memory.counts[at], 1);
            if (by_mass) {
                // 64 bits in two halves; each carry out of the low one is seen by exactly one thread.
                const uint64_t mass = Row::mass(code);
                const uint32_t mass_low = static_cast<uint32_t>(mass);
                uint32_t mass_high = static_cast<uint32_t>(mass >> 32);
                if (mass_low != 0 && atomic_add_shared(&memory.masses_low[at], mass_low) + mass_low < mass_low) {
                    mass_high++;
                }
                if (mass_high != 0) atomic_add_shared(&memory.masses_high[at], mass_high);
            }
        });
        target = find_bin(memory, found, by_mass, target, target == 0 ? fraction : 0.0f, before, elements_before);
        const uint32_t bin = found.bin;
        if (bin == kBins) return;  // fewer than `count`
        const uint32_t elements = found.elements, elements_through = found.elements_through;
        before = found.before;
        elements_before = elements_through - elements;
        if (first) {
            if (bin > 0) low = end_of_first_bin<Row>(bin - 1) + 1;
            high = min(high, end_of_first_bin<Row>(bin));
        } else {
            low += static_cast<uint64_t>(bin) << shift;
            high = min(high, low + ((uint64_t{1} << shift) - 1));
        }
        if (!kept.listed && elements_through <= kListRoom) {
            clear_list(memory);
            block_sync();
            each_kept(memory, row, Kept{high, false},
                      [&](uint32_t code, uint32_t id) { append(memory, rank_key(code, id)); });
            block_sync();
            kept.listed = true;
        }
        // The whole bin is kept, or its only element.
        if (elements == 1 || (!by_mass && elements_through == count)) {
            kept.last = high;
            return;
        }
        first = false;
        const uint64_t width = high - low;
        const uint32_t width_high = static_cast<uint32_t>(width >> 32);
        const uint32_t bits = width_high != 0 ? 64 - __clz(static_cast<int>(width_high))
                                              : 32 - __clz(static_cast<int>(static_cast<uint32_t>(width)));
        shift = bits > 11 ? bits - 11 : 0;
    }
}

// Puts the list's `length` keys, at most kSortRoom, in order, into memory.sorted. Each of them counts those ahead of
// it, by as many threads as there are for each.
DEVICE void sort_list(SelectMemory& memory, uint32_t length) {
    uint32_t bits = 5;
    while ((1u << bits) < length) bits++;
    const uint32_t places = 1u << bits, step = kBlock >> bits;
    block_sync();  // whoever still uses the bins
    memory.ranks[threadIdx.x] = 0;
    block_sync();
    const uint32_t own = threadIdx.x & (places - 1);
    if (own < length) {
        const uint64_t key = memory.list[own];
        uint32_t ahead = 0;
        for (uint32_t other = threadIdx.x >> bits; other < length; other += step) ahead += memory.list[other] < key;
        if (ahead != 0) atomic_add_shared(&memory.ranks[own], ahead);
    }
    block_sync();
    if (threadIdx.x < length) memory.sorted[memory.ranks[threadIdx.x]] = memory.list[threadIdx.x];
    block_sync();
}
