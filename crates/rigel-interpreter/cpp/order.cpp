#include "order.h"

#include <algorithm>

#include "work.h"

namespace interpreter {

bool FinishedWork::knows(uint32_t stream, uint64_t sequence, uint64_t identity) const {
    if (stream < through.size() && sequence <= through[stream]) return true;
    return std::find(besides.begin(), besides.end(), identity) != besides.end();
}

bool FinishedWork::covers(const FinishedWork& other) const {
    for (size_t s = 0; s < other.through.size(); s++)
        if (other.through[s] > (s < through.size() ? through[s] : 0)) return false;
    return std::all_of(other.besides.begin(), other.besides.end(), [this](uint64_t identity) {
        const Work& work = history.work(identity);
        return knows(work.stream, work.sequence, identity);
    });
}

void FinishedWork::tidy() {
    // Work that follows directly on what its stream has finished needs no entry of its own.
    for (bool moved = true; moved;) {
        moved = false;
        for (size_t i = 0; i < besides.size();) {
            const Work& work = history.work(besides[i]);
            if (through.size() <= work.stream) through.resize(work.stream + 1);
            if (work.sequence > through[work.stream] + 1) {
                i++;
                continue;
            }
            through[work.stream] = std::max(through[work.stream], work.sequence);
            besides[i] = besides.back();
            besides.pop_back();
            moved = true;
        }
    }
    while (floor_work < history.works()) {
        const Work& next = history.work(floor_work);
        if (!knows(next.stream, next.sequence, next.identity)) break;
        floor_work++;
    }
    floor = floor_work < history.works() ? history.work(floor_work).first : history.next_serial();
}

Ref<const FinishedWork> join(const Ref<const FinishedWork>& a, const Ref<const FinishedWork>& b) {
    if (!a || a.get() == b.get()) return b;
    if (!b || a->covers(*b)) return a;
    if (b->covers(*a)) return b;
    Ref<FinishedWork> both(new FinishedWork(*a));
    if (both->through.size() < b->through.size()) both->through.resize(b->through.size());
    for (size_t s = 0; s < b->through.size(); s++) both->through[s] = std::max(both->through[s], b->through[s]);
    for (uint64_t identity : b->besides)
        if (std::find(both->besides.begin(), both->besides.end(), identity) == both->besides.end())
            both->besides.push_back(identity);
    both->floor_work = std::max(both->floor_work, b->floor_work);
    both->tidy();
    return Ref<const FinishedWork>(both.get());
}

Ref<const FinishedWork> with_finished(const Ref<const FinishedWork>& known, uint64_t identity) {
    Ref<FinishedWork> more(known ? new FinishedWork(*known) : new FinishedWork);
    more->besides.push_back(identity);
    more->tidy();
    return Ref<const FinishedWork>(more.get());
}

namespace {
Ref<const BlockClocks> later(const Ref<const BlockClocks>& a, const Ref<const BlockClocks>& b) {
    if (a.get() == b.get()) return a;
    Ref<BlockClocks> both(new BlockClocks);
    both->of = a->of;
    for (size_t i = 0; i < b->of.size(); i++) both->of[i] = std::max(both->of[i], b->of[i]);
    return Ref<const BlockClocks>(both.get());
}
}  // namespace

void learn(std::vector<OtherBlock>& known, const OtherBlock& news) {
    auto at = std::lower_bound(known.begin(), known.end(), news.first,
                               [](const OtherBlock& block, Serial first) { return block.first < first; });
    if (at != known.end() && at->first == news.first)
        at->clocks = later(at->clocks, news.clocks);
    else
        known.insert(at, news);
}

Ref<const Message> join(const Ref<const Message>& a, const Ref<const Message>& b) {
    if (!a || a.get() == b.get()) return b;
    if (!b) return a;
    Ref<Message> both(new Message);
    both->blocks = a->blocks;
    for (const OtherBlock& block : b->blocks) learn(both->blocks, block);
    both->finished = join(a->finished, b->finished);
    return Ref<const Message>(both.get());
}

}  // namespace interpreter
