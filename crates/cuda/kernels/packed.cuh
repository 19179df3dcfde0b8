// Packed block weights in the layout that every packed kernel reads, and how its bits become numbers.
//
// A weight [rows, cols] of one block type is cut into tiles of 16 rows × 64 columns. A tile holds, in this order,
//   low   bits 0..LO of each code:      512·LO/4 bytes, ordered by lane (LO = 8: two planes of 16 bytes a lane)
//   high  bits LO..LO+HI of each code:  128·HI bytes, ordered by lane
//   scale SCALE bytes, ordered by row pair (g, g + 8)
// Lane 4g + t of a warp owns the codes that it feeds to the tensor cores as the A operand (16×16, bf16) of four products:
// in step s = 0..4, register i = 0..4 holds row g + 8(i % 2), columns 16s + 8(i / 2) + 2t + {0, 1}. Registers of A in
// `mma.m16n8k16` and, per warp, in `wgmma.m64nNk16` are the same, so one layout serves both, and columns keep their order.
//   LO = 4: word s of the lane's uint4; code e of register i at bits 4i + 16e
//   LO = 2: word s / 2 of a uint2; code e of register i at bits 8(s % 2) + 2i + 16e
//   LO = 8: word 2(s % 2) + i % 2 of plane s / 2; code e of register i at bits 8(i / 2) + 16e
//   HI = 2: as LO = 2.   HI = 1: one word; bit 4s + i + 16e
// Tiles are ordered by row tile, then by column; the four tiles of 256 columns are a chunk. Block types of 256 elements put
// SUPER bytes in front of each chunk: d (and dmin) of rows g and g + 8 as f16, ordered by g. Sub-block scales are widened to
// a byte each, otherwise bytes are as many as in the file: Q4_K +2.8 %, Q5_K +2.3 %, Q3_K +3.6 %, IQ4_XS +1.5 %.
// Rows are padded to 16 and columns to 64 with scales of zero.
#pragma once

#include "common.cuh"

constexpr int TILE_ROWS = 16;
constexpr int TILE_COLS = 64;
constexpr int CHUNK_TILES = 4;
constexpr int CHUNK_COLS = TILE_COLS * CHUNK_TILES;

// In the order of the launcher's table.
enum class Format : uint32_t { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS };

// Where the scales of a tile come from. Per row pair g: rows g and g + 8 side by side, for each group.
enum class Scales {
    D,       // f16 d:                     [group][row]
    DM,      // f16 d, then f16 m:         [group][d, m][row]
    I8,      // i8 s; w = d·s·(q − BIAS):  [group][row], d in front of the chunk
    U8x2,    // u8 s, u8 m:                [group][row][s, m], d and dmin in front of the chunk
    U4x2,    // low half s, high half m:   [group][row], d and dmin in front of the chunk
};

// LO, HI: bits of a code. GROUP: columns that share a scale. BIAS: the code that stands for zero. TABLE: codes index
// `IQ4_VALUES`.
template <int LO_, int HI_, int GROUP_, int BIAS_, Scales KIND_, bool TABLE_ = false> struct Layout {
    static constexpr int LO = LO_, HI = HI_, GROUP = GROUP_, BIAS = BIAS_;
    static constexpr Scales KIND = KIND_;
    static constexpr bool TABLE = TABLE_;
    static constexpr int GROUPS = TILE_COLS / GROUP;
    static constexpr int STEPS = GROUP / 16;   // products that share a scale
    static constexpr bool BLOCK_256 = KIND == Scales::I8 || KIND == Scales::U8x2 || KIND == Scales::U4x2;
    static constexpr bool HAS_MIN = KIND == Scales::DM || KIND == Scales::U8x2 || KIND == Scales::U4x2;
    // Bytes of scales of one row pair.
    static constexpr int PAIR = GROUPS * (KIND == Scales::D || KIND == Scales::U8x2 ? 4 : KIND == Scales::DM ? 8 : 2);
    static constexpr int LO_BYTES = LO * 128, HI_BYTES = HI * 128, SCALE_BYTES = 8 * PAIR;
    static constexpr int TILE = LO_BYTES + HI_BYTES + SCALE_BYTES;
    static constexpr int SUPER = !BLOCK_256 ? 0 : HAS_MIN ? 64 : 32;
    static constexpr int CHUNK = SUPER + CHUNK_TILES * TILE;
    // What `codes` subtracts is zero for these: the bias goes to the activation sums instead.
    static constexpr bool RAW = LO != 8 && !TABLE && (GROUP == 32 || HAS_MIN);
    static_assert(TILE % 16 == 0 && SUPER % 16 == 0, "bulk copies move 16-byte pieces");
};

