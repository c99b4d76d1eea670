// Decodes rows, for every instruction set (for_each.h).
#include "cpu/frozen/codes.h"

template <class T>
inline void decode_rows_of(const DecodeArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    decode_row(a.codes, a.n + i, a.k, a.columns, (T*)a.to + i * a.ld);
  }
}

inline void decode_rows(const DecodeArgs& a, int64_t begin, int64_t end) {
  if (a.dtype == Dtype::f32) return decode_rows_of<float>(a, begin, end);
  if (a.dtype == Dtype::bf16) return decode_rows_of<BF16>(a, begin, end);
  decode_rows_of<F16>(a, begin, end);
}
