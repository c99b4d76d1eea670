// The kernel of gemm.h.
//
// These are sm_80's instructions, mma.sync and cp.async, on every GPU. Those of Hopper and Blackwell (wgmma, tcgen05,
// TMA) are faster for large products, which are left to Triton, that compiles to them, and to the vendor's library: an
// op times its kernels on the first call of a shape (pypeft_fast/_tuning.py). Decoding is bound by the read of W:
// decode.cu.
//
// Plan. Tiles of kM x kN of the output; K in steps of 32 through 3 stages of cp.async. The stages' first tiles are
// requested, and while they fly the low-rank product is computed in the last stage's memory, its inputs cast to the
// type of X and padded with zeros, 32 ranks a step; it is scaled and masked in the accumulators, in float, and the
// frozen product is added on top. The result leaves through shared memory, a row's 16 bytes a thread.
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
// before they are scaled. Parts of dl: 4 bytes a column for every tile's rows, or for every block's. DoRA's scale lies
// on the outputs too, over the low-rank product and under the bias.
#pragma once
#include "cuda/columns.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/fragments.cuh"
#include "cuda/gemm.h"

namespace pypeft::gemm_detail {
constexpr int kBlockK = 32, kStages = 3, kBand = 8;

template <class T_, int kM_, int kN_, int kWarpM_, int kWarpN_>
struct Shape {
  using T = T_;
  static constexpr int kM = kM_, kN = kN_, kWarpM = kWarpM_, kWarpN = kWarpN_;
  static constexpr int kThreads = 32 * (kM / kWarpM) * (kN / kWarpN);
  static constexpr int kStageBytes = (kM + kN) * kBlockK * sizeof(T);
  static constexpr int kMaskBytes = kM * kN / 8;
  static constexpr int kFactorsBytes = kBlockK * 4;
  static constexpr int kBytes = kStages * kStageBytes;  // and kMaskBytes, or kFactorsBytes a stage, where needed
  static_assert(kBytes >= Tile<T, kM, kN>::kBytes, "the output leaves through the stages' memory");
  static_assert(kBytes >= kThreads / 32 * kSumBytes / int(sizeof(T)) * 4, "warps' sums meet in the stages' memory");
};

template <class S, class M, bool kColumns, bool kAsync>
struct Block {
  using T = typename S::T;
  using TileX = Tile<T, S::kM, kBlockK>;
  using TileW = std::conditional_t<kColumns, Tile<T, kBlockK, S::kN>, Tile<T, S::kN, kBlockK>>;
  using Sums = typename Epilogue<S>::Sums;
  static constexpr int kUnroll = M::K == 16 ? 2 : 1;  // steps along K at once; floats in three parts fill the registers
  static constexpr Fill kFill = kAsync ? Fill::async : Fill::any;

  // sums += a stage's X W^T, this warp's part.
  PYPEFT_DEVICE static void multiply(Sums& sums, char* stage, int warp_m, int warp_n) {
    char* tile_W = stage + TileX::kBytes;
#pragma unroll(kUnroll)
    for (int k = 0; k < kBlockK; k += M::K) {
      typename M::A a[S::kWarpM / 16];
#pragma unroll
      for (int m = 0; m < S::kWarpM; m += 16) M::template load_a_rows<TileX>(a[m / 16], stage, warp_m + m, k);
#pragma unroll
      for (int n = 0; n < S::kWarpN; n += 16) {
        typename M::B b[2];
        if constexpr (kColumns) M::template load_b_columns<TileW>(b, tile_W, warp_n + n, k);
        if constexpr (!kColumns) M::template load_b_rows<TileW>(b, tile_W, warp_n + n, k);
#pragma unroll
        for (int m = 0; m < S::kWarpM / 16; ++m) {
          M::mma(sums[m][n / 8], a[m], b[0]);
          M::mma(sums[m][n / 8 + 1], a[m], b[1]);
        }
      }
    }
  }