template <Format F> struct LayoutOf;
template <> struct LayoutOf<Format::Q4_0> : Layout<4, 0, 32, 8, Scales::D> {};
template <> struct LayoutOf<Format::Q4_1> : Layout<4, 0, 32, 0, Scales::DM> {};
template <> struct LayoutOf<Format::Q5_0> : Layout<4, 1, 32, 16, Scales::D> {};
template <> struct LayoutOf<Format::Q5_1> : Layout<4, 1, 32, 0, Scales::DM> {};
template <> struct LayoutOf<Format::Q8_0> : Layout<8, 0, 32, 0, Scales::D> {};
template <> struct LayoutOf<Format::Q2_K> : Layout<2, 0, 16, 0, Scales::U4x2> {};
template <> struct LayoutOf<Format::Q3_K> : Layout<2, 1, 16, 4, Scales::I8> {};
template <> struct LayoutOf<Format::Q4_K> : Layout<4, 0, 32, 0, Scales::U8x2> {};
template <> struct LayoutOf<Format::Q5_K> : Layout<4, 1, 32, 0, Scales::U8x2> {};
template <> struct LayoutOf<Format::Q6_K> : Layout<4, 2, 16, 32, Scales::I8> {};
template <> struct LayoutOf<Format::IQ4_NL> : Layout<4, 0, 32, 0, Scales::D, true> {};
template <> struct LayoutOf<Format::IQ4_XS> : Layout<4, 0, 32, 0, Scales::I8, true> {};

// (a & mask) | bits in one instruction.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t mask, uint32_t bits) {
    uint32_t out;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(a), "r"(mask), "r"(bits));
    return out;
}

// bf16x2 a·b + c, rounded once.
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t out;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
}

constexpr uint32_t BF16X2_ONE = 0x3F803F80u;
constexpr uint32_t BF16X2_128 = 0x43004300u;

// bf16 pattern of −n in both halves, for the n that biases need: exact.
__host__ __device__ constexpr uint32_t bf16x2_minus(int n) {
    // 128 ≤ n < 256: exponent 7, seven bits of mantissa.
    return (0xC300u | uint32_t(n - 128)) * 0x10001u;
}

__device__ __forceinline__ uint4 lds128(uint32_t at) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
    return v;
}
__device__ __forceinline__ uint2 lds64(uint32_t at) {
    uint2 v;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
    return v;
}
__device__ __forceinline__ uint32_t lds32(uint32_t at) {
    uint32_t v;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
}

// Four table values as bytes, for the codes in bits 0..16 of `codes`.
__device__ __forceinline__ uint32_t iq4_values(uint32_t codes) {
    // IQ4_VALUES, four signed bytes a word.
    constexpr uint32_t T0 = 0xBFAD9881u, T1 = 0xF6EADDCFu, T2 = 0x26190D01u, T3 = 0x71594535u;
    const uint32_t low = __byte_perm(T0, T1, codes & 0x7777u);
    const uint32_t high = __byte_perm(T2, T3, codes & 0x7777u);
    return __byte_perm(low, high, and_or(codes >> 1, 0x4444u, 0x3210u));
}

