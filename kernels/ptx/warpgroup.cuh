// Matrix instructions of a warpgroup, four warps from a multiple of four on: wgmma, and setmaxnreg (sm_90a).
// PTX ISA: Asynchronous Warpgroup Level Matrix Instructions; Miscellaneous Instructions, setmaxnreg.
//
// d += a b on 64 rows, N columns (8 to 256) and 16 of k, products of bf16 or f16 and sums in f32. A comes from shared
// memory or from registers, B from shared memory. It runs on its own: neither the sums nor A's registers may be touched
// from the instruction to a warpgroup_wait that covers its group, and operands in shared memory are not overwritten.
// Before the first instruction, and whenever the sums or A's registers were written otherwise, comes warpgroup_fence.
// Shared memory is read through the asynchronous proxy: see bulk_copy.cuh.
//
// The thread with lane 4 g + t of warp w of the warpgroup has, packed pairs low half first:
//   d[4 i + 0 .. 4 i + 3]  rows 16 w + g, 16 w + g, 16 w + g + 8, 16 w + g + 8; columns 8 i + 2 t, 8 i + 2 t + 1, twice
//   a[0 .. 3]              rows 16 w + g, g + 8, g, g + 8; k 2 t, 2 t | 2 t + 8, 2 t + 8
#pragma once
#include "language.cuh"

// Which of an operand's dimensions is the one of consecutive elements in shared memory.
constexpr int kMajorK = 0, kMajorMN = 1;

// Registers are as of here: see above. All threads of the warpgroup.
DEVICE void warpgroup_fence() {
#if ON_GPU
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    interpreter::warpgroup_fence();
#endif
}
// Closes the group of all matrix instructions of the warpgroup since the last commit.
DEVICE void warpgroup_commit() {
#if ON_GPU
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    interpreter::warpgroup_commit();
#endif
}
// Waits until at most the `Pending` newest groups of the warpgroup are unfinished.
template <int Pending>
DEVICE void warpgroup_wait() {
#if ON_GPU
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
#else
    interpreter::warpgroup_wait(Pending);
#endif
}

// Gives registers of each thread of the warpgroup back, down to `Registers` (24 to 256, a multiple of 8).
template <int Registers>
DEVICE void warpgroup_registers_decrease() {
#if ON_GPU
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
#else
    interpreter::warpgroup_registers(Registers, interpreter::RegisterChange::Decrease);
#endif
}
// Takes registers for each thread of the warpgroup, up to `Registers`, and waits until others have given them back.
template <int Registers>
DEVICE void warpgroup_registers_increase() {
#if ON_GPU
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
#else
    interpreter::warpgroup_registers(Registers, interpreter::RegisterChange::Increase);
#endif
}

// Where an operand lies in shared memory, for a matrix instruction (PTX ISA, Matrix Descriptor Format). The swizzles
// are the same as in tensor maps: 16-byte pieces of a row of 128 bytes are xored with the row's number modulo 8 (64:
// half of it).
//
// Major K: row r (of M or N) has its k consecutive. Rows of 128 bytes are 64 of k, 8 rows make an atom of 1024 bytes,
// and atoms follow each other down the rows. A step of 16 along k inside a row adds 32 bytes to the address. Major MN:
// each k has a row of 64 (32) elements along M or N; 8 such rows make an atom. `stride_bytes` from 8 of k to the next
// 8, `leading_bytes` from 64 (32) elements along M or N to the next. A step of 16 along k adds two atoms. `address` is
// aligned to 1024 bytes but for steps along k.
DEVICE uint64_t matrix_descriptor(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes, uint64_t swizzle) {
    return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(leading_bytes >> 4) << 16 |
           static_cast<uint64_t>(stride_bytes >> 4) << 32 | swizzle << 62;
}
// Rows of 128 bytes with the swizzle of 128 bytes, major K.
DEVICE uint64_t matrix_descriptor_128(uint32_t address) { return matrix_descriptor(address, 16, 1024, 1); }
// Rows of 64 bytes with the swizzle of 64 bytes, major K.
DEVICE uint64_t matrix_descriptor_64(uint32_t address) { return matrix_descriptor(address, 16, 512, 2); }
// Rows of 128 bytes with the swizzle of 128 bytes, major MN; `leading_bytes` from 64 elements of M or N to the next 64.
DEVICE uint64_t matrix_descriptor_128_mn(uint32_t address, uint32_t leading_bytes) {
    return matrix_descriptor(address, leading_bytes, 1024, 1);
}

