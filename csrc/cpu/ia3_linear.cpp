// y = (x W^T + b) * l and z = x W^T + b, or with feedforward y = (x * l) W^T + b.
//
//   x [M, K], weight [N, K] (any strides), bias [N] or none, ia3_l [N] or with feedforward [K]
//   -> y [M, N] in x's dtype; z likewise, or [0, N] if not needed and with feedforward
//
// The frozen part is the vendor's GEMM; the scaling is one pass over its result or its input.
#include <tuple>

#include "cpu/add_low_rank.h"
#include "cpu/scale_columns.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor> ia3_linear(const Tensor& given, const Tensor& weight, const std::optional<Tensor>& bias,
                                      const Tensor& ia3_l, bool feedforward, bool need_z) {
  const int64_t M = given.size(0), N = weight.size(0);
  const Tensor transposed = torch::stable::transpose(weight, 0, 1);
  Tensor none = torch::stable::new_empty(given, {0, N});
  if (feedforward) {
    const Tensor x = with_dense_rows(given);
    Tensor scaled = torch::stable::new_empty(x, {M, x.size(1)});
    scale_columns(x, ia3_l, &scaled, nullptr, nullptr);
    return {vendor_matmul(scaled, transposed, bias), none};
  }
  Tensor z = vendor_matmul(given, transposed, bias);
  Tensor y = need_z ? torch::stable::new_empty(z, {M, N}) : z;
  scale_columns(z, ia3_l, &y, nullptr, nullptr);
  return {y, need_z ? z : none};
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("ia3_linear_cpu", TORCH_BOX(&pypeft::ia3_linear)); }
