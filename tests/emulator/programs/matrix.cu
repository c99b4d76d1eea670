// Programs of one instruction each. A test gives the input registers of every lane and reads the output registers.
#include "program.h"

template <class T>
__global__ void mma_kernel(const uint32_t* a, const uint32_t* b, float* c) {
  const int lane = threadIdx.x;
  uint32_t ra[4], rb[2];
  float rc[4];
  for (int i = 0; i < 4; ++i) ra[i] = load_global<uint32_t>(&a[lane * 4 + i]);
  for (int i = 0; i < 2; ++i) rb[i] = load_global<uint32_t>(&b[lane * 2 + i]);
  for (int i = 0; i < 4; ++i) rc[i] = load_global<float>(&c[lane * 4 + i]);
  if constexpr (std::is_same_v<T, float>) {
    mma_1688_tf32(rc, ra, rb);
  } else {
    mma_16816<T>(rc, ra, rb);
  }
  for (int i = 0; i < 4; ++i) store_global(&c[lane * 4 + i], rc[i]);
}
PROGRAM mma_bf16(const uint32_t* a, const uint32_t* b, float* c) {
  return run_program(mma_kernel<__nv_bfloat16>, 1, 32, 0, a, b, c);
}
PROGRAM mma_f16(const uint32_t* a, const uint32_t* b, float* c) {
  return run_program(mma_kernel<__half>, 1, 32, 0, a, b, c);
}
PROGRAM mma_tf32(const uint32_t* a, const uint32_t* b, float* c) {
  return run_program(mma_kernel<float>, 1, 32, 0, a, b, c);
}

// out [32, 4]: the registers of ldmatrix, from 32 rows of 8 values. Row i of matrix m is x[8 m + i].
__global__ static void ldmatrix_kernel(const uint4* x, uint32_t* out, int matrices, bool transposed) {
  uint4* s = reinterpret_cast<uint4*>(shared_memory());
  const int lane = threadIdx.x;
  store_shared(&s[lane], load_global<uint4>(&x[lane]));
  __syncwarp();
  uint32_t four[4] = {}, two[2] = {};
  if (matrices == 4) {
    transposed ? ldmatrix_x4_trans(four, &s[lane]) : ldmatrix_x4(four, &s[lane]);
  } else {
    transposed ? ldmatrix_x2_trans(two, &s[lane % 16]) : ldmatrix_x2(two, &s[lane % 16]);
  }
  for (int i = 0; i < matrices; ++i) store_global(&out[lane * 4 + i], matrices == 4 ? four[i] : two[i]);
}
PROGRAM ldmatrix(const uint4* x, uint32_t* out, int matrices, bool transposed) {
  return run_program(ldmatrix_kernel, 1, 32, 512, x, out, matrices, transposed);
}

// y [64, 64] = x [64, K] w [64, K]^T by two stages of cp.async, ldmatrix and mma, with planted bugs.
enum Bug { NONE, NO_WAIT, NO_BARRIER, NO_SECOND_BARRIER, WRONG_ROW, WRONG_REGISTER };
constexpr int TILE = 64, STEP = 32, ROW = STEP + 8;

__global__ static void matmul_kernel(const __nv_bfloat16* x, const __nv_bfloat16* w, float* y, int K, int bug) {
  auto* stages = reinterpret_cast<__nv_bfloat16*>(shared_memory());  // [2][x, w][TILE][ROW]
  const int tid = threadIdx.x, lane = tid % 32, m0 = tid / 64 * 32, n0 = tid / 32 % 2 * 32;
  const auto fetch = [&](int stage, int k0) {
    for (int i = tid; i < TILE * STEP / 8; i += 128) {
      const int r = i / (STEP / 8), c = i % (STEP / 8) * 8;
      cp_async_16(&stages[stage * 2 * TILE * ROW + r * ROW + c], &x[r * K + k0 + c]);
      cp_async_16(&stages[(stage * 2 + 1) * TILE * ROW + r * ROW + c], &w[r * K + k0 + c]);
    }
  };
  float acc[2][4][4] = {};
  fetch(0, 0);
  cp_async_commit();
  for (int k0 = 0, stage = 0; k0 < K; k0 += STEP, stage ^= 1) {
    if (k0 + STEP < K) fetch(stage ^ 1, k0 + STEP);
    cp_async_commit();
    if (bug == NO_WAIT) {
    } else {
      cp_async_wait<1>();
    }
    if (bug != NO_BARRIER) __syncthreads();
    const __nv_bfloat16* xs = &stages[stage * 2 * TILE * ROW];
    const __nv_bfloat16* ws = xs + TILE * ROW;
    for (int k = 0; k < STEP; k += 16) {
      uint32_t a[2][4], b[2][4];
      for (int i = 0; i < 2; ++i) {
        ldmatrix_x4(a[i], &xs[(m0 + 16 * i + (lane + (bug == WRONG_ROW)) % 16) * ROW + k + lane / 16 * 8]);
        ldmatrix_x4(b[i], &ws[(n0 + 16 * i + lane % 8 + lane / 16 * 8) * ROW + k + lane / 8 % 2 * 8]);
        if (bug == WRONG_REGISTER) {
          const uint32_t first = a[i][1];
          a[i][1] = a[i][2], a[i][2] = first;
        }
      }
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
          const uint32_t bj[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          mma_16816<__nv_bfloat16>(acc[i][j], a[i], bj);
        }
      }
    }
    if (bug != NO_SECOND_BARRIER) __syncthreads();
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int h = 0; h < 2; ++h) {
        const int r = m0 + 16 * i + lane / 4 + 8 * h, c = n0 + 8 * j + lane % 4 * 2;
        store_global(&y[r * TILE + c], make_float2(acc[i][j][2 * h], acc[i][j][2 * h + 1]));
      }
    }
  }
}
PROGRAM matmul(const __nv_bfloat16* x, const __nv_bfloat16* w, float* y, int K, int bug) {
  return run_program(matmul_kernel, 1, 128, 4 * TILE * ROW * 2, x, w, y, K, bug);
}

__global__ static void round_kernel(const float* x, uint32_t* y) {
  store_global(&y[threadIdx.x], to_tf32(load_global<float>(&x[threadIdx.x])));
}
PROGRAM round_to_tf32(const float* x, uint32_t* y, int n) { return run_program(round_kernel, 1, n, 0, x, y); }
