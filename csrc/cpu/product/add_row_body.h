// A sum that is added to a row of a product.

// y[k] += factor * keep * sums[k] for k < n, in y's dtype; mask is the row's packed bits, or null for all of it.
template <class T, class S>
inline void add_row(T* y, const S* sums, float factor, const uint8_t* mask, int64_t n) {
  const F times = F{} + factor;
  int64_t k = 0;
  for (; k + W <= n; k += W) {
    const F sum = widen(sums + k);
    narrow(y + k, fma(mask ? keep(sum, mask_bits(mask, k, W)) : sum, times, widen(y + k)));
  }
  if (k < n) {
    const F sum = widen(sums + k, n - k);
    narrow(y + k, fma(mask ? keep(sum, mask_bits(mask, k, n - k)) : sum, times, widen(y + k, n - k)), n - k);
  }
}
