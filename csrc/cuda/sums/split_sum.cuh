// split_sum.h's sums on the device.
//
// A part is a block's accumulators as they lie in its warps' registers: a float4 a lane, 512 bytes a warp, and the last
// block's threads read what their like stored. Parts are few and just written: L2 has them.
#pragma once
#include "cuda/device/memory.h"
#include "cuda/sums/split_sum.h"

namespace pypeft {

// Where a block's part of a sum lies: of sum number `sum`, that `blocks` blocks share, part number `block`.
PYPEFT_DEVICE float* part_of(const SplitSum& split, unsigned sum, unsigned blocks, unsigned block, int64_t size) {
  return split.parts + (int64_t(sum) * blocks + block) * size;
}

// For all threads of a block: whether the other blocks - 1 that share this sum have come here before. If so, this block
// sees all that they stored before they came, and the ticket is 0 again.
PYPEFT_DEVICE bool last_of(const SplitSum& split, unsigned sum, unsigned blocks) {
  __syncthreads();  // every thread's stores come before the ticket
  const bool last = threadIdx.x == 0 && take_ticket(split.tickets + sum, blocks - 1) == blocks - 1;
  return __syncthreads_or(last);
}

PYPEFT_DEVICE void store_part(float* to, const float (&sums)[4]) {
  store_global(to, make_float4(sums[0], sums[1], sums[2], sums[3]));
}

PYPEFT_DEVICE void add_part(float (&sums)[4], const float4& part) {
  sums[0] += part.x, sums[1] += part.y, sums[2] += part.z, sums[3] += part.w;
}

// sums += from[part * size] for part = first, first + step, .. below `blocks`, four floats of each.
PYPEFT_DEVICE void add_parts(float (&sums)[4], const float* from, int64_t size, unsigned blocks, unsigned first = 0,
                             unsigned step = 1) {
#pragma unroll 4
  for (unsigned part = first; part < blocks; part += step) add_part(sums, load_global<float4>(from + part * size));
}

}  // namespace pypeft
