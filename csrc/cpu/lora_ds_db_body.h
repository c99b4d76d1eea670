// lora_ds_db for every instruction set (for_each.h).
#include "cpu/transpose_out_body.h"

constexpr int64_t GRAD_LD = GRAD_COLUMNS + PAD;  // not a power of two, so that rows fall into different cache sets

// Computes dB for columns [n, n + columns) of dY, and adds these columns to the task's partial sum of dS.
template <class T, class P>
inline void grad_columns(const GradArgs& a, float* part, bool first, float* sums, int64_t n, int64_t columns) {
  alignas(64) float tile[GRAD_ROWS * GRAD_LD];
  for (int64_t m = 0; m < a.M; m += GRAD_ROWS) {
    const int64_t rows = at_most(GRAD_ROWS, a.M - m);
    stage(tile, GRAD_LD, (const T*)a.dY + m * a.ldy + n, a.ldy, nullptr, 0, rows, columns);
    if (a.need_dS)
      multiply({tile, GRAD_LD, 1}, a.B + n * a.ld, a.ld, rows, a.r, columns, part + m * a.ld, a.ld, !first);
    if (a.need_dB) {
      const Left s_transposed{a.s + m * a.s_row, a.s_column, a.s_row};
      multiply(s_transposed, tile, GRAD_LD, a.r, columns, rows, sums, GRAD_COLUMNS, m > 0);
    }
  }
  if (!a.need_dB) return;
  if (a.M == 0) multiply({}, tile, 0, a.r, columns, 0, sums, GRAD_COLUMNS, false);
  transpose_out((P*)a.dB + n * a.r, sums, GRAD_COLUMNS, a.scaling, columns, a.r);
}

template <class T, class P>
inline void grad_tasks_of(const GradArgs& a, float* sums, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task * a.task, last = at_most(first + a.task, a.N);
    float* part = a.parts + task * a.M * a.ld;
    int64_t n = first;
    do {  // runs once if N is 0, and sets dS to 0
      grad_columns<T, P>(a, part, n == first, sums, n, at_most(GRAD_COLUMNS, last - n));
    } while ((n += GRAD_COLUMNS) < last);
  }
}

// Runs tasks [begin, end) of a.task columns each; sums is memory for [r, GRAD_COLUMNS].
inline void grad_tasks(const GradArgs& a, float* sums, int64_t begin, int64_t end) {
  if (a.dY_dtype == Dtype::f32) return grad_tasks_of<float, float>(a, sums, begin, end);
  if (a.dY_dtype == Dtype::bf16) {
    if (a.dB_dtype == Dtype::f32) return grad_tasks_of<BF16, float>(a, sums, begin, end);
    return grad_tasks_of<BF16, BF16>(a, sums, begin, end);
  }
  if (a.dB_dtype == Dtype::f32) return grad_tasks_of<F16, float>(a, sums, begin, end);
  grad_tasks_of<F16, F16>(a, sums, begin, end);
}

template <class S>
inline void combine_rows_of(const GradArgs& a, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    float* sum = a.parts + m * a.ld;
    for (int64_t task = 1; task < a.tasks; ++task) {
      const float* part = sum + task * a.M * a.ld;
      for (int64_t j = 0; j < a.r; j += W) store(sum + j, load(sum + j) + load(part + j));
    }
    narrow_row((S*)a.dS + m * a.r, sum, a.scaling, a.r);
  }
}

// Computes rows [begin, end) of dS: adds the partial sums in the order of the tasks.
inline void combine_rows(const GradArgs& a, int64_t begin, int64_t end) {
  if (a.dS_dtype == Dtype::f32) return combine_rows_of<float>(a, begin, end);
  if (a.dS_dtype == Dtype::bf16) return combine_rows_of<BF16>(a, begin, end);
  combine_rows_of<F16>(a, begin, end);
}
