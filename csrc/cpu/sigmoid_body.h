// The logistic function, for swiglu and swiglu_backward on every instruction set (for_each.h).

// 1 / (1 + exp(-x)), and exp(-x) with it. The first is 0 from x = -88 down, where the second stays at exp(88); the
// second is 0 from x = 87 up. Both are NaN for NaN.
struct Sigmoid {
  F value, exp_minus;
};

PYPEFT_INLINE Sigmoid sigmoid(F x) {
  // exp(t) = 2^n exp(r) with n = round(t / ln 2) and |r| <= ln(2) / 2, and exp(r) its Taylor series to r^7, which is
  // off by less than 6e-9. Adding 1.5 * 2^23 leaves n in the low bits of the sum. ln 2 in two parts, so that r is
  // exact.
  constexpr float LOG2_E = 1.44269504f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f, SHIFT = 12582912.0f;
  constexpr float LEAST = -87.0f, MOST = 88.0f;  // between them exp is a normal float
  F t = -x;
  const U too_much = (U)(t > MOST), too_little = (U)(t < LEAST);
  t = (F)(((U)t & ~(too_much | too_little)) | ((U)(F{} + MOST) & too_much) | ((U)(F{} + LEAST) & too_little));
  const F shifted = fma(t, F{} + LOG2_E, F{} + SHIFT), n = shifted - SHIFT;
  const F r = fma(n, F{} - LN2_LOW, fma(n, F{} - LN2_HIGH, t));
  constexpr float TAYLOR[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  F sum = F{} + 1.0f / 5040;
#pragma GCC unroll 8
  for (int i = 0; i < 7; ++i) sum = fma(sum, r, F{} + TAYLOR[i]);
  const F exp_minus = (F)((U)(sum * (F)(((U)shifted + 127) << 23)) & ~too_little);
  return {(F)((U)(1.0f / (1.0f + exp_minus)) & ~too_much), exp_minus};
}
