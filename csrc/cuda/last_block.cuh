// Sums over the blocks of one launch, in an order that never changes: every block stores its part and takes a ticket,
// and the block that draws the last ticket adds all the parts, first to last. Which block that is varies, the sum does
// not. A launch of its own for each sum would cost more than the sum.
//
// Parts are accumulators as they lie in a warp's registers: a float4 a lane, 512 bytes a warp, and the last block's
// threads read what their like stored. They are few and just written: L2 has them.
#pragma once
#include "cuda/memory.h"

namespace pypeft {

// For all threads of a block: whether the other blocks - 1 that share this ticket have come here before. If so, this
// block sees all that they stored before they came, and the ticket is 0 again.
PYPEFT_DEVICE bool last_of(unsigned* ticket, unsigned blocks) {
  __syncthreads();  // every thread's stores come before the ticket
  const bool last = threadIdx.x == 0 && take_ticket(ticket, blocks - 1) == blocks - 1;
  return __syncthreads_or(last);
}

PYPEFT_DEVICE void store_part(float* to, const float (&sums)[4]) {
  store_global(to, make_float4(sums[0], sums[1], sums[2], sums[3]));
}

PYPEFT_DEVICE void add_part(float (&sums)[4], const float4& part) {
  sums[0] += part.x, sums[1] += part.y, sums[2] += part.z, sums[3] += part.w;
}

}  // namespace pypeft
