// How knowledge of what has happened passes between threads.
#pragma once
#include "grid.h"

namespace interpreter {

// Everything that each of these threads (of one block) did or knew is now ordered before what any of them does next.
void order_among(Thread* const* threads, size_t count);

// What a releasing action of this thread publishes. Later actions of the thread are not part of it.
Ref<const Message> publish(Thread& thread);
// The thread acquires what was published.
void acquire(Thread& thread, const Message& message);
// The thread learns that an agent of its own block has come to this clock.
void learn_agent(Thread& thread, Serial agent, Clock clock);
// What the agent of a block publishes when an instruction of it is done: that alone.
Ref<const Message> message_of_agent(const Block& block, Serial agent, Clock clock);
// The thread's writes of this memory so far are ready for the asynchronous proxy.
void fence_proxy(Thread& thread, Memory memory);
// The thread learns that work has finished.
void learn_finished(Thread& thread, const Ref<const FinishedWork>& finished);

void advance_clock(Thread& thread);

}  // namespace interpreter
