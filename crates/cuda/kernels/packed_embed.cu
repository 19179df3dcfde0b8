// out[t] = table[ids[t]] · scale, from a table in the tiles of packed.cuh. A thread makes one element. Bound by latency.

#include "packed.cuh"

struct PackedEmbedParams {
    const int* ids;         // [tokens] i32; -1 - n: drawn[n]; else outside of 0..rows: row 0
    const int* drawn;       // [drawn_rows] i32 or null
    const uint8_t* tiles;   // tiles of packed.cuh
    void* out;              // [tokens, cols] bf16 or f32, rows out_stride apart
    uint32_t rows, cols, k_tiles;
    uint32_t out_stride;
    uint32_t format;        // Format
    uint32_t drawn_rows;
    float scale;
};

__device__ __forceinline__ float f16_at(const uint8_t* at, int index) {
    return __half2float(__ushort_as_half(reinterpret_cast<const unsigned short*>(at)[index]));
}

// Element (row, col) of a tile; `super` is what stands in front of its chunk.
template <class L> __device__ __forceinline__ float element(const uint8_t* tile, const uint8_t* super, uint32_t row, uint32_t col) {
    const uint32_t pair = row % 8, second = row / 8, lane = pair * 4 + col % 8 / 2;
    const uint32_t s = col / 16, i = second + col / 8 % 2 * 2, e = col % 2;
    const uint32_t* low = reinterpret_cast<const uint32_t*>(tile);
    const uint32_t* high = low + L::LO_BYTES / 4;
    uint32_t q;
    if constexpr (L::LO == 8) {
        q = low[s / 2 * 128 + lane * 4 + 2 * (s % 2) + i % 2] >> (8 * (i / 2) + 16 * e) & 255;
    } else if constexpr (L::LO == 4) {
        q = low[lane * 4 + s] >> (4 * i + 16 * e) & 15;
    } else {
        q = low[lane * 2 + s / 2] >> (8 * (s % 2) + 2 * i + 16 * e) & 3;
    }
    if constexpr (L::HI == 2) q |= (high[lane * 2 + s / 2] >> (8 * (s % 2) + 2 * i + 16 * e) & 3) << L::LO;
    if constexpr (L::HI == 1) q |= (high[lane] >> (4 * s + i + 16 * e) & 1) << L::LO;
    float v = float(int(q) - L::BIAS);
    if constexpr (L::LO == 8) v = float(int8_t(q));
    if constexpr (L::TABLE) v = float(int8_t(iq4_values(q)));

    const uint8_t* scales = tile + L::LO_BYTES + L::HI_BYTES + pair * L::PAIR;
    const uint32_t group = col / L::GROUP;
    if constexpr (L::KIND == Scales::D) return f16_at(scales, group * 2 + second) * v;
    if constexpr (L::KIND == Scales::DM) return f16_at(scales, group * 4 + second) * v + f16_at(scales, group * 4 + 2 + second);
    const float d = f16_at(super, pair * (L::HAS_MIN ? 4 : 2) + second);
    if constexpr (L::KIND == Scales::I8) return d * float(int8_t(scales[group * 2 + second])) * v;
    const float dmin = f16_at(super, pair * 4 + 2 + second);
    if constexpr (L::KIND == Scales::U8x2) {
        return d * float(scales[group * 4 + second * 2]) * v - dmin * float(scales[group * 4 + second * 2 + 1]);
    } else {
        return d * float(scales[group * 2 + second] & 15) * v - dmin * float(scales[group * 2 + second] >> 4);
    }
}

template <Format F> __device__ __forceinline__ float look_up(const PackedEmbedParams& p, uint32_t row, uint32_t col) {
    using L = LayoutOf<F>;
    const uint32_t chunks = (p.k_tiles + CHUNK_TILES - 1) / CHUNK_TILES, k_tile = col / TILE_COLS;
    const size_t row_tile_bytes = size_t(p.k_tiles) * L::TILE + chunks * L::SUPER;
    const uint8_t* chunk = p.tiles + row / TILE_ROWS * row_tile_bytes + size_t(k_tile / CHUNK_TILES) * L::CHUNK;
    return element<L>(chunk + L::SUPER + k_tile % CHUNK_TILES * L::TILE, chunk, row % TILE_ROWS, col % TILE_COLS);
}

template <class T> __device__ __forceinline__ void packed_embed(const PackedEmbedParams& p) {
    const uint32_t col = blockIdx.x * blockDim.x + threadIdx.x;
    pdl_wait();
    pdl_launch();
    if (col >= p.cols) return;
    uint32_t id = p.ids[blockIdx.y];
    // −1 − n is the complement of n, and too large for a row.
    if (~id < p.drawn_rows) id = p.drawn[~id];
    const uint32_t row = id < p.rows ? id : 0;
    float v = 0.0f;
    switch (static_cast<Format>(p.format)) {
        case Format::Q4_0: v = look_up<Format::Q4_0>(p, row, col); break;
        case Format::Q4_1: v = look_up<Format::Q4_1>(p, row, col); break;
        case Format::Q5_0: v = look_up<Format::Q5_0>(p, row, col); break;
        case Format::Q5_1: v = look_up<Format::Q5_1>(p, row, col); break;
        case Format::Q8_0: v = look_up<Format::Q8_0>(p, row, col); break;
        case Format::Q2_K: v = look_up<Format::Q2_K>(p, row, col); break;
        case Format::Q3_K: v = look_up<Format::Q3_K>(p, row, col); break;
        case Format::Q4_K: v = look_up<Format::Q4_K>(p, row, col); break;
        case Format::Q5_K: v = look_up<Format::Q5_K>(p, row, col); break;
        case Format::Q6_K: v = look_up<Format::Q6_K>(p, row, col); break;
        case Format::IQ4_NL: v = look_up<Format::IQ4_NL>(p, row, col); break;
        case Format::IQ4_XS: v = look_up<Format::IQ4_XS>(p, row, col); break;
    }
    static_cast<T*>(p.out)[size_t(blockIdx.y) * p.out_stride + col] = from_f32<T>(v * p.scale);
}

FOR_EACH_FLOAT(packed_embed, PackedEmbedParams, 256)
