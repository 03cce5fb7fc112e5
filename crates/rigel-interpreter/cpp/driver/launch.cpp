// Launches.
#include <algorithm>
#include <cstring>

#include "function.h"
#include "report.h"

using namespace interpreter;

struct LaunchAttribute {
    uint32_t id;
    uint32_t padding;
    union {
        uint32_t words[16];
        int32_t flag;
    } value;
};
struct LaunchConfig {
    unsigned grid[3], block[3], shared_bytes;
    void* stream;
    const LaunchAttribute* attributes;
    unsigned attribute_count;
};
constexpr uint32_t kAttributeCooperative = 2, kAttributeClusterDimension = 4, kAttributeStreamSerialization = 6,
                   kAttributeCarveout = 14;

namespace interpreter {
size_t argument_offset(const Kernel& kernel, unsigned index) {
    size_t offset = 0;
    for (unsigned i = 0;; i++) {
        const size_t alignment = kernel.argument_alignments[i];
        offset = (offset + alignment - 1) / alignment * alignment;
        if (i == index) return offset;
        offset += kernel.argument_bytes[i];
    }
}

int resident_blocks(const Function&, unsigned threads, size_t shared_bytes) {
    const PlayedDevice& device = *played.device;
    const size_t by_shared = static_cast<size_t>(device.shared_per_sm) / (shared_bytes + 1024);
    const unsigned warps = (threads + 31) / 32;
    const unsigned by_threads = static_cast<unsigned>(device.threads_per_sm) / 32 / warps;
    return static_cast<int>(std::min<size_t>({by_shared, by_threads, 32}));
}
}  // namespace interpreter

namespace {
CUresult check_shape(const Function& function, dim3 size, dim3 block_size, unsigned shared_bytes, bool cooperative) {
    const char* name = function.kernel->name;
    const uint64_t threads = static_cast<uint64_t>(block_size.x) * block_size.y * block_size.z;
    const uint64_t blocks = static_cast<uint64_t>(size.x) * size.y * size.z;
    if (threads == 0 || threads > 1024 || block_size.z > 64)
        return refuse(CUDA_ERROR_INVALID_VALUE,
                      text("%s: a block of (%u,%u,%u) threads", name, block_size.x, block_size.y, block_size.z));
    if (threads > function.kernel->max_threads)
        return refuse(CUDA_ERROR_INVALID_VALUE,
                      text("%s: %lu threads in a block, its launch bounds allow %u", name,
                           static_cast<unsigned long>(threads), function.kernel->max_threads));
    if (blocks == 0 || size.x > 2147483647u || size.y > 65535 || size.z > 65535)
        return refuse(CUDA_ERROR_INVALID_VALUE, text("%s: a grid of (%u,%u,%u) blocks", name, size.x, size.y, size.z));
    if (static_cast<int>(shared_bytes) > function.max_shared_bytes)
        return refuse(CUDA_ERROR_INVALID_VALUE, text("%s: %u bytes of shared memory, the function's limit is %d (raise "
                                                     "it with MAX_DYNAMIC_SHARED_SIZE_BYTES)",
                                                     name, shared_bytes, function.max_shared_bytes));
    const uint64_t fit =
        static_cast<uint64_t>(resident_blocks(function, static_cast<unsigned>(threads), shared_bytes)) *
        static_cast<uint64_t>(played.device->sm_count);
    if (cooperative && blocks > fit)
        return refuse(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE,
                      text("%s: %lu blocks in a cooperative launch, %lu fit on the device", name,
                           static_cast<unsigned long>(blocks), static_cast<unsigned long>(fit)));
    return CUDA_SUCCESS;
}

CUresult check_cluster(const Function& function, dim3 size, dim3 cluster) {
    const char* name = function.kernel->name;
    const uint64_t blocks = static_cast<uint64_t>(cluster.x) * cluster.y * cluster.z;
    if (blocks == 1) return CUDA_SUCCESS;
    if (played.device->major < 9)
        return refuse(CUDA_ERROR_INVALID_VALUE, text("%s: clusters need compute capability 9.0", name));
    // 8 is what every device has; more must be asked for, which nothing here does.
    if (blocks == 0 || blocks > 8)
        return refuse(CUDA_ERROR_INVALID_VALUE,
                      text("%s: a cluster of (%u,%u,%u) blocks", name, cluster.x, cluster.y, cluster.z));
    if (size.x % cluster.x || size.y % cluster.y || size.z % cluster.z)
        return refuse(CUDA_ERROR_INVALID_VALUE, text("%s: a grid of (%u,%u,%u) blocks in clusters of (%u,%u,%u)", name,
                                                     size.x, size.y, size.z, cluster.x, cluster.y, cluster.z));
    return CUDA_SUCCESS;
}

CUresult launch(Function* function, const unsigned* grid, const unsigned* block, dim3 cluster, unsigned shared_bytes,
                void* stream, void** arguments, bool cooperative, bool starts_early, int carveout = -1) {
    BEGIN_DRIVER_CALL;
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    auto request = std::make_shared<LaunchRequest>();
    request->kernel = function->kernel;
    request->size = {grid[0], grid[1], grid[2]};
    request->block_size = {block[0], block[1], block[2]};
    request->cluster_size = cluster;
    request->shared_bytes = shared_bytes;
    request->cooperative = cooperative;
    // Older devices have no programmatic dependent launch: there the grid simply follows.
    request->starts_early = starts_early && played.device->major >= 9;
    request->programmatic = starts_early;
    request->carveout = carveout;
    request->recorded = stream_of(stream).recording != nullptr;
    if (const CUresult error = check_shape(*function, request->size, request->block_size, shared_bytes, cooperative))
        return error;
    if (const CUresult error = check_cluster(*function, request->size, cluster)) return error;
    const Kernel& kernel = *function->kernel;
    if (kernel.arguments) {
        const unsigned last = kernel.arguments - 1;
        request->argument_bytes = ArgumentBytes(argument_offset(kernel, last) + kernel.argument_bytes[last]);
    }
    for (unsigned i = 0; i < kernel.arguments; i++) {
        const size_t offset = argument_offset(kernel, i);
        request->argument_offsets.push_back(offset);
        std::memcpy(request->argument_bytes.data() + offset, arguments[i], kernel.argument_bytes[i]);
    }
    Operation operation;
    operation.launch = std::move(request);
    return give(stream_of(stream), std::move(operation));
}
}  // namespace

