// The instructions of a whole warp: their results, and the distribution of matrices over lanes. The tests compare both
// with their own copies of the tables in the PTX manual.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "state.h"

namespace emulator {

void matrix_access(const void* row, const void* site);

namespace {
constexpr unsigned WARP = 0xFFFFFFFF;

struct Load {
  uint32_t* d;
  const char* row;
  int matrices;
  bool transposed;
};

void load_matrices(void* const* brought) {
  const auto lanes = reinterpret_cast<const Load* const*>(brought);
  for (int lane = 0; lane < 32; ++lane) {
    const Load& mine = *lanes[lane];
    for (int m = 0; m < mine.matrices; ++m) {
      const auto element = [&](int row, int column) {
        uint16_t value;
        std::memcpy(&value, lanes[8 * m + row]->row + 2 * column, 2);
        return uint32_t(value);
      };
      const int g = lane / 4, t = lane % 4;
      mine.d[m] = mine.transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                                  : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
    }
  }
}

struct Multiply {
  float* c;
  const uint32_t *a, *b;
};

template <class T>
float half_of(uint32_t pair, int which) {
  return float(__bits_as<T>(uint16_t(pair >> 16 * which)));
}

// `value` rounded towards zero to a float.
float truncated(double value) {
  const float near = float(value);
  return std::abs(double(near)) > std::abs(value) ? std::nextafter(near, 0.0f) : near;
}

// c += A B of a warp, with A [16, K] and B [K, 8]. Products are exact, and a sum is truncated to a float, as measured
// by Fasi et al. ("Numerical behavior of NVIDIA tensor cores", 2021). The extra bits that the hardware keeps within a
// sum are not modelled. get_a and get_b copy the fragment of a lane into A and B.
template <int K, class GetA, class GetB>
void multiply(const Multiply* const* lanes, GetA get_a, GetB get_b) {
  float A[16][K], B[K][8];
  for (int lane = 0; lane < 32; ++lane) get_a(A, *lanes[lane], lane / 4, lane % 4);
  for (int lane = 0; lane < 32; ++lane) get_b(B, *lanes[lane], lane / 4, lane % 4);
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      double sum = lanes[lane]->c[i];
      for (int k = 0; k < K; ++k) sum += double(A[g + 8 * (i / 2)][k]) * B[k][2 * t + i % 2];
      lanes[lane]->c[i] = truncated(sum);
    }
  }
}

template <class T>
void multiply_halves(void* const* brought) {
  multiply<16>(
      reinterpret_cast<const Multiply* const*>(brought),
      [](float (&A)[16][16], const Multiply& m, int g, int t) {
        for (int i = 0; i < 4; ++i) {
          for (int h = 0; h < 2; ++h) A[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + h] = half_of<T>(m.a[i], h);
        }
      },
      [](float (&B)[16][8], const Multiply& m, int g, int t) {
        for (int i = 0; i < 2; ++i) {
          for (int h = 0; h < 2; ++h) B[2 * t + 8 * i + h][g] = half_of<T>(m.b[i], h);
        }
      });
}

// The tensor core uses the upper 19 bits of a float.
float as_tf32(uint32_t bits) { return __uint_as_float(bits & ~0x1FFFu); }

void multiply_tf32(void* const* brought) {
  multiply<8>(
      reinterpret_cast<const Multiply* const*>(brought),
      [](float (&A)[16][8], const Multiply& m, int g, int t) {
        for (int i = 0; i < 4; ++i) A[g + 8 * (i % 2)][t + 4 * (i / 2)] = as_tf32(m.a[i]);
      },
      [](float (&B)[8][8], const Multiply& m, int g, int t) {
        for (int i = 0; i < 2; ++i) B[t + 4 * i][g] = as_tf32(m.b[i]);
      });
}
}  // namespace

void ldmatrix(uint32_t* d, const void* row, int matrices, bool transposed) {
  const void* site = __builtin_return_address(0);
  if (block.current->lane < 8 * matrices) matrix_access(row, site);
  Load mine{d, static_cast<const char*>(row), matrices, transposed};
  const char* name = transposed ? (matrices == 4 ? "ldmatrix.x4.trans" : "ldmatrix.x2.trans")
                                : (matrices == 4 ? "ldmatrix.x4" : "ldmatrix.x2");
  together(WARP, load_matrices, &mine, name);
}

template <class T>
void mma_16816(float* c, const uint32_t* a, const uint32_t* b) {
  Multiply mine{c, a, b};
  together(WARP, multiply_halves<T>, &mine, "mma.m16n8k16");
}
template void mma_16816<__nv_bfloat16>(float*, const uint32_t*, const uint32_t*);
template void mma_16816<__half>(float*, const uint32_t*, const uint32_t*);

void mma_1688_tf32(float* c, const uint32_t* a, const uint32_t* b) {
  Multiply mine{c, a, b};
  together(WARP, multiply_tf32, &mine, "mma.m16n8k8.tf32");
}

uint32_t to_tf32(float value) {
  const uint32_t bits = __float_as_uint(value);
  return std::isfinite(value) ? (bits + 0x1000) & ~0x1FFFu : bits;
}

}  // namespace emulator
