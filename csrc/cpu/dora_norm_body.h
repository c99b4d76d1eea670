// dora_norm for every instruction set (for_each.h).
template <class T, class U>
inline void norm_rows_of(const NormArgs& a, int64_t begin, int64_t end) {
  constexpr int64_t STEPS = 16;  // short partial sums have small rounding errors
  const F scaling = broadcast(&a.scaling);
  for (int64_t n = begin; n < end; ++n) {
    const T* weight = (const T*)a.weight + n * a.row;
    const U* update = (const U*)a.update + n * a.K;
    F total = {};
    for (int64_t k = 0; k < a.K;) {
      F sum = {};
      const int64_t last = at_most(k + STEPS * W, a.K);
      for (; k + W <= last; k += W) {
        const F v = fma(scaling, widen(update + k), widen(weight + k));
        sum = fma(v, v, sum);
      }
      if (k < last) {
        const F v = fma(scaling, widen(update + k, last - k), widen(weight + k, last - k));
        sum = fma(v, v, sum);
        k = last;
      }
      total = total + sum;
    }
    a.norm[n] = __builtin_sqrtf(sum_lanes(total));
  }
}

inline void norm_rows(const NormArgs& a, int64_t begin, int64_t end) {
  if (a.weight_dtype == Dtype::f32) {
    if (a.update_dtype == Dtype::f32) return norm_rows_of<float, float>(a, begin, end);
    return norm_rows_of<float, BF16>(a, begin, end);  // the weight is quantised
  }
  if (a.weight_dtype == Dtype::bf16) {
    if (a.update_dtype == Dtype::f32) return norm_rows_of<BF16, float>(a, begin, end);
    return norm_rows_of<BF16, BF16>(a, begin, end);
  }
  norm_rows_of<F16, float>(a, begin, end);
}
