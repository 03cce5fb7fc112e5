#include "stream.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "memory.h"
#include "scheduler.h"
#include "settings.h"
#include "work.h"

namespace interpreter {

Stream default_stream;
std::vector<FinishedLaunch> finished_launches;

namespace {
std::vector<Stream*> streams{&default_stream};
uint32_t streams_made = 1;
Ref<const FinishedWork> known_by_host;

double now_in_milliseconds() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

std::unique_ptr<Grid> make_grid(const LaunchRequest& request) {
    auto grid = std::make_unique<Grid>();
    grid->kernel = request.kernel;
    grid->size = request.size;
    grid->block_size = request.block_size;
    grid->cluster_size = request.cluster_size;
    grid->shared_bytes = request.shared_bytes;
    grid->argument_bytes = request.argument_bytes;
    for (size_t offset : request.argument_offsets) grid->arguments.push_back(grid->argument_bytes.data() + offset);
    grid->cooperative = request.cooperative;
    return grid;
}

// Runs the launch at the head of the queue, with all that follow it and were launched to start early.
Outcome run_launches(Stream& stream) {
    std::vector<std::unique_ptr<Grid>> grids;
    std::vector<Grid*> chain;
    std::vector<std::shared_ptr<const LaunchRequest>> requests;
    Ref<const FinishedWork> known = stream.finished;
    do {
        const Operation operation = std::move(stream.queue.front());
        stream.queue.pop_front();
        stream.run++;
        known = join(known, operation.known_by_host);
        grids.push_back(make_grid(*operation.launch));
        requests.push_back(operation.launch);
        Grid& grid = *grids.back();
        grid.ahead = chain.empty() ? nullptr : chain.back();
        chain.push_back(&grid);
        grid.known_at_start = grid.known_at_end = known;
        grid.work = history.begin_work(stream.number, ++stream.sequence, grid.kernel->name, grid.size, grid.block_size);
    } while (!stream.queue.empty() && stream.queue.front().launch && stream.queue.front().launch->starts_early);
    shuffle_source.reseed(settings.seed + 1000003 * chain[0]->work);
    const bool fine = scheduler.run(chain);
    for (size_t index = 0; index < grids.size(); index++) {
        const Grid& grid = *grids[index];
        stream.finished = join(stream.finished, with_finished(grid.known_at_end, grid.work));
        const LaunchCounters& counters = grid.counters;
        finished_launches.push_back(
            {grid.kernel->name, counters.read.count(), counters.written.count(), counters, requests[index]});
    }
    return fine ? Outcome::Fine : Outcome::CheckFailed;
}

Outcome run_next(Stream& stream) {
    if (stream.queue.front().launch) return run_launches(stream);
    const Operation operation = std::move(stream.queue.front());
    stream.queue.pop_front();
    stream.run++;
    stream.finished = join(stream.finished, operation.known_by_host);
    if (operation.waits_for) {
        const Outcome outcome = reach(*operation.waits_for);
        stream.finished = join(stream.finished, operation.waits_for->finished);
        return outcome;
    }
    if (operation.reaches) {
        operation.reaches->reached = true;
        operation.reaches->finished = stream.finished;
        operation.reaches->milliseconds = now_in_milliseconds();
        return Outcome::Fine;
    }
    HostWork work(operation.name, stream.number, ++stream.sequence, stream.finished);
    try {
        operation.host_action(work);
    } catch (const CheckFailed&) { return Outcome::CheckFailed; }
    stream.finished = with_finished(stream.finished, work.identity());
    return Outcome::Fine;
}

// Without known work, a floor of 0 would have every access looked up.
Ref<const FinishedWork> nothing_finished() { return Ref<const FinishedWork>(new FinishedWork); }
}  // namespace

Stream* create_stream(bool waits_for_default_stream) {
    auto* stream = new Stream;
    stream->number = streams_made++;
    stream->waits_for_default_stream = waits_for_default_stream;
    streams.push_back(stream);
    return stream;
}

void destroy_stream(Stream* stream) {
    streams.erase(std::remove(streams.begin(), streams.end(), stream), streams.end());
    delete stream;
}

std::vector<Stream*> all_streams() { return streams; }

void submit(Stream& stream, Operation operation) {
    if (!known_by_host) known_by_host = nothing_finished();
    if (!stream.finished) stream.finished = nothing_finished();
    // The default stream waits for the streams that wait for it, and they for it.
    for (Stream* other : streams) {
        const bool waits = other != &stream &&
                           (&stream == &default_stream ? other->waits_for_default_stream
                                                       : stream.waits_for_default_stream && other == &default_stream);
        if (!waits || other->queue.empty()) continue;
        Operation wait;
        wait.waits_for = mark(*other);
        wait.known_by_host = known_by_host;
        stream.queue.push_back(std::move(wait));
        stream.submitted++;
    }
    operation.known_by_host = known_by_host;
    stream.queue.push_back(std::move(operation));
    stream.submitted++;
}

std::shared_ptr<Mark> mark(Stream& stream) {
    auto made = std::make_shared<Mark>();
    made->stream = &stream;
    made->position = stream.submitted;
    Operation operation;
    operation.reaches = made;
    submit(stream, std::move(operation));
    return made;
}

Outcome reach(Mark& mark) {
    while (!mark.reached) {
        if (mark.stream->queue.empty()) break;  // the mark was lost with an error
        if (run_next(*mark.stream) != Outcome::Fine) return Outcome::CheckFailed;
    }
    return Outcome::Fine;
}

void host_learns(const Ref<const FinishedWork>& finished) { known_by_host = join(known_by_host, finished); }

Outcome run_all(Stream& stream) {
    while (!stream.queue.empty())
        if (run_next(stream) != Outcome::Fine) return Outcome::CheckFailed;
    host_learns(stream.finished);
    return Outcome::Fine;
}

Outcome run_everything() {
    for (Stream* stream : streams)
        if (run_all(*stream) != Outcome::Fine) return Outcome::CheckFailed;
    return Outcome::Fine;
}

}  // namespace interpreter
