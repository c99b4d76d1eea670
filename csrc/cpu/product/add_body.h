// y += keep * (left right), and its scaling, for every instruction set (for_each.h).
#include "cpu/product/add_row_body.h"

constexpr int64_t ADD_STEP = 8;  // rows whose low-rank part is made at once

template <class T, class S>
inline void add_and_scale_row(T* y, T* z, const float* factors, const float* shift, const S* sums, float factor,
                              int64_t n) {
  const F times = F{} + factor;
  int64_t k = 0;
  for (; k + W <= n; k += W) {
    const F sum = sums ? fma(widen(sums + k), times, widen(y + k)) : widen(y + k);
    if (z) narrow(z + k, sum);
    narrow(y + k, fma(sum, load(factors + k), shift ? load(shift + k) : F{}));
  }
  if (k < n) {
    const F sum = sums ? fma(widen(sums + k, n - k), times, widen(y + k, n - k)) : widen(y + k, n - k);
    if (z) narrow(z + k, sum, n - k);
    narrow(y + k, fma(sum, widen(factors + k, n - k), shift ? widen(shift + k, n - k) : F{}), n - k);
  }
}

// Rows [m, m + rows) and columns [n, n + columns) of y, whose low-rank part is in rows `ld` apart, or null.
template <class T, class S>
inline void add_tile(const AddArgs& a, const S* sums, int64_t ld, int64_t m, int64_t rows, int64_t n, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i, sums += sums ? ld : 0) {
    const int64_t at = (m + i) * a.N + n;
    if (a.scale.factors) {
      add_and_scale_row((T*)a.y + at, a.scale.z ? (T*)a.scale.z + at : nullptr, a.scale.factors + n,
                        a.scale.shift ? a.scale.shift + n : nullptr, sums, a.factor, columns);
    } else {
      add_row((T*)a.y + at, sums, a.factor, a.mask ? a.mask + (m + i) * a.mask_row + n / 8 : nullptr, columns);
    }
  }
}

template <class T>
inline void multiply_and_add(const AddArgs& a, int64_t first, int64_t last, int64_t n, int64_t columns) {
  alignas(64) float sums[ADD_STEP * ADD_COLUMNS];
  for (int64_t m = first; m < last; m += ADD_STEP) {
    const int64_t rows = at_most(ADD_STEP, last - m);
    const Left left{a.left + m * a.left_row, a.left_row, a.left_column};
    multiply(left, a.right + n, a.ld, rows, columns, a.r, sums, ADD_COLUMNS, false);
    add_tile<T>(a, sums, ADD_COLUMNS, m, rows, n, columns);
  }
}

template <class T>
inline void add_tasks_of(const AddArgs& a, int64_t begin, int64_t end) {
  const int64_t across = ceil_div(a.N, ADD_COLUMNS);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task % across * ADD_COLUMNS, columns = at_most(ADD_COLUMNS, a.N - n);
    const int64_t first = task / across * ADD_ROWS, last = at_most(first + ADD_ROWS, a.M), at = first * a.N + n;
    if (a.left) {
      multiply_and_add<T>(a, first, last, n, columns);
    } else if (a.product == nullptr) {
      add_tile<T, T>(a, nullptr, 0, first, last - first, n, columns);
    } else if (a.product_dtype == Dtype::f32) {
      add_tile<T>(a, (const float*)a.product + at, a.N, first, last - first, n, columns);
    } else {
      add_tile<T>(a, (const T*)a.product + at, a.N, first, last - first, n, columns);
    }
  }
}

// A task is a block of ADD_ROWS rows and ADD_COLUMNS columns of y; they are counted along the rows.
inline void add_tasks(const AddArgs& a, int64_t begin, int64_t end) {
  if (a.dtype == Dtype::f32) return add_tasks_of<float>(a, begin, end);
  if (a.dtype == Dtype::bf16) return add_tasks_of<BF16>(a, begin, end);
  add_tasks_of<F16>(a, begin, end);
}
