// A sum that is added to a row of a product.

// y[k] += keep * sums[k] for k < n, in y's dtype; mask is the row's packed bits, or null for all of it.
template <class T, class S>
inline void add_row(T* y, const S* sums, const uint8_t* mask, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) {
    const F sum = widen(sums + k);
    narrow(y + k, widen(y + k) + (mask ? keep(sum, mask_bits(mask, k, W)) : sum));
  }
  if (k < n) {
    const F sum = widen(sums + k, n - k);
    narrow(y + k, widen(y + k, n - k) + (mask ? keep(sum, mask_bits(mask, k, n - k)) : sum), n - k);
  }
}
