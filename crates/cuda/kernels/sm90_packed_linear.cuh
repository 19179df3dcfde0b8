// out (+)= x · wᵀ + bias, or act(gate) · up, for packed block weights and more than 16 tokens, on Hopper's tensor cores.
//
// The product is made as w · xᵀ: weight codes are read from shared memory in the order of wgmma's A operand in registers,
// become integers in bf16 and are scaled there, while x is B, brought by the tensor copy engine. A block owns 128 weight rows (two warpgroups of 64; gated: 64
// of the gate and the same 64 of up) × BN tokens; a third warpgroup's first warp keeps a ring of stages of 64 columns full.
// A warpgroup unpacks step k + 1 into other registers while its four products of step k run. The result goes through shared
// memory to rows of `out`. Blocks take tiles in turn, tokens first, so that what is read twice is read from L2.
//
// Bound by the tensor cores; H100, 2048 tokens, 2026-11-25, TFLOP/s of Q4_K and Q8_0 (cuBLASLt on BF16 weights: 780):
//   6144×4096 737, 741 · 4096×4096 725, 725 · 28672×4096 gated 692, 682 · 4096×14336 764, 762
// At 64 tokens an 8B's products of few rows leave most multiprocessors idle; dealing their columns to up to 8 blocks, whose sums
// `packed_combine` adds in order, takes a step from 10.2 to 6.0 ms in Q4_K_M and from 8.9 to 5.5 in Q8_0.
// 128 tokens a block: 470. Sharing x between two blocks of a cluster (multicast): no difference.
#pragma once

#include <cuda.h>

#include "async.cuh"
#include "mma.cuh"
#include "packed.cuh"
#include "sm90.cuh"
#include "wgmma_rs.cuh"

struct Sm90PackedLinearParams {
    CUtensorMap x;         // [tokens, cols] bf16, boxes of [BN, 64], swizzled by 128 bytes
    const uint8_t* data;   // tiles of packed.cuh
    const float* bias;     // [weight rows] f32, or null
    void* out;             // [tokens, columns] bf16 or f32, rows out_stride apart
    uint32_t tokens, columns;   // columns: weight rows; gated: half of them, a multiple of 16
    uint32_t k_tiles;      // ceil(cols / 64)
    uint32_t out_stride;
    uint32_t epilogue;     // Epilogue
    uint32_t out_f32;      // 1: out is f32; only STORE
    uint32_t splits;       // parts that the columns of x are dealt to
    float* partials;       // [splits, tokens, weight rows] f32 for packed_combine, or null: the result goes to `out`
};

// A tile as A operands of four products, scaled to bf16. Scale and minimum together are applied in f32 and rounded once: both
// rounded to bf16 first would be an NMSE of 4e-5. A scale alone is: 5e-6.
template <class L> __device__ __forceinline__ void dequantize(uint32_t (&a)[4][4], uint32_t at, const Super<L>& super, int lane) {
    Codes<L> codes;
    Scale<L> scales;
    codes.load(at, lane);
    scales.load(at, lane);
#pragma unroll
    for (int group = 0; group < L::GROUPS; group++) {
        float scale[2], offset[2];
        scales.get(super, group, scale, offset);
        if constexpr (L::HAS_MIN) {
            static_assert(L::RAW, "codes come as 128 + code");
#pragma unroll
            for (int r = 0; r < 2; r++) offset[r] = fmaf(scale[r], -128.0f, offset[r]);
        }
#pragma unroll
        for (int k = 0; k < L::STEPS; k++) {
            const int s = group * L::STEPS + k;
            codes.template unpack<L::HAS_MIN>(s, a[s]);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if constexpr (L::HAS_MIN) {
                    const float low = __uint_as_float(a[s][i] << 16), high = __uint_as_float(a[s][i] & 0xFFFF0000u);
                    a[s][i] = pack2<bf16>(fmaf(low, scale[i % 2], offset[i % 2]), fmaf(high, scale[i % 2], offset[i % 2]));
                } else {
                    a[s][i] = fma_bf16x2(a[s][i], pack2<bf16>(scale[i % 2], scale[i % 2]), 0x80008000u);   // + −0
                }
            }
        }
    }
}

// Shared memory of a stage: x [BN, 64], then eight row tiles of 16 rows, each with room for SUPER in front.
template <class L, int BN> struct Stage {
    static constexpr uint32_t X = BN * 128, TILE = L::SUPER + L::TILE, BYTES = X + (8 * TILE + 1023) / 1024 * 1024;
};

constexpr int CONSUMERS = 256;