// warpgroup_multiply_bf16<kMajorA, kMajorB>(d, a, b, accumulate): d = a b + (accumulate ? d : 0), N twice the length of
// d. a and b are descriptors, the same for all threads, or a is four registers and the template argument kMajorB alone.
// And warpgroup_multiply_f16.
#if ON_GPU

#define RIGEL_TEXT_4 "%0, %1, %2, %3"
#define RIGEL_TEXT_8 RIGEL_TEXT_4 ", %4, %5, %6, %7"
#define RIGEL_TEXT_12 RIGEL_TEXT_8 ", %8, %9, %10, %11"
#define RIGEL_TEXT_16 RIGEL_TEXT_12 ", %12, %13, %14, %15"
#define RIGEL_TEXT_20 RIGEL_TEXT_16 ", %16, %17, %18, %19"
#define RIGEL_TEXT_24 RIGEL_TEXT_20 ", %20, %21, %22, %23"
#define RIGEL_TEXT_28 RIGEL_TEXT_24 ", %24, %25, %26, %27"
#define RIGEL_TEXT_32 RIGEL_TEXT_28 ", %28, %29, %30, %31"
#define RIGEL_TEXT_36 RIGEL_TEXT_32 ", %32, %33, %34, %35"
#define RIGEL_TEXT_40 RIGEL_TEXT_36 ", %36, %37, %38, %39"
#define RIGEL_TEXT_44 RIGEL_TEXT_40 ", %40, %41, %42, %43"
#define RIGEL_TEXT_48 RIGEL_TEXT_44 ", %44, %45, %46, %47"
#define RIGEL_TEXT_52 RIGEL_TEXT_48 ", %48, %49, %50, %51"
#define RIGEL_TEXT_56 RIGEL_TEXT_52 ", %52, %53, %54, %55"
#define RIGEL_TEXT_60 RIGEL_TEXT_56 ", %56, %57, %58, %59"
#define RIGEL_TEXT_64 RIGEL_TEXT_60 ", %60, %61, %62, %63"
#define RIGEL_TEXT_68 RIGEL_TEXT_64 ", %64, %65, %66, %67"
#define RIGEL_TEXT_72 RIGEL_TEXT_68 ", %68, %69, %70, %71"
#define RIGEL_TEXT_76 RIGEL_TEXT_72 ", %72, %73, %74, %75"
#define RIGEL_TEXT_80 RIGEL_TEXT_76 ", %76, %77, %78, %79"
#define RIGEL_TEXT_84 RIGEL_TEXT_80 ", %80, %81, %82, %83"
#define RIGEL_TEXT_88 RIGEL_TEXT_84 ", %84, %85, %86, %87"
#define RIGEL_TEXT_92 RIGEL_TEXT_88 ", %88, %89, %90, %91"
#define RIGEL_TEXT_96 RIGEL_TEXT_92 ", %92, %93, %94, %95"
#define RIGEL_TEXT_100 RIGEL_TEXT_96 ", %96, %97, %98, %99"
#define RIGEL_TEXT_104 RIGEL_TEXT_100 ", %100, %101, %102, %103"
#define RIGEL_TEXT_108 RIGEL_TEXT_104 ", %104, %105, %106, %107"
#define RIGEL_TEXT_112 RIGEL_TEXT_108 ", %108, %109, %110, %111"
#define RIGEL_TEXT_116 RIGEL_TEXT_112 ", %112, %113, %114, %115"
#define RIGEL_TEXT_120 RIGEL_TEXT_116 ", %116, %117, %118, %119"
#define RIGEL_TEXT_124 RIGEL_TEXT_120 ", %120, %121, %122, %123"
#define RIGEL_TEXT_128 RIGEL_TEXT_124 ", %124, %125, %126, %127"
#define RIGEL_SUMS_4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define RIGEL_SUMS_8 RIGEL_SUMS_4, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define RIGEL_SUMS_12 RIGEL_SUMS_8, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define RIGEL_SUMS_16 RIGEL_SUMS_12, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define RIGEL_SUMS_20 RIGEL_SUMS_16, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define RIGEL_SUMS_24 RIGEL_SUMS_20, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define RIGEL_SUMS_28 RIGEL_SUMS_24, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define RIGEL_SUMS_32 RIGEL_SUMS_28, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define RIGEL_SUMS_36 RIGEL_SUMS_32, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define RIGEL_SUMS_40 RIGEL_SUMS_36, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define RIGEL_SUMS_44 RIGEL_SUMS_40, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define RIGEL_SUMS_48 RIGEL_SUMS_44, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define RIGEL_SUMS_52 RIGEL_SUMS_48, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define RIGEL_SUMS_56 RIGEL_SUMS_52, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define RIGEL_SUMS_60 RIGEL_SUMS_56, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define RIGEL_SUMS_64 RIGEL_SUMS_60, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define RIGEL_SUMS_68 RIGEL_SUMS_64, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define RIGEL_SUMS_72 RIGEL_SUMS_68, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define RIGEL_SUMS_76 RIGEL_SUMS_72, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define RIGEL_SUMS_80 RIGEL_SUMS_76, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define RIGEL_SUMS_84 RIGEL_SUMS_80, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
#define RIGEL_SUMS_88 RIGEL_SUMS_84, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define RIGEL_SUMS_92 RIGEL_SUMS_88, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
#define RIGEL_SUMS_96 RIGEL_SUMS_92, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define RIGEL_SUMS_100 RIGEL_SUMS_96, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
#define RIGEL_SUMS_104 RIGEL_SUMS_100, "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define RIGEL_SUMS_108 RIGEL_SUMS_104, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
#define RIGEL_SUMS_112 RIGEL_SUMS_108, "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define RIGEL_SUMS_116 RIGEL_SUMS_112, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
#define RIGEL_SUMS_120 RIGEL_SUMS_116, "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define RIGEL_SUMS_124 RIGEL_SUMS_120, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
#define RIGEL_SUMS_128 RIGEL_SUMS_124, "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

