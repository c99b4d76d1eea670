// s, mask = shrink(x) and y = x W^T + b + scaling * s B^T: lora_shrink and lora_linear in one call.
//
//   x [.., K], weight [N, K], bias [N] or none, lora_A [r, K], lora_B [N, r], seed int64 [1] if p > 0
//   -> y [.., N], s [M, r], mask uint8 [M, ceil(K/8)] ([0, ..] if p = 0)
#include "cpu/lora.h"
#include "cpu/product/product.h"
#include "lora_fits.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor, Tensor> lora_forward(const Tensor& x, const Tensor& weight,
                                                const std::optional<Tensor>& bias, const Tensor& lora_A,
                                                const Tensor& lora_B, double scaling, double p,
                                                const std::optional<Tensor>& seed,
                                                const std::optional<std::string>& format,
                                                const std::optional<std::vector<Tensor>>& scales) {
  const Stored its = check_lora_forward(x, weight, bias, lora_A, lora_B, p, seed, format, scales);
  const Frozen w = frozen(weight, format, scales, its);
  const Tensor rows = as_rows(x);
  auto [s, mask] = lora_shrink(rows, lora_A, p, seed);
  const Tensor up = transposed(lora_B);
  const LowRank update{s, up, scaling};
  return {in_shape_of(x, product(rows, {w, true}, &update, {bias, {}})), s, mask};
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("lora_forward_cpu", TORCH_BOX(&pypeft::lora_forward)); }
