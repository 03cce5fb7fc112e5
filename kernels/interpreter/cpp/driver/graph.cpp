// Graphs, made by capturing a stream: the captured operations, run again in their order.
#include "api.h"

using namespace interpreter;

struct Graph {
    std::vector<Operation> operations;
};

DRIVER_API cuStreamBeginCapture_v2(void* stream, int) {
    BEGIN_DRIVER_CALL;
    Stream& into = stream_of(stream);
    if (&into == &default_stream) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (into.capture) return CUDA_ERROR_ILLEGAL_STATE;
    into.capture = std::make_unique<std::vector<Operation>>();
    return CUDA_SUCCESS;
}
DRIVER_API cuStreamEndCapture(void* stream, Graph** graph) {
    BEGIN_DRIVER_CALL;
    Stream& from = stream_of(stream);
    if (!from.capture) return CUDA_ERROR_ILLEGAL_STATE;
    *graph = new Graph{std::move(*from.capture)};
    from.capture.reset();
    return CUDA_SUCCESS;
}
DRIVER_API cuStreamIsCapturing(void* stream, int* status) {
    BEGIN_DRIVER_CALL;
    *status = stream_of(stream).capture ? 1 : 0;
    return CUDA_SUCCESS;
}
DRIVER_API cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    BEGIN_DRIVER_CALL;
    *executable = new Graph(*graph);
    return CUDA_SUCCESS;
}
DRIVER_API cuGraphUpload(Graph*, void*) { return CUDA_SUCCESS; }
DRIVER_API cuGraphLaunch(Graph* executable, void* stream) {
    BEGIN_DRIVER_CALL;
    bool first = true;
    for (Operation operation : executable->operations) {
        // A graph as a whole follows what is before it: its first kernel does not start early.
        if (first && operation.launch && operation.launch->starts_early) {
            auto waits = std::make_shared<LaunchRequest>(*operation.launch);
            waits->starts_early = false;
            operation.launch = waits;
        }
        first = false;
        submit(stream_of(stream), std::move(operation));
    }
    return CUDA_SUCCESS;
}
DRIVER_API cuGraphDestroy(Graph* graph) {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    delete graph;
    return CUDA_SUCCESS;
}
DRIVER_API cuGraphExecDestroy(Graph* executable) { return cuGraphDestroy(executable); }
DRIVER_API cuGraphGetNodes(Graph* graph, void**, size_t* count) {
    BEGIN_DRIVER_CALL;
    *count = graph->operations.size();
    return CUDA_SUCCESS;
}
