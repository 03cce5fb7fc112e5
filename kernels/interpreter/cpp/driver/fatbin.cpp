#include "fatbin.h"

#include <elf.h>

#include <cstring>

#include "report.h"

namespace interpreter {

namespace {

// The layout of nvcc's fatbin, as fatbinary 13.0 writes it (undocumented; other readers, such as LLVM's and ZLUDA's,
// agree).
struct FatbinHeader {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;  // of the entries that follow
};
struct EntryHeader {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t payload_bytes;
    uint32_t compressed_bytes, options_offset;
    uint16_t minor, major;
    uint32_t architecture;  // 80, 86, 90
};
constexpr uint32_t kFatbinMagic = 0xba55ed50;
constexpr uint16_t kPtx = 1, kMachineCode = 2;

// Attributes in a cubin's section .nv.info.<kernel>: one byte form, one byte kind, a 16-bit value, which in form 4 is the
// length of data that follow.
constexpr uint8_t kDataFollows = 4, kParameterInfo = 0x17;

template <class T>
T read_at(const uint8_t* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

std::vector<uint32_t> parameter_sizes(const uint8_t* info, size_t length) {
    std::vector<uint32_t> sizes;
    for (size_t at = 0; at + 4 <= length;) {
        const uint8_t form = info[at], kind = info[at + 1];
        const uint16_t value = read_at<uint16_t>(info + at + 2);
        at += 4;
        if (form != kDataFollows) continue;
        if (kind == kParameterInfo && value >= 12 && at + 12 <= length) {
            // index, ordinal and offset, then flags with the size in their upper 14 bits
            const uint16_t ordinal = read_at<uint16_t>(info + at + 4);
            if (sizes.size() <= ordinal) sizes.resize(ordinal + size_t{1});
            sizes[ordinal] = read_at<uint32_t>(info + at + 8) >> 18;
        }
        at += value;
    }
    return sizes;
}

void read_cubin(const uint8_t* cubin, size_t length, Image* image) {
    if (length < sizeof(Elf64_Ehdr) || std::memcmp(cubin, ELFMAG, SELFMAG) != 0) return;  // compressed
    const auto header = read_at<Elf64_Ehdr>(cubin);
    const auto section = [&](size_t i) { return read_at<Elf64_Shdr>(cubin + header.e_shoff + i * header.e_shentsize); };
    if (header.e_shoff + static_cast<uint64_t>(header.e_shnum) * header.e_shentsize > length) return;
    const Elf64_Shdr names = section(header.e_shstrndx);
    static constexpr char kInfo[] = ".nv.info.", kText[] = ".text.";
    for (size_t i = 0; i < header.e_shnum; i++) {
        const Elf64_Shdr one = section(i);
        const char* name = reinterpret_cast<const char*>(cubin + names.sh_offset + one.sh_name);
        if (std::strncmp(name, kText, sizeof kText - 1) == 0) image->kernels[name + sizeof kText - 1];
        if (std::strncmp(name, kInfo, sizeof kInfo - 1) == 0 && one.sh_offset + one.sh_size <= length)
            image->kernels[name + sizeof kInfo - 1] = parameter_sizes(cubin + one.sh_offset, one.sh_size);
    }
}

}  // namespace

CUresult read_image(const void* data, Image* image) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    if (read_at<uint32_t>(bytes) != kFatbinMagic) return CUDA_SUCCESS;  // a test's placeholder where no nvcc was at hand
    if (played.version < 13000)
        return refuse(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "the driver is older than the toolkit that built the image");
    const auto header = read_at<FatbinHeader>(bytes);
    const uint32_t device = static_cast<uint32_t>(played.device->major * 10 + played.device->minor);
    uint32_t best = 0;
    bool compiles = false;
    for (uint64_t at = header.header_bytes; at < header.header_bytes + header.bytes;) {
        const auto entry = read_at<EntryHeader>(bytes + at);
        const uint8_t* payload = bytes + at + entry.header_bytes;
        at += entry.header_bytes + entry.payload_bytes;
        if (entry.architecture > device) continue;
        if (entry.kind == kPtx) compiles = true;
        // Machine code runs on its own and later devices of the same major version.
        if (entry.kind != kMachineCode || entry.architecture / 10 != device / 10 || entry.architecture < best) continue;
        best = entry.architecture;
        image->kernels.clear();
        read_cubin(payload, entry.payload_bytes, image);
    }
    if (best == 0 && !compiles)
        return refuse(CUDA_ERROR_NO_BINARY_FOR_GPU, text("the image has nothing for compute capability %u.%u", device / 10, device % 10));
    return CUDA_SUCCESS;
}

std::string compare_with_image(const Image& image, const Kernel& kernel) {
    if (image.kernels.empty()) return "";
    auto at = image.kernels.find(kernel.name);
    if (at == image.kernels.end()) return text("kernel %s is not in the module's machine code", kernel.name);
    const std::vector<uint32_t>& sizes = at->second;
    if (sizes.size() != kernel.arguments)
        return text("kernel %s takes %u arguments, %zu in the module's machine code", kernel.name, kernel.arguments, sizes.size());
    for (unsigned i = 0; i < kernel.arguments; i++)
        if (sizes[i] != kernel.argument_bytes[i])
            return text("kernel %s: argument %u has %u bytes, %u in the module's machine code", kernel.name, i,
                        kernel.argument_bytes[i], sizes[i]);
    return "";
}

}  // namespace interpreter
