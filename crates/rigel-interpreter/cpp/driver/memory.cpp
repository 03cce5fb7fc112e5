// Memory: allocation, copies, fills, pinned host memory.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "api.h"
#include "mbarrier.h"
#include "memory.h"
#include "recording.h"
#include "report.h"
#include "twin_parts.h"

using namespace interpreter;

struct Pool {
    uint64_t release_threshold;
    size_t reserved;
};

namespace interpreter {
size_t allocated_bytes = 0;
}

namespace {
Pool default_pool;
std::map<uintptr_t, size_t> pinned;  // start → bytes

// Bytes that the pool has of the device's memory: those in use, and those it was told to keep when they were freed.
size_t reserved() {
    const size_t kept = default_pool.release_threshold ? default_pool.reserved : 0;
    return std::max<size_t>(allocated_bytes, kept);
}

void* pointer(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

bool is_pinned(const void* host, size_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(host);
    auto after = pinned.upper_bound(address);
    if (after == pinned.begin()) return false;
    const auto [start, size] = *std::prev(after);
    return address + bytes <= start + size;
}

CUresult check_range(CUdeviceptr address, size_t bytes, const char* call) {
    const size_t at = device_memory.offset(pointer(address));
    if (at < device_memory.bytes && allocations.inside(at, bytes)) return CUDA_SUCCESS;
    return refuse(CUDA_ERROR_INVALID_VALUE,
                  text("%s: %zu bytes at %p are not within one allocation", call, bytes, pointer(address)));
}

CUresult free_now(CUdeviceptr address) {
    const size_t bytes = allocations.size_of(pointer(address));
    if (!allocations.free(pointer(address)))
        return refuse(CUDA_ERROR_INVALID_VALUE,
                      text("free of %p, which is not the start of an allocation", pointer(address)));
    forget_messages(pointer(address), bytes);
    allocated_bytes -= bytes;
    return CUDA_SUCCESS;
}

CUresult submit_host_work(void* stream, const char* name, std::function<void(HostWork&)> action) {
    Operation operation;
    operation.name = name;
    operation.host_action = std::move(action);
    return give(stream_of(stream), std::move(operation));
}

// A graph's copy touches host memory at every replay; how pageable memory is then staged is not played.
CUresult refuse_recording(void* stream, const char* call) {
    const auto& recording = stream_of(stream).recording;
    if (!recording) return CUDA_SUCCESS;
    return invalidate(*recording, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, text("%s cannot be recorded", call));
}

// Pinned memory of a recording may be gone when the copy runs.
void check_still_pinned(const void* host, size_t bytes) {
    if (!is_pinned(host, bytes))
        fail(0, text("a copy of %zu bytes from or to pinned host memory that has been freed", bytes));
}

void fetch(HostWork& work, void* host, const void* device, size_t bytes) {
    work.read(device, bytes);
    std::memcpy(host, device, bytes);
    const uint8_t* written = device_memory.written + device_memory.offset(device);
    for (size_t i = 0; i < bytes; i++)
        if (!written[i]) static_cast<uint8_t*>(host)[i] = 0xff;
}
}  // namespace

DRIVER_API cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    BEGIN_DRIVER_CALL;
    *total = played.memory_bytes;
    // What the pool keeps is not free to anybody else.
    *free_bytes = played.memory_bytes - std::min<size_t>(reserved(), played.memory_bytes);
    return CUDA_SUCCESS;
}
DRIVER_API cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    BEGIN_DRIVER_CALL;
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (bytes > played.memory_bytes - allocated_bytes) return CUDA_ERROR_OUT_OF_MEMORY;
    void* made = allocations.allocate(bytes);
    if (!made) return CUDA_ERROR_OUT_OF_MEMORY;
    allocated_bytes += bytes;
    default_pool.reserved = reserved();
    *address = reinterpret_cast<CUdeviceptr>(made);
    return CUDA_SUCCESS;
}
DRIVER_API cuMemFree_v2(CUdeviceptr address) {
    BEGIN_DRIVER_CALL;
    if (const CUresult error = result_of(run_everything())) return error;
    return address ? free_now(address) : CUDA_SUCCESS;
}
DRIVER_API cuMemAllocAsync(CUdeviceptr* address, size_t bytes, void* stream) {
    BEGIN_DRIVER_CALL;
    if (const CUresult error = refuse_recording(stream, "an allocation")) return error;
    return cuMemAlloc_v2(address, bytes);
}
DRIVER_API cuMemAllocFromPoolAsync(CUdeviceptr* address, size_t bytes, Pool*, void* stream) {
    return cuMemAllocAsync(address, bytes, stream);
}
DRIVER_API cuMemFreeAsync(CUdeviceptr address, void* stream) {
    BEGIN_DRIVER_CALL;
    if (const CUresult error =
            refuse_recording(stream, "the release of memory that was allocated outside of the recording"))
        return error;
    if (allocations.size_of(pointer(address)) == 0)
        return refuse(CUDA_ERROR_INVALID_VALUE,
                      text("free of %p, which is not the start of an allocation", pointer(address)));
    // Whoever uses the memory after this point of the stream, or beside it, meets unowned bytes or a race.
    const size_t bytes = allocations.size_of(pointer(address));
    return submit_host_work(stream, "cuMemFreeAsync", [address, bytes](HostWork& work) {
        work.write(pointer(address), bytes);
        free_now(address);
    });
}

