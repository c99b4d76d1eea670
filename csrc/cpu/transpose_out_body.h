// Stores the sums of a gradient transposed, for every instruction set (for_each.h).

// out[n][j] = factor * sums[j][n] for n < columns, j < r; rows of sums are ld apart.
template <class P>
inline void transpose_out(P* out, const float* sums, int64_t ld, float factor, int64_t columns, int64_t r) {
  for (int64_t n = 0; n < columns; ++n) {
    for (int64_t j = 0; j < r; j += W) {
      const int64_t width = at_most(W, r - j);
      F row = {};
      for (int64_t i = 0; i < width; ++i) row[i] = sums[(j + i) * ld + n];
      narrow(out + n * r + j, row * factor, width);
    }
  }
}
