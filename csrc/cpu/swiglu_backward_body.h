// swiglu_backward for every instruction set (for_each.h).
#include "cpu/sigmoid_body.h"

template <class T, bool WHOLE>
PYPEFT_INLINE F widened(const T* p, int64_t columns) {
  return WHOLE ? widen(p) : widen(p, columns);
}
template <class T, bool WHOLE>
PYPEFT_INLINE void narrowed(T* p, F v, int64_t columns) {
  if (WHOLE) narrow(p, v);
  if (!WHOLE) narrow(p, v, columns);
}

// W columns of a row, or the first `columns` of them.
template <class T, bool WHOLE>
PYPEFT_INLINE void swiglu_gradients(const T* dh_at, const T* gate_at, const T* up_at, T* dgate, T* dup, T* h,
                                    int64_t columns) {
  const F dh = widened<T, WHOLE>(dh_at, columns), gate = widened<T, WHOLE>(gate_at, columns);
  const F up = widened<T, WHOLE>(up_at, columns);
  const Sigmoid s = sigmoid(gate);
  const F silu = gate * s.value;
  // d/dt [t sigmoid(t)] = sigmoid(t) (1 + t (1 - sigmoid(t))), where 1 - sigmoid(t) = exp(-t) sigmoid(t).
  narrowed<T, WHOLE>(dgate, dh * up * (s.value * (1.0f + gate * (s.exp_minus * s.value))), columns);
  narrowed<T, WHOLE>(dup, dh * silu, columns);
  if (h) narrowed<T, WHOLE>(h, silu * up, columns);
}

template <class T>
inline void swiglu_backward_rows_of(const SwigluBackwardArgs& a, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    const T* dh = (const T*)a.dh + m * a.dh_row;
    const T* gate = (const T*)a.gate + m * a.gate_row;
    const T* up = (const T*)a.up + m * a.up_row;
    T *dgate = (T*)a.dgate + m * a.N, *dup = (T*)a.dup + m * a.N, *h = a.h ? (T*)a.h + m * a.N : nullptr;
    int64_t n = 0;
    for (; n + W <= a.N; n += W) {
      swiglu_gradients<T, true>(dh + n, gate + n, up + n, dgate + n, dup + n, h ? h + n : nullptr, W);
    }
    if (n < a.N) {
      swiglu_gradients<T, false>(dh + n, gate + n, up + n, dgate + n, dup + n, h ? h + n : nullptr, a.N - n);
    }
  }
}

// Rows [begin, end).
inline void swiglu_backward_rows(const SwigluBackwardArgs& a, int64_t begin, int64_t end) {
  if (a.dtype == Dtype::f32) return swiglu_backward_rows_of<float>(a, begin, end);
  if (a.dtype == Dtype::bf16) return swiglu_backward_rows_of<BF16>(a, begin, end);
  swiglu_backward_rows_of<F16>(a, begin, end);
}