#define RIGEL_MULTIPLY_SHARED(TYPE, N, R, P0, P1, P2, P3, P4)                                              \
    template <int MajorA, int MajorB>                                                                      \
    DEVICE void warpgroup_multiply_##TYPE(float (&d)[R], uint64_t a, uint64_t b, uint32_t accumulate) {    \
        asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, " P2                              \
                     ", 0;\n"                                                                              \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #TYPE "." #TYPE " {" RIGEL_TEXT_##R \
                     "}, " P0 ", " P1 ", accumulate, 1, 1, " P3 ", " P4 ";\n}"                             \
                     : RIGEL_SUMS_##R                                                                      \
                     : "l"(a), "l"(b), "r"(accumulate), "n"(MajorA), "n"(MajorB));                         \
    }
#define RIGEL_MULTIPLY_REGISTERS(TYPE, N, R, P0, P1, P2, P3, P4, P5, P6)                                            \
    template <int MajorB>                                                                                           \
    DEVICE void warpgroup_multiply_##TYPE(float (&d)[R], const uint32_t (&a)[4], uint64_t b, uint32_t accumulate) { \
        asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, " P5                                       \
                     ", 0;\n"                                                                                       \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #TYPE "." #TYPE " {" RIGEL_TEXT_##R          \
                     "}, {" P0 ", " P1 ", " P2 ", " P3 "}, " P4 ", accumulate, 1, 1, " P6 ";\n}"                    \
                     : RIGEL_SUMS_##R                                                                               \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(MajorB));           \
    }
#define RIGEL_SHAPE(N, R, P0, P1, P2, P3, P4, P5, P6)                \
    RIGEL_MULTIPLY_SHARED(bf16, N, R, P0, P1, P2, P3, P4)            \
    RIGEL_MULTIPLY_SHARED(f16, N, R, P0, P1, P2, P3, P4)             \
    RIGEL_MULTIPLY_REGISTERS(bf16, N, R, P0, P1, P2, P3, P4, P5, P6) \
    RIGEL_MULTIPLY_REGISTERS(f16, N, R, P0, P1, P2, P3, P4, P5, P6)

