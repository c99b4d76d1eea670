// y += keep * (left right), and its scaling, for every instruction set (for_each.h).
constexpr int64_t ADD_STEP = 8;  // rows whose low-rank part is made at once

template <class T>
inline void add_row(T* y, const float* sums, const uint8_t* mask, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) {
    const F sum = load(sums + k);
    narrow(y + k, widen(y + k) + (mask ? keep(sum, mask_bits(mask, k, W)) : sum));
  }
  if (k < n) {
    const F sum = load(sums + k);
    narrow(y + k, widen(y + k, n - k) + (mask ? keep(sum, mask_bits(mask, k, n - k)) : sum), n - k);
  }
}

template <class T>
inline void add_and_scale_row(T* y, T* z, const float* factors, const float* shift, const float* sums, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) {
    const F sum = widen(y + k) + load(sums + k);
    if (z) narrow(z + k, sum);
    narrow(y + k, fma(sum, load(factors + k), shift ? load(shift + k) : F{}));
  }
  if (k < n) {
    const F sum = widen(y + k, n - k) + load(sums + k);
    if (z) narrow(z + k, sum, n - k);
    narrow(y + k, fma(sum, widen(factors + k, n - k), shift ? widen(shift + k, n - k) : F{}), n - k);
  }
}

template <class T>
inline void add_tasks_of(const AddArgs& a, int64_t begin, int64_t end) {
  alignas(64) float sums[ADD_STEP * ADD_COLUMNS];
  const int64_t across = ceil_div(a.N, ADD_COLUMNS);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task % across * ADD_COLUMNS, columns = at_most(ADD_COLUMNS, a.N - n);
    const int64_t first = task / across * ADD_ROWS, last = at_most(first + ADD_ROWS, a.M);
    for (int64_t m = first; m < last; m += ADD_STEP) {
      const int64_t rows = at_most(ADD_STEP, last - m);
      const Left left{a.left + m * a.left_row, a.left_row, a.left_column};
      multiply(left, a.right + n, a.ld, rows, columns, a.r, sums, ADD_COLUMNS, false);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = (m + i) * a.N + n;
        const float* row = sums + i * ADD_COLUMNS;
        if (a.scale.factors) {
          add_and_scale_row((T*)a.y + at, a.scale.z ? (T*)a.scale.z + at : nullptr, a.scale.factors + n,
                            a.scale.shift ? a.scale.shift + n : nullptr, row, columns);
        } else {
          add_row((T*)a.y + at, row, a.mask ? a.mask + (m + i) * a.mask_row + n / 8 : nullptr, columns);
        }
      }
    }
  }
}

// A task is a block of ADD_ROWS rows and ADD_COLUMNS columns of y; they are counted along the rows.
inline void add_tasks(const AddArgs& a, int64_t begin, int64_t end) {
  if (a.dtype == Dtype::f32) return add_tasks_of<float>(a, begin, end);
  if (a.dtype == Dtype::bf16) return add_tasks_of<BF16>(a, begin, end);
  add_tasks_of<F16>(a, begin, end);
}
