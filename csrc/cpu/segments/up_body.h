// The product of one row with the transpose of a matrix [columns, r], which is not transposed in memory. The sums
// across lanes of W columns are computed at once.

// Returns v with lanes exchanged: lane l of the result is lane l ^ H of v.
template <int H>
PYPEFT_INLINE F swap_lanes(F v) {
#if defined(__clang__)
  F out;
  for (int l = 0; l < W; ++l) out[l] = v[l ^ H];
  return out;
#else
  U from;
  for (int l = 0; l < W; ++l) from[l] = l ^ H;
  return __builtin_shuffle(v, from);
#endif
}

// Lane l of the result is b[l] + b[l ^ H] if bit H of l is set, otherwise a[l] + a[l ^ H].
template <int H>
PYPEFT_INLINE F fold_pair(F a, F b) {
  U has;
  for (int l = 0; l < W; ++l) has[l] = l & H ? ~0u : 0;
  const F stay = (F)(((U)a & ~has) | ((U)b & has)), move = (F)(((U)a & has) | ((U)b & ~has));
  return stay + swap_lanes<H>(move);
}

// Sets lane l of v[0] to the sum of all lanes of v[l].
template <int H = W / 2>
PYPEFT_INLINE void fold(F* v) {
#pragma GCC unroll 16
  for (int i = 0; i < H; ++i) v[i] = fold_pair<H>(v[i], v[i + H]);
  if constexpr (H > 1) fold<H / 2>(v);
}

// out[n] = s . B[n] for n < columns; out is written up to the next multiple of W. s has r floats and is padded with
// zeros. The rows of B are ld apart, and the first `readable` elements of B can be read.
template <class P>
inline void up_row(const float* s, const P* B, int64_t ld, int64_t r, int64_t readable, int64_t columns, float* out) {
  for (int64_t n = 0; n < columns; n += W) {
    F sums[W] = {};
    for (int64_t j = 0; j < r; j += W) {
      const F left = load(s + j);
      const int64_t width = at_most(W, r - j);
      const uint32_t inside = width == W ? ~0u : (1u << width) - 1;
      if (n + W <= columns && (n + W - 1) * ld + j + W <= readable) {
#pragma GCC unroll 16
        for (int e = 0; e < W; ++e) sums[e] = fma(left, keep(widen(B + (n + e) * ld + j), inside), sums[e]);
      } else {
        for (int64_t e = 0; e < at_most(W, columns - n); ++e) {
          sums[e] = fma(left, widen(B + (n + e) * ld + j, width), sums[e]);
        }
      }
    }
    fold(sums);
    store(out + n, sums[0]);
  }
}
