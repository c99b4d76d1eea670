// Plan. As decode.cu's, with a W of four bits, nf4 or fp4: no dense W is ever formed. A lane's 16 bytes of a row are 32
// weights, four times as many columns as 16 bytes of half precision; its 8 warps take every eighth 128 columns. They
// lie in one block, so that a load has one scale: a float, or a byte and what L1 holds of the nested ones. The sixteen
// values are a table in shared memory, each in a bank of its own. A weight is its value times its scale, in float,
// rounded to X's type: as a dequantised W is. X comes from L1 and L2 as its 16 bytes are due.
// Traffic: codes, scales, lora_B or l, and out once: 0.5 bytes a weight, 1/64 more of nested scales, of others 1/16,
// where a block is of 64.
#include "cuda/frozen/decode.cuh"
#include "cuda/product/decode.cuh"

namespace pypeft {
namespace {
constexpr int kPart = 4 * kCodesPerLoad;

// 16 bytes of T: the chunk of that number of the weights behind 16 bytes of codes.
template <class T>
PYPEFT_DEVICE uint4 decoded(const char* table, const uint4& codes, float scale, int chunk) {
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
  constexpr int kWeights = 16 / sizeof(T);
  uint32_t out[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = chunk * kWeights + i * kWeights / 4;  // of 32 weights
    const uint32_t word = words[at / 8];
    const float first = four_bit_value(table, word, at % 8) * scale;
    if constexpr (sizeof(T) == 4) out[i] = __float_as_uint(first);
    if constexpr (sizeof(T) == 2) out[i] = pack2<T>(first, four_bit_value(table, word, at % 8 + 1) * scale);
  }
  return make_uint4(out[0], out[1], out[2], out[3]);
}

template <class T, bool kTf32, int kEights, bool kScaled>
__global__ void __launch_bounds__(kDecodeThreads, 2) decode_codes_kernel(ProductArgs p) {
  constexpr int kPerChunk = 16 / sizeof(T), kChunks = kCodesPerLoad / kPerChunk;
  constexpr int kParts = sizeof(T) == 4 && !kTf32 ? 1 : 2;  // what fits beside fragments in three parts
  const Codes& codes = p.codes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int n0 = blockIdx.x * kDecodeCols;
  char* table = shared_memory();
  fill_table(table, codes.format);
  __syncthreads();
  DecodeEnd<T> end(p, n0);
  float c[kEights][4] = {};
  for (int k0 = warp * kPart; k0 < p.X.cols; k0 += kDecodeWarps * kParts * kPart) {
    uint4 w[kParts][2];
    float scale[kParts][2];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int k = k0 + part * kDecodeWarps * kPart + t * kCodesPerLoad;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int n = n0 + g + 8 * h;
        const bool inside = n < p.W.rows && k < p.X.cols;
        const int64_t at = n * codes.K + k;
        w[part][h] = inside ? load_global_streaming(codes.data + at / 2) : make_uint4(0, 0, 0, 0);
        scale[part][h] = inside ? four_bit_scale(codes, at >> codes.shift) : 0.0f;
      }
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int first = k0 + part * kDecodeWarps * kPart;
      if (first >= p.X.cols) break;  // all of the warp
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const int k = first + t * kCodesPerLoad + chunk * kPerChunk;
        uint4 x[kEights];
#pragma unroll
        for (int e = 0; e < kEights; ++e) x[e] = load_inputs<T>(p.X, g + 8 * e, k);
        if constexpr (kScaled) {
          float factors[kPerChunk] = {};
          load_input_factors<T>(factors, p, k);
#pragma unroll
          for (int e = 0; e < kEights; ++e) x[e] = scale_chunk<T>(x[e], factors);
        }
        multiply<T, kTf32, kEights>(c, decoded<T>(table, w[part][0], scale[part][0], chunk),
                                    decoded<T>(table, w[part][1], scale[part][1], chunk), x);
      }
    }
  }
  end.finish(c, table + kTableBytes);
}
}  // namespace

void decode_codes(const OnDevice& on, const ProductArgs& p, bool allow_tf32) {
  dispatch_decoding(p, allow_tf32, [&]<class T, bool kTf32, int kEights, bool kScaled>() {
    launch(on, decode_codes_kernel<T, kTf32, kEights, kScaled>,
           dim3(static_cast<unsigned>(ceil_div(p.W.rows, kDecodeCols))), dim3(kDecodeThreads),
           kTableBytes + DecodeEnd<T>::kBytes, p);
  });
}

}  // namespace pypeft
