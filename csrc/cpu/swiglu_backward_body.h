// swiglu_backward for every instruction set (for_each.h).
#include "cpu/sigmoid_body.h"

// Computes W columns of a row; h may be null.
template <class T>
PYPEFT_INLINE void swiglu_gradients(const T* dh_at, const T* gate_at, const T* up_at, T* dgate, T* dup, T* h) {
  const F dh = widen(dh_at), gate = widen(gate_at), up = widen(up_at);
  const Sigmoid s = sigmoid(gate);
  const F silu = gate * s.value;
  // d/dt [t sigmoid(t)] = sigmoid(t) (1 + t (1 - sigmoid(t))), where 1 - sigmoid(t) = exp(-t) sigmoid(t).
  narrow(dgate, dh * up * (s.value * (1.0f + gate * (s.exp_minus * s.value))));
  narrow(dup, dh * silu);
  if (h) narrow(h, silu * up);
}

// Computes the first `columns` < W columns, through copies in the memory `rows` [6, W].
template <class T>
inline void swiglu_gradients_of_few(const T* dh, const T* gate, const T* up, T* dgate, T* dup, T* h, int64_t columns,
                                    T* rows) {
  const size_t bytes = columns * sizeof(T);
  __builtin_memset(rows, 0, 6 * W * sizeof(T));
  __builtin_memcpy(rows, dh, bytes);
  __builtin_memcpy(rows + W, gate, bytes);
  __builtin_memcpy(rows + 2 * W, up, bytes);
  swiglu_gradients(rows, rows + W, rows + 2 * W, rows + 3 * W, rows + 4 * W, rows + 5 * W);
  __builtin_memcpy(dgate, rows + 3 * W, bytes);
  __builtin_memcpy(dup, rows + 4 * W, bytes);
  if (h) __builtin_memcpy(h, rows + 5 * W, bytes);
}

template <class T>
inline void swiglu_backward_rows_of(const SwigluBackwardArgs& a, float* room, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    const T* dh = (const T*)a.dh + m * a.dh_row;
    const T* gate = (const T*)a.gate + m * a.gate_row;
    const T* up = (const T*)a.up + m * a.up_row;
    T *dgate = (T*)a.dgate + m * a.N, *dup = (T*)a.dup + m * a.N, *h = a.h ? (T*)a.h + m * a.N : nullptr;
    int64_t n = 0;
    for (; n + W <= a.N; n += W) {
      swiglu_gradients(dh + n, gate + n, up + n, dgate + n, dup + n, h ? h + n : nullptr);
    }
    if (n < a.N) {
      swiglu_gradients_of_few(dh + n, gate + n, up + n, dgate + n, dup + n, h ? h + n : nullptr, a.N - n, (T*)room);
    }
  }
}

// Computes rows [begin, end); room is memory for six vectors.
inline void swiglu_backward_rows(const SwigluBackwardArgs& a, float* room, int64_t begin, int64_t end) {
  if (a.dtype == Dtype::f32) return swiglu_backward_rows_of<float>(a, room, begin, end);
  if (a.dtype == Dtype::bf16) return swiglu_backward_rows_of<BF16>(a, room, begin, end);
  swiglu_backward_rows_of<F16>(a, room, begin, end);
}
