// attn_decode_bf16_*:  see attn_decode.cuh
#include "attn_decode.cuh"

ATTN_DECODE(bf16, 64, 1, 3, 3)
ATTN_DECODE(bf16, 64, 2, 3, 3)
ATTN_DECODE(bf16, 80, 1, 3, 3)
ATTN_DECODE(bf16, 96, 1, 3, 2)
ATTN_DECODE(bf16, 128, 1, 3, 2)
ATTN_DECODE(bf16, 128, 2, 3, 2)
ATTN_DECODE(bf16, 128, 1, 2, 3)
ATTN_DECODE(bf16, 256, 1, 3, 1)
ATTN_DECODE(bf16, 256, 1, 1, 2)
