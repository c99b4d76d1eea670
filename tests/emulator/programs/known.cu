// Programs with known results, and planted bugs that can be switched on.
#include "cuda/sums/split_sum.cuh"
#include "program.h"

enum Bug { NONE, NO_BARRIER, OVER_THE_END, WRONG_LANE, EARLY_RETURN, HALF_A_WARP, WRONG_BARRIER };

// sums[b] = the sum of 256 elements. They are added in shared memory until one warp is left, then by shuffles.
__global__ static void reduce_kernel(const float* x, float* sums, int n, int bug) {
  float* part = reinterpret_cast<float*>(shared_memory());
  const int tid = threadIdx.x, i = blockIdx.x * 256 + tid;
  store_shared(&part[tid], i < n + (bug == OVER_THE_END) ? load_global<float>(&x[i]) : 0.0f);
  if (bug != NO_BARRIER) __syncthreads();
  for (int step = 128; step >= 32; step /= 2) {
    if (bug == EARLY_RETURN && tid >= step) return;  // allowed: the barrier waits for the remaining threads only
    if (tid < step) store_shared(&part[tid], load_shared<float>(&part[tid]) + load_shared<float>(&part[tid + step]));
    if (bug == WRONG_BARRIER && tid >= 128) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  if (tid >= 32) return;
  if (bug == HALF_A_WARP && tid >= 16) return;
  float sum = load_shared<float>(&part[tid]);
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    sum += __shfl_xor_sync(0xFFFFFFFF, sum, bug == WRONG_LANE && lanes == 4 ? 8 : lanes);
  }
  if (tid == 0) store_global(&sums[blockIdx.x], sum);
}
PROGRAM reduce(const float* x, float* sums, int n, int blocks, int bug) {
  return run_program(reduce_kernel, blocks, 256, 1024, x, sums, n, bug);
}

// y [32, 32] = x^T by one warp. Rows in shared memory are `row` floats apart.
__global__ static void transpose_kernel(const float* x, float* y, int row, int bug) {
  float* tile = reinterpret_cast<float*>(shared_memory());
  const int lane = threadIdx.x;
  for (int i = 0; i < 32; ++i) store_shared(&tile[i * row + lane], load_global<float>(&x[i * 32 + lane]));
  if (bug != NO_BARRIER) __syncwarp();
  const int past = bug == OVER_THE_END ? 1 : 0;
  for (int i = 0; i < 32; ++i) store_global(&y[i * 32 + lane], load_shared<float>(&tile[(lane + past) * row + i]));
}
PROGRAM transpose(const float* x, float* y, int row, int bug) {
  return run_program(transpose_kernel, 1, 32, 32 * row * sizeof(float), x, y, row, bug);
}

// y[i] = x[i] for i < n, 0 for i >= n, by cp.async of 16 bytes a thread.
__global__ static void copy_kernel(const float* x, float* y, int n, int wait, int barrier, int early) {
  float* s = reinterpret_cast<float*>(shared_memory());
  const int i = threadIdx.x * 4, kept = min(4, max(0, n - i));
  cp_async_16(&s[i], kept ? &x[i] : x, kept * 4);
  cp_async_commit();
  if (wait) cp_async_wait<0>();
  if (barrier) __syncthreads();
  const int other = early ? i : (i + 4) % (4 * blockDim.x);
  store_global(reinterpret_cast<float4*>(&y[other]), load_shared<float4>(&s[other]));
}
PROGRAM copy(const float* x, float* y, int n, int wait, int barrier, int early) {
  return run_program(copy_kernel, 1, 64, 64 * 16, x, y, n, wait, barrier, early);
}

// y[i] = x[stride * i] by one warp, for the tests of the counters.
__global__ static void strided_kernel(const float* x, float* y, int stride) {
  store_global(&y[threadIdx.x], load_global<float>(&x[stride * threadIdx.x]));
}
PROGRAM strided(const float* x, float* y, int stride) { return run_program(strided_kernel, 1, 32, 0, x, y, stride); }

