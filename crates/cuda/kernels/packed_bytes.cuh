// Codes of packed block weights as operands of the tensor cores' bytes.
#pragma once

#include "packed.cuh"

// A NaN where either is one.
__device__ __forceinline__ float max_or_nan(float a, float b) {
    float out;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
    return out;
}

// d[16, 8] += a[16, 32] · b[32, 8]
template <bool SIGNED> __device__ __forceinline__ void mma_bytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (SIGNED) {
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
}

// The bits of `w` from `FROM` on that `mask` names at `TO`, joined to `into`.
template <int FROM, int TO> __device__ __forceinline__ uint32_t bits(uint32_t w, uint32_t mask, uint32_t into) {
    if constexpr (FROM > TO) return and_or(w >> (FROM - TO), mask, into);
    return and_or(w << (TO > FROM ? TO - FROM : 0), mask, into);
}

// Codes of row g (R = 0) or g + 8 (1) in step S as bytes of columns 2t, 8 + 2t, 2t + 1, 9 + 2t. Plain four-bit codes of row
// g + 8 come sixteenfold.
template <class L, int S, int R> __device__ __forceinline__ uint32_t code_bytes(const Codes<L>& codes) {
    if constexpr (L::LO == 8) {
        return codes.low[2 * S + R];
    } else if constexpr (L::TABLE) {
        return __byte_perm(iq4_values(codes.low[S]), iq4_values(codes.low[S] >> 16), R ? 0x7531 : 0x6420);
    } else {
        uint32_t a;
        if constexpr (L::LO == 4 && L::HI == 0) return codes.low[S] & (R ? 0xF0F0F0F0u : 0x0F0F0F0Fu);
        if constexpr (L::LO == 4) {
            a = (codes.low[S] >> (4 * R)) & 0x0F0F0F0Fu;
        } else {
            constexpr int from = 8 * (S % 2) + 2 * R;
            a = bits<from + 4, 8>(codes.low[S / 2], 0x03000300u, bits<from, 0>(codes.low[S / 2], 0x00030003u, 0));
        }
        if constexpr (L::HI == 2) {
            constexpr int from = 8 * (S % 2) + 2 * R, to = L::LO;
            a = bits<from + 4, to + 8>(codes.high[S / 2], 0x03000300u << to, bits<from, to>(codes.high[S / 2], 0x00030003u << to, a));
        } else if constexpr (L::HI == 1) {
            constexpr int from = 4 * S + R, to = L::LO;
            a = bits<from + 2, to + 8>(codes.high[0], 0x01000100u << to, bits<from, to>(codes.high[0], 0x00010001u << to, a));
        }
        return a;
    }
}