// Pageable memory behaves as documented: a source is read before the call returns, and a copy to the host is complete
// when the call returns. Pinned memory is read and written when the copy runs.
DRIVER_API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, void* stream) {
    BEGIN_DRIVER_CALL;
    if (bytes == 0) return CUDA_SUCCESS;
    if (const CUresult error = check_range(to, bytes, "cuMemcpyHtoDAsync")) return error;
    if (is_pinned(from, bytes))
        return submit_host_work(stream, "cuMemcpyHtoD", [=](HostWork& work) {
            check_still_pinned(from, bytes);
            work.write(pointer(to), bytes);
            std::memcpy(pointer(to), from, bytes);
        });
    if (const CUresult error = refuse_recording(stream, "a copy from pageable memory")) return error;
    const auto* source = static_cast<const uint8_t*>(from);
    const auto staged = std::make_shared<std::vector<uint8_t>>(source, source + bytes);
    return submit_host_work(stream, "cuMemcpyHtoD", [=](HostWork& work) {
        work.write(pointer(to), bytes);
        std::memcpy(pointer(to), staged->data(), bytes);
    });
}
DRIVER_API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, void* stream) {
    BEGIN_DRIVER_CALL;
    if (bytes == 0) return CUDA_SUCCESS;
    if (const CUresult error = check_range(from, bytes, "cuMemcpyDtoHAsync")) return error;
    if (is_pinned(to, bytes))
        return submit_host_work(stream, "cuMemcpyDtoH", [=](HostWork& work) {
            check_still_pinned(to, bytes);
            fetch(work, to, pointer(from), bytes);
        });
    if (const CUresult error = refuse_recording(stream, "a copy to pageable memory")) return error;
    submit_host_work(stream, "cuMemcpyDtoH", [=](HostWork& work) { fetch(work, to, pointer(from), bytes); });
    return result_of(run_all(stream_of(stream)));
}
DRIVER_API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void* stream) {
    BEGIN_DRIVER_CALL;
    if (bytes == 0) return CUDA_SUCCESS;
    if (const CUresult error = check_range(to, bytes, "cuMemcpyDtoDAsync")) return error;
    if (const CUresult error = check_range(from, bytes, "cuMemcpyDtoDAsync")) return error;
    return submit_host_work(stream, "cuMemcpyDtoD", [=](HostWork& work) {
        work.read(pointer(from), bytes);
        uint8_t* written = device_memory.written;
        const size_t source = device_memory.offset(pointer(from)), target = device_memory.offset(pointer(to));
        std::vector<uint8_t> were_written(written + source, written + source + bytes);
        work.write(pointer(to), bytes);
        std::memcpy(written + target, were_written.data(), bytes);
        std::memmove(pointer(to), pointer(from), bytes);
    });
}
DRIVER_API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    if (pointer(to) == mbarrier_trap) {  // what cuModuleGetGlobal gives
        LOCK_DRIVER;
        if (bytes > sizeof mbarrier_trap) return CUDA_ERROR_INVALID_VALUE;
        std::memcpy(mbarrier_trap, from, bytes);
        return CUDA_SUCCESS;
    }
    if (const CUresult error = cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr)) return error;
    BEGIN_DRIVER_CALL;
    return result_of(run_all(default_stream));
}
DRIVER_API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    if (const CUresult error = cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr)) return error;
    BEGIN_DRIVER_CALL;
    return result_of(run_all(default_stream));
}
DRIVER_API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
}

