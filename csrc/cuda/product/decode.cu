// Plan. A block takes 16 rows of W (columns of the output), its 8 warps every eighth 128 (16-bit) or 32 (float) columns
// of them. W goes straight into registers, 16 bytes a load, eight loads of a thread under way at once, or four of
// floats and beside IA3's l; so does X, from L1 and L2. The tensor cores take W as their 16-row operand and X as the
// 8-column one, twice where X has more than 8 rows. A lane's 16 bytes are neighbours along K, not the columns that a
// fragment asks for; since the same permutation of K is applied to X, the product is the same. IA3's l on the inputs
// multiplies X in those registers. The low-rank operands, the bias and l on the outputs are requested first, an element
// a thread, and wait in registers. The warps' sums meet in shared memory, where these join them.
// Traffic: W, lora_B or l, and out once; X and s come from L2.
#include "cuda/product/decode.cuh"

namespace pypeft {
namespace {
template <class T, bool kTf32, int kEights, bool kScaled>
__global__ void __launch_bounds__(kDecodeThreads, 2) decode_kernel(ProductArgs p) {
  constexpr int kPerLoad = 16 / sizeof(T), kPart = 4 * kPerLoad, kParts = sizeof(T) == 2 && !kScaled ? 4 : 2,
                kStep = kDecodeWarps * kParts * kPart;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int n0 = blockIdx.x * kDecodeCols;
  auto load_weights = [&](int row, int k) {
    if (row >= p.W.rows || k >= p.W.cols) return make_uint4(0, 0, 0, 0);
    return load_global_streaming(static_cast<const T*>(p.W.data) + row * p.W.row + k);
  };
  DecodeEnd<T> end(p, n0);
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
      for (int e = 0; e < kEights; ++e) x[part][e] = load_inputs<T>(p.X, g + 8 * e, k);
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
}  // namespace

void decode(const OnDevice& on, const ProductArgs& p, bool allow_tf32) {
  dispatch_decoding(p, allow_tf32, [&]<class T, bool kTf32, int kEights, bool kScaled>() {
    launch(on, decode_kernel<T, kTf32, kEights, kScaled>, dim3(static_cast<unsigned>(ceil_div(p.W.rows, kDecodeCols))),
           dim3(kDecodeThreads), DecodeEnd<T>::kBytes, p);
  });
}

}  // namespace pypeft
