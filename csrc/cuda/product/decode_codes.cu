// Plan. The plan is that of decode.cu, with W in nf4 or fp4, and a dense W is never stored. The 16 bytes that a lane
// loads of a row are 32 weights, four times as many as 16 bytes in half precision. The 8 warps divide K among
// themselves, in pieces of 128 columns. All weights of a load are in one quantisation block and have one scale: a
// float, or the nested scale, whose tables L1 caches. The sixteen values are a table in shared memory, each in a
// different bank. A weight is its value times its scale in float, rounded to the type of X, as a dequantised weight is.
// X is loaded from L1 and L2 where it is needed. Traffic: codes, scales, lora_B or l, and out once. Codes are 0.5 bytes
// a weight. With quantisation blocks of 64, nested scales are 1/64 bytes a weight, and float scales 1/16 bytes.
#include "cuda/frozen/decode.cuh"
#include "cuda/product/decode.cuh"

namespace pypeft {
namespace {
constexpr int kPart = 4 * kCodesPerLoad;

// Chunk number `chunk` of the weights of 16 bytes of codes; a chunk is 16 bytes of T.
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

// Blocks of a multiprocessor: with 2, the fragments in three parts of 16 rows of floats would spill.
template <class T, bool kTf32, int kEights>
constexpr int kBlocks = sizeof(T) == 4 && !kTf32 && kEights == 2 ? 1 : 2;

template <class T, bool kTf32, int kEights, bool kScaled, class Args>
__global__ void __launch_bounds__(kDecodeThreads, (kBlocks<T, kTf32, kEights>)) decode_codes_kernel(Args p) {
  constexpr int kPerChunk = 16 / sizeof(T), kChunks = kCodesPerLoad / kPerChunk;
  constexpr int kParts = sizeof(T) == 4 && !kTf32 ? 1 : 2;  // fragments of float in three parts leave registers for 1
  const Codes& codes = p.codes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int n0 = blockIdx.x * kDecodeCols;
  char* table = shared_memory();
  fill_table(table, codes.format);
  __syncthreads();
  DecodeEnd<T, Args, !kScaled> end(p, n0);
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
      if (first >= p.X.cols) break;  // the same for all lanes of the warp
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const int k = first + t * kCodesPerLoad + chunk * kPerChunk;
        uint4 x[kEights];
#pragma unroll
        for (int e = 0; e < kEights; ++e) x[e] = load_inputs<T, Fill::async>(p.X, g + 8 * e, k);
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

template <class T, bool kTf32, int kEights, bool kScaled, class Args>
void run(const OnDevice& on, const Args& p) {
  launch_decoding(on, decode_codes_kernel<T, kTf32, kEights, kScaled, Args>,
                  kTableBytes + DecodeEnd<T, Args, !kScaled>::kBytes, p);
}
}  // namespace

void decode_codes(const OnDevice& on, const ProductArgs& p, bool allow_tf32) {
  dispatch_decoding(p, allow_tf32, [&]<class T, bool kTf32, int kEights>() {
    p.inputs.present ? run<T, kTf32, kEights, true>(on, p) : run<T, kTf32, kEights, false>(on, p);
  });
}

void decode_codes(const OnDevice& on, const SegmentedProductArgs& p, bool allow_tf32) {
  dispatch_decoding(p, allow_tf32, [&]<class T, bool kTf32, int kEights>() { run<T, kTf32, kEights, false>(on, p); });
}

}  // namespace pypeft
