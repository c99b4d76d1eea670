// Plan. The kernel is for the few rows of decoding, where each row may have another adapter. It is bound by the read of
// the matrices A. A block computes kRanks elements of s of one row: its threads divide K among themselves, in pieces of
// 16 bytes of a row of A, and add their sums at the end. The sums are in float, without tensor cores, which would
// multiply at least 8 rows of x with one A. Traffic: x, s and the A of every adapter that has rows, once; rows of one
// adapter read its A from L2.
#include "cuda/segments/shrink.h"

#include "cuda/device/tile.cuh"

namespace pypeft {
namespace {
constexpr int kThreads = 128, kRanks = 2;

struct SegmentedShrinkArgs {
  Matrix x;
  Adapters A;
  void* s;  // [M, most]
  Dtype s_dtype;
  int most;
};

// kCount elements of a row of m, which is in T, from column k on; 0 where a column does not exist. kVectors: m.vectors.
template <class T, int kCount, bool kVectors>
PYPEFT_DEVICE void load_piece(float (&v)[kCount], const Matrix& m, int row, int k) {
  const int64_t at = row * m.row + k * m.col;
  if constexpr (kVectors) {
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (k < m.cols) {
      const T* from = static_cast<const T*>(m.data) + at;
      if constexpr (kCount * sizeof(T) == 16) {
        bits = load_global<uint4>(from);
      } else {
        const uint2 half = load_global<uint2>(from);
        bits.x = half.x, bits.y = half.y;
      }
    }
    float values[16 / sizeof(T)];
    unpack_chunk<T>(values, bits);
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = values[i];
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = k + i < m.cols ? load_element(m, at + i * m.col) : 0.0f;
  }
}

// The part of this thread of A's rows r0, r0 + 1, .. times row m of x; the last row of A stands for rows beyond it.
template <class T, class TA, bool kVectors>
PYPEFT_DEVICE void multiply(float (&sums)[kRanks], const Matrix& x, const Matrix& A, int m, int r0) {
  constexpr int kPiece = 16 / sizeof(TA);
  // The number of pieces whose loads are in flight.
  [[maybe_unused]] constexpr int kUnroll = kVectors ? 4 : 1;
#pragma unroll(kUnroll)
  for (int k = threadIdx.x * kPiece; k < x.cols; k += kThreads * kPiece) {
    float v[kPiece], a[kRanks][kPiece];
    load_piece<T, kPiece, kVectors>(v, x, m, k);
#pragma unroll
    for (int r = 0; r < kRanks; ++r) load_piece<TA, kPiece, kVectors>(a[r], A, min(r0 + r, A.rows - 1), k);
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
#pragma unroll
      for (int i = 0; i < kPiece; ++i) sums[r] += a[r][i] * v[i];
    }
  }
}

template <class T, class TA>
__global__ void __launch_bounds__(kThreads, 4) segmented_shrink_kernel(SegmentedShrinkArgs p) {
  allow_next_launch();
  const int m = blockIdx.y, r0 = blockIdx.x * kRanks, adapter = p.A.of_row(m);
  const int rank = adapter < 0 ? 0 : p.A.matrices[adapter].rows;
  float sums[kRanks] = {};
  if (r0 < rank) {
    const Matrix A = p.A.matrices[adapter];
    p.x.vectors&& A.vectors ? multiply<T, TA, true>(sums, p.x, A, m, r0) : multiply<T, TA, false>(sums, p.x, A, m, r0);
  }
  float* meet = reinterpret_cast<float*>(shared_memory());
#pragma unroll
  for (int r = 0; r < kRanks; ++r) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) sums[r] += __shfl_xor_sync(~0u, sums[r], lanes);
    if (threadIdx.x % 32 == 0) store_shared(meet + threadIdx.x / 32 * kRanks + r, sums[r]);
  }
  __syncthreads();
  const int r = r0 + threadIdx.x;
  if (threadIdx.x >= kRanks || r >= p.most) return;
  float total = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) total += load_shared<float>(meet + warp * kRanks + threadIdx.x);
  store_element(p.s, p.s_dtype, int64_t(m) * p.most + r, r < rank ? total : 0.0f);
}

auto kernel_for(Dtype x, Dtype A) {
  if (x == Dtype::f32) return segmented_shrink_kernel<float, float>;
  if (x == Dtype::bf16) {
    return A == Dtype::f32 ? segmented_shrink_kernel<__nv_bfloat16, float>
                           : segmented_shrink_kernel<__nv_bfloat16, __nv_bfloat16>;
  }
  return A == Dtype::f32 ? segmented_shrink_kernel<__half, float> : segmented_shrink_kernel<__half, __half>;
}
}  // namespace

void segmented_shrink(const OnDevice& on, const Matrix& x, const Adapters& A, Tensor& s) {
  const int most = size_of(s.size(1));
  const dim3 grid(static_cast<unsigned>(ceil_div(most, kRanks)), x.rows);
  launch(on, kernel_for(x.dtype, dtype_of(s)), grid, dim3(kThreads), kThreads / 32 * kRanks * sizeof(float),
         SegmentedShrinkArgs{x, A, write(s), dtype_of(s), most});
}

}  // namespace pypeft
