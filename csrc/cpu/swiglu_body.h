// swiglu for every instruction set (for_each.h).
#include "cpu/sigmoid_body.h"

PYPEFT_INLINE F gated(F gate, F up) { return gate * sigmoid(gate).value * up; }

template <class T>
inline void swiglu_rows_of(const SwigluArgs& a, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    const T* gate = (const T*)a.gate + m * a.gate_row;
    const T* up = (const T*)a.up + m * a.up_row;
    T* h = (T*)a.h + m * a.N;
    int64_t n = 0;
    for (; n + W <= a.N; n += W) narrow(h + n, gated(widen(gate + n), widen(up + n)));
    const int64_t rest = a.N - n;
    if (rest) narrow(h + n, gated(widen(gate + n, rest), widen(up + n, rest)), rest);
  }
}

// Computes rows [begin, end).
inline void swiglu_rows(const SwigluArgs& a, int64_t begin, int64_t end) {
  if (a.dtype == Dtype::f32) return swiglu_rows_of<float>(a, begin, end);
  if (a.dtype == Dtype::bf16) return swiglu_rows_of<BF16>(a, begin, end);
  swiglu_rows_of<F16>(a, begin, end);
}
