// Modules and functions. A function is a kernel of the registry; the module's image says which kernels it has, and for
// which devices.
#include <cstring>
#include <map>

#include "api.h"
#include "fatbin.h"
#include "function.h"
#include "mbarrier.h"
#include "registry.h"
#include "report.h"

using namespace interpreter;

struct Module {
    Image image;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

DRIVER_API cuModuleLoadData(Module** module, const void* data) {
    BEGIN_DRIVER_CALL;
    auto made = std::make_unique<Module>();
    if (const CUresult error = read_image(data, &made->image)) return error;
    *module = made.release();
    return CUDA_SUCCESS;
}
DRIVER_API cuModuleLoadDataEx(Module** module, const void* data, unsigned, int*, void**) {
    return cuModuleLoadData(module, data);
}
DRIVER_API cuModuleLoadFatBinary(Module** module, const void* data) { return cuModuleLoadData(module, data); }
DRIVER_API cuModuleUnload(Module* module) {
    BEGIN_DRIVER_CALL;
    delete module;
    return CUDA_SUCCESS;
}
DRIVER_API cuModuleGetFunction(Function** function, Module* module, const char* name) {
    BEGIN_DRIVER_CALL;
    const Kernel* kernel = find_kernel(name);
    if (!kernel)
        return refuse(CUDA_ERROR_NOT_FOUND, text("no kernel %s is registered (is REGISTER_KERNEL missing?)", name));
    const std::string mismatch = compare_with_image(module->image, *kernel);
    if (!mismatch.empty()) {
        report(mismatch);
        return CUDA_ERROR_NOT_FOUND;
    }
    auto& made = module->functions[name];
    if (!made) made.reset(new Function{kernel});
    *function = made.get();
    return CUDA_SUCCESS;
}
// The one variable that kernels have, in builds whose waits trap.
DRIVER_API cuModuleGetGlobal_v2(CUdeviceptr* address, size_t* bytes, Module* module, const char* name) {
    BEGIN_DRIVER_CALL;
    if (!module->image.globals.count(name)) return CUDA_ERROR_NOT_FOUND;
    if (std::strcmp(name, "rigel_mbarrier_trap") != 0)
        return refuse(CUDA_ERROR_NOT_SUPPORTED, text("the interpreter has no variable %s", name));
    *address = reinterpret_cast<CUdeviceptr>(mbarrier_trap);
    if (bytes) *bytes = sizeof mbarrier_trap;
    return CUDA_SUCCESS;
}
DRIVER_API cuFuncGetParamInfo(Function* function, size_t index, size_t* offset, size_t* bytes) {
    if (index >= function->kernel->arguments) return CUDA_ERROR_INVALID_VALUE;
    if (offset) *offset = argument_offset(*function->kernel, static_cast<unsigned>(index));
    if (bytes) *bytes = function->kernel->argument_bytes[index];
    return CUDA_SUCCESS;
}
DRIVER_API cuFuncSetAttribute(Function* function, int attribute, int value) {
    BEGIN_DRIVER_CALL;
    if (attribute == kMaxDynamicSharedBytes) {
        if (value < 0 || value > played.device->shared_opt_in)
            return refuse(CUDA_ERROR_INVALID_VALUE,
                          text("%s: %d bytes of shared memory asked for, the device gives a block %d",
                               function->kernel->name, value, played.device->shared_opt_in));
        function->max_shared_bytes = value;
    }
    return CUDA_SUCCESS;
}
DRIVER_API cuFuncGetAttribute(int* value, int attribute, Function* function) {
    switch (attribute) {
        case 0: *value = static_cast<int>(function->kernel->max_threads); break;
        case 5:
        case 6: *value = played.device->major * 10 + played.device->minor; break;  // PTX, binary version
        case kMaxDynamicSharedBytes: *value = function->max_shared_bytes; break;
        default: *value = 0;  // no registers, no local, constant or static shared memory
    }
    return CUDA_SUCCESS;
}
DRIVER_API cuFuncSetCacheConfig(Function*, int) { return CUDA_SUCCESS; }
DRIVER_API cuFuncGetName(const char** name, Function* function) {
    *name = function->kernel->name;
    return CUDA_SUCCESS;
}
DRIVER_API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Function* function, int threads,
                                                                size_t shared, unsigned) {
    *blocks = resident_blocks(*function, static_cast<unsigned>(threads), shared);
    return CUDA_SUCCESS;
}
DRIVER_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* function, int threads, size_t shared) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}
