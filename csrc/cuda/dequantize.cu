// The dequantised weight [N, K] in `dtype`, by one launch.
//
//   weight, scales: the tensors of the format (pypeft_fast/frozen/formats.py) -> [N, K], contiguous
//
// Plan. A block decodes 4 KiB of codes. Each thread copies 16 bytes of codes into shared memory with one load. Each
// thread then decodes the codes of 16 bytes of W at a time, so that the stores of neighbouring threads are coalesced.
// The sixteen values of a 4-bit format are a table in shared memory, each in a different bank. A nested scale is
// computed where it is needed; L1 caches its three loads. Traffic: codes and scales are read once, W is written once.
#include "cuda/frozen/decode.cuh"
#include "stored.h"

namespace pypeft {
namespace {
constexpr int kThreads = 256, kCodeBytes = 16 * kThreads;

struct Args {
  Codes codes;
  void* out;
  bool whole;  // 8-bit formats: all weights of one store have one scale, because K and scale_columns are multiples of 8
};

// 16 bytes of codes that begin at byte `at`; bytes beyond the last code are 0.
PYPEFT_DEVICE uint4 load_codes(const Codes& c, int64_t at) {
  const int64_t left = c.bytes - at;
  if (c.vectors && left >= 16) return load_global_streaming(c.data + at);
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (i < left) words[i / 4] |= static_cast<uint32_t>(load_global<uint8_t>(c.data + at + i)) << 8 * (i % 4);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

PYPEFT_DEVICE float eight_bit_scale(const Codes& c, int64_t n, int64_t k) {
  const float scale = load_global<float>(c.scale + n / c.scale_rows * c.scales_across + k / c.scale_columns);
  return c.format == Format::int8 ? scale * (1.0f / 127.0f) : scale;
}

// Decodes kWeights weights that begin at `at`; their codes are at `codes` in shared memory. The caller does not store
// weights beyond the last one.
template <bool kFourBit, int kWeights>
PYPEFT_DEVICE void decode(float (&w)[kWeights], const Args& a, const char* codes, const char* table, int64_t at) {
  const Codes& c = a.codes;
  if constexpr (kFourBit) {
    const uint32_t word = kWeights == 8 ? load_shared<uint32_t>(codes) : load_shared<uint16_t>(codes);
    const float scale = four_bit_scale(c, at >> c.shift);
#pragma unroll
    for (int i = 0; i < kWeights; ++i) w[i] = four_bit_value(table, word, i) * scale;
  } else {
    uint32_t words[2];
    if constexpr (kWeights == 8) {
      const uint2 both = load_shared<uint2>(codes);
      words[0] = both.x, words[1] = both.y;
    } else {
      words[0] = load_shared<uint32_t>(codes);
    }
    int64_t n = at / c.K, k = at - n * c.K;
    float scale = eight_bit_scale(c, n, k);
#pragma unroll
    for (int i = 0; i < kWeights; ++i) {
      const uint32_t byte = words[i / 4] >> 8 * (i % 4) & 255;
      w[i] = (c.format == Format::int8 ? int8_value(byte) : fp8_value(byte)) * scale;
      if (a.whole || at + i + 1 >= c.weights) continue;
      if (++k == c.K) k = 0, ++n;
      scale = eight_bit_scale(c, n, k);
    }
  }
}

template <class T, bool kFourBit>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(Args a) {
  constexpr int kWeights = 16 / sizeof(T), kBytes = kFourBit ? kWeights / 2 : kWeights;  // of a store
  const Codes& c = a.codes;
  char *table = shared_memory(), *codes = table + kTableBytes;
  const int64_t begin = int64_t(blockIdx.x) * kCodeBytes, mine = begin + 16 * threadIdx.x;
  if (kFourBit) fill_table(table, c.format);
  store_shared(codes + 16 * threadIdx.x, mine < c.bytes ? load_codes(c, mine) : make_uint4(0, 0, 0, 0));
  __syncthreads();
  for (int i = threadIdx.x; i < kCodeBytes / kBytes; i += kThreads) {
    const int64_t at = (begin + i * kBytes) * (kFourBit ? 2 : 1), left = c.weights - at;
    if (left <= 0) return;
    float w[kWeights];
    decode<kFourBit>(w, a, codes + i * kBytes, table, at);
    T* to = static_cast<T*>(a.out) + at;
    if (left >= kWeights) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (sizeof(T) == 4) words[j] = __float_as_uint(w[j]);
        if constexpr (sizeof(T) == 2) words[j] = pack2<T>(w[2 * j], w[2 * j + 1]);
      }
      store_global(to, make_uint4(words[0], words[1], words[2], words[3]));
    } else {
#pragma unroll
      for (int j = 0; j < kWeights; ++j) {
        if (j < left) store_global(to + j, from_float<T>(w[j]));
      }
    }
  }
}

template <class T>
auto kernel_for(const Codes& c) {
  return is_four_bit(c.format) ? dequantize_kernel<T, true> : dequantize_kernel<T, false>;
}

Tensor dequantize(const Tensor& weight, const std::vector<Tensor>& scales, const std::string& format, int64_t N,
                  int64_t K, ScalarType dtype, bool) {
  const OnDevice on(weight);
  const Stored its = stored("dequantize", weight, format, scales, N, K);
  return dequantized(on, codes_of(weight, format, scales, its), weight, dtype);
}
}  // namespace

Tensor dequantized(const OnDevice& on, const Codes& codes, const Tensor& like, ScalarType dtype) {
  Tensor out = torch::stable::new_empty(like, {codes.N, codes.K}, dtype);
  if (codes.weights == 0) return out;
  const bool whole = codes.K % 8 == 0 && (codes.scale_columns == codes.K || codes.scale_columns % 8 == 0);
  const Args args{codes, write(out), whole};
  const auto kernel = dtype_of(out) == Dtype::bf16  ? kernel_for<__nv_bfloat16>(codes)
                      : dtype_of(out) == Dtype::f16 ? kernel_for<__half>(codes)
                                                    : kernel_for<float>(codes);
  launch(on, kernel, dim3(static_cast<unsigned>(ceil_div(codes.bytes, kCodeBytes))), dim3(kThreads),
         kTableBytes + kCodeBytes, args);
  return out;
}

}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("dequantize_cuda", TORCH_BOX(&pypeft::dequantize)); }
