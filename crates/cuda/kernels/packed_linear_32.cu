// The block types with blocks of 32 elements.

#include "packed_linear.cuh"

PACKED_LINEAR(q4_0, Q4_0)
PACKED_LINEAR(q4_1, Q4_1)
PACKED_LINEAR(q5_0, Q5_0)
PACKED_LINEAR(q5_1, Q5_1)
PACKED_LINEAR(q8_0, Q8_0)
PACKED_LINEAR(iq4_nl, IQ4_NL)