// BN: tokens of a block.
template <Format F, int BN, int STAGES>
__device__ __forceinline__ void sm90_packed_linear(const Sm90PackedLinearParams& p) {
    using L = LayoutOf<F>;
    using S = Stage<L, BN>;
    const bool gated = p.epilogue >= SILU_MUL;
    const uint32_t out_rows = gated ? 64 : 128;
    constexpr int HALF = BN > 128 ? 128 : BN;   // tokens that the epilogue stages at once
    extern __shared__ __align__(1024) uint8_t shared[];
    const uint32_t base = shared_address(shared), staging = base + STAGES * S::BYTES;
    const uint32_t full = staging + HALF * 256, empty = full + STAGES * 8;
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, CONSUMERS / 128);
        barrier_init_fence();
    }
    __syncthreads();

    const uint32_t token_blocks = (p.tokens + BN - 1) / BN, row_blocks = (p.columns + out_rows - 1) / out_rows;
    const uint32_t products = token_blocks * row_blocks, blocks = products * p.splits;
    const uint32_t row_tiles = (p.columns + TILE_ROWS - 1) / TILE_ROWS;
    const uint32_t chunks = (p.k_tiles + CHUNK_TILES - 1) / CHUNK_TILES;
    const size_t row_tile_bytes = size_t(p.k_tiles) * L::TILE + chunks * L::SUPER;

    // Splits begin at whole chunks.
    auto first_k = [&](uint32_t split) { return min(chunks * split / p.splits * CHUNK_TILES, p.k_tiles); };

    if (warp >= CONSUMERS / WARP) {
        sm90::registers_give<40>();
        if (warp > CONSUMERS / WARP) return;
        uint32_t stage = 0, parity = 1;
        bool waits = true;
        for (uint32_t block = blockIdx.x; block < blocks; block += gridDim.x) {
            const uint32_t token = block % token_blocks * BN, row_tile = block % products / token_blocks * (out_rows / TILE_ROWS);
            const uint32_t first = first_k(block / products), last = first_k(block / products + 1);
            // Lanes 0..8 copy a row tile each; beyond the last row they repeat it.
            const uint32_t mine = min(row_tile + (gated ? lane % 4 : lane % 8), row_tiles - 1) + (gated && lane % 8 >= 4 ? row_tiles : 0);
            const uint8_t* src = p.data + mine * row_tile_bytes + first / CHUNK_TILES * L::CHUNK;
            for (uint32_t k = first; k < last; k++) {
                barrier_wait(empty + stage * 8, parity);
                const uint32_t at = base + stage * S::BYTES, skip = k % CHUNK_TILES == 0 ? 0 : L::SUPER, bytes = L::SUPER - skip + L::TILE;
                if (lane == 0) barrier_expect(full + stage * 8, S::X + 8 * bytes);
                __syncwarp();
                if (lane < 8) {
                    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                                     at + S::X + lane * S::TILE + skip), "l"(src), "r"(bytes), "r"(full + stage * 8) : "memory");
                }
                src += bytes;
                if (waits) pdl_wait(), waits = false;
                if (lane == 0) {
                    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(at),
                                 "l"(&p.x), "r"(k * TILE_COLS), "r"(token), "r"(full + stage * 8) : "memory");
                }
                if (++stage == STAGES) stage = 0, parity ^= 1;
            }
        }
        return;
    }

    sm90::registers_take<232>();
    pdl_launch();
    pdl_wait();
    const uint32_t group = warp / 4, g = lane / 4;
    uint32_t stage = 0, parity = 0;
    auto release = [&](uint32_t s) {
        // One thread a warpgroup would do, but its other warps must have read the codes too.
        asm volatile("bar.sync %0, 128;" ::"r"(2 + group) : "memory");
        if (threadIdx.x % 128 == 0) barrier_arrive(empty + s * 8);
    };
    for (uint32_t block = blockIdx.x; block < blocks; block += gridDim.x) {
        float acc[BN / 2];
#pragma unroll
        for (int i = 0; i < BN / 2; i++) acc[i] = 0.0f;
        Super<L> super;
        uint32_t a[2][4][4];
        auto unpack = [&](uint32_t (&to)[4][4], uint32_t k) {
            barrier_wait(full + stage * 8, parity);
            const uint32_t at = base + stage * S::BYTES + S::X + warp * S::TILE;
            if (k % CHUNK_TILES == 0) super.load(at, lane);
            dequantize<L>(to, at + L::SUPER, super, lane);
        };
        auto multiply = [&](const uint32_t (&from)[4][4]) {
            const uint64_t b = sm90::tile_descriptor(base + stage * S::BYTES, 16);
            sm90::mma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++) wgmma(acc, from[s], b + s * 2);
            sm90::mma_commit();
        };
        const uint32_t split = block / products, first = first_k(split), last = first_k(split + 1);
        unpack(a[0], first);
        uint32_t before = 0;
        for (uint32_t k = first; k < last; k += 2) {
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                if (k + odd >= last) break;
                multiply(a[odd]);
                sm90::mma_wait<1>();
                if (k + odd > first) release(before);
                before = stage;
                if (++stage == STAGES) stage = 0, parity ^= 1;
                if (k + odd + 1 < last) unpack(a[odd ^ 1], k + odd + 1);
            }
        }
        sm90::mma_wait<0>();
        release(before);

        const uint32_t token = block % token_blocks * BN, row0 = block % products / token_blocks * out_rows;
        const uint32_t row = row0 + (gated ? warp % 4 : warp) * TILE_ROWS + g;
        if (p.partials) {
            const uint32_t rows = gated ? 2 * p.columns : p.columns, up = gated && group == 1 ? p.columns : 0;
#pragma unroll
            for (int j = 0; j < BN / 2; j++) {
                const uint32_t at = token + j / 4 * 8 + lane % 4 * 2 + j % 2, r = row + j / 2 % 2 * 8;
                if (at < p.tokens && r < p.columns) p.partials[(size_t(split) * p.tokens + at) * rows + up + r] = acc[j];
            }
            continue;
        }
        float bias[2] = {};
        if (p.bias) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (row + r * 8 < p.columns) bias[r] = p.bias[(gated && group == 1 ? p.columns : 0) + row + r * 8];
            }
        }
        if (p.out_f32) {
#pragma unroll
            for (int j = 0; j < BN / 2; j++) {
                const uint32_t at = token + j / 4 * 8 + lane % 4 * 2 + j % 2, r = row + j / 2 % 2 * 8;
                if (at < p.tokens && r < p.columns) static_cast<float*>(p.out)[size_t(at) * p.out_stride + r] = acc[j] + bias[j / 2 % 2];
            }
            continue;
        }
        bf16* const out = static_cast<bf16*>(p.out);
        const bool packs = p.out_stride % 8 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0;
        // Through shared memory to rows of out: token by token 128 values, 16-byte pieces exchanged by token.
