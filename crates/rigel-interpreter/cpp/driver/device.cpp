// Devices, contexts, errors.
#include <cstdio>
#include <cstring>
#include <map>

#include "api.h"
#include "memory.h"
#include "report.h"

namespace interpreter {
std::recursive_mutex driver_lock;
CUresult sticky_error = CUDA_SUCCESS;
PlayedDriver played;

CUresult result_of(Outcome outcome) {
    if (outcome != Outcome::Fine) sticky_error = CUDA_ERROR_LAUNCH_FAILED;
    return sticky_error;
}

namespace {
// Made when first used: a constructor of another file may come first.
std::map<std::string, CUresult>& all_refusals() {
    static std::map<std::string, CUresult> refusals;
    return refusals;
}
}  // namespace
CUresult refusal_of(const char* call) {
    const auto& refusals = all_refusals();
    if (refusals.empty()) return CUDA_SUCCESS;
    const auto found = refusals.find(call);
    return found == refusals.end() ? CUDA_SUCCESS : found->second;
}
void set_refusal(const char* call, CUresult error) {
    if (error == CUDA_SUCCESS)
        all_refusals().erase(call);
    else
        all_refusals()[call] = error;
}

CUresult refuse(CUresult error, const std::string& why) {
    std::fprintf(stderr, "rigel interpreter: %s\n", why.c_str());
    return error;
}
}  // namespace interpreter

using namespace interpreter;

struct Context {
    int retained;
};

namespace {
Context primary_context;
thread_local Context* current_context = nullptr;
bool initialized = false;

CUresult check_device(CUdevice device) {
    if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
    return played.device && device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

struct ErrorText {
    CUresult error;
    const char *name, *text;
};
const ErrorText kErrors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_STUB_LIBRARY, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU",
     "no kernel image is available for execution on the device"},
    {CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported toolchain."},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE",
     "too many blocks in cooperative launch"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED",
     "unspecified launch failure (the interpreter's report says why)"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
     "system has unsupported display driver / cuda driver combination"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CUDA_ERROR_STREAM_CAPTURE_MERGE, "CUDA_ERROR_STREAM_CAPTURE_MERGE",
     "operation would result in a merge of separate capture sequences"},
    {CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
     "capture was not ended in the same stream as it began"},
    {CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {CUDA_ERROR_CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
    {CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
};
const ErrorText* find_error(CUresult error) {
    for (const ErrorText& known : kErrors)
        if (known.error == error) return &known;
    return nullptr;
}
}  // namespace

DRIVER_API cuInit(unsigned flags) {
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (played.init_result != CUDA_SUCCESS) return played.init_result;
    if (!played.device) return CUDA_ERROR_NO_DEVICE;
    std::lock_guard<std::recursive_mutex> guard(driver_lock);
    prepare_memory();
    initialized = true;
    return CUDA_SUCCESS;
}
DRIVER_API cuDriverGetVersion(int* version) {
    *version = played.version;
    return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGetCount(int* count) {
    if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
    *count = played.device ? 1 : 0;
    return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGet(CUdevice* device, int ordinal) {
    if (const CUresult error = check_device(ordinal)) return error;
    *device = ordinal;
    return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGetName(char* name, int length, CUdevice device) {
    if (const CUresult error = check_device(device)) return error;
    std::snprintf(name, static_cast<size_t>(length), "%s", played.device->name);
    return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGetUuid_v2(void* uuid, CUdevice device) {
    if (const CUresult error = check_device(device)) return error;
    std::memcpy(uuid, "rigelinterpreter", 16);
    return CUDA_SUCCESS;
}
DRIVER_API cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    if (const CUresult error = check_device(device)) return error;
    *bytes = played.memory_bytes;
    return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    if (const CUresult error = check_device(device)) return error;
    const PlayedDevice& is = *played.device;
    switch (attribute) {
        case 1: *value = 1024; break;                            // threads per block
        case 2:
        case 3: *value = 1024; break;                    // block x, y
        case 4: *value = 64; break;                              // block z
        case 5: *value = 2147483647; break;                      // grid x
        case 6:
        case 7: *value = 65535; break;                   // grid y, z
        case 8: *value = 48 << 10; break;                        // shared memory per block without opting in
        case 9: *value = 64 << 10; break;                        // constant memory
        case 10: *value = 32; break;                             // warp size
        case 12:
        case 82: *value = 65536; break;                 // registers per block, per SM
        case 13: *value = 1000000; break;                        // clock, kHz
        case 16: *value = is.sm_count; break;
        case 31:
        case 41:
        case 95:
        case 115: *value = 1; break;  // concurrent kernels, unified addresses, cooperative, pools
        case 36: *value = 1000000; break;                        // memory clock, kHz
        case 37: *value = 4096; break;                           // memory bus, bits
        case 38: *value = is.l2_bytes; break;
        case 39: *value = is.threads_per_sm; break;
        case 40: *value = 2; break;                              // copy engines
        case 75: *value = is.major; break;
        case 76: *value = is.minor; break;
        case 81: *value = is.shared_per_sm; break;
        case 97: *value = is.shared_opt_in; break;
        case 106: *value = is.major == 8 && is.minor == 6 ? 16 : 32; break;  // blocks per SM
        case 111: *value = 1024; break;                          // shared memory that the system takes of each block
        default: *value = 0;
    }
    return CUDA_SUCCESS;
}
DRIVER_API cuDevicePrimaryCtxRetain(Context** context, CUdevice device) {
    if (const CUresult error = check_device(device)) return error;
    primary_context.retained++;
    *context = &primary_context;
    return CUDA_SUCCESS;
}
DRIVER_API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    if (const CUresult error = check_device(device)) return error;
    if (primary_context.retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
    primary_context.retained--;
    return CUDA_SUCCESS;
}
DRIVER_API cuCtxSetCurrent(Context* context) {
    current_context = context;
    return CUDA_SUCCESS;
}
DRIVER_API cuCtxGetCurrent(Context** context) {
    *context = current_context;
    return CUDA_SUCCESS;
}
DRIVER_API cuCtxSynchronize() {
    BEGIN_DRIVER_CALL;
    return result_of(run_everything());
}
DRIVER_API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return CUDA_SUCCESS;
}
DRIVER_API cuCtxSetLimit(int, size_t) { return CUDA_SUCCESS; }
DRIVER_API cuCtxGetLimit(size_t* value, int) {
    *value = 1024;
    return CUDA_SUCCESS;
}
DRIVER_API cuCtxSetFlags(unsigned) { return CUDA_SUCCESS; }

DRIVER_API cuGetErrorName(CUresult error, const char** name) {
    const ErrorText* known = find_error(error);
    *name = known ? known->name : nullptr;
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
DRIVER_API cuGetErrorString(CUresult error, const char** text) {
    const ErrorText* known = find_error(error);
    *text = known ? known->text : nullptr;
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
