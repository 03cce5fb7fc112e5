// What the 128 bytes of a tensor map hold here. The driver's own form is private; cuTensorMapEncodeTiled of the
// stand-in writes this one, and bulk copies read it.
#pragma once
#include <cstdint>

namespace interpreter {

struct EncodedTensorMap {
    static constexpr uint32_t kMark = 0x7e4507a1;

    uint32_t mark;
    uint8_t dimensions, element_bytes, swizzle, unused;  // swizzle: log2 of 16-byte pieces that change places, 0 to 3
    uint64_t base;
    uint64_t strides[4];  // bytes, of the dimensions behind the first
    uint32_t sizes[5];  // less one: 2^32 is allowed
    uint16_t box[5];
};
static_assert(sizeof(EncodedTensorMap) <= 128, "a tensor map's bytes");

// 16-byte pieces of rows of 16 << swizzle bytes, as the hardware places them: xored with bits 7 and up of the address.
inline uint32_t swizzled(uint32_t address, uint32_t swizzle) {
    return address ^ ((address >> 7 & ((1u << swizzle) - 1)) << 4);
}

}  // namespace interpreter
