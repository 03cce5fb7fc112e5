// targets: sm_80 compute_80 sm_90
// One token for each row of a step: allowed and banned tokens, biases, penalties, temperature, min-p, top-k, top-p,
// draw; or the largest logit. Chooses the same tokens as src/sampling/sampler.rs.
#include "common/arrival.cuh"
#include "common/logprobs.cuh"
#include "common/philox.cuh"
#include "ptx/ptx.cuh"

static constexpr uint32_t kSkip = 1, kMarkSeen = 2, kLogprobs = 4, kMore = 8;  // SampleRow::flags
static constexpr uint32_t kNone = 0xffffffffu;
static constexpr uint32_t kNucleus = 192;  // tokens that most nuclei of top-p lie within

// What one row asks for: SampleRow of the launcher, 96 bytes. It is read piece by piece where it is needed, so that it
// does not stay in registers.
struct alignas(16) SampleRow {
    struct alignas(16) Place {
        uint32_t logits_row, position, seed_low, seed_high;
    } place;
    struct alignas(16) Choice {
        float temperature, floor, top_p;  // floor: ln(min_p), -inf where that is off
        uint32_t top_k;
    } choice;
    struct alignas(16) LogitEdits {
        float repetition_penalty;
        uint32_t seen;  // which of the bitsets, kNone without
        uint32_t first, count;  // of the list of edits
    } edits;
    struct alignas(16) Wants {
        uint32_t flags, top, unused[2];
    } wants;
    struct alignas(16) More {  // of a row with kMore
        float frequency_penalty, presence_penalty;
        uint32_t allowed;  // which of the bitsets, kNone without
        uint32_t unused;
    } more;
    uint32_t reserved[4];
};
DEVICE SampleRow::Place read(const SampleRow::Place& source) {
    const uint4 v = load_global_16(&source);
    return SampleRow::Place{v.x, v.y, v.z, v.w};
}
DEVICE SampleRow::Choice read(const SampleRow::Choice& source) {
    const uint4 v = load_global_16(&source);
    return SampleRow::Choice{__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), v.w};
}
DEVICE SampleRow::LogitEdits read(const SampleRow::LogitEdits& source) {
    const uint4 v = load_global_16(&source);
    return SampleRow::LogitEdits{__uint_as_float(v.x), v.y, v.z, v.w};
}
DEVICE SampleRow::More read(const SampleRow::More& source) {
    const uint4 v = load_global_16(&source);
    return SampleRow::More{__uint_as_float(v.x), __uint_as_float(v.y), v.z, v.w};
}

// What edits one token's logit: LogitEdit of the launcher.
struct alignas(16) LogitEdit {
    uint32_t id;
    float bias;  // added to it, -inf for a banned token
    uint32_t count;  // how often the token was generated, where that is penalised
    uint32_t unused;
};
DEVICE LogitEdit read(const LogitEdit& source) {
    const uint4 v = load_global_16(&source);
    return LogitEdit{v.x, __uint_as_float(v.y), v.z, v.w};
}

// What few rows have, in shared memory: it takes no registers of the others.
struct alignas(16) Rare {
    const LogitEdit* edits;  // by ascending id
    const uint32_t* allowed;  // a bit for each token
    uint32_t count;  // of the edits
    float frequency_penalty, presence_penalty;
    uint32_t unused;
};
// Which of 256 tokens are in the list of edits, and how many there are before them.
static constexpr uint32_t kTokensOfBlock = 256;
struct ChangedTokens {
    uint32_t bits[kTokensOfBlock / 32];
    uint32_t before;
};
static constexpr uint32_t kRareBytes = 32, kChangedTokensBytes = 36;
static_assert(sizeof(Rare) == kRareBytes && sizeof(ChangedTokens) == kChangedTokensBytes, "the launcher counts on it");
DEVICE Rare& rare() {
    SHARED_MEMORY(shared);
    return *reinterpret_cast<Rare*>(shared + sizeof(SelectMemory));
}
DEVICE ChangedTokens* changed_tokens() {
    SHARED_MEMORY(shared);
    return reinterpret_cast<ChangedTokens*>(shared + sizeof(SelectMemory) + sizeof(Rare));
}

