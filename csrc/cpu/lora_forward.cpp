// s, mask = shrink(x) and y = x W^T + b + scaling * s B^T: lora_shrink and lora_linear in one call.
//
//   x [.., K], weight [N, K], bias [N] or none, lora_A [r, K], lora_B [N, r], seed int64 [1] if p > 0
//   -> y [.., N], s [M, r], mask uint8 [M, ceil(K/8)] ([0, ..] if p = 0)
#include "cpu/fits.h"
#include "cpu/lora.h"
#include "cpu/product/product.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor, Tensor> lora_forward(const Tensor& x, const Tensor& weight,
                                                const std::optional<Tensor>& bias, const Tensor& lora_A,
                                                const Tensor& lora_B, double scaling, double p,
                                                const std::optional<Tensor>& seed,
                                                const std::optional<std::string>& format,
                                                const std::optional<std::vector<Tensor>>& scales) {
  check_storages("lora_forward", "x", x, "bias", bias, "lora_A", lora_A, "lora_B", lora_B, "seed", seed);
  const int64_t K = x.dim() ? x.size(-1) : -1;
  fits(is_matrix(lora_A) && is_matrix(lora_B) && lora_A.size(1) == K);
  const int64_t N = lora_B.size(0), r = lora_A.size(0);
  const Frozen w = frozen("lora_forward", weight, format, scales, N, K);
  fits(w.N == N && w.K == K && r > 0 && lora_B.size(1) == r && is_activation(x));
  if (w.is_dense()) fits(like(weight, x));
  fits(is_adapter(lora_A, x) && is_adapter(lora_B, x) && is_probability(p));
  if (bias) fits(bias->dim() == 1 && bias->size(0) == N && like(*bias, x));
  fits(seed.has_value() == (p > 0));
  if (seed) fits(seed->is_cpu() && seed->scalar_type() == ScalarType::Long && seed->dim() == 1 && seed->size(0) == 1);

  const Tensor rows = as_rows(x);
  auto [s, mask] = lora_shrink(rows, lora_A, p, seed);
  const Tensor up = transposed(lora_B);
  const LowRank update{s, up, scaling};
  return {in_shape_of(x, product(rows, {w, true}, &update, {bias, {}})), s, mask};
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("lora_forward_cpu", TORCH_BOX(&pypeft::lora_forward)); }
