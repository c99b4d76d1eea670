#include "cpu/product/product.h"

#include "cpu/product/add.h"
#include "cpu/product/few_rows.h"
#include "cpu/product/gemm.h"
#include "cpu/product/vendor.h"

namespace pypeft {

Tensor product(const Tensor& a, const Tensor& b, const LowRank* low_rank, const Epilogue& epilogue) {
  const int64_t rows = a.size(0);
  const bool masked = low_rank && low_rank->mask;
#if defined(__x86_64__)
  if (gemm_wins(a.scalar_type(), rows, a.size(1))) return gemm(a, b, low_rank, epilogue);
#endif
  if (!masked && few_rows_win(a.scalar_type(), rows) && has_dense_columns(b)) return few_rows(a, b, low_rank, epilogue);
  const Tensor out = vendor_matmul(a, b, epilogue.bias);
  if (low_rank || epilogue.scale.factors) add_and_scale(out, low_rank, epilogue.scale);
  return out;
}

}  // namespace pypeft
