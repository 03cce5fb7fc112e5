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
// The thread learns that work has finished.
void learn_finished(Thread& thread, const Ref<const FinishedWork>& finished);

void advance_clock(Thread& thread);

}  // namespace interpreter
