// GGML blocks, row by row as in the file, into the tiles of packed.cuh: once, at load. A warp makes one tile.
// Bound by the upload in front of it (55 GB/s), not by its byte-wise reads.

#include "ggml.cuh"

struct PackedRepackParams {
    const uint8_t* blocks;   // [rows, cols / Block::LEN] blocks
    uint8_t* tiles;          // [ceil(rows / 16), k_tiles] tiles, with SUPER bytes in front of every fourth
    uint32_t rows, cols, k_tiles;
};

template <Format F> __device__ __forceinline__ void packed_repack(const PackedRepackParams& p) {
    using L = LayoutOf<F>;
    using B = Block<F>;
    pdl_wait();
    const uint32_t lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const uint32_t row_tiles = (p.rows + TILE_ROWS - 1) / TILE_ROWS, chunks = (p.k_tiles + CHUNK_TILES - 1) / CHUNK_TILES;
    const size_t row_bytes = size_t(p.cols / B::LEN) * B::BYTES, row_tile_bytes = size_t(p.k_tiles) * L::TILE + chunks * L::SUPER;
    auto block = [&](uint32_t row, uint32_t col) { return B{p.blocks + row * row_bytes + size_t(col / B::LEN) * B::BYTES}; };
    for (size_t n = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) / WARP; n < size_t(row_tiles) * p.k_tiles;
         n += size_t(gridDim.x) * blockDim.x / WARP) {
        const uint32_t row = uint32_t(n / p.k_tiles) * TILE_ROWS, k_tile = n % p.k_tiles, chunk = k_tile / CHUNK_TILES;
        uint8_t* at = p.tiles + row / TILE_ROWS * row_tile_bytes + size_t(chunk) * L::CHUNK;
        const uint32_t col = k_tile * TILE_COLS;
        if constexpr (L::BLOCK_256) {
            // Lane: row pair, then d or dmin, then row.
            constexpr uint32_t values = L::SUPER / 2;
            if (k_tile % CHUNK_TILES == 0 && lane < values) {
                constexpr uint32_t each = values / 8;
                const uint32_t pair = lane / each, r = row + pair + lane % 2 * 8;
                const uint32_t v = r >= p.rows ? 0 : lane % each / 2 ? block(r, col).dmin() : block(r, col).d();
                reinterpret_cast<uint16_t*>(at)[lane] = uint16_t(v);
            }
        }
        at += L::SUPER + k_tile % CHUNK_TILES * L::TILE;

        uint32_t low[L::LO] = {}, high[L::HI ? L::HI : 1] = {};
#pragma unroll
        for (int s = 0; s < 4; s++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const uint32_t r = row + g + i % 2 * 8, c = col + 16 * s + i / 2 * 8 + 2 * t + e;
                    const uint32_t q = r < p.rows && c < p.cols ? block(r, c).code(c % B::LEN) : 0;
                    if constexpr (L::LO == 8) low[2 * s + i % 2] |= q << (8 * (i / 2) + 16 * e);
                    if constexpr (L::LO == 4) low[s] |= (q & 15) << (4 * i + 16 * e);
                    if constexpr (L::LO == 2) low[s / 2] |= (q & 3) << (8 * (s % 2) + 2 * i + 16 * e);
                    if constexpr (L::HI == 2) high[s / 2] |= (q >> L::LO) << (8 * (s % 2) + 2 * i + 16 * e);
                    if constexpr (L::HI == 1) high[0] |= (q >> L::LO) << (4 * s + i + 16 * e);
                }
            }
        }
        uint32_t* out = reinterpret_cast<uint32_t*>(at);
        constexpr int LANE = L::LO == 2 ? 2 : 4;
#pragma unroll
        for (int w = 0; w < L::LO; w++) out[w / LANE * WARP * LANE + lane * LANE + w % LANE] = low[w];
        out += L::LO_BYTES / 4;
        if constexpr (L::HI > 0) {
#pragma unroll
            for (int w = 0; w < L::HI; w++) out[lane * L::HI + w] = high[w];
            out += L::HI_BYTES / 4;
        }
        // Scales: lane by (row pair, group, row).
        for (uint32_t n = lane; n < 8 * L::GROUPS * 2; n += WARP) {
            const uint32_t pair = n / (L::GROUPS * 2), group = n / 2 % L::GROUPS, second = n % 2;
            const uint32_t r = row + pair + second * 8, c = col + group * L::GROUP;
            const bool inside = r < p.rows && c < p.cols;
            uint8_t* pair_at = reinterpret_cast<uint8_t*>(out) + pair * L::PAIR;
            if constexpr (L::KIND == Scales::D) {
                reinterpret_cast<uint16_t*>(pair_at)[group * 2 + second] = inside ? uint16_t(block(r, c).d()) : 0;
            } else if constexpr (L::KIND == Scales::DM) {
                reinterpret_cast<uint16_t*>(pair_at)[group * 4 + second] = inside ? uint16_t(block(r, c).d()) : 0;
                reinterpret_cast<uint16_t*>(pair_at)[group * 4 + 2 + second] = inside ? uint16_t(block(r, c).dmin()) : 0;
            } else {
                const uint32_t v = inside ? block(r, c).scale(c % B::LEN / L::GROUP) : 0;
                if constexpr (L::KIND == Scales::U8x2) {
                    reinterpret_cast<uint16_t*>(pair_at)[group * 2 + second] = uint16_t(v);
                } else {
                    pair_at[group * 2 + second] = uint8_t(v);
                }
            }
        }
    }
}

#define PACKED_REPACK(name, format) \
    extern "C" __global__ __launch_bounds__(256) void packed_repack_##name(const __grid_constant__ PackedRepackParams p) { packed_repack<Format::format>(p); }

PACKED_REPACK(q4_0, Q4_0)
PACKED_REPACK(q4_1, Q4_1)
PACKED_REPACK(q5_0, Q5_0)
PACKED_REPACK(q5_1, Q5_1)
PACKED_REPACK(q8_0, Q8_0)
PACKED_REPACK(q2_k, Q2_K)
PACKED_REPACK(q3_k, Q3_K)
PACKED_REPACK(q4_k, Q4_K)
PACKED_REPACK(q5_k, Q5_K)
PACKED_REPACK(q6_k, Q6_K)
PACKED_REPACK(iq4_nl, IQ4_NL)
PACKED_REPACK(iq4_xs, IQ4_XS)
