#include "registry.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace interpreter {

namespace {
std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}
}  // namespace

void add_kernel(const Kernel& kernel) {
    if (!kernels().emplace(kernel.name, kernel).second) {
        std::fprintf(stderr, "rigel interpreter: two kernels are named %s\n", kernel.name);
        std::abort();
    }
}

const Kernel* find_kernel(const char* name) {
    auto at = kernels().find(name);
    return at == kernels().end() ? nullptr : &at->second;
}

}  // namespace interpreter
