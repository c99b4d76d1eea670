// The kernel of gemm.h: the product of product.h for more than 16 rows.
//
// The kernel uses the instructions of sm_80, mma.sync and cp.async, on every GPU. The instructions of Hopper and
// Blackwell (wgmma, tcgen05, TMA) are faster for large products. Triton and the vendor's library use them, and an op
// times its kernels on the first call with a shape (pypeft_fast/_tuning.py). Products with few rows are in decode.cu.
//
// Plan. A block computes a tile of kM x kN of the output, with K in steps of 32 through 3 stages of cp.async. While the
// copies of the first stages are in flight, the block computes the low-rank product in the memory of the last stage, 32
// ranks a step, with inputs cast to the type of X and padded with zeros. A thread requests all its elements of S and L
// before it waits for the first. The low-rank product is scaled and masked in
// the accumulators, in float, and the frozen product is added to the same accumulators. In float32 the low-rank product
// is computed last, in accumulators of its own, because it may be much larger than the frozen product, and adding the
// steps of the frozen product to it would lose their low bits. The result is stored through shared memory, 16 bytes of
// a row a thread.
//   16-bit, large: 128 x 128, 8 warps of 64 x 32, 48 KiB; without a mask, a multiprocessor with 100 KiB runs two blocks
//   16-bit, small:  64 x  64, 4 warps of 32 x 32, 24 KiB, for outputs with fewer large tiles than multiprocessors, and
//                                           for operands that allow no copies of 16 bytes
//   float:          64 x  64, 4 warps of 32 x 32, 48 KiB
// Blocks are numbered in bands of 8 tiles down, then across, so that concurrent blocks share rows of X and W in L2.
// Traffic: X once for every kN columns and W once for every kM rows, less what L2 holds; out and mask once.
//
// IA3. If l is on the inputs, the thread that copied 16 bytes of X multiplies them by l in shared memory before the
// other threads read them. The 32 factors of a step are copied one step ahead, because all threads need them. dl of the
// inputs does not depend on the product: separate blocks, numbered after the others, read X and z for it; X is read a
// second time, from L2 if it fits there. If l is on the outputs, the sums are stored twice, as z and scaled, or are
// multiplied with the tile of x for dl before they are scaled. The parts of dl are 4 bytes a column for each tile, or
// for each separate block; the last block of the columns adds them. The scale of DoRA is also on the outputs: it
// multiplies the frozen and the low-rank product, but not the bias.
#pragma once
#include "cuda/product/block.cuh"
#include "cuda/product/epilogue.cuh"
#include "cuda/product/gemm.h"
#include "cuda/product/scale_inputs.cuh"