// Where the first edit with an id of at least `id` lies.
DEVICE uint32_t first_change_from(const LogitEdit* edits, uint32_t count, uint32_t id) {
    uint32_t low = 0, high = count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (load_global_4(&edits[middle].id) < id) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}
// Fills changed_tokens; a barrier after it is the caller's. Each block of tokens is one thread's.
DEVICE void find_changed_tokens(const LogitEdit* edits, uint32_t count, uint32_t vocabulary) {
    for (uint32_t block = threadIdx.x; block * kTokensOfBlock < vocabulary; block += kBlock) {
        ChangedTokens& tokens = changed_tokens()[block];
        uint32_t at = first_change_from(edits, count, block * kTokensOfBlock);
        tokens.before = at;
        for (uint32_t word = 0; word < kTokensOfBlock / 32; word++) tokens.bits[word] = 0;
        for (; at < count; at++) {
            const uint32_t id = load_global_4(&edits[at].id);
            if (id / kTokensOfBlock != block) break;
            tokens.bits[id % kTokensOfBlock / 32] |= 1u << (id % 32);
        }
    }
}
// The edit of a token that is in the list. Were the list not in order it would be another's, but one of the list.
DEVICE LogitEdit change_of(uint32_t id) {
    const ChangedTokens& tokens = changed_tokens()[id / kTokensOfBlock];
    uint32_t at = tokens.before;
    for (uint32_t word = 0; word < id % kTokensOfBlock / 32; word++) at += __popc(tokens.bits[word]);
    at += __popc(tokens.bits[id % kTokensOfBlock / 32] & ((1u << (id % 32)) - 1));
    return read(rare().edits[min(at, rare().count - 1)]);
}

// The logits of a row, and what edits them.
struct Processed {
    const float* logits;
    const uint32_t* seen;  // a bit for each token, in global memory; null where the penalty is off
    float penalty;
    uint32_t vocabulary;
    bool edits, limits;  // there is a list of edits, a set of allowed tokens: rare
};

// Calls f(first id, logits) for the groups `first` .. `end` of four, after all that edits them. What was NaN or +inf
// is NaN or +inf still, even of a token that is banned or not allowed, so that whoever takes the maximum finds it.
template <class F>
DEVICE void each_processed(const Processed& row, uint32_t first, uint32_t end, F f) {
    each_group(row.logits, row.vocabulary, first, end, [&](uint32_t id, const float (&raw)[kGroup]) {
        const uint32_t seen = row.seen == nullptr ? 0 : load_global_4(row.seen + id / 32) >> (id % 32);
        const uint32_t refused = row.limits ? ~(load_global_4(rare().allowed + id / 32) >> (id % 32)) : 0;
        const uint32_t changed =
            row.edits ? changed_tokens()[id / kTokensOfBlock].bits[id % kTokensOfBlock / 32] >> (id % 32) : 0;
        float x[kGroup];
#pragma unroll
        for (uint32_t i = 0; i < kGroup; i++) {
            x[i] = raw[i];
            // The order and the roundings of the reference sampler.
            if (refused >> i & 1) x[i] += __uint_as_float(0xff800000u);
            uint32_t count = 0;
            if (changed >> i & 1) {
                const LogitEdit edit = change_of(id + i);
                x[i] += edit.bias;
                count = edit.count;
            }
            if (seen >> i & 1) x[i] = x[i] > 0.0f ? x[i] / row.penalty : multiply_rounded(x[i], row.penalty);
            if (count != 0) {
                x[i] -= multiply_rounded(static_cast<float>(count), rare().frequency_penalty);
                x[i] -= rare().presence_penalty;
            }
        }
        f(id, x);
    });
}

