// y += keep * (left right), for every instruction set (for_each.h).
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
        const uint8_t* mask = a.mask ? a.mask + (m + i) * a.mask_row + n / 8 : nullptr;
        add_row((T*)a.y + (m + i) * a.N + n, sums + i * ADD_COLUMNS, mask, columns);
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
