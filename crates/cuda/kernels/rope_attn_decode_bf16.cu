// rope_attn_decode_bf16_*:  see attn_decode.cuh
#include "attn_decode.cuh"

ROPE_ATTN_DECODE(bf16, 64, 3, 3)
ROPE_ATTN_DECODE(bf16, 128, 1, 4)
ROPE_ATTN_DECODE(bf16, 128, 2, 2)
ROPE_ATTN_DECODE(bf16, 256, 1, 2)
ROPE_ATTN_DECODE(bf16, 256, 3, 1)
