// What the dense linear kernels share: their epilogues.
//
//   acc[t, r] = Σ_k x[t, k] · w[r, k]
//   STORE_BF16 / STORE_F32   out[t, r]  = acc[t, r] + bias[r]
//   ADD                      out[t, r] += acc[t, r] + bias[r]                       (residual stream, bf16)
//   ARGMAX                   out[t]     = max over r of candidate(acc[t, r] + bias[r], r), if that is more      (wgmma only)
//   SILU / GELU_TANH         out[t, r]  = act(acc[t, r] + bias[r]) · (acc[t, inner + r] + bias[inner + r])
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

#include "candidate.cuh"

namespace linear_dense {

enum Epilogue : int { STORE_BF16 = 0, STORE_F32 = 1, ADD = 2, ARGMAX = 3, SILU = 4, GELU_TANH = 5 };

__host__ __device__ __forceinline__ bool is_gated(int epilogue) { return epilogue >= SILU; }

// Where results go. `columns` of `out` are weight rows, or half of them where the epilogue is gated.
struct Output {
    void* out;          // [tokens, columns] bf16, or f32 for STORE_F32; rows `stride` elements apart. ARGMAX: [tokens] u64
    const float* bias;  // [weight rows] f32, or null
    int tokens;
    int columns;
    int stride;
    int epilogue;
};

__device__ __forceinline__ float activate(float gate, int epilogue) {
    // 0.5·(1 + tanh(y)) = sigmoid(2y): both are gate · sigmoid of something.
    const float y = epilogue == SILU ? gate : 1.5957691216057308f * (gate + 0.044715f * gate * gate * gate);
    return __fdividef(gate, 1.0f + __expf(-y));
}

// One element; `up` is read by gated epilogues only, and `old` is what ADD adds to.
__device__ __forceinline__ void emit(const Output& o, int token, int column, float acc, float up, float old) {
    if (o.bias) {
        acc += o.bias[column];
        if (is_gated(o.epilogue)) up += o.bias[o.columns + column];
    }
    size_t at = static_cast<size_t>(token) * o.stride + column;
    __nv_bfloat16* out = static_cast<__nv_bfloat16*>(o.out);
    switch (o.epilogue) {
        case STORE_F32: static_cast<float*>(o.out)[at] = acc; break;
        case ADD: out[at] = __float2bfloat16_rn(old + acc); break;
        case STORE_BF16: out[at] = __float2bfloat16_rn(acc); break;
        default: out[at] = __float2bfloat16_rn(activate(acc, o.epilogue) * up);
    }
}

// Whether two neighbouring columns, the first even, can be read and written together.
__device__ __forceinline__ bool has_pairs(const Output& o) { return !((o.columns | o.stride) & 1); }

// What ADD adds to in two neighbouring columns.
__device__ __forceinline__ float2 old_pair(const Output& o, int token, int column) {
    if (o.epilogue != ADD || token >= o.tokens || column >= o.columns) return {0.0f, 0.0f};
    const __nv_bfloat16* out = static_cast<const __nv_bfloat16*>(o.out) + static_cast<size_t>(token) * o.stride + column;
    if (has_pairs(o)) return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(out));
    return {__bfloat162float(out[0]), column + 1 < o.columns ? __bfloat162float(out[1]) : 0.0f};
}

// Two neighbouring columns, the first even; outside of the result nothing happens.
__device__ __forceinline__ void emit_pair(const Output& o, int token, int column, float2 acc, float2 up, float2 old) {
    if (token >= o.tokens || column >= o.columns) return;
    if (!has_pairs(o)) {
        emit(o, token, column, acc.x, up.x, old.x);
        if (column + 1 < o.columns) emit(o, token, column + 1, acc.y, up.y, old.y);
        return;
    }
    if (o.bias) {
        acc.x += o.bias[column], acc.y += o.bias[column + 1];
        if (is_gated(o.epilogue)) up.x += o.bias[o.columns + column], up.y += o.bias[o.columns + column + 1];
    }
    const size_t at = static_cast<size_t>(token) * o.stride + column;
    if (o.epilogue == STORE_F32) {
        *reinterpret_cast<float2*>(static_cast<float*>(o.out) + at) = acc;
        return;
    }
    if (is_gated(o.epilogue)) acc.x = activate(acc.x, o.epilogue) * up.x, acc.y = activate(acc.y, o.epilogue) * up.y;
    *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(o.out) + at) = __floats2bfloat162_rn(old.x + acc.x, old.y + acc.y);
}

// Four lanes of a quad with four words each: afterwards lane q holds word q of lanes 0, 1, 2, 3. Its own inverse.
__device__ __forceinline__ void quad_transpose(uint32_t (&v)[4], int quad) {
    const bool odd = quad & 1, high = quad & 2;
    const uint32_t r0 = __shfl_xor_sync(~0u, odd ? v[0] : v[1], 1), r1 = __shfl_xor_sync(~0u, odd ? v[2] : v[3], 1);
    const uint32_t a0 = odd ? r0 : v[0], a1 = odd ? v[1] : r0;  // words 0 or 1 of this lane's neighbours
    const uint32_t b0 = odd ? r1 : v[2], b1 = odd ? v[3] : r1;  // words 2 or 3
    const uint32_t s0 = __shfl_xor_sync(~0u, high ? a0 : b0, 2), s1 = __shfl_xor_sync(~0u, high ? a1 : b1, 2);
    v[0] = high ? s0 : a0, v[1] = high ? s1 : a1, v[2] = high ? b0 : s0, v[3] = high ? b1 : s1;
}

