// The kernel of gemm.h: product.h's product for more than a few rows.
//
// These are sm_80's instructions, mma.sync and cp.async, on every GPU. Those of Hopper and Blackwell (wgmma, tcgen05,
// TMA) are faster for large products, which are left to Triton, that compiles to them, and to the vendor's library: an
// op times its kernels on the first call of a shape (pypeft_fast/_tuning.py). Decoding is bound by the read of W:
// decode.cu.
//
// Plan. Tiles of kM x kN of the output; K in steps of 32 through 3 stages of cp.async. The stages' first tiles are
// requested, and while they fly the low-rank product is computed in the last stage's memory, its inputs cast to the
// type of X and padded with zeros, 32 ranks a step; it is scaled and masked in the accumulators, in float, and the
// frozen product is added on top. Of float32 it is computed last, in accumulators of its own: it may be much larger
// than the frozen product, each of whose steps would be rounded to its last bit. The result leaves through shared
// memory, a row's 16 bytes a thread.
//   16-bit, large: 128 x 128, 8 warps of 64 x 32, 48 KiB; without a mask two blocks a multiprocessor that has 100 KiB
//   16-bit, small:  64 x  64, 4 warps of 32 x 32, 24 KiB, for outputs of fewer large tiles than multiprocessors
//   float:          64 x  64, 4 warps of 32 x 32, 48 KiB
// Blocks are numbered so that those that run together share rows of X and of W in L2: 8 tiles down, then across.
// Traffic: X once for every kN columns, W once for every kM rows, beyond L2's help; out, mask once.
//
// IA3. Where l lies on the inputs, the thread that copied 16 bytes of X multiplies them in place before the others see
// them; the 32 factors of a step travel one step ahead of it, since all threads need them. The dl of that side is none
// of the product's business: blocks of their own, after the others, read X and z for it, X a second time and from L2
// where it fits. Where l lies on the outputs, the sums leave twice, as z and scaled, or meet the tile of x for dl
// before they are scaled. Parts of dl: 4 bytes a column for every tile's rows, or for every block's; the last block of
// the columns adds them. DoRA's scale lies
// on the outputs too, over the low-rank product and under the bias.
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
  // Tile number -> a band of kBand tiles down, then across.
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

  if constexpr (kScale == Scale::inputs) copy_factors(0);  // with the first stage
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
    __syncthreads();  // the first step's factors
  }

#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    char* stage = shared + step % kStages * S::kStageBytes;
    cp_async_wait<kStages - 2>();
    if constexpr (kScale == Scale::inputs) {
      if constexpr (!kAsync) __syncthreads();  // other threads wrote what this one multiplies
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
