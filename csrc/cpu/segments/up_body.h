// The product of one row with the transpose of a matrix [columns, r], which is not transposed in memory. The sums
// across lanes of W columns are computed at once.

// Returns v with lanes exchanged: lane l of the result is lane from[l] of v.
PYPEFT_INLINE F lanes_of(F v, U from) {
#if defined(__clang__)
  F out;
  for (int l = 0; l < W; ++l) out[l] = v[from[l]];
  return out;
#else
  return __builtin_shuffle(v, from);
#endif
}

// Lane l of the result is b[l] + b[l ^ H] if bit H of l is set, otherwise a[l] + a[l ^ H].
template <int H>
PYPEFT_INLINE F fold_pair(F a, F b) {
  U has, from;
  for (int l = 0; l < W; ++l) has[l] = l & H ? ~0u : 0, from[l] = l ^ H;
  const F stay = (F)(((U)a & ~has) | ((U)b & has)), move = (F)(((U)a & has) | ((U)b & ~has));
  return stay + lanes_of(move, from);
}

// Sets lane l of v[0] to a sum over the lanes of v[l % 2H]: over the 2H lanes that lie beside lane l.
template <int H = W / 2>
PYPEFT_INLINE void fold(F* v) {
#pragma GCC unroll 16
  for (int i = 0; i < H; ++i) v[i] = fold_pair<H>(v[i], v[i + H]);
  if constexpr (H > 1) fold<H / 2>(v);
}

// Rows [columns, r] of a matrix B, which are ld apart.
template <class P>
struct Rows {
  const P* first;
  int64_t ld, r, columns;

  bool is_dense() const { return ld == r; }
};

// Fetches the rows that are read next, a part at each of some steps: the CPU's own prefetcher stops at every page, and
// does not know the matrix of the next adapter. Rows with gaps are not fetched, since the gaps would be too.
class Fetch {
 public:
  Fetch() = default;  // of nothing
  template <class P>
  Fetch(const Rows<P>& next, int64_t steps) {
    if (!next.is_dense()) return;
    const int64_t bytes = next.columns * next.r * sizeof(P);
    at_ = (const char*)next.first, end_ = at_ + bytes, part_ = bytes / steps + LINE;
  }

  PYPEFT_INLINE void a_part() {
    const char* end = end_ - at_ < part_ ? end_ : at_ + part_;
    for (; at_ < end; at_ += LINE) __builtin_prefetch(at_);
  }

 private:
  static constexpr int64_t LINE = 64;
  const char *at_ = nullptr, *end_ = nullptr;
  int64_t part_ = 0;
};

// up_row() of a matrix whose rows, of R elements, follow each other without a gap: a vector has W / R of its rows.
template <class P, int R>
inline void up_row_dense(const float* s, const P* B, int64_t columns, Fetch& next, float* out) {
  F left;
  U from;  // after fold(), lane g * R + i has the sum of row i * (W / R) + g
  for (int l = 0; l < W; ++l) left[l] = s[l % R], from[l] = l % (W / R) * R + l / (W / R);
  for (int64_t n = 0; n < columns; n += W) {
    F v[R];
    const P* first = B + n * R;
    next.a_part();
    if (n + W <= columns) {
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) v[i] = left * widen(first + i * W);
    } else {
      for (int64_t i = 0; i < R; ++i) {
        const int64_t inside = (columns - n) * R - i * W;
        v[i] = inside > 0 ? left * widen(first + i * W, at_most(W, inside)) : F{};
      }
    }
    if constexpr (R > 1) fold<R / 2>(v);
    store(out + n, lanes_of(v[0], from));
  }
}

// out[n] = s . B[n] for n < B.columns; out is written up to the next multiple of W. s has r floats and is padded with
// zeros. The first `readable` elements of B can be read. next: what is read next.
template <class P>
inline void up_row(const float* s, const Rows<P>& B, int64_t readable, Fetch& next, float* out) {
  const auto [first, ld, r, columns] = B;
  if (B.is_dense() && r < W) {
    if constexpr (W > 8) {
      if (r == 8) return up_row_dense<P, 8>(s, first, columns, next, out);
    }
    if (r == 4) return up_row_dense<P, 4>(s, first, columns, next, out);
    if (r == 2) return up_row_dense<P, 2>(s, first, columns, next, out);
    if (r == 1) return up_row_dense<P, 1>(s, first, columns, next, out);
  }
  const int64_t lead = B.is_dense() ? 0 : 2 * W;  // a dense B has been fetched, during the task before
  for (int64_t n = 0; n < columns; n += W) {
    F sums[W] = {};
    next.a_part();
    for (int64_t j = 0; j < r; j += W) {
      const F left = load(s + j);
      const int64_t width = at_most(W, r - j);
      const uint32_t inside = width == W ? ~0u : (1u << width) - 1;
      if (n + W <= columns && (n + W - 1) * ld + j + W <= readable) {
#pragma GCC unroll 16
        for (int e = 0; e < W; ++e) {
          __builtin_prefetch(first + (n + lead + e) * ld + j);
          sums[e] = fma(left, keep(widen(first + (n + e) * ld + j), inside), sums[e]);
        }
      } else {
        for (int64_t e = 0; e < at_most(W, columns - n); ++e) {
          sums[e] = fma(left, widen(first + (n + e) * ld + j, width), sums[e]);
        }
      }
    }
    fold(sums);
    store(out + n, sums[0]);
  }
}