namespace {
template <class T>
CUresult fill(CUdeviceptr to, T value, size_t count, void* stream) {
    BEGIN_DRIVER_CALL;
    if (count == 0) return CUDA_SUCCESS;
    if (to % sizeof(T)) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult error = check_range(to, count * sizeof(T), "cuMemset")) return error;
    return submit_host_work(stream, "cuMemset", [=](HostWork& work) {
        work.write(pointer(to), count * sizeof(T));
        for (size_t i = 0; i < count; i++) static_cast<T*>(pointer(to))[i] = value;
    });
}
}  // namespace
DRIVER_API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, void* s) {
    return fill(to, value, count, s);
}
DRIVER_API cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count, void* s) {
    return fill(to, value, count, s);
}
DRIVER_API cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, void* s) { return fill(to, value, count, s); }
DRIVER_API cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) { return fill(to, value, count, nullptr); }
DRIVER_API cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) { return fill(to, value, count, nullptr); }

DRIVER_API cuMemHostAlloc(void** host, size_t bytes, unsigned) {
    BEGIN_DRIVER_CALL;
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    *host = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!*host) return CUDA_ERROR_OUT_OF_MEMORY;
    pinned[reinterpret_cast<uintptr_t>(*host)] = bytes;
    return CUDA_SUCCESS;
}
DRIVER_API cuMemFreeHost(void* host) {
    BEGIN_DRIVER_CALL;
    if (const CUresult error = result_of(run_everything())) return error;
    if (pinned.erase(reinterpret_cast<uintptr_t>(host)) == 0) return CUDA_ERROR_INVALID_VALUE;
    std::free(host);
    return CUDA_SUCCESS;
}
DRIVER_API cuMemHostRegister_v2(void* host, size_t bytes, unsigned) {
    BEGIN_DRIVER_CALL;
    pinned[reinterpret_cast<uintptr_t>(host)] = bytes;
    return CUDA_SUCCESS;
}
DRIVER_API cuMemHostUnregister(void* host) {
    BEGIN_DRIVER_CALL;
    if (const CUresult error = result_of(run_everything())) return error;
    return pinned.erase(reinterpret_cast<uintptr_t>(host)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// One pool. With a release threshold it keeps all that was freed until it is trimmed; how much above the threshold a
// real one gives back, and when, is not played.
DRIVER_API cuDeviceGetDefaultMemPool(Pool** pool, CUdevice) {
    *pool = &default_pool;
    return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGetMemPool(Pool** pool, CUdevice device) { return cuDeviceGetDefaultMemPool(pool, device); }
DRIVER_API cuMemPoolSetAttribute(Pool* pool, int attribute, void* value) {
    if (attribute == 4) std::memcpy(&pool->release_threshold, value, 8);
    return CUDA_SUCCESS;
}
DRIVER_API cuMemPoolGetAttribute(Pool* pool, int attribute, void* value) {
    enum { ReleaseThreshold = 4, ReservedCurrent = 5 };
    const uint64_t stored = attribute == ReleaseThreshold  ? pool->release_threshold
                            : attribute == ReservedCurrent ? reserved()
                                                           : allocated_bytes;
    std::memcpy(value, &stored, 8);
    return CUDA_SUCCESS;
}
DRIVER_API cuMemPoolTrimTo(Pool* pool, size_t keep) {
    BEGIN_DRIVER_CALL;
    pool->reserved = std::max<size_t>(allocated_bytes, std::min(pool->reserved, keep));
    return CUDA_SUCCESS;
}
