// Streams: queues of work that runs when someone waits for it.
//
// Streams are lazy on purpose: a missing synchronisation shows as missing results. Each operation knows what the host
// knew to be finished when it was submitted, and each stream what has finished before its next operation.
#pragma once
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "grid.h"
#include "host_access.h"

namespace interpreter {

enum class Outcome { Fine, CheckFailed };

struct LaunchRequest {
    const Kernel* kernel;
    dim3 size, block_size, cluster_size;
    uint32_t shared_bytes;
    ArgumentBytes argument_bytes;
    std::vector<size_t> argument_offsets;
    bool cooperative, starts_early;
    // As it was launched: with the attribute for an early start, with which carve-out (-1: none), into a recording.
    bool programmatic = false, recorded = false;
    int carveout = -1;
};

struct Stream;
struct Recording;  // driver/recording.h
// A point in a stream: reached when everything submitted before it has run.
struct Mark {
    Stream* stream;
    uint64_t position;  // operations submitted before it
    bool reached = false;
    double milliseconds = 0;  // when, by the host's clock
    Ref<const FinishedWork> finished;
};

struct Operation {
    std::shared_ptr<const LaunchRequest> launch;  // a grid,
    std::function<void(HostWork&)> host_action;  // or a copy or fill,
    const char* name = nullptr;  //   so named in reports,
    std::shared_ptr<Mark> reaches, waits_for;  // or an event
    Ref<const FinishedWork> known_by_host;
};

struct Stream {
    uint32_t number = 0;
    bool waits_for_default_stream = false;  // created without CU_STREAM_NON_BLOCKING
    uint64_t submitted = 0, run = 0;  // operations
    uint64_t sequence = 0;  // of the last work begun
    std::deque<Operation> queue;
    Ref<const FinishedWork> finished;  // known before the next operation
    std::shared_ptr<Recording> recording;  // what it is given goes there instead,
    size_t branch = 0;  //   to this branch
};

extern Stream default_stream;
Stream* create_stream(bool waits_for_default_stream);
void destroy_stream(Stream* stream);
std::vector<Stream*> all_streams();

// Appends to the stream, which does not record.
void submit(Stream& stream, Operation operation);
// Runs what is needed, in order. The host then knows that it has finished.
Outcome run_all(Stream& stream);
Outcome run_everything();
Outcome reach(Mark& mark);
void host_learns(const Ref<const FinishedWork>& finished);
std::shared_ptr<Mark> mark(Stream& stream);

// Counters of every launch that has run, oldest first.
struct FinishedLaunch {
    std::string kernel;
    uint64_t bytes_read, bytes_written;  // distinct
    LaunchCounts counts;
    std::shared_ptr<const LaunchRequest> request;
};
extern std::vector<FinishedLaunch> finished_launches;

}  // namespace interpreter