DRIVER_API cuLaunchKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                          unsigned bz, unsigned shared_bytes, void* stream, void** arguments, void**) {
    const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    return launch(function, grid, block, {}, shared_bytes, stream, arguments, false, false);
}
DRIVER_API cuLaunchCooperativeKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                     unsigned by, unsigned bz, unsigned shared_bytes, void* stream, void** arguments) {
    const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    return launch(function, grid, block, {}, shared_bytes, stream, arguments, true, false);
}
DRIVER_API cuLaunchKernelEx(const LaunchConfig* config, Function* function, void** arguments, void**) {
    bool cooperative = false, starts_early = false;
    int carveout = -1;
    dim3 cluster;
    for (unsigned i = 0; i < config->attribute_count; i++) {
        const LaunchAttribute& attribute = config->attributes[i];
        if (attribute.id == kAttributeCooperative) cooperative = attribute.value.flag != 0;
        if (attribute.id == kAttributeStreamSerialization) starts_early = attribute.value.flag != 0;
        if (attribute.id == kAttributeClusterDimension)
            cluster = {attribute.value.words[0], attribute.value.words[1], attribute.value.words[2]};
        // In percent of what an SM has.
        if (attribute.id == kAttributeCarveout) {
            if (attribute.value.words[0] > 100)
                return refuse(CUDA_ERROR_INVALID_VALUE, text("a carve-out of %u percent", attribute.value.words[0]));
            carveout = static_cast<int>(attribute.value.words[0]);
        }
    }
    if (cluster.x * cluster.y * cluster.z > 1)
        if (const CUresult error = refusal_of("cluster")) return error;
    if (starts_early)
        if (const CUresult error = refusal_of("programmatic")) return error;
    if (carveout >= 0)
        if (const CUresult error = refusal_of("carveout")) return error;
    return launch(function, config->grid, config->block, cluster, config->shared_bytes, config->stream, arguments,
                  cooperative, starts_early, carveout);
}

// By shared memory and threads, as for blocks; where the SMs of a GPU lie apart, fewer fit.
DRIVER_API cuOccupancyMaxActiveClusters(int* clusters, Function* function, const LaunchConfig* config) {
    BEGIN_DRIVER_CALL;
    uint32_t blocks = 1;
    for (unsigned i = 0; i < config->attribute_count; i++)
        if (config->attributes[i].id == kAttributeClusterDimension)
            blocks = config->attributes[i].value.words[0] * config->attributes[i].value.words[1] *
                     config->attributes[i].value.words[2];
    const unsigned threads = config->block[0] * config->block[1] * config->block[2];
    *clusters =
        resident_blocks(*function, threads, config->shared_bytes) * played.device->sm_count / static_cast<int>(blocks);
    return CUDA_SUCCESS;
}