#pragma unroll
        for (int from = 0; from < BN; from += HALF) {
            sm90::named_sync(1, CONSUMERS);
#pragma unroll
            for (int j = 0; j < HALF; j += 16) {
                const float* v = acc + (from + j) / 2;
                const uint32_t r0 = pack2<bf16>(v[0] + bias[0], v[1] + bias[0]), r1 = pack2<bf16>(v[2] + bias[1], v[3] + bias[1]);
                const uint32_t r2 = pack2<bf16>(v[4] + bias[0], v[5] + bias[0]), r3 = pack2<bf16>(v[6] + bias[1], v[7] + bias[1]);
                // Lane 8m + i gives the address of row i of matrix m: token j + 8(m / 2) + i, rows 16·warp + 8(m % 2).
                const uint32_t at = j + lane / 16 * 8 + lane % 8, piece = warp * 2 + lane / 8 % 2;
                asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(staging + at * 256 + ((piece ^ (at % 8)) << 4)),
                             "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
            }
            sm90::named_sync(1, CONSUMERS);
            const uint32_t pieces = out_rows / 8;
            for (uint32_t n = threadIdx.x; n < HALF * pieces; n += CONSUMERS) {
                const uint32_t at = n / pieces, piece = n % pieces, r = row0 + piece * 8;
                if (token + from + at >= p.tokens || r >= p.columns) continue;
                const uint4 raw = lds128(staging + at * 256 + ((piece ^ (at % 8)) << 4));
                bf16* to = out + size_t(token + from + at) * p.out_stride + r;
                Pack<bf16> v = reinterpret_cast<const Pack<bf16>&>(raw);
                if (gated) {
                    const uint4 other = lds128(staging + at * 256 + (((piece + 8) ^ (at % 8)) << 4));
                    const Pack<bf16>& up = reinterpret_cast<const Pack<bf16>&>(other);
#pragma unroll
                    for (int i = 0; i < 8; i++) v.v[i] = from_f32<bf16>(activate(to_f32(v.v[i]), p.epilogue) * to_f32(up.v[i]));
                }
                if (packs && r + 8 <= p.columns) {
                    if (p.epilogue == ADD) {
                        const Pack<bf16> old = load_pack(to);
#pragma unroll
                        for (int i = 0; i < 8; i++) v.v[i] = from_f32<bf16>(to_f32(v.v[i]) + to_f32(old.v[i]));
                    }
                    store_pack(to, v);
                } else {
                    for (uint32_t i = 0; i < 8 && r + i < p.columns; i++) to[i] = p.epilogue == ADD ? from_f32<bf16>(to_f32(to[i]) + to_f32(v.v[i])) : v.v[i];
                }
            }
        }
    }
}

#define SM90_PACKED_LINEAR_OF(name, format, tokens, stages)                                                               \
    extern "C" __global__ __launch_bounds__(384, 1) void sm90_packed_linear_##name##_t##tokens(                            \
        const __grid_constant__ Sm90PackedLinearParams p) {                                                                \
        sm90_packed_linear<Format::format, tokens, stages>(p);                                                             \
    }
#define SM90_PACKED_LINEAR(name, format) \
    SM90_PACKED_LINEAR_OF(name, format, 64, 8) SM90_PACKED_LINEAR_OF(name, format, 128, 6) SM90_PACKED_LINEAR_OF(name, format, 256, 4)
