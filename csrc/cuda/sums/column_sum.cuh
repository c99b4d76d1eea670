// The column sums of the elementwise product of two matrices, which are the gradient of factors on columns.
#pragma once
#include "cuda/device/tile.cuh"
#include "cuda/sums/column_sum.h"
#include "cuda/sums/split_sum.cuh"

namespace pypeft {

// Stores the sums of a block. total(i) is the sum for column col0 + i; total(i) is any value if the column does not
// exist. `block` is the number of the block among the sum.blocks blocks that share these kCols columns.
template <int kCols, int kThreads, class Total>
PYPEFT_DEVICE void store_columns(const ColumnSum& sum, int cols, int col0, unsigned block, Total total) {
  if (sum.blocks == 1) {
    for (int i = threadIdx.x; i < kCols && col0 + i < cols; i += kThreads) {
      store_element(sum.out, sum.dtype, col0 + i, total(i));
    }
  } else {
    float* part = part_of(sum.split, col0 / kCols, sum.blocks, block, kCols);
    for (int i = threadIdx.x; i < kCols; i += kThreads) store_global(part + i, total(i));
  }
}

// Called after store_columns. The last of the blocks adds the parts. A thread adds every kDown-th part of four columns;
// then the threads add their results in shared memory.
template <int kCols, int kThreads>
PYPEFT_DEVICE void add_columns(char* shared, const ColumnSum& sum, int cols, int col0) {
  constexpr int kAcross = kCols / 4, kDown = kThreads / kAcross;
  static_assert(kThreads % kAcross == 0);
  if (sum.blocks == 1 || !last_of(sum.split, col0 / kCols, sum.blocks)) return;
  float* meet = reinterpret_cast<float*>(shared);
  const float* parts = part_of(sum.split, col0 / kCols, sum.blocks, 0, kCols);
  float four[4] = {};
  add_parts(four, parts + threadIdx.x % kAcross * 4, kCols, sum.blocks, threadIdx.x / kAcross, kDown);
  store_shared(meet + threadIdx.x * 4, make_float4(four[0], four[1], four[2], four[3]));
  __syncthreads();
  for (int i = threadIdx.x; i < kCols && col0 + i < cols; i += kThreads) {
    float all = 0;
#pragma unroll
    for (int down = 0; down < kDown; ++down) all += load_shared<float>(meet + down * kCols + i);
    store_element(sum.out, sum.dtype, col0 + i, all);
  }
}

// sum.out[n] = the sum over m of a[m][n] * sum.by[m][n], in float. Separate blocks, which compute no product, run this
// function; `block` is the number of the block among them. A block adds kSumBytes of each of sum.span rows. A warp
// takes every kWarps-th row, and a lane 16 bytes of the row. At the end the warps add their sums in shared memory.
template <class T, int kThreads>
PYPEFT_DEVICE void sum_columns(char* shared, const Matrix& a, const ColumnSum& sum, int block) {
  constexpr int kPerChunk = 16 / sizeof(T), kCols = 32 * kPerChunk, kWarps = kThreads / 32;
  static_assert(kCols * sizeof(T) == kSumBytes);
  const Matrix& b = sum.by;
  const int across = (a.cols + kCols - 1) / kCols, col0 = block % across * kCols, split = block / across;
  const int begin = split * sum.span, end = min(a.rows, begin + sum.span);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool vectors = a.vectors && b.vectors;
  const T *from_a = static_cast<const T*>(a.data), *from_b = static_cast<const T*>(b.data);
  float sums[kPerChunk] = {};
  if (vectors && col0 + lane * kPerChunk < a.cols) {
#pragma unroll 4
    for (int row = begin + warp; row < end; row += kWarps) {
      const int col = col0 + lane * kPerChunk;
      float v[kPerChunk], w[kPerChunk];
      unpack_chunk<T>(v, load_global<uint4>(from_a + row * a.row + col));
      unpack_chunk<T>(w, load_global<uint4>(from_b + row * b.row + col));
#pragma unroll
      for (int j = 0; j < kPerChunk; ++j) sums[j] += v[j] * w[j];
    }
  }
  if (!vectors) {
    for (int row = begin + warp; row < end; row += kWarps) {
#pragma unroll
      for (int j = 0; j < kPerChunk; ++j) {
        const int col = col0 + j * 32 + lane;
        if (col >= a.cols) continue;
        sums[j] += to_float(load_global<T>(from_a + row * a.row + col * a.col)) *
                   to_float(load_global<T>(from_b + row * b.row + col * b.col));
      }
    }
  }
  float* meet = reinterpret_cast<float*>(shared);
  float* own = meet + warp * kCols;
  if (vectors) {
#pragma unroll
    for (int i = 0; i < kPerChunk; i += 4) {
      const int j = lane / 4 % 2 ? kPerChunk - 4 - i : i;  // this order avoids bank conflicts among eight lanes
      const float4 four =
          j == 0 ? make_float4(sums[0], sums[1], sums[2], sums[3])
                 : make_float4(sums[kPerChunk - 4], sums[kPerChunk - 3], sums[kPerChunk - 2], sums[kPerChunk - 1]);
      store_shared(own + lane * kPerChunk + j, four);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kPerChunk; ++j) store_shared(own + j * 32 + lane, sums[j]);
  }
  __syncthreads();
  auto total = [&](int i) {
    float all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all += load_shared<float>(meet + w * kCols + i);
    return all;
  };
  store_columns<kCols, kThreads>(sum, a.cols, col0, split, total);
  add_columns<kCols, kThreads>(shared, sum, a.cols, col0);
}

}  // namespace pypeft