// Columns, registers of sums, the places of the operands behind them.
RIGEL_SHAPE(8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
RIGEL_SHAPE(16, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
RIGEL_SHAPE(24, 12, "%12", "%13", "%14", "%15", "%16", "%17", "%18")
RIGEL_SHAPE(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
RIGEL_SHAPE(40, 20, "%20", "%21", "%22", "%23", "%24", "%25", "%26")
RIGEL_SHAPE(48, 24, "%24", "%25", "%26", "%27", "%28", "%29", "%30")
RIGEL_SHAPE(56, 28, "%28", "%29", "%30", "%31", "%32", "%33", "%34")
RIGEL_SHAPE(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
RIGEL_SHAPE(80, 40, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
RIGEL_SHAPE(96, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
RIGEL_SHAPE(112, 56, "%56", "%57", "%58", "%59", "%60", "%61", "%62")
RIGEL_SHAPE(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
RIGEL_SHAPE(160, 80, "%80", "%81", "%82", "%83", "%84", "%85", "%86")
RIGEL_SHAPE(192, 96, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
RIGEL_SHAPE(224, 112, "%112", "%113", "%114", "%115", "%116", "%117", "%118")
RIGEL_SHAPE(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#undef RIGEL_SHAPE
#undef RIGEL_MULTIPLY_SHARED
#undef RIGEL_MULTIPLY_REGISTERS
#undef RIGEL_TEXT_4
#undef RIGEL_SUMS_4
#undef RIGEL_TEXT_8
#undef RIGEL_SUMS_8
#undef RIGEL_TEXT_12
#undef RIGEL_SUMS_12
#undef RIGEL_TEXT_16
#undef RIGEL_SUMS_16
#undef RIGEL_TEXT_20
#undef RIGEL_SUMS_20
#undef RIGEL_TEXT_24
#undef RIGEL_SUMS_24
#undef RIGEL_TEXT_28
#undef RIGEL_SUMS_28
#undef RIGEL_TEXT_32
#undef RIGEL_SUMS_32
#undef RIGEL_TEXT_36
#undef RIGEL_SUMS_36
#undef RIGEL_TEXT_40
#undef RIGEL_SUMS_40
#undef RIGEL_TEXT_44
#undef RIGEL_SUMS_44
#undef RIGEL_TEXT_48
#undef RIGEL_SUMS_48
#undef RIGEL_TEXT_52
#undef RIGEL_SUMS_52
#undef RIGEL_TEXT_56
#undef RIGEL_SUMS_56
#undef RIGEL_TEXT_60
#undef RIGEL_SUMS_60
#undef RIGEL_TEXT_64
#undef RIGEL_SUMS_64
#undef RIGEL_TEXT_68
#undef RIGEL_SUMS_68
#undef RIGEL_TEXT_72
#undef RIGEL_SUMS_72
#undef RIGEL_TEXT_76
#undef RIGEL_SUMS_76
#undef RIGEL_TEXT_80
#undef RIGEL_SUMS_80
#undef RIGEL_TEXT_84
#undef RIGEL_SUMS_84
#undef RIGEL_TEXT_88
#undef RIGEL_SUMS_88
#undef RIGEL_TEXT_92
#undef RIGEL_SUMS_92
#undef RIGEL_TEXT_96
#undef RIGEL_SUMS_96
#undef RIGEL_TEXT_100
#undef RIGEL_SUMS_100
#undef RIGEL_TEXT_104
#undef RIGEL_SUMS_104
#undef RIGEL_TEXT_108
#undef RIGEL_SUMS_108
#undef RIGEL_TEXT_112
#undef RIGEL_SUMS_112
#undef RIGEL_TEXT_116
#undef RIGEL_SUMS_116
#undef RIGEL_TEXT_120
#undef RIGEL_SUMS_120
#undef RIGEL_TEXT_124
#undef RIGEL_SUMS_124
#undef RIGEL_TEXT_128
#undef RIGEL_SUMS_128

#else

template <int MajorA, int MajorB, int R>
DEVICE void warpgroup_multiply_bf16(float (&d)[R], uint64_t a, uint64_t b, uint32_t accumulate) {
    interpreter::warpgroup_multiply(d, 2 * R, a, b, accumulate, MajorA, MajorB, interpreter::Element::Bf16);
}
template <int MajorA, int MajorB, int R>
DEVICE void warpgroup_multiply_f16(float (&d)[R], uint64_t a, uint64_t b, uint32_t accumulate) {
    interpreter::warpgroup_multiply(d, 2 * R, a, b, accumulate, MajorA, MajorB, interpreter::Element::F16);
}
template <int MajorB, int R>
DEVICE void warpgroup_multiply_bf16(float (&d)[R], const uint32_t (&a)[4], uint64_t b, uint32_t accumulate) {
    interpreter::warpgroup_multiply(d, 2 * R, a, b, accumulate, MajorB, interpreter::Element::Bf16);
}
template <int MajorB, int R>
DEVICE void warpgroup_multiply_f16(float (&d)[R], const uint32_t (&a)[4], uint64_t b, uint32_t accumulate) {
    interpreter::warpgroup_multiply(d, 2 * R, a, b, accumulate, MajorB, interpreter::Element::F16);
}

#endif
