// Recording streams into graphs, and running graphs.
#include <algorithm>

#include "memory.h"
#include "recording.h"
#include "report.h"

using namespace interpreter;

struct Graph {
    std::vector<RecordedOperation> operations;
    std::vector<size_t> last;         // what work after the graph follows
    std::vector<Stream*> besides;     // of an executable graph: streams for all branches but the first
    size_t branches;
};

namespace interpreter {

CUresult invalidate(Recording& recording, CUresult error, const std::string& why) {
    recording.valid = false;
    return refuse(error, why + "; the recording is lost");
}

void leave_recording(Stream& stream) {
    if (!stream.recording) return;
    invalidate(*stream.recording, CUDA_SUCCESS, "a stream is destroyed that takes part in a recording");
    stream.recording->branches[stream.branch].stream = nullptr;
    stream.recording.reset();
}

CUresult give(Stream& stream, Operation operation) {
    if (&stream == &default_stream)
        for (Stream* other : all_streams())
            if (other->recording && other->waits_for_default_stream)
                return invalidate(*other->recording, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                                  "work on the default stream, for which a recording stream would have to wait");
    if (!stream.recording) {
        submit(stream, std::move(operation));
        return CUDA_SUCCESS;
    }
    Recording& recording = *stream.recording;
    if (!recording.valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    std::vector<size_t>& front = recording.branches[stream.branch].front;
    recording.operations.push_back({std::move(operation), stream.branch, front});
    front = {recording.operations.size() - 1};
    return CUDA_SUCCESS;
}

}  // namespace interpreter

namespace {
uint64_t recordings_made = 0;

// Whether every operation lies before (or among) those of the first branch's front: whether each fork has been joined.
bool all_joined(const Recording& recording) {
    std::vector<bool> before(recording.operations.size(), false);
    for (size_t index : recording.branches[0].front) before[index] = true;
    for (size_t index = recording.operations.size(); index-- > 0;)
        if (before[index])
            for (size_t earlier : recording.operations[index].after) before[earlier] = true;
    return std::all_of(before.begin(), before.end(), [](bool joined) { return joined; });
}

void wait_for(Stream& stream, const std::shared_ptr<Mark>& mark) {
    Operation operation;
    operation.waits_for = mark;
    submit(stream, std::move(operation));
}

Operation after_all(Operation operation) {
    if (operation.launch && operation.launch->starts_early) {
        auto waits = std::make_shared<LaunchRequest>(*operation.launch);
        waits->starts_early = false;
        operation.launch = waits;
    }
    return operation;
}
}  // namespace

DRIVER_API cuStreamBeginCapture_v2(void* stream, int) {
    BEGIN_DRIVER_CALL;
    Stream& into = stream_of(stream);
    if (&into == &default_stream) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (into.recording) return CUDA_ERROR_ILLEGAL_STATE;
    into.recording = std::make_shared<Recording>();
    into.recording->id = ++recordings_made;
    into.recording->thread = std::this_thread::get_id();
    into.recording->branches.push_back({&into, {}});
    into.branch = 0;
    return CUDA_SUCCESS;
}
DRIVER_API cuStreamEndCapture(void* stream, Graph** graph) {
    LOCK_DRIVER;
    *graph = nullptr;
    const std::shared_ptr<Recording> recording = stream_of(stream).recording;
    if (!recording) return CUDA_ERROR_ILLEGAL_STATE;
    if (recording->thread != std::this_thread::get_id())
        return invalidate(*recording, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
                          "a recording ends on another thread than it began on");
    if (stream_of(stream).branch != 0)
        return invalidate(*recording, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
                          "a recording ends on another stream than it began on");
    recording->ended = true;
    for (Branch& branch : recording->branches)
        if (branch.stream) branch.stream->recording.reset();
    // It ends in any case.
    if (const CUresult refused = refusal_of(__func__)) return refused;
    if (!recording->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!all_joined(*recording))
        return invalidate(*recording, CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
                          "work of another stream that the recording's own stream has not waited for");
    *graph = new Graph{recording->operations, recording->branches[0].front, {}, recording->branches.size()};
    return CUDA_SUCCESS;
}
DRIVER_API cuStreamIsCapturing(void* stream, int* status) {
    BEGIN_DRIVER_CALL;
    constexpr int kNone = 0, kActive = 1, kInvalidated = 2;
    const auto& recording = stream_of(stream).recording;
    *status = !recording ? kNone : recording->valid ? kActive : kInvalidated;
    return CUDA_SUCCESS;
}
DRIVER_API cuStreamGetCaptureInfo_v3(void* stream, int* status, uint64_t* id, Graph** graph, const void** nodes,
                                     const void** edges, size_t* count) {
    if (const CUresult error = cuStreamIsCapturing(stream, status)) return error;
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    const auto& recording = stream_of(stream).recording;
    if (id) *id = recording ? recording->id : 0;
    // Graphs under construction are not given out.
    if (graph) *graph = nullptr;
    if (nodes) *nodes = nullptr;
    if (edges) *edges = nullptr;
    if (count) *count = 0;
    return CUDA_SUCCESS;
}
DRIVER_API cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    BEGIN_DRIVER_CALL;
    *executable = new Graph(*graph);
    while ((*executable)->besides.size() + 1 < graph->branches) (*executable)->besides.push_back(create_stream(false));
    return CUDA_SUCCESS;
}
DRIVER_API cuGraphUpload(Graph*, void*) { return CUDA_SUCCESS; }
// The first branch runs on the stream, every other on one of its own, each after what was before the graph in the
// stream.
DRIVER_API cuGraphLaunch(Graph* executable, void* onto) {
    BEGIN_DRIVER_CALL;
    Stream& stream = stream_of(onto);
    if (stream.recording)
        return invalidate(*stream.recording, CUDA_ERROR_NOT_SUPPORTED,
                          "the interpreter records no graphs within graphs");
    const auto& operations = executable->operations;
    const auto stream_of_branch = [&](size_t branch) -> Stream& {
        return branch == 0 ? stream : *executable->besides[branch - 1];
    };
    // Operations that another branch, or the work after the graph, waits for.
    std::vector<bool> is_awaited(operations.size(), false);
    for (const RecordedOperation& recorded : operations)
        for (size_t earlier : recorded.after)
            if (operations[earlier].branch != recorded.branch) is_awaited[earlier] = true;
    for (size_t earlier : executable->last)
        if (operations[earlier].branch != 0) is_awaited[earlier] = true;

    if (!executable->besides.empty()) {
        const auto start = mark(stream);
        for (Stream* besides : executable->besides) wait_for(*besides, start);
    }
    std::vector<std::shared_ptr<Mark>> reached(operations.size());
    std::vector<bool> begun(executable->branches, false);
    for (size_t index = 0; index < operations.size(); index++) {
        const RecordedOperation& recorded = operations[index];
        Stream& on = stream_of_branch(recorded.branch);
        for (size_t earlier : recorded.after)
            if (operations[earlier].branch != recorded.branch) wait_for(on, reached[earlier]);
        // A graph as a whole follows what is before it: its first kernels do not start early.
        submit(on, begun[recorded.branch] ? recorded.operation : after_all(recorded.operation));
        begun[recorded.branch] = true;
        if (is_awaited[index]) reached[index] = mark(on);
    }
    for (size_t earlier : executable->last)
        if (operations[earlier].branch != 0) wait_for(stream, reached[earlier]);
    return CUDA_SUCCESS;
}
DRIVER_API cuGraphDestroy(Graph* graph) {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    delete graph;
    return CUDA_SUCCESS;
}
DRIVER_API cuGraphExecDestroy(Graph* executable) {
    BEGIN_DRIVER_CALL;  // after an error its streams stay: marks may point to them
    for (Stream* besides : executable->besides) {
        if (const CUresult error = result_of(run_all(*besides))) return error;
        destroy_stream(besides);
    }
    delete executable;
    return CUDA_SUCCESS;
}
DRIVER_API cuGraphGetNodes(Graph* graph, void**, size_t* count) {
    BEGIN_DRIVER_CALL;
    *count = graph->operations.size();
    return CUDA_SUCCESS;
}

// CUgraphEdgeData: the type is 1 for an edge of programmatic dependent launch.
struct GraphEdge {
    uint8_t from_port, to_port, type, reserved[5];
};
// Nodes are named by their number, from 1 on. An early start is an edge from the kernel right ahead alone.
DRIVER_API cuGraphGetEdges_v2(Graph* graph, size_t* from, size_t* to, GraphEdge* data, size_t* count) {
    BEGIN_DRIVER_CALL;
    size_t edges = 0;
    for (size_t index = 0; index < graph->operations.size(); index++) {
        const RecordedOperation& recorded = graph->operations[index];
        for (size_t earlier : recorded.after) {
            if (from && edges < *count) {
                const bool kernels = recorded.operation.launch && graph->operations[earlier].operation.launch;
                from[edges] = earlier + 1, to[edges] = index + 1;
                data[edges] = {};
                data[edges].type = kernels && recorded.operation.launch->starts_early ? 1 : 0;
            }
            edges++;
        }
    }
    *count = edges;
    return CUDA_SUCCESS;
}
