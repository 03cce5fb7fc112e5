#include "site.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <vector>

extern "C" {
// Defined by the linker: the first and the last byte of this library's image.
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));
}

namespace interpreter {

Site site_of(const void* return_address) {
    return static_cast<Site>(static_cast<const char*>(return_address) - __ehdr_start);
}

bool in_this_library(const void* address) {
    const auto* p = static_cast<const char*>(address);
    return p >= __ehdr_start && p < _end;
}

namespace {
// The path in the repository, so that reports are short and the same on every machine.
std::string from_repository_root(const std::string& path) {
    for (const char* folder : {"/crates/rigel-interpreter/", "/kernels/"}) {
        const size_t at = path.rfind(folder);
        if (at != std::string::npos) return path.substr(at + 1);
    }
    return path;
}

std::string ask_addr2line(Site site) {
    Dl_info library;
    if (!dladdr(reinterpret_cast<const void*>(__ehdr_start), &library)) return "an unknown line";
    char command[4200];
    // One byte back: the return address may already belong to the next line.
    std::snprintf(command, sizeof command, "LD_PRELOAD= addr2line -i -e '%s' %#x 2>/dev/null", library.dli_fname,
                  site - 1);
    FILE* output = popen(command, "r");
    if (!output) return "an unknown line";
    std::vector<std::string> frames;
    char line[4200];
    while (std::fgets(line, sizeof line, output)) {
        std::string frame = line;
        frame = from_repository_root(frame.substr(0, frame.find_first_of(" \n")));
        if (frame.rfind("kernels/ptx/", 0) == 0 || frame.rfind("crates/rigel-interpreter/include/", 0) == 0) continue;
        frames.push_back(frame);
    }
    pclose(output);
    if (frames.empty()) return "an unknown line (offset " + std::to_string(site) + "; is addr2line installed?)";
    std::string chain = frames[0];
    for (size_t i = 1; i < frames.size(); i++) chain += ", called from " + frames[i];
    return chain;
}
}  // namespace

const std::string& source_line(Site site) {
    static std::map<Site, std::string> known;
    auto [at, is_new] = known.try_emplace(site);
    if (is_new) at->second = ask_addr2line(site);
    return at->second;
}

std::string at_line(Site site) { return site == 0 ? "" : ", at " + source_line(site); }

}  // namespace interpreter
