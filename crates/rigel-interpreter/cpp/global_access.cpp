// The loads and stores of kernels/ptx/memory.cuh: checked at their whole width, with its alignment.
#include <chrono>
#include <cstring>

#include "access.h"
#include "report.h"
#include "scheduler.h"

namespace interpreter {

template <class T>
T load_global(const void* address, Path path) {
    const Site site = RIGEL_CALLER;
    check_alignment(address, sizeof(T), "read", site);
    check_global(address, sizeof(T),
                 {current, Agent::Thread, path == Path::ReadOnly ? Does::ReadOnlyLoad : Does::Read, site});
    T value;
    std::memcpy(&value, address, sizeof(T));
    return value;
}
template uint32_t load_global(const void*, Path);
template uint2 load_global(const void*, Path);
template uint4 load_global(const void*, Path);

template <class T>
void store_global(void* address, T value) {
    const Site site = RIGEL_CALLER;
    check_alignment(address, sizeof(T), "write", site);
    check_global(address, sizeof(T), {current, Agent::Thread, Does::Write, site});
    std::memcpy(address, &value, sizeof(T));
}
template void store_global(void*, uint32_t);
template void store_global(void*, uint2);
template void store_global(void*, uint4);

void prefetch(const void*) {}  // a hint: any address is allowed

uint64_t global_nanoseconds() {
    using namespace std::chrono;
    return static_cast<uint64_t>(duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count());
}

uint64_t sm_cycles() { return 2 * global_nanoseconds(); }

}  // namespace interpreter
