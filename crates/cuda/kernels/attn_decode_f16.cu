// attn_decode_f16_*:  see attn_decode.cuh
#include "attn_decode.cuh"

ATTN_DECODE(f16, 64, 1, 3, 3)
ATTN_DECODE(f16, 64, 2, 3, 3)
ATTN_DECODE(f16, 80, 1, 3, 3)
ATTN_DECODE(f16, 96, 1, 3, 2)
ATTN_DECODE(f16, 128, 1, 3, 2)
ATTN_DECODE(f16, 128, 2, 3, 2)
ATTN_DECODE(f16, 128, 1, 2, 3)
ATTN_DECODE(f16, 256, 1, 3, 1)
ATTN_DECODE(f16, 256, 1, 1, 2)
