// attn_prefill_bf16_*:  see attn_prefill.cuh
#include "attn_prefill.cuh"

ATTN_PREFILL(bf16, 64, 2, 4, 64, 2)
ATTN_PREFILL(bf16, 80, 2, 4, 64, 2)
ATTN_PREFILL(bf16, 96, 2, 4, 64, 2)
ATTN_PREFILL(bf16, 128, 2, 4, 32, 2)
ATTN_PREFILL(bf16, 256, 1, 4, 32, 2)
