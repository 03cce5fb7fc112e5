// The stand-in's side of the CUDA driver API: what its functions share. The types are the ABI's, written down again so
// that no CUDA header is needed; numbers as in cuda.h of CUDA 13.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "stream.h"

#define DRIVER_API extern "C" __attribute__((visibility("default"))) CUresult

enum CUresult : int {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_STUB_LIBRARY = 34,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_ILLEGAL_STATE = 401,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE = 720,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
    CUDA_ERROR_STREAM_CAPTURE_MERGE = 902,
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903,
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904,
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905,
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906,
    CUDA_ERROR_CAPTURED_EVENT = 907,
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908,
};
using CUdevice = int;
using CUdeviceptr = uint64_t;
struct Context;
struct Event;
struct Module;
struct Function;
struct Pool;
struct Graph;

namespace interpreter {

// What the driver plays.
struct PlayedDevice {
    const char* name;
    int major, minor, sm_count;
    int shared_opt_in, shared_per_sm;  // bytes: of one block at most, of an SM
    int threads_per_sm;
    int l2_bytes;
};
struct PlayedDriver {
    const PlayedDevice* device = nullptr;  // no device
    int version = 13000;
    CUresult init_result = CUDA_SUCCESS;
    size_t memory_bytes = size_t{4} << 30;
};
extern PlayedDriver played;

// One lock over everything; the first failed check stays until it is taken back, as errors of a CUDA context do.
extern std::recursive_mutex driver_lock;
extern CUresult sticky_error;
CUresult result_of(Outcome outcome);
CUresult refuse(CUresult error, const std::string& why);  // says why on stderr
extern size_t allocated_bytes;  // of device memory, now
// What a test has this call answer, and all like it: the name of an entry point, or `cluster`, `programmatic` or
// `carveout` for launches with that attribute.
CUresult refusal_of(const char* call);
void set_refusal(const char* call, CUresult error);

// Appends to the stream, or to the recording that it takes part in.
CUresult give(Stream& stream, Operation operation);

inline Stream& stream_of(void* handle) {
    return reinterpret_cast<uintptr_t>(handle) <= 2 ? default_stream : *static_cast<Stream*>(handle);
}

}  // namespace interpreter

// Takes the lock, and passes on an earlier error.
#define LOCK_DRIVER                                                          \
    std::lock_guard<std::recursive_mutex> guard(::interpreter::driver_lock); \
    if (::interpreter::sticky_error != CUDA_SUCCESS) return ::interpreter::sticky_error
// At the head of every function that does work: the same, and answers as a test wants it to.
#define BEGIN_DRIVER_CALL \
    LOCK_DRIVER;          \
    if (const CUresult refused = ::interpreter::refusal_of(__func__)) return refused
