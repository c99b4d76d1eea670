// The device code of the sums of split_sum.h.
//
// A part holds the accumulators of a block in the order of the registers of its warps: a float4 for each lane, 512
// bytes for each warp. Each thread of the last block reads the positions that the thread of the same number stored. The
// parts are few and were written recently, so L2 holds them.
#pragma once
#include "cuda/device/memory.h"
#include "cuda/sums/split_sum.h"

namespace pypeft {

// The address of part `block` of sum number `sum`; `blocks` blocks share the sum, and a part has `size` floats.
PYPEFT_DEVICE float* part_of(const SplitSum& split, unsigned sum, unsigned blocks, unsigned block, int64_t size) {
  return split.parts + (int64_t(sum) * blocks + block) * size;
}

// Called by all threads of a block. Returns whether this block is the last of the `blocks` blocks of the sum that call
// this function. The last block sees all stores of the others before their calls. The ticket is then 0 again.
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

// Adds the four floats at from + part * size to sums, for part = first, first + step, ... below `blocks`.
PYPEFT_DEVICE void add_parts(float (&sums)[4], const float* from, int64_t size, unsigned blocks, unsigned first = 0,
                             unsigned step = 1) {
#pragma unroll 4
  for (unsigned part = first; part < blocks; part += step) add_part(sums, load_global<float4>(from + part * size));
}

}  // namespace pypeft