namespace pypeft::gemm {
constexpr int kBand = 8;

template <class S, class M, bool kColumns, bool kAsync, Scale kScale>
__global__ void __launch_bounds__(S::kThreads, 2) gemm_kernel(ProductArgs p) {
  using B = Block<S, M, kColumns, kAsync>;
  using T = typename S::T;
  using TileX = typename B::TileX;
  using TileW = typename B::TileW;
  constexpr int kThreads = S::kThreads;
  constexpr bool kLowRankLast = sizeof(T) == 4;
  char* shared = shared_memory();
  char* factors = shared + S::kBytes;
  if constexpr (kScale == Scale::inputs) {
    const ColumnSum& gradient = p.inputs.gradient;
    constexpr int kPerBlock = kSumBytes / sizeof(T);
    const int block = blockIdx.x - (gridDim.x - (p.X.cols + kPerBlock - 1) / kPerBlock * gradient.blocks);
    if (block >= 0) return sum_columns<T, kThreads>(shared, p.X, gradient, block);
  }
  // The tile of this block: in bands of kBand tiles down, then across.
  const int down = (p.X.rows + S::kM - 1) / S::kM, across = (p.W.rows + S::kN - 1) / S::kN;
  const int band = blockIdx.x / (kBand * across), height = min(down - band * kBand, kBand);
  const int inside = blockIdx.x % (kBand * across);
  const int m0 = (band * kBand + inside % height) * S::kM, n0 = inside / height * S::kN;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp / (S::kN / S::kWarpN) * S::kWarpM, warp_n = warp % (S::kN / S::kWarpN) * S::kWarpN;
  const int steps = (p.X.cols + kBlockK - 1) / kBlockK;
  const Matrix W = B::as_tiled(p.W);

  auto copy_factors = [&](int step) {
    if (step < steps) {
      char* to = factors + step % kStages * S::kFactorsBytes;
      fill_factors<kBlockK, kThreads, kAsync>(to, p.inputs.factors, step * kBlockK);
    }
  };
  auto copy = [&](int step) {
    if (step < steps) {
      char* stage = shared + step % kStages * S::kStageBytes;
      fill<B::kFill, TileX, kThreads>(stage, p.X, m0, step * kBlockK);
      fill<B::kFill, TileW, kThreads>(stage + TileX::kBytes, W, kColumns ? step * kBlockK : n0,
                                      kColumns ? n0 : step * kBlockK);
    }
    if constexpr (kScale == Scale::inputs) copy_factors(step + 1);
    cp_async_commit();
  };

  if constexpr (kScale == Scale::inputs) copy_factors(0);  // in the group of the first stage
  for (int step = 0; step < kStages - 1; ++step) copy(step);
  typename B::Sums sums = {};
  auto low_rank = [&](typename B::Sums& to, int stage) {
    const uint8_t* mask = kScale == Scale::none ? p.low_rank.mask : nullptr;
    char* spare = shared + stage * S::kStageBytes;
    B::low_rank(to, p.low_rank, mask, spare, shared + S::kBytes, m0, n0, p.W.rows, warp_m, warp_n);
  };
  if constexpr (kScale != Scale::inputs && !kLowRankLast) low_rank(sums, kStages - 1);
  if constexpr (kScale == Scale::inputs) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // the factors of the first step are complete
  }

#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    char* stage = shared + step % kStages * S::kStageBytes;
    cp_async_wait<kStages - 2>();
    if constexpr (kScale == Scale::inputs) {
      if constexpr (!kAsync) __syncthreads();  // other threads have written the elements that this thread multiplies
      const char* of_step = factors + step % kStages * S::kFactorsBytes;
      scale_columns<TileX, kThreads, kAsync>(stage, of_step, p.inputs.factors.dtype);
    }
    __syncthreads();
    copy(step + kStages - 1);  // into the stage that all threads left before this barrier
    B::multiply(sums, stage, warp_m, warp_n);
  }

  __syncthreads();
  if (kScale != Scale::inputs && kLowRankLast && p.low_rank.S.cols > 0) {
    typename B::Sums low = {};
    low_rank(low, 0);
#pragma unroll
    for (int m = 0; m < S::kWarpM / 16; ++m) {
#pragma unroll
      for (int n = 0; n < S::kWarpN / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] += low[m][n][i];
      }
    }
    __syncthreads();
  }
  const BlockEpilogue<S> block{m0, n0, p.X.rows, p.W.rows, warp_m + lane / 4, warp_n + lane % 4 * 2};
  const Epilogue& end = p.epilogue;
  auto add_bias = [&] {
    auto bias = [&](int n) { return to_float(load_global<T>(static_cast<const T*>(end.bias) + n * end.bias_stride)); };
    block.by_column(sums, bias, [](float& sum, float value) { sum += value; });
  };
  const bool bias_last = kScale == Scale::outputs && end.bias_last;
  if (end.bias && !bias_last) add_bias();
  if constexpr (kScale == Scale::outputs) {
    const ColumnScale& scale = end.scale;
    if (scale.gradient.out) {
      block.sum_rows(shared, sums, scale.gradient);
      __syncthreads();
    }
    if (end.z) {
      block.store(shared, sums, end.z);
      __syncthreads();
    }
    if (p.out) {
      auto factor = [&](int n) { return load_element(scale.factors, n * scale.factors.col); };
      block.by_column(sums, factor, [](float& sum, float value) { sum *= value; });
      if (end.bias && bias_last) add_bias();
    }
  }
  if (kScale != Scale::outputs || p.out) block.store(shared, sums, p.out);
  if constexpr (kScale == Scale::outputs) {
    if (end.scale.gradient.out) add_columns<S::kN, kThreads>(shared, end.scale.gradient, p.W.rows, n0);
  }
}

}  // namespace pypeft::gemm
