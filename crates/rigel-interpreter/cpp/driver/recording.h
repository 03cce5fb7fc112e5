// Streams whose work goes into a graph instead of being run, between cuStreamBeginCapture and cuStreamEndCapture.
//
// A recording begins on one stream. Another stream takes part from when it waits for an event that was recorded in the
// recording; by the end, all of its work must lie before something that the first stream has waited for. Each stream is
// a branch: its operations stay in their order, and between branches events give the order. What CUDA's programming
// guide forbids invalidates the whole recording: further use of it fails, and its end gives no graph.
#pragma once
#include <thread>
#include <vector>

#include "api.h"

namespace interpreter {

struct RecordedOperation {
    Operation operation;
    size_t branch;
    std::vector<size_t> after;  // indices of the operations that it directly follows, of any branch
};

struct Branch {
    Stream* stream;  // nullptr: it was destroyed
    std::vector<size_t> front;  // what its next operation follows
};

struct Recording {
    uint64_t id;
    std::thread::id thread;
    bool valid = true;
    bool ended = false;
    std::vector<RecordedOperation> operations;
    std::vector<Branch> branches;  // the first is the stream that it began on
};

// Makes the recording, and all that would still go into it, fail with `error`. Says why on stderr.
CUresult invalidate(Recording& recording, CUresult error, const std::string& why);
// Takes a stream that is to be destroyed out of its recording, which becomes invalid.
void leave_recording(Stream& stream);

}  // namespace interpreter
