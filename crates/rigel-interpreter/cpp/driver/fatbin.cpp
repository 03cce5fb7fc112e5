#include "fatbin.h"

#include <elf.h>

#include <algorithm>
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
constexpr uint32_t kNoImage =
    0;  // a placeholder: whoever launches kernels that nvcc never saw, as tests of planted bugs do
constexpr uint16_t kPtx = 1, kMachineCode = 2;

// Attributes in a cubin's section .nv.info.<kernel>: one byte form, one byte kind, a 16-bit value, which in form 4 is
// the length of data that follow.
constexpr uint8_t kDataFollows = 4, kParameterInfo = 0x17;

// What an image says that cannot be; the text is the reason.
struct Damaged {
    std::string why;
};

// A stretch of the image. Reads past its end are damage.
struct Bytes {
    const uint8_t* start;
    uint64_t length;

    template <class T>
    T at(uint64_t offset, const char* what) const {
        T value;
        std::memcpy(&value, part(offset, sizeof value, what).start, sizeof value);
        return value;
    }
    Bytes part(uint64_t offset, uint64_t bytes, const char* what) const {
        if (offset > length || bytes > length - offset) throw Damaged{text("%s lies past the end", what)};
        return {start + offset, bytes};
    }
    std::string string_at(uint64_t offset, const char* what) const {
        const Bytes rest = part(offset, length - std::min(offset, length), what);
        const auto* end = static_cast<const uint8_t*>(std::memchr(rest.start, 0, rest.length));
        if (!end) throw Damaged{text("%s has no end", what)};
        return std::string(rest.start, end);
    }
};

std::vector<uint32_t> parameter_sizes(Bytes info) {
    std::vector<uint32_t> sizes;
    for (uint64_t at = 0; at < info.length;) {
        const auto form = info.at<uint8_t>(at, "an attribute"), kind = info.at<uint8_t>(at + 1, "an attribute");
        const auto value = info.at<uint16_t>(at + 2, "an attribute");
        at += 4;
        if (form != kDataFollows) continue;
        const Bytes data = info.part(at, value, "an attribute's data");
        if (kind == kParameterInfo) {
            // index, ordinal and offset, then flags with the size in their upper 14 bits
            const auto ordinal = data.at<uint16_t>(4, "a parameter");
            if (sizes.size() <= ordinal) sizes.resize(ordinal + size_t{1});
            sizes[ordinal] = data.at<uint32_t>(8, "a parameter") >> 18;
        }
        at += value;
    }
    return sizes;
}

void read_cubin(Bytes cubin, Image* image) {
    const auto header = cubin.at<Elf64_Ehdr>(0, "the machine code's header");
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) throw Damaged{"the machine code is no ELF file"};
    const auto section = [&](uint64_t i) {
        return cubin.at<Elf64_Shdr>(header.e_shoff + i * header.e_shentsize, "a section's header");
    };
    const auto bytes_of = [&](const Elf64_Shdr& one) { return cubin.part(one.sh_offset, one.sh_size, "a section"); };
    const Bytes names = bytes_of(section(header.e_shstrndx));
    const std::string info = ".nv.info.", code = ".text.";
    std::map<std::string, std::vector<uint32_t>> kernels;
    image->globals.clear();
    for (uint64_t i = 0; i < header.e_shnum; i++) {
        const Elf64_Shdr one = section(i);
        const std::string name = names.string_at(one.sh_name, "a section's name");
        if (name.rfind(code, 0) == 0) kernels[name.substr(code.size())];
        if (name.rfind(info, 0) == 0) kernels[name.substr(info.size())] = parameter_sizes(bytes_of(one));
        if (one.sh_type != SHT_SYMTAB) continue;
        const Bytes symbols = bytes_of(one), texts = bytes_of(section(one.sh_link));
        for (uint64_t at = 0; at + sizeof(Elf64_Sym) <= symbols.length; at += sizeof(Elf64_Sym)) {
            const auto symbol = symbols.at<Elf64_Sym>(at, "a symbol");
            if (ELF64_ST_TYPE(symbol.st_info) == STT_OBJECT)
                image->globals.insert(texts.string_at(symbol.st_name, "a symbol's name"));
        }
    }
    image->kernels = std::move(kernels);
}

// Fills in the kernels of the machine code that the device runs; where it would compile PTX, of any machine code, which
// is of the same source.
bool has_code_for(Bytes image, uint32_t device, Image* read) {
    const auto header = image.at<FatbinHeader>(0, "the header");
    Bytes entries = image.part(header.header_bytes, header.bytes, "an entry");
    uint32_t best = 0;
    bool compiles = false;
    while (entries.length > 0) {
        const auto entry = entries.at<EntryHeader>(0, "an entry's header");
        if (entry.header_bytes < sizeof entry) throw Damaged{"an entry's header is too short"};
        const Bytes payload = entries.part(entry.header_bytes, entry.payload_bytes, "an entry");
        entries = {payload.start + payload.length, entries.length - entry.header_bytes - entry.payload_bytes};
        if (entry.kind != kPtx && entry.kind != kMachineCode) continue;
        if (entry.compressed_bytes) throw Damaged{"it is compressed (nvcc must be given --no-compress)"};
        if (entry.kind == kPtx) {
            compiles |= entry.architecture <= device;
            continue;
        }
        // Machine code runs on its own and later devices of the same major version.
        const bool runs = entry.architecture <= device && entry.architecture / 10 == device / 10;
        if (runs ? entry.architecture < best : best || !read->kernels.empty()) continue;
        read_cubin(payload, read);
        if (runs) best = entry.architecture;
    }
    return best || compiles;
}

}  // namespace

CUresult read_image(const void* data, Image* image) {
    uint32_t magic;
    std::memcpy(&magic, data, sizeof magic);
    if (magic == kNoImage) return CUDA_SUCCESS;
    if (magic != kFatbinMagic)
        return refuse(CUDA_ERROR_INVALID_IMAGE, text("the image starts with %#x, not as a fatbin does", magic));
    if (played.version < 13000)
        return refuse(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "the driver is older than the toolkit that built the image");
    // The driver is told no length: the header's is all that there is.
    FatbinHeader header;
    std::memcpy(&header, data, sizeof header);
    const uint32_t device = static_cast<uint32_t>(played.device->major * 10 + played.device->minor);
    try {
        if (has_code_for({static_cast<const uint8_t*>(data), header.header_bytes + header.bytes}, device, image))
            return CUDA_SUCCESS;
    } catch (const Damaged& damage) { return refuse(CUDA_ERROR_INVALID_IMAGE, "the image is damaged: " + damage.why); }
    return refuse(CUDA_ERROR_NO_BINARY_FOR_GPU,
                  text("the image has nothing for compute capability %u.%u", device / 10, device % 10));
}

std::string compare_with_image(const Image& image, const Kernel& kernel) {
    if (image.kernels.empty()) return "";
    auto at = image.kernels.find(kernel.name);
    if (at == image.kernels.end()) return text("kernel %s is not in the module's machine code", kernel.name);
    const std::vector<uint32_t>& sizes = at->second;
    if (sizes.size() != kernel.arguments)
        return text("kernel %s takes %u arguments, %zu in the module's machine code", kernel.name, kernel.arguments,
                    sizes.size());
    for (unsigned i = 0; i < kernel.arguments; i++)
        if (sizes[i] != kernel.argument_bytes[i])
            return text("kernel %s: argument %u has %u bytes, %u in the module's machine code", kernel.name, i,
                        kernel.argument_bytes[i], sizes[i]);
    return "";
}

}  // namespace interpreter
