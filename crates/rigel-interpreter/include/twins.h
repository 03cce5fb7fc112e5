// What a kernel file calls when the host compiler builds it: the model of each instruction in kernels/ptx/, the
// built-in variables of the running thread, and the registry of kernels. The twins live in cpp/ and are not
// instrumented.
#pragma once
#include "cuda_language.h"

#include <utility>

namespace interpreter {

// Each CUDA thread runs on a stack of its own, aligned to its size; the top holds the thread's built-in variables, so
// that finding them needs no memory access.
constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kBuiltinBytes = 64;

struct BuiltinVariables {
    uint3 thread_index, block_index;
    dim3 block_size, grid_size;
    uint8_t* shared_memory;  // of this block
};
static_assert(sizeof(BuiltinVariables) <= kBuiltinBytes, "they fit above the stack");
static inline __attribute__((always_inline)) const BuiltinVariables& here() {
    const uintptr_t frame = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    return *reinterpret_cast<const BuiltinVariables*>((frame & ~(kStackBytes - 1)) + kStackBytes - kBuiltinBytes);
}

// address.cuh
uint32_t shared_address(const void* pointer);

// barrier.cuh
enum class BarrierUse { Wait, ArriveOnly };
void block_sync();
void barrier(uint32_t id, uint32_t threads, BarrierUse use);
bool barrier_any(uint32_t id, uint32_t threads, bool value);

// warp.cuh
enum class Reduction { Add, Min, Max };
uint32_t shuffle(const char* mode, uint32_t value, uint32_t operand, uint32_t clamp, uint32_t lanes);
uint32_t ballot(bool predicate, uint32_t lanes);
uint32_t reduce(Reduction reduction, uint32_t value, uint32_t lanes);
void warp_sync(uint32_t lanes);

// memory.cuh
enum class Path { Coherent, ReadOnly };
template <class T>
T load_global(const void* address, Path path);  // T: uint32_t, uint2, uint4
template <class T>
void store_global(void* address, T value);
void prefetch(const void* address);

// order.cuh, atomic.cuh
enum class Order { Relaxed, Acquire, Release, AcqRel };
enum class Scope { Block, Cluster, Gpu, System };
uint32_t load_u32(const uint32_t* address, Order order);
void store_u32(uint32_t* address, uint32_t value, Order order);
void fence(Scope scope);
uint32_t atomic_add(uint32_t* address, uint32_t value, Order order);
float atomic_add(float* address, float value, Order order);
uint32_t atomic_min(uint32_t* address, uint32_t value, Order order);
uint32_t atomic_max(uint32_t* address, uint32_t value, Order order);
uint64_t atomic_max(uint64_t* address, uint64_t value, Order order);
uint32_t atomic_exchange(uint32_t* address, uint32_t value, Order order);
uint32_t atomic_wrap(uint32_t* address, uint32_t last, Order order);
uint32_t atomic_compare_exchange(uint32_t* address, uint32_t expected, uint32_t value, Order order);
uint64_t atomic_compare_exchange(uint64_t* address, uint64_t expected, uint64_t value, Order order);

// async_copy.cuh
void copy_async(uint32_t shared_destination, const void* global_source, uint32_t bytes, uint32_t bytes_read);
void copy_async_commit();
void copy_async_wait(int pending);
void copy_async_wait_all();

// matrix.cuh
enum class Layout { AsStored, Transposed };
enum class Element { Bf16, F16 };
void load_matrix(uint32_t* fragment, int count, Layout layout, uint32_t shared_row_address);
void store_matrix(const uint32_t* fragment, int count, Layout layout, uint32_t shared_row_address);
void multiply_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, const float* c, Element element);
void multiply_m16n8k8(float* d, const uint32_t* a, const uint32_t* b, const float* c, Element element);

// mbarrier.cuh
void mbarrier_init(uint32_t barrier, uint32_t arrivals);
void mbarrier_init_fence();
void mbarrier_arrive(uint32_t barrier, uint32_t expected_bytes);
void mbarrier_arrive_cluster(uint32_t barrier, Order order);
void mbarrier_wait(uint32_t barrier, uint32_t parity, Scope scope, Order order);
void mbarrier_wait_or_trap(uint32_t barrier, uint32_t parity, Scope scope, Order order, const char* name);