__device__ __forceinline__ uint32_t pack(float x, float y) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&v);
}

// Stores `groups` groups of 8 columns of one token, of which a thread holds columns 2·quad and 2·quad + 1 as `value(j)`;
// adds to what is there if ADDS. Groups go out by fours, 16 bytes a lane: a warp's access is then whole sectors, and 4-byte
// accesses that read and write halves of them were 3 times slower (o of an 8B, 2048 tokens). `left` groups exist.
template <int GROUPS, bool ADDS, class F>
__device__ __forceinline__ void store_groups(__nv_bfloat16* out, int quad, int left, F value) {
    constexpr int WIDE = GROUPS / 4 * 4;
    uint4 old[ADDS ? GROUPS / 4 + 1 : 1];
    if (ADDS) {
#pragma unroll
        for (int j = 0; j < WIDE; j += 4)
            old[j / 4] = j + quad < left ? *reinterpret_cast<const uint4*>(out + 8 * (j + quad)) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int j = 0; j < WIDE; j += 4) {
        uint32_t r[4] = {0, 0, 0, 0}, v[4];
        if (ADDS) r[0] = old[j / 4].x, r[1] = old[j / 4].y, r[2] = old[j / 4].z, r[3] = old[j / 4].w, quad_transpose(r, quad);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 f = value(j + i);
            if (ADDS) {
                const float2 add = __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&r[i]));
                f.x += add.x, f.y += add.y;
            }
            v[i] = pack(f.x, f.y);
        }
        quad_transpose(v, quad);
        if (j + quad < left) *reinterpret_cast<uint4*>(out + 8 * (j + quad)) = {v[0], v[1], v[2], v[3]};
    }
#pragma unroll
    for (int j = WIDE; j < GROUPS; j++) {
        if (j >= left) continue;
        __nv_bfloat162* at = reinterpret_cast<__nv_bfloat162*>(out + 8 * j + 2 * quad);
        float2 f = value(j);
        if (ADDS) {
            const float2 add = __bfloat1622float2(*at);
            f.x += add.x, f.y += add.y;
        }
        *at = __floats2bfloat162_rn(f.x, f.y);
    }
}

// What a thread of a wgmma tile holds of one token: columns `column` + 8·j + 2·quad + {0, 1} in acc[4j], acc[4j + 1], gates
// first where the epilogue is gated. `columns`, `stride` and the tile are multiples of 8; a token outside is `valid` false,
// and its lanes come along for the shuffles. The cases stand outside the loops: inside, their code would outgrow the
// instruction cache.
template <int ROWS>
__device__ __forceinline__ void emit_row(const Output& o, int token, bool valid, int column, int quad, float* acc) {
    constexpr int N = ROWS / 8, HALF = ROWS / 16;
    const size_t at = static_cast<size_t>(valid ? token : 0) * o.stride + column;
    __nv_bfloat16* out = static_cast<__nv_bfloat16*>(o.out) + at;
    const int left = valid ? (o.columns - column) / 8 : 0;  // groups of 8 columns that exist
    if (o.bias) {
        const bool gated = is_gated(o.epilogue);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const int c = gated && j >= HALF ? j - HALF : j;
            if (c >= left) continue;
            const float2 b = *reinterpret_cast<const float2*>(o.bias + (c == j ? 0 : o.columns) + column + 8 * c + 2 * quad);
            acc[4 * j] += b.x, acc[4 * j + 1] += b.y;
        }
    }
    auto plain = [&](int j) { return float2{acc[4 * j], acc[4 * j + 1]}; };
    switch (o.epilogue) {
        case STORE_BF16: store_groups<N, false>(out, quad, left, plain); break;
        case ADD: store_groups<N, true>(out, quad, left, plain); break;
        case ARGMAX: {
            Best best;
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (j >= left) continue;
                best.take(acc[4 * j] + 0.0f, column + 8 * j + 2 * quad);
                best.take(acc[4 * j + 1] + 0.0f, column + 8 * j + 2 * quad + 1);
            }
            uint64_t x = best.as_candidate();
#pragma unroll
            for (int offset = 1; offset < 4; offset *= 2) x = max(x, __shfl_xor_sync(~0u, x, offset));
            unsigned long long* largest = static_cast<unsigned long long*>(o.out) + token;
            // Most tiles have nothing to add: a look costs less than an addition to one address.
            if (valid && quad == 0 && x > *static_cast<volatile unsigned long long*>(largest)) atomicMax(largest, x);
            break;
        }
        case STORE_F32:
#pragma unroll
            for (int j = 0; j < N; j++)
                if (j < left) *reinterpret_cast<float2*>(static_cast<float*>(o.out) + at + 8 * j + 2 * quad) = plain(j);
            break;
        default:
            store_groups<HALF, false>(out, quad, left, [&](int j) {
                const int u = 4 * (j + HALF);
                return float2{activate(acc[4 * j], o.epilogue) * acc[u], activate(acc[4 * j + 1], o.epilogue) * acc[u + 1]};
            });
    }
}

}  // namespace linear_dense
