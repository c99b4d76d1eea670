// Plan. A block computes 16 columns of the output, which are 16 rows of W. Its 8 warps divide K among themselves, in
// pieces of 128 (16-bit) or 32 (float) columns. W is loaded into registers without shared memory: 16 bytes a load, with
// eight loads of a thread in flight, or four for floats or with IA3's factors. X is loaded in the same way, from L1 and
// L2. W is the operand A of the tensor cores, with 16 rows, and X is the operand B, with 8 columns; if X has more than
// 8 rows, the product is computed twice. The 16 bytes of a lane are consecutive along K, unlike the columns of a
// fragment. The product is right all the same, because X is permuted along K in the same way. IA3's factors on the
// inputs multiply X in registers. The low-rank operands, the bias and the scale are requested before the loop along K,
// one element a thread, and stay in registers (S after the loop, if the launch overlaps with the one that stores S).
// The warps add their sums in shared memory, and the epilogue adds the low-rank term (in float) and the bias, and
// multiplies by the scale. Traffic: W, lora_B or l, and out once; X and s are read from L2.
#include "cuda/product/decode.cuh"

namespace pypeft {
namespace {
// kScaled: whether the columns of X have factors. kFill: how X and W are loaded.
template <class T, bool kTf32, int kEights, bool kScaled, Fill kFill, class Args>
__global__ void __launch_bounds__(kDecodeThreads, 2) decode_kernel(Args p) {
  constexpr bool kWide = sizeof(T) == 2 && !kScaled && kFill == Fill::async;
  constexpr int kPerLoad = 16 / sizeof(T), kPart = 4 * kPerLoad,
                kParts = kWide                  ? 4
                         : kFill == Fill::async ? 2
                                                : 1,
                kStep = kDecodeWarps * kParts * kPart;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int n0 = blockIdx.x * kDecodeCols;
  auto load_weights = [&](int row, int k) {
    if constexpr (kFill == Fill::any) return load_inputs<T, kFill>(p.W, row, k);
    if (row >= p.W.rows || k >= p.W.cols) return make_uint4(0, 0, 0, 0);
    return load_global_streaming(static_cast<const T*>(p.W.data) + row * p.W.row + k);
  };
  DecodeEnd<T, Args, !kScaled> end(p, n0);
  float c[kEights][4] = {};
#pragma unroll 1
  for (int k0 = warp * kParts * kPart; k0 < p.X.cols; k0 += kStep) {
    uint4 w[kParts][2], x[kParts][kEights];
    [[maybe_unused]] float factors[kParts][kPerLoad] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int k = k0 + part * kPart + t * kPerLoad;
#pragma unroll
      for (int h = 0; h < 2; ++h) w[part][h] = load_weights(n0 + g + 8 * h, k);
#pragma unroll
      for (int e = 0; e < kEights; ++e) x[part][e] = load_inputs<T, kFill>(p.X, g + 8 * e, k);
      if constexpr (kScaled) load_input_factors<T>(factors[part], p, k);
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if constexpr (kScaled) {
#pragma unroll
        for (int e = 0; e < kEights; ++e) x[part][e] = scale_chunk<T>(x[part][e], factors[part]);
      }
      multiply<T, kTf32, kEights>(c, w[part][0], w[part][1], x[part]);
    }
  }
  end.finish(c, shared_memory());
}

template <class T, bool kTf32, int kEights, bool kScaled, Fill kFill, class Args>
void run(const OnDevice& on, const Args& p) {
  launch_decoding(on, decode_kernel<T, kTf32, kEights, kScaled, kFill, Args>, DecodeEnd<T, Args, !kScaled>::kBytes, p);
}
}  // namespace

void decode(const OnDevice& on, const ProductArgs& p, bool allow_tf32) {
  dispatch_decoding(p, allow_tf32, [&]<class T, bool kTf32, int kEights>() {
    p.inputs.present ? run<T, kTf32, kEights, true, Fill::async>(on, p)
                     : run<T, kTf32, kEights, false, Fill::async>(on, p);
  });
}

void decode(const OnDevice& on, const SegmentedProductArgs& p, bool allow_tf32) {
  dispatch_decoding(p, allow_tf32, [&]<class T, bool kTf32, int kEights>() {
    decodes(p) ? run<T, kTf32, kEights, false, Fill::async>(on, p) : run<T, kTf32, kEights, false, Fill::any>(on, p);
  });
}

}  // namespace pypeft
