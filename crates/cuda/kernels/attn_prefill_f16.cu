// attn_prefill_f16_*:  see attn_prefill.cuh
#include "attn_prefill.cuh"

ATTN_PREFILL(f16, 64, 2, 4, 64, 2)
ATTN_PREFILL(f16, 80, 2, 4, 64, 2)
ATTN_PREFILL(f16, 96, 2, 4, 64, 2)
ATTN_PREFILL(f16, 128, 2, 4, 32, 2)
ATTN_PREFILL(f16, 256, 1, 4, 32, 2)
