#include "thread_order.h"

#include <algorithm>

#include "report.h"

namespace interpreter {

void advance_clock(Thread& thread) {
    if (++thread.clock > kLastClock) fail(0, "a thread has synchronised more often than the race checker can count");
}

void order_among(Thread* const* threads, size_t count) {
    Ref<BlockClocks> clocks(new BlockClocks);
    Ref<View> view(new View);
    // Most threads share a view: each distinct one is joined once.
    std::vector<const View*> joined;
    std::vector<const BlockClocks*> joined_clocks;
    for (size_t i = 0; i < count; i++) {
        const View* seen = threads[i]->view.get();
        if (std::find(joined.begin(), joined.end(), seen) != joined.end()) continue;
        joined.push_back(seen);
        if (joined.size() == 1) {
            view->other_blocks = seen->other_blocks;
        } else {
            for (const OtherBlock& other : seen->other_blocks) learn(view->other_blocks, other);
        }
        view->finished = join(view->finished, seen->finished);
        const BlockClocks* more = seen->own_block.get();
        if (std::find(joined_clocks.begin(), joined_clocks.end(), more) != joined_clocks.end()) continue;
        joined_clocks.push_back(more);
        if (clocks->of.empty()) {
            clocks->of = more->of;
        } else {
            for (size_t agent = 0; agent < more->of.size(); agent++)
                clocks->of[agent] = std::max(clocks->of[agent], more->of[agent]);
        }
    }
    for (size_t i = 0; i < count; i++) {
        const Thread& thread = *threads[i];
        clocks->of[Agents::thread(thread.index)] = thread.clock;
        Clock& copies = clocks->of[Agents::copies(thread.index)];
        copies = std::max(copies, thread.copies_seen);
    }
    view->own_block = Ref<const BlockClocks>(clocks.get());
    const Ref<const View> shared(view.get());
    for (size_t i = 0; i < count; i++) {
        threads[i]->view = shared;
        advance_clock(*threads[i]);
    }
}

Ref<const Message> publish(Thread& thread) {
    Ref<BlockClocks> own(new BlockClocks(*thread.view->own_block));
    own->of[Agents::thread(thread.index)] = thread.clock;
    Clock& copies = own->of[Agents::copies(thread.index)];
    copies = std::max(copies, thread.copies_seen);
    Ref<Message> message(new Message);
    message->blocks = thread.view->other_blocks;
    learn(message->blocks, {thread.warp->block->first, Ref<const BlockClocks>(own.get())});
    message->finished = thread.view->finished;
    advance_clock(thread);
    return Ref<const Message>(message.get());
}

// Threads of a warpgroup share a view and acquire the same: what came of it last is kept.
void acquire(Thread& thread, const Message& message) {
    static struct {
        Ref<const View> before;
        Ref<const Message> message;
        Ref<const View> after;
    } last;
    if (last.before.get() == thread.view.get() && last.message.get() == &message) {
        thread.view = last.after;
        return;
    }
    last.before = thread.view;
    last.message = Ref<const Message>(&message);
    Ref<View> view(new View(*thread.view));
    for (const OtherBlock& news : message.blocks) {
        if (news.first != thread.warp->block->first) {
            learn(view->other_blocks, news);
            continue;
        }
        Ref<BlockClocks> own(new BlockClocks(*view->own_block));
        for (size_t agent = 0; agent < own->of.size(); agent++)
            own->of[agent] = std::max(own->of[agent], news.clocks->of[agent]);
        view->own_block = Ref<const BlockClocks>(own.get());
    }
    view->finished = join(view->finished, message.finished);
    last.after = thread.view = Ref<const View>(view.get());
}

void learn_agent(Thread& thread, Serial agent, Clock clock) {
    static struct {
        Ref<const View> before;
        Serial agent;
        Clock clock;
        Ref<const View> after;
    } last;
    if (thread.view->own_block->of[agent] >= clock) return;
    if (last.before.get() != thread.view.get() || last.agent != agent || last.clock != clock) {
        Ref<BlockClocks> clocks(new BlockClocks(*thread.view->own_block));
        clocks->of[agent] = clock;
        Ref<View> view(new View(*thread.view));
        view->own_block = Ref<const BlockClocks>(clocks.get());
        last = {thread.view, agent, clock, Ref<const View>(view.get())};
    }
    thread.view = last.after;
}

Ref<const Message> message_of_agent(const Block& block, Serial agent, Clock clock) {
    Ref<BlockClocks> clocks(new BlockClocks);
    clocks->of.assign(block.agents().count(), 0);
    clocks->of[agent] = clock;
    Ref<Message> message(new Message);
    message->blocks.push_back({block.first, Ref<const BlockClocks>(clocks.get())});
    return Ref<const Message>(message.get());
}

void fence_proxy(Thread& thread, Memory memory) {
    thread.proxy_fences[static_cast<int>(memory)].push_back({thread.clock, thread.copies_seen});
    advance_clock(thread);
}

void learn_finished(Thread& thread, const Ref<const FinishedWork>& finished) {
    Ref<View> view(new View(*thread.view));
    view->finished = join(view->finished, finished);
    thread.view = Ref<const View>(view.get());
}

}  // namespace interpreter