// out[lane, 0..6] = the results of each kind of shuffle and vote, for value = 100 + lane.
__global__ static void lanes_kernel(int* out) {
  const int lane = threadIdx.x, value = 100 + lane;
  const unsigned all = 0xFFFFFFFF;
  const int results[7] = {
      __shfl_sync(all, value, 3 * lane), __shfl_up_sync(all, value, 3, 8),       __shfl_down_sync(all, value, 3, 8),
      __shfl_xor_sync(all, value, 5),    int(__ballot_sync(all, lane % 3 == 0)), __any_sync(all, lane == 7),
      __all_sync(all, lane < 31)};
  for (int i = 0; i < 7; ++i) store_global(&out[lane * 7 + i], results[i]);
}
PROGRAM lanes(int* out) { return run_program(lanes_kernel, 1, 32, 0, out); }

// Accesses without the functions of memory.h, which only AddressSanitizer checks.
__global__ static void raw_kernel(const float* x, float* y, int n) { y[0] = x[n]; }
PROGRAM raw(const float* x, float* y, int n) { return run_program(raw_kernel, 1, 1, 0, x, y, n); }
__global__ static void raw_shared_kernel(float* y, int n) { y[0] = reinterpret_cast<float*>(shared_memory())[n]; }
PROGRAM raw_shared(float* y, int n) { return run_program(raw_shared_kernel, 1, 1, 1024, y, n); }

// sums[i] = the sum of x[b * 256 + i] over the blocks b, added by the last block. The bugs: no barrier before the
// ticket, and no barrier after it.
__global__ static void last_block_kernel(const float* x, float* parts, unsigned* ticket, float* sums, int bug) {
  const int i = threadIdx.x, at = blockIdx.x * 256 + i;
  store_global(&parts[at], load_global<float>(&x[at]));
  bool last;
  if (bug == NONE) {
    last = last_of({parts, ticket}, 0, gridDim.x);
  } else if (bug == NO_BARRIER) {
    last = __syncthreads_or(i == 0 && take_ticket(ticket, gridDim.x - 1) == gridDim.x - 1);
  } else {
    __syncthreads();
    last = i == 0 && take_ticket(ticket, gridDim.x - 1) == gridDim.x - 1;
    store_global(&sums[i], 0.0f);
  }
  if (!last) return;
  float sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += load_global<float>(&parts[b * 256 + i]);
  store_global(&sums[i], sum);
}
PROGRAM last_block(const float* x, float* parts, unsigned* ticket, float* sums, int blocks, int bug) {
  return run_program(last_block_kernel, blocks, 256, 0, x, parts, ticket, sums, bug);
}

// y = 2 x + 1 in two launches, of which the second overlaps with the first: twice = 2 x, then y = twice + 1. The bugs
// of the second: it loads before the wait, stores before it, has a thread that does not wait, or copies before the
// wait.
enum OverlapBug { LOADS_EARLY = 1, STORES_EARLY, WAITS_PARTLY, COPIES_EARLY };
__global__ static void double_kernel(const float* x, float* twice, bool allow) {
  if (allow) allow_next_launch();
  const int i = blockIdx.x * 64 + threadIdx.x;
  store_global(&twice[i], 2 * load_global<float>(&x[i]));
}
__global__ static void add_one_kernel(const float* x, const float* twice, float* y, int bug) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  load_global<float>(&x[i]);  // the first launch does not store it
  float value = 0;
  if (bug == LOADS_EARLY) value = load_global<float>(&twice[i]);
  if (bug == COPIES_EARLY && i % 4 == 0) cp_async_16(shared_memory() + threadIdx.x * 4, &twice[i]);
  if (bug == STORES_EARLY) store_global(&y[i], 0.0f);
  if (bug == WAITS_PARTLY && i == 70) return;
  wait_for_launch_before();
  value = load_global<float>(&twice[i]);
  store_global(&y[i], value + 1);
}
PROGRAM overlap(const float* x, float* twice, float* y, int blocks, int allow, int bug) {
  if (const char* failure = run_program(double_kernel, blocks, 64, 0, x, twice, allow != 0)) return failure;
  return run_overlapping(add_one_kernel, blocks, 64, 256, x, twice, y, bug);
}
PROGRAM overlap_alone(const float* x, const float* twice, float* y, int blocks) {
  return run_overlapping(add_one_kernel, blocks, 64, 256, x, twice, y, 0);
}
