// The control functions that tests call (src/lib.rs wraps them). They are no part of the driver API.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver/api.h"
#include "report.h"
#include "settings.h"

using namespace interpreter;

#define CONTROL extern "C" __attribute__((visibility("default")))

namespace {
// Compute capability, SMs and shared memory as in CUDA's table of technical specifications.
const PlayedDevice kSm75 = {"interpreter sm_75", 7, 5, 40, 64 << 10, 64 << 10, 1024, 4 << 20};
const PlayedDevice kSm80 = {"interpreter sm_80", 8, 0, 108, 163 << 10, 164 << 10, 2048, 40 << 20};
const PlayedDevice kSm86 = {"interpreter sm_86", 8, 6, 84, 99 << 10, 100 << 10, 1536, 6 << 20};
const PlayedDevice kSm90 = {"interpreter sm_90", 9, 0, 132, 227 << 10, 228 << 10, 2048, 50 << 20};

int play_device(uint32_t compute_capability) {
    switch (compute_capability) {
        case 0: played.device = nullptr; return 0;
        case 75: played.device = &kSm75; return 0;
        case 80: played.device = &kSm80; return 0;
        case 86: played.device = &kSm86; return 0;
        case 90: played.device = &kSm90; return 0;
        default: return -1;
    }
}

// A program that knows nothing of these functions is started with the stand-in in LD_PRELOAD and told what to meet by
// RIGEL_INTERPRETER_DEVICE (75, 80, 86, 90; 0 for none), RIGEL_INTERPRETER_DRIVER (12040 for CUDA 12.4),
// RIGEL_INTERPRETER_MEMORY (MiB) and RIGEL_INTERPRETER_REFUSE (cuGraphInstantiateWithFlags=801: what a call answers).
bool play_environment() {
    played.device = &kSm90;
    if (const char* device = std::getenv("RIGEL_INTERPRETER_DEVICE")) {
        if (play_device(static_cast<uint32_t>(std::atoi(device))) != 0)
            std::fprintf(stderr, "rigel interpreter: RIGEL_INTERPRETER_DEVICE=%s is not one of 0, 75, 80, 86, 90\n",
                         device);
    }
    if (const char* version = std::getenv("RIGEL_INTERPRETER_DRIVER")) played.version = std::atoi(version);
    if (const char* mebibytes = std::getenv("RIGEL_INTERPRETER_MEMORY")) {
        played.memory_bytes = std::strtoull(mebibytes, nullptr, 10) << 20;
    }
    if (const char* refused = std::getenv("RIGEL_INTERPRETER_REFUSE")) {
        const std::string pair = refused;
        const size_t sign = pair.find('=');
        if (sign == std::string::npos)
            std::fprintf(stderr, "rigel interpreter: RIGEL_INTERPRETER_REFUSE=%s: expected CALL=NUMBER\n", refused);
        else
            set_refusal(pair.substr(0, sign).c_str(), static_cast<CUresult>(std::atoi(pair.c_str() + sign + 1)));
    }
    return true;
}
[[maybe_unused]] const bool environment_played = play_environment();
}  // namespace

CONTROL int rigel_interpreter_play_device(uint32_t compute_capability) {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    return play_device(compute_capability);
}
CONTROL void rigel_interpreter_play_driver(int version, int init_result) {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    played.version = version;
    played.init_result = static_cast<CUresult>(init_result);
}
CONTROL void rigel_interpreter_set_memory(uint64_t bytes) {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    played.memory_bytes = bytes;
}
CONTROL void rigel_interpreter_set_seed_raw(uint64_t seed) {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    settings.seed = seed;
}
CONTROL void rigel_interpreter_set_async_raw(uint32_t policy) {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    settings.async = static_cast<AsyncPolicy>(policy);
}

CONTROL void rigel_interpreter_refuse_raw(const char* call, int error) {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    set_refusal(call, static_cast<CUresult>(error));
}

struct CountersOut {
    uint64_t bytes_read, bytes_written, requested_read, requested_written;
    uint64_t matrix_instructions, barriers, matrix_load_rows, matrix_load_conflicts;
    uint64_t matrix_store_rows, matrix_store_conflicts, warpgroup_instructions;
    uint64_t programmatic, carveout, recorded;
    char kernel[128];
};
CONTROL uint64_t rigel_interpreter_launches() {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    return finished_launches.size();
}
CONTROL int rigel_interpreter_counters_of(uint64_t launch, CountersOut* out) {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    if (launch >= finished_launches.size()) return -1;
    const auto& [kernel, bytes_read, bytes_written, of, request] = finished_launches[launch];
    *out = {bytes_read,
            bytes_written,
            of.requested_read,
            of.requested_written,
            of.matrix_instructions,
            of.barriers,
            of.matrix_load_rows,
            of.matrix_load_conflicts,
            of.matrix_store_rows,
            of.matrix_store_conflicts,
            of.warpgroup_instructions,
            request->programmatic,
            static_cast<uint64_t>(request->carveout + 1),
            request->recorded,
            {}};
    std::strncpy(out->kernel, kernel.c_str(), sizeof out->kernel - 1);
    return 0;
}
CONTROL void rigel_interpreter_clear_counters_raw() {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    finished_launches.clear();
}

CONTROL uint64_t rigel_interpreter_allocated_bytes_raw() {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    return allocated_bytes;
}

CONTROL uint64_t rigel_interpreter_report_count() {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    return reports.size();
}
CONTROL uint64_t rigel_interpreter_report_text(uint64_t index, char* text, uint64_t capacity) {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    if (index >= reports.size()) return 0;
    const std::string& report = reports[index];
    if (report.size() <= capacity) std::memcpy(text, report.data(), report.size());
    return report.size();
}
// Takes back the sticky error and what is still queued, so that the process can go on after a planted bug.
CONTROL void rigel_interpreter_forget_errors_raw() {
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    reports.clear();
    sticky_error = CUDA_SUCCESS;
    for (Stream* stream : all_streams()) {
        stream->recording.reset();
        stream->queue.clear();
        stream->run = stream->submitted;
    }
}