// Signed bytes at bits 0 and 16 as bf16x2: 128 + low seven bits, minus 128 or 256.
__device__ __forceinline__ uint32_t signed_bytes(uint32_t w) {
    return fma_bf16x2(and_or(w, 0x007F007Fu, BF16X2_128), BF16X2_ONE, and_or(w, 0x00800080u, 0xC300C300u));
}

// The codes of one lane and tile.
template <class L> struct Codes {
    uint32_t low[L::LO], high[L::HI ? L::HI : 1];

    // `at`: the tile in shared memory.
    __device__ __forceinline__ void load(uint32_t at, int lane) {
        if constexpr (L::LO == 8) {
            const uint4 a = lds128(at + lane * 16), b = lds128(at + 512 + lane * 16);
            low[0] = a.x, low[1] = a.y, low[2] = a.z, low[3] = a.w, low[4] = b.x, low[5] = b.y, low[6] = b.z, low[7] = b.w;
        } else if constexpr (L::LO == 4) {
            const uint4 a = lds128(at + lane * 16);
            low[0] = a.x, low[1] = a.y, low[2] = a.z, low[3] = a.w;
        } else {
            const uint2 a = lds64(at + lane * 8);
            low[0] = a.x, low[1] = a.y;
        }
        if constexpr (L::HI == 2) {
            const uint2 a = lds64(at + L::LO_BYTES + lane * 8);
            high[0] = a.x, high[1] = a.y;
        } else if constexpr (L::HI == 1) {
            high[0] = lds32(at + L::LO_BYTES + lane * 4);
        }
    }

    // The A operand of step `s` as integers in bf16: exact. With L::RAW they are 128 + code, else code − BIAS or the table's
    // value.
    template <bool RAW> __device__ __forceinline__ void unpack(int s, uint32_t (&a)[4]) const {
        if constexpr (L::LO == 8) {
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = signed_bytes(low[2 * s + i % 2] >> (8 * (i / 2)));
        } else if constexpr (L::TABLE) {
            // Bits 4i are code 0 of register i, bits 16 + 4i code 1.
            const uint32_t first = iq4_values(low[s]), second = iq4_values(low[s] >> 16);
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = signed_bytes(__byte_perm(first, second, i | (4 + i) << 8));
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if constexpr (L::LO == 4) {
                    a[i] = and_or(low[s] >> (4 * i), 0x000F000Fu, BF16X2_128);
                } else {
                    a[i] = and_or(low[s / 2] >> (8 * (s % 2) + 2 * i), 0x00030003u, BF16X2_128);
                }
                if constexpr (L::HI == 2) {
                    const int from = 8 * (s % 2) + 2 * i, to = L::LO;
                    const uint32_t h = from > to ? high[s / 2] >> (from > to ? from - to : 0) : high[s / 2] << (from > to ? 0 : to - from);
                    a[i] = and_or(h, 0x00030003u << to, a[i]);
                } else if constexpr (L::HI == 1) {
                    const int from = 4 * s + i, to = L::LO;
                    const uint32_t h = from > to ? high[0] >> (from > to ? from - to : 0) : high[0] << (from > to ? 0 : to - from);
                    a[i] = and_or(h, 0x00010001u << to, a[i]);
                }
                if constexpr (!RAW) a[i] = fma_bf16x2(a[i], BF16X2_ONE, bf16x2_minus(128 + L::BIAS));
            }
        }
    }
};

// d and dmin of a lane's two rows, for a chunk of a 256-element block type.
template <class L> struct Super {
    float d[2], dmin[2];

    __device__ __forceinline__ void load(uint32_t at, int lane) {
        if constexpr (L::BLOCK_256) {
            const int g = lane / 4;
            const uint2 v = L::HAS_MIN ? lds64(at + g * 8) : make_uint2(lds32(at + g * 4), 0);
            const float2 s = __half22float2(reinterpret_cast<const __half2&>(v.x));
            d[0] = s.x, d[1] = s.y;
            if constexpr (L::HAS_MIN) {
                const float2 m = __half22float2(reinterpret_cast<const __half2&>(v.y));
                dmin[0] = m.x, dmin[1] = m.y;
            }
        }
    }
};