// The row in a race: elements of common/select.cuh. A token's code is that of its logit over the temperature relative
// to the best, which is 0 or negative: 0 for +0, otherwise 1 + the bits of the magnitude.
struct Draws {
    static constexpr uint32_t kFirstCode = 119u << 23;  // 2^-8
    Processed row;
    float best, temperature, floor;
    float cut;  // tokens this far below the best, before the division, are of no interest
    DEVICE float scaled(uint32_t code) { return code == 0 ? 0.0f : __uint_as_float(code + 0x7fffffffu); }
    DEVICE uint64_t mass(uint32_t code) { return mass_of(scaled(code)); }
};
DEVICE uint32_t code_of(const Draws& draws, float x) {
    // Relative to the best before the division: a tiny temperature then gives -inf and not NaN.
    const float gap = x - draws.best;
    if (gap < draws.cut) return kNoCode;
    const float scaled = gap == 0.0f ? 0.0f : gap / draws.temperature;
    if (!(scaled > __uint_as_float(0xff800000u) && scaled >= draws.floor)) return kNoCode;
    const uint32_t bits = __float_as_uint(scaled);
    return bits == 0 ? 0 : bits - 0x7fffffffu;
}
// A cut that spares the divisions of most tokens with scaled logits below `scaled`, at most 0, and touches no other:
// further away than the roundings of product and division, and of subnormal ones, can reach.
DEVICE float cut_below(const Draws& draws, float scaled) {
    return __fmaf_rn(scaled * 1.001f, draws.temperature, draws.temperature * -0x1p-130f);
}
template <class F>
DEVICE void each_element(const Draws& draws, F f) {
    each_processed(draws.row, 0, groups_of(draws.row.vocabulary), [&](uint32_t id, const float (&x)[kGroup]) {
#pragma unroll
        for (uint32_t i = 0; i < kGroup; i++) {
            const uint32_t code = code_of(draws, x[i]);
            if (code != kNoCode) f(code, id + i);
        }
    });
}

// The bits behind a token's variate.
DEVICE uint4 noise_of(const SampleRow::Place& place, uint32_t id) {
    return noise_of_group(id / kGroup, place.position, place.seed_low, place.seed_high);
}
DEVICE uint32_t word_of(const uint4& block, uint32_t i) {
    return i == 0 ? block.x : i == 1 ? block.y : i == 2 ? block.z : block.w;
}
// What the largest of decides the exponential race.
DEVICE float score_of(uint32_t code, uint32_t bits) { return Draws::scaled(code) - log_exponential(bits); }

// The winner of the race: of the kept tokens the one with the largest score, the lower id of equals. `first` is the
// best token, which is always kept.
DEVICE uint32_t race(SelectMemory& memory, const Draws& draws, const Kept& kept, const SampleRow::Place& place,
                     uint32_t first) {
    float best = score_of(0, word_of(noise_of(place, first), first % kGroup));
    uint32_t winner = first;
    // A token that even the best variate does not bring up to the leader needs none.
    const auto may_win = [&](uint32_t code) { return Draws::scaled(code) + kMaxAdvantage >= best; };
    const auto enter = [&](uint32_t code, uint32_t id, uint32_t bits) {
        const float score = score_of(code, bits);
        if (score > best || (score == best && id < winner)) {
            best = score;
            winner = id;
        }
    };
    if (kept.listed) {
        each_kept(memory, draws, kept, [&](uint32_t code, uint32_t id) {
            if (may_win(code)) enter(code, id, word_of(noise_of(place, id), id % kGroup));
        });
    } else {
        Draws near = draws;
        near.cut = max(near.cut, cut_below(draws, best - kMaxAdvantage));
        if (kept.last != kLastKey) near.cut = max(near.cut, cut_below(draws, Draws::scaled(code_in(kept.last))));
        each_processed(near.row, 0, groups_of(near.row.vocabulary), [&](uint32_t id, const float (&x)[kGroup]) {
            uint32_t codes[kGroup];
            bool any = false;
#pragma unroll
            for (uint32_t i = 0; i < kGroup; i++) {
                codes[i] = code_of(near, x[i]);
                if (codes[i] != kNoCode && (rank_key(codes[i], id + i) > kept.last || !may_win(codes[i]))) {
                    codes[i] = kNoCode;
                }
                any = any || codes[i] != kNoCode;
            }
            if (!any) return;
            const uint4 block = noise_of(place, id);
#pragma unroll
            for (uint32_t i = 0; i < kGroup; i++) {
                if (codes[i] != kNoCode) enter(codes[i], id + i, word_of(block, i));
            }
        });
    }
    return block_best(memory, Best{comparable_bits(best), winner}).id;
}

