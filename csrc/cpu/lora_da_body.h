// lora_da for every instruction set (for_each.h).
template <class T, class P>
inline void da_tasks_of(const DaArgs& a, float* sums, int64_t begin, int64_t end) {
  alignas(64) float tile[DA_ROWS * DA_COLUMNS];
  for (int64_t k = begin * a.task; k < at_most(end * a.task, a.K); k += a.task) {
    const int64_t columns = at_most(a.task, a.K - k);
    if (a.M == 0) multiply({}, tile, 0, a.r, columns, 0, sums, DA_COLUMNS, false);
    for (int64_t m = 0; m < a.M; m += DA_ROWS) {
      const int64_t rows = at_most(DA_ROWS, a.M - m);
      const uint8_t* mask = a.mask ? a.mask + m * a.mask_row + k / 8 : nullptr;
      stage(tile, DA_COLUMNS, (const T*)a.x + m * a.ldx + k, a.ldx, mask, a.mask_row, rows, columns);
      const Left dS_transposed{a.dS + m * a.dS_row, a.dS_column, a.dS_row};
      multiply(dS_transposed, tile, DA_COLUMNS, a.r, columns, rows, sums, DA_COLUMNS, m > 0);
    }
    for (int64_t i = 0; i < a.r; ++i) narrow_row((P*)a.dA + i * a.K + k, sums + i * DA_COLUMNS, a.scale, columns);
  }
}

// Runs tasks [begin, end) of a.task columns each; sums is memory for [r, DA_COLUMNS].
inline void da_tasks(const DaArgs& a, float* sums, int64_t begin, int64_t end) {
  if (a.x_dtype == Dtype::f32) return da_tasks_of<float, float>(a, sums, begin, end);
  if (a.x_dtype == Dtype::bf16) {
    if (a.dA_dtype == Dtype::f32) return da_tasks_of<BF16, float>(a, sums, begin, end);
    return da_tasks_of<BF16, BF16>(a, sums, begin, end);
  }
  if (a.dA_dtype == Dtype::f32) return da_tasks_of<F16, float>(a, sums, begin, end);
  da_tasks_of<F16, F16>(a, sums, begin, end);
}
