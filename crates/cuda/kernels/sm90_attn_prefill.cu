// Prefill attention on Hopper over the paged cache, sequences of any lengths in one launch.
//
//   out[t, h] = Σ_j p_j v[j, g] / (Σ_j p_j + exp(sink_h)),   p_j = exp(cap · tanh(scale · q[t, h]·k[j, g] / cap)),   g = h / (heads / kv_heads)
//
// over the keys j that token t sees: those up to its own position, and no more than `window` of them. Without a soft cap
// p_j = exp(scale · q·k).
//
// Layout: q [tokens, heads, head_dim] bf16 with any row stride, k and v [blocks, kv_heads, block_tokens, head_dim] bf16 or f16
// (q is then rounded to f16), out [tokens, heads, head_dim] bf16; block_tokens a power of two from 8 on.
//
// A work item is one query tile of one sequence, GROUPS × 64 rows (query tokens of one head, or fewer tokens of up to 16 heads
// of one KV head), and all keys that it sees, or a part of them where few queries have a long context. A thread block stays
// for the whole launch, one per multiprocessor, and takes items longest first. Its warps:
//   warp 0      takes items and hands them out
//   warp 1, 2   bring Q and K tiles, V tiles by tensor copies (64 columns wide, 128-byte swizzle), KEYS keys a tile, pages looked
//               up in the block table, STAGES tiles in flight each
//   GROUPS warpgroups own 64 query rows each: S = Q Kᵀ (wgmma, both from shared memory), online softmax in registers,
//               O += P V (wgmma, P from registers, V read transposed through its descriptor)
// A thread of these holds two rows: KEYS / 2 scores, head_dim / 2 outputs. One group's softmax runs beside another's products;
// with OVERLAP the scores of the next key tile are also issued before the values of this one, and its softmax runs beside
// those. An item's first scores run beside the last values of the item before it.
// A second kernel adds up the parts of divided items.
//
// Bound: tensor cores (709 TFLOP/s is cuBLASLt's best on this device); at head_dim 64 exponentials need as long (16 a cycle). A
// prompt of 256 tokens is bound by memory: reading q and writing out alone take as long as its products.
//
// Measured on an H100 80GB HBM3, 2026-11-25, causal, TFLOP/s of the keys that are seen (heads/KV heads; queries/context):
//   head_dim  heads   1×2048  1×8192  1×16384  16×1024  64×256  2048/30720  8192 in a window of 1024
//         64  32/8       361     516      531      366     176         469       392
//         80  32/32      383     504      525      365     164         480       373
//         96  32/32      436     542      589      422     174         569       449
//        128  32/8       534     677      696      515     262         693       548
//        256  16/8       566     759      784      545     226         763       610
// and at 32/8 heads of 128, 32/30720 in 62 µs (41 to read the cache), 128/8192 in 40 µs. With an F16 cache 643 at 1×8192.
//
// Lost: a quarter or an eighth of the exponentials as a cubic on the FMA pipe (−5 %, −3 % at head_dim 128; −8 %, −6 % at 64);
// 96 keys per tile (−6 %); 3 groups with 64 keys at head_dim 128 (+1 % at 1×8192, −18 % at 16×1024) and with 96 keys at 80 and 96
// (+9 %, −10 %); 4 groups with 64 keys at head_dim 64 (−3 %); items looked up and pages read by the warp that copies (16×1024: −10 %);
// a fixed assignment of items to blocks (16×1024: −29 %); groups that take turns in issuing products (±1 %); leaving out the half of
// the first keys that a group does not see (±1 %, +3 % at head_dim 64); head_dim 256 with 80 keys per tile (−17 %); the exponentials sinking below the wait for P V, which the assembler does unless a
// branch stands between them.

#include "sm90_attn_prefill.cuh"

#define ATTN_PREFILL(NAME, ...)                                                                           \
    extern "C" __global__ void __launch_bounds__(Config<__VA_ARGS__>::THREADS, 1)                         \
        NAME(const __grid_constant__ AttnPrefillParams p) {                                               \
        attn_prefill<Config<__VA_ARGS__>>(p);                                                             \
    }
#define ATTN_PREFILL_COMBINE(NAME, ...)                                                                   \
    extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ AttnPrefillParams p) { \
        combine<Config<__VA_ARGS__>>(p);                                                                  \
    }

// HEAD_DIM, GROUPS, KEYS, STAGES, OVERLAP: the launcher's TILES.
#define ATTN_PREFILL_HEAD_DIM(HEAD_DIM, ...)                                                   \
    ATTN_PREFILL(sm90_attn_prefill_bf16_hd##HEAD_DIM, bf16, HEAD_DIM, __VA_ARGS__)             \
    ATTN_PREFILL(sm90_attn_prefill_f16_hd##HEAD_DIM, f16, HEAD_DIM, __VA_ARGS__)               \
    ATTN_PREFILL_COMBINE(sm90_attn_prefill_combine_hd##HEAD_DIM, f16, HEAD_DIM, __VA_ARGS__)

ATTN_PREFILL_HEAD_DIM(64, 3, 128, 2, false)
ATTN_PREFILL_HEAD_DIM(80, 2, 128, 2, false)
ATTN_PREFILL_HEAD_DIM(96, 2, 128, 2, false)
ATTN_PREFILL_HEAD_DIM(128, 2, 128, 2, true)
ATTN_PREFILL_HEAD_DIM(256, 2, 64, 2, true)
