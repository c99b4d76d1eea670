#include "cpu/product/product.h"

#include "cpu/product/add.h"
#include "cpu/product/few_rows.h"
#include "cpu/product/gemm.h"
#include "cpu/product/vendor.h"

namespace pypeft {

Tensor product(const Tensor& a, const Right& b, const LowRank* low_rank, const Epilogue& epilogue) {
  const ScalarType dtype = a.scalar_type();
  const int64_t rows = a.size(0);
  // A low-rank part of another dtype is multiplied in float32 by a pass after the product.
  const bool is_own = low_rank && low_rank->left.scalar_type() == dtype && low_rank->right.scalar_type() == dtype;
  const int64_t rank = is_own && !low_rank->mask ? low_rank->left.size(1) : 0;
  const bool decodes = !b.w.is_dense(), masked = low_rank && low_rank->mask;
  const bool few = few_rows_win(dtype, rows, decodes) && !masked && has_dense_columns(b);
  const auto with_the_rest = [&](const Tensor& out) {
    if (low_rank || epilogue.scale.factors) add_and_scale(out, low_rank, epilogue.scale);
    return out;
  };
#if defined(__x86_64__)
  const bool own = decodes ? !few && gemm_decodes(dtype) : gemm_wins(dtype, rows, a.size(1), rank);
  const bool across = !few && !decodes && gemm_wins_across(dtype, rows, b.matrix());
  if (own || (across && (is_own || !low_rank))) return gemm(a, b, low_rank, epilogue);
  if (across) return with_the_rest(gemm(a, b, nullptr, {epilogue.bias, {}}));
#endif
  if (few) return few_rows(a, b, low_rank, epilogue);
  return with_the_rest(vendor_product(a, b, epilogue.bias));
}

}  // namespace pypeft