// bulk_copy.cuh
enum class BulkWait { Read, Written };
void fence_proxy_async_shared();
void fence_proxy_async_global();
void bulk_load(uint32_t shared_destination, const void* global_source, uint32_t bytes, uint32_t barrier);
void bulk_store(void* global_destination, uint32_t shared_source, uint32_t bytes);
void tensor_load(uint32_t shared_destination, const void* map, const int* at, int dimensions, uint32_t barrier);
void tensor_load_multicast(uint32_t shared_destination, const void* map, const int* at, int dimensions,
                           uint32_t barrier, uint32_t blocks);
void tensor_store(const void* map, const int* at, int dimensions, uint32_t shared_source);
void bulk_commit();
void bulk_wait(int pending, BulkWait until);

// cluster.cuh
uint32_t cluster_rank();
uint32_t cluster_blocks();
void cluster_arrive();
void cluster_wait();
uint32_t cluster_address(uint32_t shared_address, uint32_t rank);
uint32_t load_cluster(uint32_t cluster_address);
void store_async(uint32_t cluster_address, const void* value, uint32_t bytes, uint32_t barrier);

// warpgroup.cuh
enum class RegisterChange { Decrease, Increase };
void warpgroup_fence();
void warpgroup_commit();
void warpgroup_wait(int pending);
void warpgroup_registers(uint32_t registers, RegisterChange change);
void warpgroup_multiply(float* d, uint32_t columns, uint64_t a, uint64_t b, uint32_t accumulate, int major_a,
                        int major_b, Element element);
void warpgroup_multiply(float* d, uint32_t columns, const uint32_t* a, uint64_t b, uint32_t accumulate, int major_b,
                        Element element);

// grid_dependency.cuh, time.cuh
void grid_dependency_wait();
void grid_dependency_launch();
uint64_t global_nanoseconds();
uint64_t sm_cycles();  // two a nanosecond

// math.cuh, convert.cuh
float exp2_approx(float x);
float log2_approx(float x);
float reciprocal_approx(float x);
float rsqrt_approx(float x);
float tanh_approx(float x);
uint16_t round_to_bf16(float value);
uint16_t round_to_f16(float value);
float widen_bf16(uint16_t bits);
float widen_f16(uint16_t bits);

// The registry. REGISTER_KERNEL(name) makes a kernel launchable by name, with pointers to its arguments as the driver
// passes them.
struct Kernel {
    const char* name;
    void (*call)(void (*function)(), void** arguments);
    void (*function)();
    const unsigned* argument_bytes;
    const unsigned* argument_alignments;
    unsigned arguments;
    unsigned max_threads;  // of a block: the first argument of its launch bounds
};
void add_kernel(const Kernel& kernel);

template <class Function>
struct Registration;
template <class... A>
struct Registration<void (*)(A...)> {
    static constexpr unsigned bytes[sizeof...(A) + 1] = {sizeof(A)..., 0};
    static constexpr unsigned alignments[sizeof...(A) + 1] = {alignof(A)..., 0};
    // Not instrumented: the array of pointers is the driver's, not the kernel's.
    template <size_t... I>
    __attribute__((no_sanitize("thread"))) static void unpack(void (*function)(A...), void** arguments,
                                                              std::index_sequence<I...>) {
        static_cast<void>(arguments);
        function(*static_cast<A*>(arguments[I])...);
    }
    static void call(void (*function)(), void** arguments) {
        unpack(reinterpret_cast<void (*)(A...)>(function), arguments, std::index_sequence_for<A...>{});
    }
    Registration(const char* name, void (*function)(A...), unsigned max_threads) {
        add_kernel({name, call, reinterpret_cast<void (*)()>(function), bytes, alignments, sizeof...(A), max_threads});
    }
};

}  // namespace interpreter
