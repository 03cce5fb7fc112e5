// Streams and events.
#include <algorithm>

#include "api.h"
#include "recording.h"

using namespace interpreter;

struct Event {
    // Of the last record: a point in a stream, or in a recording.
    std::shared_ptr<Mark> mark;
    std::shared_ptr<Recording> recording;
    std::vector<size_t> after;  // operations of the recording
};

namespace {
// What the host must not ask of a stream that records, or of an event in a recording: neither stands for work to be
// run.
CUresult refuse_while_recording(const Stream& stream) {
    if (!stream.recording) return CUDA_SUCCESS;
    return invalidate(*stream.recording, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                      "the host waits for a stream that records");
}
CUresult refuse_recorded(const Event& event) {
    if (!event.recording) return CUDA_SUCCESS;
    return invalidate(*event.recording, CUDA_ERROR_CAPTURED_EVENT, "the host asks for an event of a recording");
}

// `stream` records, or is to, what comes after an event of a recording.
CUresult follow(Stream& stream, const Event& event) {
    Recording& recording = *event.recording;
    if (recording.ended)
        return refuse(CUDA_ERROR_CAPTURED_EVENT, "a stream waits for an event of a recording that has ended");
    if (!recording.valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream.recording && stream.recording != event.recording) {
        invalidate(*stream.recording, CUDA_ERROR_STREAM_CAPTURE_MERGE,
                   "a stream waits for an event of another recording than its own");
        return invalidate(recording, CUDA_ERROR_STREAM_CAPTURE_MERGE,
                          "a stream of another recording waits for an event of this one");
    }
    if (!stream.recording) {
        if (&stream == &default_stream)
            return invalidate(recording, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                              "the default stream waits for an event of a recording");
        stream.recording = event.recording;
        stream.branch = recording.branches.size();
        recording.branches.push_back({&stream, {}});
    }
    std::vector<size_t>& front = recording.branches[stream.branch].front;
    for (size_t index : event.after)
        if (std::find(front.begin(), front.end(), index) == front.end()) front.push_back(index);
    return CUDA_SUCCESS;
}
}  // namespace

DRIVER_API cuStreamCreate(void** stream, unsigned flags) {
    BEGIN_DRIVER_CALL;
    constexpr unsigned kNonBlocking = 1;
    *stream = create_stream(!(flags & kNonBlocking));
    return CUDA_SUCCESS;
}
DRIVER_API cuStreamCreateWithPriority(void** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
DRIVER_API cuStreamDestroy_v2(void* stream) {
    BEGIN_DRIVER_CALL;
    const CUresult result = result_of(run_all(stream_of(stream)));
    leave_recording(stream_of(stream));
    destroy_stream(&stream_of(stream));
    return result;
}
DRIVER_API cuStreamSynchronize(void* stream) {
    BEGIN_DRIVER_CALL;
    if (const CUresult error = refuse_while_recording(stream_of(stream))) return error;
    return result_of(run_all(stream_of(stream)));
}
DRIVER_API cuStreamQuery(void* stream) {
    BEGIN_DRIVER_CALL;
    if (const CUresult error = refuse_while_recording(stream_of(stream))) return error;
    return stream_of(stream).queue.empty() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
DRIVER_API cuStreamWaitEvent(void* stream, Event* event, unsigned) {
    BEGIN_DRIVER_CALL;
    Stream& waiting = stream_of(stream);
    if (event->recording) return follow(waiting, *event);
    if (!event->mark) return CUDA_SUCCESS;  // never recorded
    if (waiting.recording)
        return invalidate(*waiting.recording, CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                          "a stream that records waits for an event from outside of the recording");
    Operation operation;
    operation.waits_for = event->mark;
    return give(waiting, std::move(operation));
}

DRIVER_API cuEventCreate(Event** event, unsigned) {
    *event = new Event;
    return CUDA_SUCCESS;
}
DRIVER_API cuEventDestroy_v2(Event* event) {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    delete event;
    return CUDA_SUCCESS;
}
DRIVER_API cuEventRecord(Event* event, void* stream) {
    BEGIN_DRIVER_CALL;
    const Stream& of = stream_of(stream);
    if (of.recording && !of.recording->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    event->recording = of.recording;
    event->after = of.recording ? of.recording->branches[of.branch].front : std::vector<size_t>();
    event->mark = of.recording ? nullptr : mark(stream_of(stream));
    return CUDA_SUCCESS;
}
DRIVER_API cuEventSynchronize(Event* event) {
    BEGIN_DRIVER_CALL;
    if (const CUresult error = refuse_recorded(*event)) return error;
    if (!event->mark) return CUDA_SUCCESS;
    const CUresult result = result_of(reach(*event->mark));
    if (result == CUDA_SUCCESS) host_learns(event->mark->finished);
    return result;
}
DRIVER_API cuEventQuery(Event* event) {
    BEGIN_DRIVER_CALL;
    if (const CUresult error = refuse_recorded(*event)) return error;
    if (!event->mark) return CUDA_SUCCESS;
    if (!event->mark->reached) return CUDA_ERROR_NOT_READY;
    host_learns(event->mark->finished);
    return CUDA_SUCCESS;
}
DRIVER_API cuEventElapsedTime_v2(float* milliseconds, Event* begin, Event* end) {
    BEGIN_DRIVER_CALL;
    for (const Event* event : {begin, end})
        if (const CUresult error = refuse_recorded(*event)) return error;
    if (!begin->mark || !end->mark) return CUDA_ERROR_INVALID_HANDLE;
    if (!begin->mark->reached || !end->mark->reached) return CUDA_ERROR_NOT_READY;
    *milliseconds = static_cast<float>(end->mark->milliseconds - begin->mark->milliseconds);
    return CUDA_SUCCESS;
}
DRIVER_API cuEventElapsedTime(float* milliseconds, Event* begin, Event* end) {
    return cuEventElapsedTime_v2(milliseconds, begin, end);
}