// byte·scale for byte `i` of `w`, exact: 2¹⁵ + byte as a float, times scale, minus 2¹⁵·scale.
__device__ __forceinline__ float scaled_byte(uint32_t w, int i, float scale) {
    const float v = __uint_as_float(__byte_perm(w, 0x47000000u, 0x7404u | (i << 4)));
    return fmaf(v, scale, -32768.0f * scale);
}

// Scale and minimum of a lane's two rows for each group of a tile: w = scale·q + offset, q as in `Codes::unpack<false>`.
template <class L> struct Scale {
    uint32_t w[L::PAIR / 4];

    __device__ __forceinline__ void load(uint32_t tile, int lane) {
        const uint32_t at = tile + L::LO_BYTES + L::HI_BYTES + (lane / 4) * L::PAIR;
        if constexpr (L::PAIR == 16) {
            const uint4 v = lds128(at);
            w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
        } else if constexpr (L::PAIR == 8) {
            const uint2 v = lds64(at);
            w[0] = v.x, w[1] = v.y;
        } else {
            w[0] = lds32(at);
        }
    }

    // Of rows g (0) and g + 8 (1).
    __device__ __forceinline__ void get(const Super<L>& super, int group, float (&scale)[2], float (&offset)[2]) const {
        if constexpr (L::KIND == Scales::D || L::KIND == Scales::DM) {
            constexpr int step = L::KIND == Scales::D ? 1 : 2;
            const float2 d = __half22float2(reinterpret_cast<const __half2&>(w[group * step]));
            scale[0] = d.x, scale[1] = d.y;
            if constexpr (L::KIND == Scales::DM) {
                const float2 m = __half22float2(reinterpret_cast<const __half2&>(w[group * step + 1]));
                offset[0] = m.x, offset[1] = m.y;
            } else {
                offset[0] = offset[1] = 0.0f;
            }
        } else if constexpr (L::KIND == Scales::U8x2) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                scale[r] = scaled_byte(w[group], 2 * r, super.d[r]);
                offset[r] = scaled_byte(w[group], 2 * r + 1, -super.dmin[r]);
            }
        } else {
            // Two bytes a group: rows g and g + 8.
            const uint32_t v = w[group / 2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int byte = 2 * (group % 2) + r;
                if constexpr (L::KIND == Scales::I8) {
                    // Flipping the sign bit makes s + 128 of s; 2¹⁵ + 128 has nine bits, so that all of this is exact.
                    const float biased = __uint_as_float(__byte_perm(v ^ 0x80808080u, 0x47000000u, 0x7404u | (byte << 4)));
                    scale[r] = fmaf(biased, super.d[r], -32896.0f * super.d[r]);
                    offset[r] = 0.0f;
                } else {
                    scale[r] = scaled_byte(v & 0x0F0F0F0Fu, byte, super.d[r]);
                    offset[r] = scaled_byte((v >> 4) & 0x0F0F0F0Fu, byte, -super.dmin[r]);
                }
            }
        }
    }
};

enum Epilogue : uint32_t { STORE, ADD, SILU_MUL, GELU_MUL };

__device__ __forceinline__ float activate(float x, uint32_t epilogue) {
    if (epilogue == GELU_MUL) {
        // 0.5 · (1 + tanh y) = 1 − 1 / (e²ʸ + 1)
        const float y = 0.7978845608f * fmaf(0.044715f * x * x, x, x);
        return x - x / (__expf(2.0f * y) + 1.0f);
    }
    return x / (1.0f + __expf(-x));
}
