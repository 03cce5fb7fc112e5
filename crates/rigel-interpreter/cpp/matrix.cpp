// ldmatrix, stmatrix and mma.sync.
//
// Hardware does not say in which order it adds up k, and the order differs between instruction shapes. The twins differ
// too, so that a claim of equal bits between two paths is only true when both use one shape:
//   k = 16   products in a tree of neighbours, ((p0 + p1) + (p2 + p3)) + ..., then + c
//   k = 8    the even products and the odd ones each in order, (c + p0 + p2 + p4 + p6) + (p1 + p3 + p5 + p7)
// Products of two 16-bit factors are exact in f32 (f16: unless subnormal, as on hardware with f32 sums).
#include <cstring>
#include <type_traits>

#include "access.h"
#include "collectives.h"
#include "memory.h"
#include "shared_address.h"

namespace interpreter {

namespace {
struct LoadMatrix {
    uint32_t* fragment;
    const uint8_t* row;
};
struct StoreMatrix {
    const uint32_t* fragment;
    uint8_t* row;
};
struct Multiply {
    float* d;
    const uint32_t *a, *b;
    const float* c;
    Element element;
};

// Rows of one matrix that lie in the same banks as an earlier row: each costs another pass.
unsigned bank_conflicts(const uint8_t* const* rows) {
    uint32_t used = 0;
    unsigned conflicts = 0;
    for (int row = 0; row < 8; row++) {
        const uint32_t banks = 0xfu << (shared_memory.offset(rows[row]) / 4 % 32);
        if (used & banks) conflicts++;
        used |= banks;
    }
    return conflicts;
}

// widen_bf16 of numbers.cpp, here to be inlined: a MMA instruction widens hundreds.
float widen_pair(uint32_t pair, unsigned half, std::integral_constant<Element, Element::Bf16>) {
    const uint32_t bits = half ? pair & 0xffff0000u : pair << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
float widen_pair(uint32_t pair, unsigned half, std::integral_constant<Element, Element::F16>) {
    return widen_f16(static_cast<uint16_t>(pair >> 16 * half));
}

// Gathers a[16][K] and b[K][8] from the lanes' fragments.
template <int K, class Format>
void gather(Multiply** of, float (&a)[16][K], float (&b)[K][8], Format format) {
    for (unsigned lane = 0; lane < 32; lane++) {
        const Multiply& own = *of[lane];
        const unsigned g = lane / 4, t = lane % 4 * 2;
        for (unsigned i = 0; i < K / 4; i++)
            for (unsigned half = 0; half < 2; half++)
                a[g + i % 2 * 8][t + i / 2 * 8 + half] = widen_pair(own.a[i], half, format);
        for (unsigned i = 0; i < K / 8; i++)
            for (unsigned half = 0; half < 2; half++) b[t + i * 8 + half][g] = widen_pair(own.b[i], half, format);
    }
}

// One row of the product: the sum over k for each of the 8 columns.
void add_up(const float (&a)[16], const float (&b)[16][8], const float (&c)[8], float (&sum)[8]) {
    float p[16][8];
    for (int k = 0; k < 16; k++)
        for (int j = 0; j < 8; j++) p[k][j] = a[k] * b[k][j];
    for (int width = 8; width > 0; width /= 2)
        for (int k = 0; k < width; k++)
            for (int j = 0; j < 8; j++) p[k][j] = p[2 * k][j] + p[2 * k + 1][j];
    for (int j = 0; j < 8; j++) sum[j] = p[0][j] + c[j];
}
void add_up(const float (&a)[8], const float (&b)[8][8], const float (&c)[8], float (&sum)[8]) {
    float even[8], odd[8] = {};
    std::memcpy(even, c, sizeof even);
    for (int k = 0; k < 8; k += 2)
        for (int j = 0; j < 8; j++) {
            even[j] += a[k] * b[k][j];
            odd[j] += a[k + 1] * b[k + 1][j];
        }
    for (int j = 0; j < 8; j++) sum[j] = even[j] + odd[j];
}

template <int K>
void multiply(const char* name, Multiply own, Site site) {
    together(name, 0xffffffffu, Alignment::SameInstruction, own, site, [](Multiply** of) {
        float a[16][K], b[K][8], c[16][8], d[16][8];
        if (of[0]->element == Element::Bf16)
            gather<K>(of, a, b, std::integral_constant<Element, Element::Bf16>{});
        else
            gather<K>(of, a, b, std::integral_constant<Element, Element::F16>{});
        for (unsigned lane = 0; lane < 32; lane++)
            for (unsigned i = 0; i < 4; i++) c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = of[lane]->c[i];
        for (int row = 0; row < 16; row++) add_up(a[row], b, c[row], d[row]);
        for (unsigned lane = 0; lane < 32; lane++)
            for (unsigned i = 0; i < 4; i++) of[lane]->d[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
        current->warp->block->grid->counters.matrix_instructions++;
    });
}
}  // namespace

void load_matrix(uint32_t* fragment, int count, Layout layout, uint32_t shared_row_address) {
    const Site site = RIGEL_CALLER;
    LoadMatrix own{fragment, shared_pointer(shared_row_address, site)};
    if (current->lane < 8u * static_cast<unsigned>(count)) {
        check_alignment(own.row, 16, "ldmatrix row", site);
        check_shared(own.row, 16, {current, Agent::Thread, Does::Read, site});
    }
    static const char* const names[] = {"ldmatrix.x1", "ldmatrix.x2", "", "ldmatrix.x4"};
    together(names[count - 1], 0xffffffffu, Alignment::SameInstruction, own, site, [&](LoadMatrix** of) {
        LaunchCounters& counters = current->warp->block->grid->counters;
        for (int m = 0; m < count; m++) {
            uint16_t matrix[8][8];
            const uint8_t* rows[8];
            for (int row = 0; row < 8; row++) {
                rows[row] = of[8 * m + row]->row;
                std::memcpy(matrix[row], rows[row], 16);
            }
            counters.matrix_load_rows += 8;
            counters.matrix_load_conflicts += bank_conflicts(rows);
            for (unsigned lane = 0; lane < 32; lane++) {
                const unsigned g = lane / 4, t = lane % 4 * 2;
                const bool turned = layout == Layout::Transposed;
                const uint16_t low = turned ? matrix[t][g] : matrix[g][t],
                               high = turned ? matrix[t + 1][g] : matrix[g][t + 1];
                of[lane]->fragment[m] = low | static_cast<uint32_t>(high) << 16;
            }
        }
    });
}

void store_matrix(const uint32_t* fragment, int count, Layout layout, uint32_t shared_row_address) {
    const Site site = RIGEL_CALLER;
    StoreMatrix own{fragment, shared_pointer(shared_row_address, site)};
    if (current->lane < 8u * static_cast<unsigned>(count)) {
        check_alignment(own.row, 16, "stmatrix row", site);
        check_shared(own.row, 16, {current, Agent::Thread, Does::Write, site});
    }
    static const char* const names[] = {"stmatrix.x1", "stmatrix.x2", "", "stmatrix.x4"};
    together(names[count - 1], 0xffffffffu, Alignment::SameInstruction, own, site, [&](StoreMatrix** of) {
        LaunchCounters& counters = current->warp->block->grid->counters;
        for (int m = 0; m < count; m++) {
            uint16_t matrix[8][8];
            for (unsigned lane = 0; lane < 32; lane++) {
                for (unsigned half = 0; half < 2; half++) {
                    const auto value = static_cast<uint16_t>(of[lane]->fragment[m] >> 16 * half);
                    const unsigned g = lane / 4, t = lane % 4 * 2 + half;
                    (layout == Layout::Transposed ? matrix[t][g] : matrix[g][t]) = value;
                }
            }
            const uint8_t* rows[8];
            for (int row = 0; row < 8; row++) {
                rows[row] = of[8 * m + row]->row;
                std::memcpy(of[8 * m + row]->row, matrix[row], 16);
            }
            counters.matrix_store_rows += 8;
            counters.matrix_store_conflicts += bank_conflicts(rows);
        }
    });
}

void multiply_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, const float* c, Element element) {
    multiply<16>("mma.m16n8k16", {d, a, b, c, element}, RIGEL_CALLER);
}
void multiply_m16n8k8(float* d, const uint32_t* a, const uint32_t* b, const float* c, Element element) {
    multiply<8>("mma.m16n8k8", {d, a, b, c, element}, RIGEL_CALLER);
}

}  // namespace interpreter
