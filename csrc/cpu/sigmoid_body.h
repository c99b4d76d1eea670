// The logistic function of swiglu and swiglu_backward, for every instruction set (for_each.h).

// 1 / (1 + exp(-x)), and exp(-x) limited to a finite value. Both are NaN if x is NaN.
struct Sigmoid {
  F value, exp_minus;
};

PYPEFT_INLINE Sigmoid sigmoid(F x) {
  // exp(t) = 2^n exp(r) with n = round(t / ln 2) and |r| <= ln(2) / 2. exp(r) is a Taylor series to r^7, with an error
  // of less than 6e-9. Adding 1.5 * 2^23 to t / ln 2 puts n into the low bits of the sum. ln 2 is split in two parts,
  // so that r is exact. For t between `least` and `most`, n is -126 .. 128. 2^n is applied as 2^(n - 1) * 2, which is 0
  // for n = -126 and may be infinite for n = 128; the sigmoid is then 1 and 0.
  constexpr float LOG2_E = 1.44269504f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f, SHIFT = 12582912.0f;
  const F least = F{} - 87.0f, most = F{} + 89.0f, finite = F{} + 1e38f;
  F t = -x;
  t = t < least ? least : t;
  t = t > most ? most : t;
  const F shifted = fma(t, F{} + LOG2_E, F{} + SHIFT), n = shifted - SHIFT;
  const F r = fma(n, F{} - LN2_LOW, fma(n, F{} - LN2_HIGH, t));
  constexpr float TAYLOR[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  F sum = F{} + 1.0f / 5040;
#pragma GCC unroll 8
  for (int i = 0; i < 7; ++i) sum = fma(sum, r, F{} + TAYLOR[i]);
  const F exp_minus = (sum + sum) * (F)(((U)shifted + 126) << 23);
  return {1.0f / (1.0f + exp_minus), exp_minus > finite ? finite : exp_minus};
}
