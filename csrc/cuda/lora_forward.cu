// s, mask = shrink(x) and y = x W^T + b + scaling * s B^T: lora_shrink and lora_linear in one call, with their
// launches. In decoding the second launch overlaps with the first on sm_90 and later.
//
//   x [.., K], weight [N, K] (any strides, or quantised), bias [N] or none, lora_A [r, K], lora_B [N, r], seed int64
//   [1] if p > 0 -> y [.., N], s [M, r], mask uint8 [M, ceil(K/8)] ([0, ..] if p = 0)
#include "cuda/lora.h"
#include "lora_fits.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor, Tensor> lora_forward(const Tensor& x, const Tensor& weight,
                                                const std::optional<Tensor>& bias, const Tensor& lora_A,
                                                const Tensor& lora_B, double scaling, double p,
                                                const std::optional<Tensor>& seed, bool allow_tf32,
                                                const std::optional<std::string>& format,
                                                const std::optional<std::vector<Tensor>>& scales) {
  const Stored its = check_lora_forward(x, weight, bias, lora_A, lora_B, p, seed, format, scales);
  const OnDevice on(x);
  Weight W(weight, format, scales, its);
  const Tensor rows = as_rows(x);
  // Nothing is allocated, and nothing freed, between the launches: an allocator may queue its own work for that.
  const Tensor y = new_empty(x, {rows.size(0), W.N()});
  const auto [s, mask, workspace] = lora_shrink(on, rows, lora_A, p, seed, allow_tf32);
  lora_linear(on, rows, W, bias, s, lora_B, scaling, std::nullopt, nullptr, allow_tf32, y, true);
  return {in_shape_of(x, y), s, mask};
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("lora_forward_cuda", TORCH_BOX(&pypeft::lora_forward)); }
