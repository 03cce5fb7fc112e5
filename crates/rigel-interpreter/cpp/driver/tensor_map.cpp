// Encoding of tensor maps, with the checks that the driver API's reference names.
#include <cstring>

#include "api.h"
#include "report.h"
#include "tensor_map.h"

using namespace interpreter;

namespace {
// CUtensorMapDataType: u8, u16, u32, i32, u64, i64, f16, f32, f64, bf16, then forms of f32.
constexpr uint8_t kElementBytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};

CUresult bad(const std::string& why) { return refuse(CUDA_ERROR_INVALID_VALUE, "cuTensorMapEncodeTiled: " + why); }
}  // namespace

DRIVER_API cuTensorMapEncodeTiled(void* map, unsigned type, uint32_t dimensions, void* base, const uint64_t* sizes,
                                  const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                                  unsigned interleave, unsigned swizzle, unsigned, unsigned fill) {
    if (const CUresult refused = refusal_of(__func__)) return refused;
    if (!map || reinterpret_cast<uintptr_t>(map) % 64) return bad("the map is not aligned to 64 bytes");
    if (type >= sizeof kElementBytes) return bad(text("element type %u", type));
    if (dimensions == 0 || dimensions > 5) return bad(text("%u dimensions, 1 to 5 are allowed", dimensions));
    if (reinterpret_cast<uintptr_t>(base) % 16) return bad("the tensor's address is not a multiple of 16");
    if (interleave != 0 || fill != 0)
        return refuse(CUDA_ERROR_NOT_SUPPORTED,
                      "the interpreter has no interleaved tensors, and zeros alone to fill with");
    if (swizzle > 3) return bad(text("swizzle %u", swizzle));
    EncodedTensorMap encoded{};
    encoded.mark = EncodedTensorMap::kMark;
    encoded.dimensions = static_cast<uint8_t>(dimensions);
    encoded.element_bytes = kElementBytes[type];
    encoded.swizzle = static_cast<uint8_t>(swizzle);
    encoded.base = reinterpret_cast<uint64_t>(base);
    for (uint32_t i = 0; i < dimensions; i++) {
        if (sizes[i] == 0 || sizes[i] > 1ull << 32)
            return bad(text("dimension %u has %lu elements", i, static_cast<unsigned long>(sizes[i])));
        if (box[i] == 0 || box[i] > 256)
            return bad(text("the box has %u elements of dimension %u, 1 to 256 are allowed", box[i], i));
        if (element_strides[i] != 1)
            return refuse(CUDA_ERROR_NOT_SUPPORTED, "the interpreter has no element strides but 1");
        encoded.sizes[i] = static_cast<uint32_t>(sizes[i] - 1);
        encoded.box[i] = static_cast<uint16_t>(box[i]);
        if (i == 0) continue;
        if (strides[i - 1] % 16 || strides[i - 1] >= 1ull << 40)
            return bad(text("dimension %u has a stride of %lu bytes, which is no multiple of 16", i,
                            static_cast<unsigned long>(strides[i - 1])));
        encoded.strides[i - 1] = strides[i - 1];
    }
    const uint32_t row = box[0] * encoded.element_bytes;
    if (row % 16) return bad(text("the box's rows have %u bytes, which is no multiple of 16", row));
    if (swizzle && row > 16u << swizzle)
        return bad(text("the box's rows have %u bytes, more than a swizzle of %u", row, 16u << swizzle));
    if (swizzle && row != 16u << swizzle)
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "the interpreter has no boxes narrower than their swizzle");
    std::memset(map, 0, 128);
    std::memcpy(map, &encoded, sizeof encoded);
    return CUDA_SUCCESS;
}