  // W's columns tile is W^T as it lies in memory.
  PYPEFT_DEVICE static Matrix as_tiled(Matrix w) {
    if constexpr (kColumns) {
      const int64_t row = w.row;
      const int rows = w.rows;
      w.row = w.col, w.col = row, w.rows = w.cols, w.cols = rows;
    }
    return w;
  }
};

template <class S, class M, bool kColumns, bool kAsync, Scale kScale>
__global__ void __launch_bounds__(S::kThreads, 2) kernel(GemmArgs p) {
  using B = Block<S, M, kColumns, kAsync>;
  using T = typename S::T;
  using TileX = typename B::TileX;
  using TileW = typename B::TileW;
  constexpr int kThreads = S::kThreads;
  char* shared = shared_memory();
  char* tile_mask = shared + S::kBytes;
  char* factors = shared + S::kBytes;
  if constexpr (kScale == Scale::inputs) {
    const int block = blockIdx.x - (gridDim.x - p.scale.blocks);
    if (block >= 0) return sum_products<T, kThreads>(shared, p.X, p.scale.saved, p.scale.parts, block, p.scale.span);
  }
  // Tile number -> a band of kBand tiles down, then across.
  const int down = (p.X.rows + S::kM - 1) / S::kM, across = (p.W.rows + S::kN - 1) / S::kN;
  const int band = blockIdx.x / (kBand * across), height = min(down - band * kBand, kBand);
  const int inside = blockIdx.x % (kBand * across);
  const int m0 = (band * kBand + inside % height) * S::kM, n0 = inside / height * S::kN;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp / (S::kN / S::kWarpN) * S::kWarpM, warp_n = warp % (S::kN / S::kWarpN) * S::kWarpN;
  const int steps = (p.X.cols + kBlockK - 1) / kBlockK;
  const Matrix W = B::as_tiled(p.W), L = B::as_tiled(p.L);

  auto copy_factors = [&](int step) {
    if (step < steps) {
      fill_factors<kBlockK, kThreads, kAsync>(factors + step % kStages * S::kFactorsBytes, p.scale.l, step * kBlockK);
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
  if constexpr (kScale != Scale::inputs) {
    const uint8_t* mask = kScale == Scale::none ? p.mask : nullptr;
    if (mask) {
      for (int i = threadIdx.x; i < S::kMaskBytes; i += kThreads) {
        const int row = m0 + i / (S::kN / 8), byte = n0 / 8 + i % (S::kN / 8);
        const bool exists = row < p.X.rows && byte * 8 < p.W.rows;
        store_shared(tile_mask + i, exists ? load_global<uint8_t>(mask + row * p.mask_row + byte) : uint8_t(0));
      }
    }
    char* spare = shared + (kStages - 1) * S::kStageBytes;
#pragma unroll 1
    for (int r = 0; r < p.S.cols; r += kBlockK) {
      if (r > 0) __syncthreads();
      fill_any<TileX, kThreads>(spare, p.S, m0, r);
      fill_any<TileW, kThreads>(spare + TileX::kBytes, L, kColumns ? r : n0, kColumns ? n0 : r);
      __syncthreads();
      B::multiply(sums, spare, warp_m, warp_n);
    }
#pragma unroll
    for (int m = 0; m < S::kWarpM / 16; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        static_assert(S::kWarpN == 32, "a row's bits are one word");
        const int row = warp_m + m * 16 + lane / 4 + h * 8;
        const uint32_t keep = mask ? load_shared<uint32_t>(tile_mask + row * (S::kN / 8) + warp_n / 8) : ~0u;
#pragma unroll
        for (int n = 0; n < S::kWarpN / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& sum = sums[m][n][2 * h + i];
            sum = keep >> (8 * n + lane % 4 * 2 + i) & 1 ? sum * p.factor : 0.0f;
          }
        }
      }
    }
  }
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
      scale_columns<TileX, kThreads, kAsync>(stage, factors + step % kStages * S::kFactorsBytes, p.scale.l.dtype);
    }
    __syncthreads();
    copy(step + kStages - 1);  // into the stage that all threads left before this barrier
    B::multiply(sums, stage, warp_m, warp_n);
  }

  __syncthreads();
  const Epilogue<S> end{m0, n0, p.X.rows, p.W.rows, warp_m + lane / 4, warp_n + lane % 4 * 2};
  auto add_bias = [&] {
    auto bias = [&](int n) { return to_float(load_global<T>(static_cast<const T*>(p.bias) + n * p.bias_stride)); };
    end.by_column(sums, bias, [](float& sum, float value) { sum += value; });
  };
  const bool bias_last = kScale == Scale::outputs && p.scale.bias_last;
  if (p.bias && !bias_last) add_bias();
  if constexpr (kScale == Scale::outputs) {
    if (p.scale.parts) {
      end.sum_rows(shared, sums, p.scale.saved, p.scale.parts + int64_t(m0 / S::kM) * p.W.rows);
      __syncthreads();
    }
    if (p.scale.z) {
      end.store(shared, sums, p.scale.z, p.out_vectors);
      __syncthreads();
    }
    if (!p.out) return;
    auto l = [&](int n) { return load_element(p.scale.l, n * p.scale.l.col); };
    end.by_column(sums, l, [](float& sum, float value) { sum *= value; });
    if (p.bias && bias_last) add_bias();
  }
  end.store(shared, sums, p.out, p.out_vectors);
}

}  // namespace pypeft::gemm_detail
