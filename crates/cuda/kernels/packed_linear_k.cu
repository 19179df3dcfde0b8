// The block types with blocks of 256 elements.

#include "packed_linear.cuh"

PACKED_LINEAR(q2_k, Q2_K)
PACKED_LINEAR(q3_k, Q3_K)
PACKED_LINEAR(q4_k, Q4_K)
PACKED_LINEAR(q5_k, Q5_K)
PACKED_LINEAR(q6_k, Q6_K)
PACKED_LINEAR(iq4_xs, IQ4_XS)
