// Streams and events.
#include "api.h"

using namespace interpreter;

struct Event {
    std::shared_ptr<Mark> mark;  // of the last record
};

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
    destroy_stream(&stream_of(stream));
    return result;
}
DRIVER_API cuStreamSynchronize(void* stream) {
    BEGIN_DRIVER_CALL;
    if (stream_of(stream).capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return result_of(run_all(stream_of(stream)));
}
DRIVER_API cuStreamQuery(void* stream) {
    BEGIN_DRIVER_CALL;
    return stream_of(stream).queue.empty() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
DRIVER_API cuStreamWaitEvent(void* stream, Event* event, unsigned) {
    BEGIN_DRIVER_CALL;
    if (!event->mark) return CUDA_SUCCESS;  // never recorded
    if (stream_of(stream).capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    Operation operation;
    operation.waits_for = event->mark;
    submit(stream_of(stream), std::move(operation));
    return CUDA_SUCCESS;
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
    if (stream_of(stream).capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    event->mark = mark(stream_of(stream));
    return CUDA_SUCCESS;
}
DRIVER_API cuEventSynchronize(Event* event) {
    BEGIN_DRIVER_CALL;
    if (!event->mark) return CUDA_SUCCESS;
    const CUresult result = result_of(reach(*event->mark));
    if (result == CUDA_SUCCESS) host_learns(event->mark->finished);
    return result;
}
DRIVER_API cuEventQuery(Event* event) {
    BEGIN_DRIVER_CALL;
    if (!event->mark) return CUDA_SUCCESS;
    if (!event->mark->reached) return CUDA_ERROR_NOT_READY;
    host_learns(event->mark->finished);
    return CUDA_SUCCESS;
}
DRIVER_API cuEventElapsedTime_v2(float* milliseconds, Event* begin, Event* end) {
    BEGIN_DRIVER_CALL;
    if (!begin->mark || !end->mark) return CUDA_ERROR_INVALID_HANDLE;
    if (!begin->mark->reached || !end->mark->reached) return CUDA_ERROR_NOT_READY;
    *milliseconds = static_cast<float>(end->mark->milliseconds - begin->mark->milliseconds);
    return CUDA_SUCCESS;
}
DRIVER_API cuEventElapsedTime(float* milliseconds, Event* begin, Event* end) {
    return cuEventElapsedTime_v2(milliseconds, begin, end);
}
