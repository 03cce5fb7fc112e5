// What a module's image says: nvcc's fatbin with machine code (cubins) and PTX.
#pragma once
#include <map>
#include <set>
#include <string>
#include <vector>

#include "api.h"

namespace interpreter {

struct Image {
    // Kernels of the machine code, each with its arguments' sizes. Empty for a placeholder (a word of 0).
    std::map<std::string, std::vector<uint32_t>> kernels;
    std::set<std::string> globals;  // its variables
};

// Reads the image; an error where the played device could not run it.
CUresult read_image(const void* data, Image* image);
// What is different between the kernel that was linked in and the image's; "" when nothing is, or nothing is known.
std::string compare_with_image(const Image& image, const Kernel& kernel);

}  // namespace interpreter
