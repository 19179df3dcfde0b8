// Dense linear by wgmma, weights and x both BF16 or both F16: tokens on the M side (tiles of 64·k), weight rows on the N side.
#pragma once
#include <type_traits>

#include "async.cuh"
#include "hopper.cuh"
#include "linear_dense.cuh"
#include "sm90.cuh"

namespace linear_dense {

struct LinearWgmmaParams {
    CUtensorMap weight;  // [rows, cols] row-major; box 64 columns × ROWS / max(2, CT) rows, 128-byte swizzle
    CUtensorMap x;       // [tokens, cols]; box 64 columns × x_box rows, 128-byte swizzle
    Output output;
    int cols;
    int band;                // token groups that go over the weight together, so that their x stays in L2
    int x_box;               // tokens of one copy: TOKENS / CR; fewer where CR is 1 and there are fewer
    int stages;              // 2 to STAGES: fewer leave memory for CTAs of the next kernel
    uint64_t weight_policy;  // L2 eviction policy of the weights
};

template <int TOKENS, int ROWS, int WARPGROUPS, int CT, int CR, int SK, int CHUNKS, int STAGES>
struct WgmmaTile {
    static constexpr int SPAN = 64;                                // columns of a copy: one 128-byte swizzle span
    static constexpr int K = SPAN * CHUNKS;                        // columns of a stage
    static constexpr int M_TILES = TOKENS / 64 / WARPGROUPS;       // per warpgroup
    static constexpr int CLUSTER = CT * CR * SK;
    static constexpr int W_BOX = ROWS / (CT > 2 ? CT : 2);         // weight rows of one copy; gated: never gates and ups
    static constexpr int X_BYTES = TOKENS * K * 2;
    static constexpr int STAGE_BYTES = X_BYTES + ROWS * K * 2;
    static constexpr int ACC = ROWS / 2;                           // registers of one m64 tile
    static constexpr int SHARE = ROWS / SK;                        // rows of which a CTA adds up and stores the K parts
    static constexpr int PARTS = (SK - 1) * TOKENS * SHARE * 4;    // bytes of what the other CTAs send for them
    static constexpr int THREADS = WARPGROUPS * 128 + 32;
    static_assert(TOKENS % (64 * WARPGROUPS) == 0 && M_TILES >= 1, "a warpgroup owns whole m64 tiles");
    static_assert(W_BOX % 8 == 0 && TOKENS / CR % 8 == 0, "boxes start on a swizzle atom of 8 rows");
    static_assert(M_TILES * ACC <= 128, "accumulators must leave registers for addresses");
    static_assert(SK == 1 || (M_TILES == 1 && SHARE % 8 == 0), "a share is whole groups of columns of one m64 tile");
    static_assert(CLUSTER <= 8, "portable cluster size");
};

// T: the element type of weights and x.
template <class T, int TOKENS, int ROWS, int WARPGROUPS, int CT, int CR, int SK, int CHUNKS, int STAGES>
__device__ __forceinline__ void linear_wgmma(const LinearWgmmaParams& p) {
    using namespace hopper;
    constexpr uint32_t UNUSED = 16;  // the distance between blocks of columns, of which a stage has one
    using Tile = WgmmaTile<TOKENS, ROWS, WARPGROUPS, CT, CR, SK, CHUNKS, STAGES>;
    extern __shared__ uint8_t smem_raw[];
    __shared__ alignas(8) uint64_t full_bars[STAGES], empty_bars[STAGES], parts_bar;
    const uint32_t smem = (smem_u32(smem_raw) + 1023) & ~1023u;
    const uint32_t full = smem_u32(full_bars), empty = smem_u32(empty_bars);
    const int stages = p.stages;
    const uint32_t parts = smem + stages * Tile::STAGE_BYTES, parts_full = smem_u32(&parts_bar);

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int rank = Tile::CLUSTER == 1 ? 0 : blockIdx.x % Tile::CLUSTER;
    const int ct = rank % CT, cr = rank / CT % CR, sk = rank / (CT * CR);
    const int clusters = gridDim.x / Tile::CLUSTER;
    const Output& o = p.output;
    const bool gated = is_gated(o.epilogue);
    const int tile_columns = gated ? ROWS / 2 : ROWS;
    const int token_groups = (o.tokens + TOKENS * CT - 1) / (TOKENS * CT);
    const int row_groups = (o.columns + tile_columns * CR - 1) / (tile_columns * CR);
    const int tiles = token_groups * row_groups;
    // Tiles go by bands of token groups; in a band by row groups, and in those by its token groups.
    auto place_of = [&](int tile, int& row_group, int& token_group) {
        const int first = tile / (p.band * row_groups) * p.band, width = min(p.band, token_groups - first);
        tile -= first * row_groups;
        row_group = tile / width, token_group = first + tile - row_group * width;
    };
    const int k_all = (p.cols + Tile::K - 1) / Tile::K;
    const int k_begin = k_all * sk / SK, k_steps = k_all * (sk + 1) / SK - k_begin;

    if (threadIdx.x == 0) {
        for (int s = 0; s < stages; s++) {
            mbar_init(full + 8 * s, 1);
            mbar_init(empty + 8 * s, WARPGROUPS * (CT + CR - 1));
        }
        if (SK > 1) mbar_init(parts_full, 1);
        mbar_fence_init();
        if (SK > 1) mbar_expect(parts_full, Tile::PARTS);
        prefetch_map(&p.weight);
        prefetch_map(&p.x);
    }
    if (Tile::CLUSTER > 1) hopper::cluster_sync(); else __syncthreads();

    if (warp == WARPGROUPS * 4) {  // producer
        if (elect_one()) {
            const uint16_t w_mask = ((1 << CT) - 1) << (rank - ct);
            uint16_t x_mask = 0;
#pragma unroll
            for (int r = 0; r < CR; r++) x_mask |= 1 << (sk * CT * CR + r * CT + ct);
            const int bytes = (CR * p.x_box + ROWS) * Tile::K * 2;
            const uint32_t w_dst = smem + Tile::X_BYTES + ct * Tile::W_BOX * Tile::SPAN * 2;
            const uint32_t x_dst = smem + cr * p.x_box * Tile::SPAN * 2;
            int y_weight = 0, y_second = 0, y_x = 0;  // first rows of the copies of a tile
            auto place = [&](int tile) {
                int row_group, token_group;
                place_of(tile, row_group, token_group);
                const int row = (row_group * CR + cr) * tile_columns + ct * Tile::W_BOX;
                const int to_ups = gated ? o.columns - ROWS / 2 : 0;
                y_weight = row + (ct * Tile::W_BOX >= ROWS / 2 ? to_ups : 0);
                y_second = row + Tile::W_BOX + to_ups;
                y_x = (token_group * CT + ct) * TOKENS + cr * p.x_box;
            };
            auto load_weight = [&](int column, int slot) {
                const uint32_t bar = full + 8 * slot;
#pragma unroll
                for (int c = 0; c < CHUNKS; c++, column += Tile::SPAN) {
                    const uint32_t dst = w_dst + slot * Tile::STAGE_BYTES + c * ROWS * Tile::SPAN * 2;
                    if (CT > 1) {
                        tensor_load_multicast(dst, &p.weight, column, y_weight, bar, w_mask, p.weight_policy);
                    } else {
                        tensor_load(dst, &p.weight, column, y_weight, bar, p.weight_policy);
                        tensor_load(dst + Tile::W_BOX * Tile::SPAN * 2, &p.weight, column, y_second, bar, p.weight_policy);
                    }
                }
            };
            auto load_x = [&](int column, int slot) {
                const uint32_t bar = full + 8 * slot;
#pragma unroll
                for (int c = 0; c < CHUNKS; c++, column += Tile::SPAN) {
                    const uint32_t dst = x_dst + slot * Tile::STAGE_BYTES + c * TOKENS * Tile::SPAN * 2;
                    if (CR > 1) tensor_load_multicast(dst, &p.x, column, y_x, bar, x_mask, EVICT_LAST);
                    else tensor_load(dst, &p.x, column, y_x, bar, EVICT_LAST);
                }
            };
            int tile = blockIdx.x / Tile::CLUSTER;
            const int begin = k_begin * Tile::K, end = (k_begin + k_steps) * Tile::K;
            const int ahead = tile < tiles ? min(k_steps, stages) : 0;
            place(tile);
            for (int k = 0; k < ahead; k++) {  // weights are constant: fetch them while the kernel before still runs
                mbar_expect(full + 8 * k, bytes);
                load_weight(begin + k * Tile::K, k);
            }
            pdl_wait();
            pdl_launch();
            for (int k = 0; k < ahead; k++) load_x(begin + k * Tile::K, k);
            int slot = ahead == stages ? 0 : ahead, parity = ahead == stages ? 0 : 1;  // of the release to wait for; 1: none
            int column = begin + ahead * Tile::K;
            while (tile < tiles) {
                for (; column < end; column += Tile::K) {
                    mbar_wait(empty + 8 * slot, parity);
                    mbar_expect(full + 8 * slot, bytes);
                    load_weight(column, slot);
                    load_x(column, slot);
                    if (++slot == stages) slot = 0, parity ^= 1;
                }
                column = begin;
                place(tile += clusters);
            }
        }
        __syncwarp();
    } else {  // consumers
        const int wg = warp / 4, t = threadIdx.x % 128;
        auto release = [&](int slot) {
            if (CT * CR == 1) {
                if (t == 0) mbar_arrive(empty + 8 * slot);
            } else if (t < CT + CR - 1) {  // every CTA that copies into this one
                int r = t - CT;
                int peer = t < CT ? rank - ct + t : sk * CT * CR + (r + (r >= cr)) * CT + ct;
                mbar_arrive_cluster(empty + 8 * slot, peer);
            }
        };
        pdl_wait();
        int slot = 0, phase = 0;
        for (int tile = blockIdx.x / Tile::CLUSTER; tile < tiles; tile += clusters) {
            float acc[Tile::M_TILES][Tile::ACC];
            int previous = -1;
            for (int k = 0; k < k_steps; k++) {
                mbar_wait(full + 8 * slot, phase);
                const uint32_t stage = smem + slot * Tile::STAGE_BYTES;
                const uint64_t b = sm90::tile_descriptor(stage + Tile::X_BYTES, UNUSED);
                sm90::mma_fence();
#pragma unroll
                for (int m = 0; m < Tile::M_TILES; m++) {
                    const uint64_t a = sm90::tile_descriptor(stage + (wg * Tile::M_TILES + m) * 64 * Tile::SPAN * 2, UNUSED);
#pragma unroll
                    for (int kk = 0; kk < Tile::K / 16; kk++) {
                        const int chunk = kk / 4 * Tile::SPAN * 2, at = kk % 4 * 32;
                        sm90::Mma<T>::mma(acc[m], sm90::tile_at(a, chunk * TOKENS + at), sm90::tile_at(b, chunk * ROWS + at), k > 0 || kk > 0);
                    }
                }
                sm90::mma_commit();
                sm90::mma_wait<1>();
                if (previous >= 0) release(previous);
                previous = slot;
                if (++slot == stages) slot = 0, phase ^= 1;
            }
            sm90::mma_wait<0>();
            if (SK == 1) release(previous);

            int row_group, token_group;
            place_of(tile, row_group, token_group);
            const int row0 = (row_group * CR + cr) * tile_columns, token0 = (token_group * CT + ct) * TOKENS;
            const auto emit = [&](auto width, int m, int row, float* values) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int token = token0 + (wg * Tile::M_TILES + m) * 64 + (t / 32) * 16 + h * 8 + lane / 4;
                    emit_row<decltype(width)::value>(o, token, token < o.tokens, row, lane % 4, values + 2 * h);
                }
            };
            if constexpr (SK == 1) {
#pragma unroll
                for (int m = 0; m < Tile::M_TILES; m++) emit(std::integral_constant<int, ROWS>(), m, row0, acc[m]);
            } else {  // one tile per cluster: a thread sends each share to the thread of its number in the CTA that stores it
                constexpr int GROUPS = Tile::SHARE / 8, PITCH = WARPGROUPS * 128 * 16;
                const uint32_t mine = parts + threadIdx.x * 16;
                float own[4 * GROUPS], sum[4 * GROUPS];
#pragma unroll
                for (int q = 0; q < SK; q++) {
                    const uint32_t cta = q * CT * CR + rank % (CT * CR);
                    const uint32_t at = in_cluster(mine + (sk - (sk > q)) * GROUPS * PITCH, cta), bar = in_cluster(parts_full, cta);
#pragma unroll
                    for (int j = 0; j < GROUPS; j++) {
                        const float* v = acc[0] + (q * GROUPS + j) * 4;
                        if (q != sk) cluster_store_async(at + j * PITCH, float4{v[0], v[1], v[2], v[3]}, bar);
                        else own[4 * j] = v[0], own[4 * j + 1] = v[1], own[4 * j + 2] = v[2], own[4 * j + 3] = v[3];
                    }
                }
                mbar_wait(parts_full, 0);
#pragma unroll
                for (int s = 0; s < SK; s++) {  // in the order of the columns, whoever adds
#pragma unroll
                    for (int j = 0; j < GROUPS; j++) {
                        float4 v = {own[4 * j], own[4 * j + 1], own[4 * j + 2], own[4 * j + 3]};
                        if (s != sk) v = load_shared_f32x4(mine + ((s - (s > sk)) * GROUPS + j) * PITCH);
                        const float part[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                        for (int i = 0; i < 4; i++) sum[4 * j + i] = s == 0 ? part[i] : sum[4 * j + i] + part[i];
                    }
                }
                emit(std::integral_constant<int, Tile::SHARE>(), 0, row0 + sk * Tile::SHARE, sum);
            }
        }
    }
    if (CT * CR > 1) hopper::cluster_sync();  // nobody leaves while copies or arrivals are on their way to it
}

}  // namespace linear_dense
