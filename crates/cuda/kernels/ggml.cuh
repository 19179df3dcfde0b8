// The GGML block types as a GGUF file holds them: codes, scales and minimums of single elements. Only used where bytes are
// touched once, at load.
#pragma once

#include "packed.cuh"

template <Format F> struct Block {
    static constexpr bool LEGACY = !LayoutOf<F>::BLOCK_256;
    static constexpr int LEN = LEGACY ? 32 : 256;
    static constexpr int BYTES = F == Format::Q4_0 || F == Format::IQ4_NL ? 18
                               : F == Format::Q4_1                        ? 20
                               : F == Format::Q5_0                        ? 22
                               : F == Format::Q5_1                        ? 24
                               : F == Format::Q8_0                        ? 34
                               : F == Format::Q2_K                        ? 84
                               : F == Format::Q3_K                        ? 110
                               : F == Format::Q4_K                        ? 144
                               : F == Format::Q5_K                        ? 176
                               : F == Format::Q6_K                        ? 210
                                                                          : 136;
    const uint8_t* at;

    // Of element `i` of the block. Q8_0: the signed byte.
    __device__ uint32_t code(int i) const {
        if constexpr (F == Format::Q8_0) {
            return at[2 + i];
        } else if constexpr (LEGACY) {
            constexpr bool five = F == Format::Q5_0 || F == Format::Q5_1;
            constexpr int high = F == Format::Q5_1 || F == Format::Q4_1 ? 4 : 2, low = high + (five ? 4 : 0);
            const uint32_t q = (at[low + i % 16] >> (4 * (i / 16))) & 15;
            return five ? q | ((at[high + i / 8] >> (i % 8)) & 1) << 4 : q;
        } else if constexpr (F == Format::Q4_K || F == Format::Q5_K) {
            constexpr int low = F == Format::Q5_K ? 48 : 16;
            const uint32_t q = (at[low + i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2))) & 15;
            return F == Format::Q5_K ? q | ((at[16 + i % 32] >> (i / 32)) & 1) << 4 : q;
        } else if constexpr (F == Format::Q6_K) {
            const int h = i / 128, s = i / 32 % 4, l = i % 32;
            return ((at[64 * h + 32 * (s % 2) + l] >> (4 * (s / 2))) & 15) | ((at[128 + 32 * h + l] >> (2 * s)) & 3) << 4;
        } else if constexpr (F == Format::IQ4_XS) {
            return (at[8 + i / 32 * 16 + i % 16] >> (4 * (i / 16 % 2))) & 15;
        } else {
            constexpr int low = F == Format::Q2_K ? 16 : 32;
            const uint32_t q = (at[low + 32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4))) & 3;
            return F == Format::Q3_K ? q | ((at[i % 32] >> (i / 32)) & 1) << 2 : q;
        }
    }

    // Bits of the f16 d, or of dmin or m.
    __device__ uint32_t d() const {
        constexpr int from = F == Format::Q2_K ? 80 : F == Format::Q3_K ? 108 : F == Format::Q6_K ? 208 : 0;
        return at[from] | at[from + 1] << 8;
    }
    __device__ uint32_t dmin() const {
        constexpr int from = F == Format::Q2_K ? 82 : 2;
        return at[from] | at[from + 1] << 8;
    }

    // Scale of sub-block `j` of a 256-element type as LayoutOf<F> has it: a signed byte; or s, and m above it.
    __device__ uint32_t scale(int j) const {
        if constexpr (F == Format::Q2_K) {
            return at[j];
        } else if constexpr (F == Format::Q3_K) {
            const uint32_t s = ((at[96 + j % 8] >> (4 * (j / 8))) & 15) | ((at[104 + j % 4] >> (2 * (j / 4))) & 3) << 4;
            return (s - 32) & 0xFF;
        } else if constexpr (F == Format::Q4_K || F == Format::Q5_K) {
            const uint8_t* b = at + 4;
            if (j < 4) return (b[j] & 63) | (b[j + 4] & 63) << 8;
            return (b[j + 4] & 15) | (b[j - 4] >> 6) << 4 | ((b[j + 4] >> 4) | (b[j] >> 6) << 4) << 8;
        } else if constexpr (F == Format::Q6_K) {
            return at[192 + j];
        } else {
            const uint32_t s = ((at[4 + j / 2] >> (4 * (j % 2))) & 15) | (((at[2] | at[3] << 8) >> (2 * j)) & 3) << 4;
            return (s - 32) & 0xFF;
        }
    }
};