// The same where the list holds all tokens that may be kept, or as many of the best of them as it takes, and no more
// than can be sorted: top-k, top-p and the race of the sorted list, a token a thread. kNoToken where top-p wants more
// than the list has. `total` is what top-p takes its share of; 0: what top-k keeps.
DEVICE uint32_t race_sorted(SelectMemory& memory, const SampleRow::Choice& choice, const SampleRow::Place& place,
                            uint64_t total) {
    const uint32_t length = memory.list_length;
    sort_list(memory, length);
    bool kept = threadIdx.x < (choice.top_k != 0 ? min(choice.top_k, length) : length);
    const uint64_t key = kept ? memory.sorted[threadIdx.x] : kLastKey;
    if (choice.top_p < 1.0f) {
        const uint64_t mass = kept ? Draws::mass(code_in(key)) : 0;
        uint64_t through = warp_running_sum_64(mass);
        if (threadIdx.x % 32 == 31) memory.warp_masses[threadIdx.x / 32] = through;
        block_sync();
        uint64_t sum = 0;
        for (uint32_t warp = 0; warp < kWarpsOfBlock; warp++) {
            if (warp == threadIdx.x / 32) through += sum;
            sum += memory.warp_masses[warp];
        }
        const uint64_t share = share_of(total != 0 ? total : sum, choice.top_p);
        if (sum < share) return kNoToken;
        kept = kept && through - mass < share;
    }
    Best own{0, kNoToken};
    if (kept) {
        const uint32_t id = id_in(key);
        own = Best{comparable_bits(score_of(code_in(key), word_of(noise_of(place, id), id % kGroup))), id};
    }
    return block_best(memory, own).id;
}

// The token of a row that is drawn. `best` is the largest logit's key and id; `own_key` that of the largest logit which
// this thread has seen.
DEVICE uint32_t draw(SelectMemory& memory, const Processed& processed, const SampleRow& row, Best best,
                     uint32_t own_key) {
    const SampleRow::Choice choice = read(row.choice);
    Draws draws{processed, from_ordered_bits(best.key), choice.temperature, choice.floor, 0.0f};
    const float floor_cut = cut_below(draws, choice.floor);
    draws.cut = floor_cut;
    const bool by_number = choice.top_k != 0;
    Kept kept{kLastKey, false};
    uint64_t total = 0;
    if (by_number ? choice.top_k <= kSortRoom : choice.top_p < 1.0f) {
        // What is usual: few tokens are kept. Those up to a bound go into the list, with the sum of all masses beside
        // it where that is needed.
        const uint32_t want = by_number ? choice.top_k : kNucleus;
        const uint64_t bound =
            bound_of_first<Draws>(memory, own_key == 0 ? kNoCode : code_of(draws, from_ordered_bits(own_key)), want);
        if (bound != kLastKey) {
            // Tokens behind the bound have no other use than their masses, which are 0 below -31.2.
            const float last = Draws::scaled(code_in(bound));
            draws.cut = max(floor_cut, cut_below(draws, by_number ? last : min(last, -31.5f)));
        }
        clear_list(memory);
        block_sync();
        each_element(draws, [&](uint32_t code, uint32_t id) {
            if (!by_number) total += Draws::mass(code);
            if (rank_key(code, id) <= bound) append(memory, rank_key(code, id));
        });
        draws.cut = floor_cut;
        if (by_number) {
            block_sync();
        } else {
            total = block_sum_64(memory, total);
        }
        if (memory.list_length <= kSortRoom) {
            const uint32_t token = race_sorted(memory, choice, read(row.place), total);
            if (token != kNoToken) return token;
        } else {
            kept.listed = by_number && memory.list_length <= kListRoom;
        }
    }
#pragma unroll 1
    for (uint32_t stage = 0; stage < 2; stage++) {
        // By number, then by mass.
        if (stage == 0 ? by_number : choice.top_p < 1.0f) {
            keep_first(memory, draws, kept, stage == 0 ? choice.top_k : 0, choice.top_p, total);
        }
    }
    return race(memory, draws, kept, read(row.place), best.id);
}

