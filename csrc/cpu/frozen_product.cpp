#include "cpu/frozen_product.h"

#include "cpu/few_rows.h"
#include "cpu/gemm.h"
#include "cpu/vendor.h"

namespace pypeft {

Tensor frozen_product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
#if defined(__x86_64__)
  if (gemm_wins(a.scalar_type(), a.size(0), a.size(1))) {
    const Tensor left = new_empty(a, {a.size(0), 0});
    const Tensor right = new_empty(a, {0, b.size(1)});
    return gemm(a, b, bias, left, right, 1.0f, nullptr);
  }
#endif
  if (few_rows_win(a.scalar_type(), a.size(0)) && has_dense_columns(b))
    return few_rows(a, b, bias, nullptr, nullptr, 1);
  return vendor_matmul(a, b, bias);
}

}  // namespace pypeft
