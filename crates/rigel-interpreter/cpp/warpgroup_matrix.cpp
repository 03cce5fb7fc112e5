// What a wgmma computes: descriptors, operands, sums.
//
// The order of the sum is k ascending from zero, then the accumulator; the twins of mma.sync have others (matrix.cpp),
// so that a claim of equal bits between kernels that use different instructions fails here.
#include <cstring>

#include "tensor_map.h"
#include "warpgroup.h"

namespace interpreter {

namespace {

// Fields of a matrix descriptor, in bytes.
struct Descriptor {
    uint32_t start, leading, stride;
    uint32_t swizzle;  // log2 of the 16-byte pieces that change places: 0 none, 1, 2, 3 for rows of 32, 64, 128 bytes
    explicit Descriptor(uint64_t bits)
        : start(static_cast<uint32_t>(bits & 0x3fff) << 4),
          leading(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
          stride(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4) {
        const auto mode = static_cast<uint32_t>(bits >> 62);  // 1: 128 bytes, 2: 64, 3: 32
        swizzle = mode ? 4 - mode : 0;
    }
};

constexpr int kMajorK = 0;

template <Element element>
float widen(uint16_t bits) {
    if (element == Element::F16) return widen_f16(bits);
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

// Calls `put(r, k, value)` for `rows` rows of an operand.
template <Element element, class Put>
void fetch(const uint8_t* arena, uint64_t descriptor, int major, uint32_t rows, Put put) {
    // 8 elements lie together, of k or of rows.
    const uint32_t row_step = major == kMajorK ? 1 : 8, k_step = major == kMajorK ? 8 : 1;
    for (uint32_t r = 0; r < rows; r += row_step) {
        for (uint32_t k = 0; k < kMatrixDepth; k += k_step) {
            uint16_t together[8];
            std::memcpy(together, arena + operand_address(descriptor, major, r, k), sizeof together);
            for (uint32_t i = 0; i < 8; i++)
                put(r + (major == kMajorK ? 0 : i), k + (major == kMajorK ? i : 0), widen<element>(together[i]));
        }
    }
}

__attribute__((target_clones("avx2", "default"))) void multiply(const float (*a)[kMatrixDepth], const float (*b)[256],
                                                                float (*d)[256], uint32_t columns) {
    for (uint32_t row = 0; row < 64; row++) {
        float* const sums = d[row];
        for (uint32_t column = 0; column < columns; column++) sums[column] = 0.0f;
        for (uint32_t k = 0; k < kMatrixDepth; k++) {
            const float factor = a[row][k];
            const float* const of_k = b[k];
            for (uint32_t column = 0; column < columns; column++) sums[column] += factor * of_k[column];
        }
    }
}

template <Element element>
void compute_in(const MatrixOperation& of) {
    static float a[64][kMatrixDepth], b[kMatrixDepth][256], d[64][256];
    if (of.a_in_registers) {
        for (uint32_t thread = 0; thread < 128; thread++) {
            const uint32_t row = thread / 32 * 16 + thread % 32 / 4, k = thread % 4 * 2;
            for (uint32_t i = 0; i < 4; i++)
                for (uint32_t half = 0; half < 2; half++)
                    a[row + i % 2 * 8][k + i / 2 * 8 + half] =
                        widen<element>(static_cast<uint16_t>(of.a_registers[thread][i] >> 16 * half));
        }
    } else {
        fetch<element>(of.arena, of.a, of.major_a, 64,
                       [](uint32_t row, uint32_t k, float value) { a[row][k] = value; });
    }
    fetch<element>(of.arena, of.b, of.major_b, of.columns,
                   [](uint32_t column, uint32_t k, float value) { b[k][column] = value; });
    multiply(a, b, d, of.columns);
    for (uint32_t thread = 0; thread < 128; thread++) {
        const uint32_t row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
        float* const sums = of.sums[thread];
        for (uint32_t i = 0; i < of.columns / 2; i++) {
            const float sum = d[row + (i / 2 & 1) * 8][i / 4 * 8 + column + (i & 1)];
            sums[i] = of.accumulate ? sums[i] + sum : sum;
        }
    }
}

}  // namespace

uint32_t operand_address(uint64_t descriptor, int major, uint32_t r, uint32_t k) {
    const Descriptor of(descriptor);
    // Canonical layouts of the PTX ISA, for elements of two bytes.
    if (of.swizzle == 0) return of.start + r / 8 * of.stride + k / 8 * of.leading + r % 8 * 16 + k % 8 * 2;
    const uint32_t row = 16u << of.swizzle, in_row = row / 2;  // bytes, elements
    const uint32_t address =
        major == kMajorK ? of.start + r / 8 * of.stride + r % 8 * row + k * 2
                         : of.start + r / in_row * of.leading + k / 8 * of.stride + k % 8 * row + r % in_row * 2;
    return swizzled(address, of.swizzle);
}

const char* descriptor_problem(uint64_t descriptor, int major) {
    const Descriptor of(descriptor);
    if (descriptor >> 49 & 7) return "a base offset other than zero, which the interpreter does not have";
    if (major != kMajorK && of.swizzle == 0) return "major MN without a swizzle, which the interpreter does not have";
    // The address may be moved along k inside of the first row of an atom, not to another row.
    if (of.swizzle && major == kMajorK && of.start % (128u << of.swizzle) >= (16u << of.swizzle))
        return "a start that is not in the first row of a swizzled atom";
    if (of.swizzle && major != kMajorK && of.start % (128u << of.swizzle))
        return "a start that is not that of a swizzled atom";
    return nullptr;
}

void compute(const MatrixOperation& operation) {
    if (operation.element == Element::Bf16)
        compute_in<Element::Bf16>(operation);
    else
        compute_in<Element::F16>(operation);
}

}  // namespace interpreter