// Computes: tokens[r] = the token sampled for row r of the step, kNoToken where its logits are not finite (NaN, +inf,
// or nothing above -inf, before or after what edits them) or where the row names a logits row, bitsets or edits that
// are not there. Rows with kSkip do nothing. With kMarkSeen the token joins the row's bitset of seen tokens; then no
// other row of the launch may name that bitset. With kLogprobs logprobs[r] gets the log-probabilities of the token and
// of row.top best ones, from the logits as they are in memory.
//
// Ahead of the temperature the logit x of a token becomes, step by step, each rounded to f32:
//
//   x + -inf              where the row has a bitset of allowed tokens and the token is not in it
//   x + bias              where the token is in the row's list of edits
//   x / r or x r          of a token in the row's bitset of seen tokens, by the sign of x; r = repetition_penalty
//   x - count f, then - p where the token is in the list with a count above 0; f, p: frequency and presence penalty
//
// The list of edits has each id once, in ascending order.
//
// Shapes:
//   rows      SampleRow [gridDim.y]        logits    f32 [logits_rows, pitch]
//   edits     LogitEdit [changes_length]      sets      u32 [set_slots, set_words], a bit for each token
//   partials  u64 [gridDim.y, gridDim.x]   counters  u32 [gridDim.y], 0 before and after
//   tokens    u32 [gridDim.y]              logprobs  RowLogprobs [gridDim.y]
//
// All are written by earlier work on the stream, the logits up to the next multiple of 4 past the vocabulary.
//
// A greedy row without log-probabilities is split over the gridDim.x blocks of its column, the last of which to arrive
// has the result; every other row is one block's work, and the other blocks end at once. Any number of blocks gives
// the same bits. Visits of the logits, the first from memory, the rest from L2: greedy 1; a draw from all tokens 2, for
// the maximum and for the race; with top-k, up to 512, or top-p, 2, for the maximum and for the list of what may be
// kept. Where more is kept than can be sorted: 1 for each turn of keep_first until the list has room, and the race.
//
// Grid: (parts, rows), 512 threads.
// Smem: SelectMemory, Rare, and ChangedTokens for each 256 tokens. A row without
// list, bitset of allowed tokens and penalties of what was generated does not touch the last two.
// Bytes: 64 rows, 16 more for one with kMore, 4 vocabulary for each row's logits, its bitsets, 16 for each edit.
// FLOPs: 1 a token greedy; about 10 for each visit otherwise, 60 for a variate.
// Alignment: pitch a multiple of 4; logits and rows 16 bytes.
// Registers: at most 120 (sample_rows)
KERNEL(sample_rows, kBlock, 1)
(const SampleRow* rows, const float* logits, const LogitEdit* edits, uint32_t* sets, uint64_t* partials,
 uint32_t* counters, uint32_t* tokens, RowLogprobs* logprobs, uint32_t logits_rows, uint32_t vocabulary, uint32_t pitch,
 uint32_t changes_length, uint32_t set_slots, uint32_t set_words) {
    SHARED_MEMORY(shared);
    SelectMemory& memory = *reinterpret_cast<SelectMemory*>(shared);
    const uint32_t part = blockIdx.x, parts = gridDim.x, index = blockIdx.y;

    grid_dependency_launch();
    grid_dependency_wait();
    const SampleRow& row = rows[index];
    const uint32_t flags = load_global_4(&row.wants.flags), logits_row = load_global_4(&row.place.logits_row);
    const SampleRow::LogitEdits own = read(row.edits);
    const bool greedy = __uint_as_float(load_global_4(&row.choice.temperature)) == 0.0f;
    const bool with_logprobs = flags & kLogprobs, split = greedy && !with_logprobs;
    if ((flags & kSkip) || (part > 0 && !split)) return;
    SampleRow::More more{0.0f, 0.0f, kNone, 0};
    if (flags & kMore) more = read(row.more);
    if (logits_row >= logits_rows || (own.seen != kNone && own.seen >= set_slots) ||
        (more.allowed != kNone && more.allowed >= set_slots) || own.first > changes_length ||
        own.count > changes_length - own.first) {
        if (part == 0 && threadIdx.x == 0) {
            tokens[index] = kNoToken;
            if (with_logprobs) logprobs[index].top = kNoToken;
        }
        return;
    }
    const float* const own_logits = logits + static_cast<size_t>(logits_row) * pitch;
    uint32_t* const own_seen = own.seen == kNone ? nullptr : sets + static_cast<size_t>(own.seen) * set_words;
    const Processed processed{own_logits,
                              own.repetition_penalty != 1.0f ? own_seen : nullptr,
                              own.repetition_penalty,
                              vocabulary,
                              own.count > 0,
                              more.allowed != kNone};
    if (processed.edits || processed.limits) {
        if (threadIdx.x == 0) {
            const uint32_t* const allowed = sets + static_cast<size_t>(processed.limits ? more.allowed : 0) * set_words;
            rare() = Rare{edits + own.first, allowed, own.count, more.frequency_penalty, more.presence_penalty, 0};
        }
        if (processed.edits) find_changed_tokens(edits + own.first, own.count, vocabulary);
        block_sync();
    }

    // The largest logit: the token itself where the row is greedy.
    const uint32_t groups = groups_of(vocabulary);
    const uint32_t each = split ? (groups + parts - 1) / parts : groups;
    Best largest{0, kNone};
    each_processed(processed, part * each, min((part + 1) * each, groups), [&](uint32_t id, const float (&x)[kGroup]) {
#pragma unroll
        for (uint32_t i = 0; i < kGroup; i++) {
            const uint32_t key = comparable_bits(x[i]);
            if (key > largest.key) largest = Best{key, id + i};
        }
    });
    Best best = block_best(memory, largest);
    if (split && parts > 1) {
        if (threadIdx.x >= 32) return;
        if (threadIdx.x == 0) partials[index * parts + part] = static_cast<uint64_t>(best.key) << 32 | best.id;
        if (!arrives_last(counters + index, parts)) return;
        best = Best{0, kNone};
        for (uint32_t other = threadIdx.x; other < parts; other += 32) {
            const uint64_t packed = partials[index * parts + other];
            const Best its{static_cast<uint32_t>(packed >> 32), static_cast<uint32_t>(packed)};
            if (its.key > best.key) best = its;
        }
        best = warp_best(best);
    }
    uint32_t token = is_finite_key(best.key) ? best.id : kNoToken;

    if (!greedy && token != kNoToken) token = draw(memory, processed, row, best, largest.key);
    if (threadIdx.x == 0) {
        tokens[index] = token;
        // Everyone in this row's blocks is done with the bitset: they have met at a barrier or the counter since.
        if ((flags & kMarkSeen) && own_seen != nullptr && token != kNoToken) own_seen[token / 32] |= 1u << (token % 32);
    }
    if (with_logprobs) {
        RowLogprobs& out = logprobs[index];
        if (token == kNoToken) {
            if (threadIdx.x == 0) out.top = kNoToken;
        } else {
            write_logprobs(memory, own_logits, vocabulary, token, load_global_4(&row.wants.top), out);
        }
    }
}
REGISTER_KERNEL(sample_rows)
