// The block types with blocks of 32 elements.

#include "packed_skinny.cuh"

PACKED_SKINNY(q4_0, Q4_0)
PACKED_SKINNY(q4_1, Q4_1)
PACKED_SKINNY(q5_0, Q5_0)
PACKED_SKINNY(q5_1, Q5_1)
PACKED_SKINNY(q8_0, Q8_0)
PACKED_SKINNY(iq4_nl, IQ4_NL)
