// dX, and dA and dB of every adapter, of a linear layer whose rows belong to different adapters.
//
//   dY [.., N], x [.., K] (for dA), weight [N, K] (for dX), lora_A n x [r_a, K] (values for dX, shapes always), lora_B
//   n x [N, r_a], adapter_index int64 [M], s [M, max r] and mask from multi_lora_forward -> dX [.., K], dA n x
//   [r_a, K], dB n x [N, r_a]; each tensor is [0] if not needed
//
// dS is kept in float, and is not rounded before dX and dA are computed from it.
#include "cpu/product/product.h"
#include "cpu/segments/kernels.h"
#include "fits.h"

namespace pypeft {
namespace {
using Tensors = std::vector<Tensor>;

std::vector<Adapter> adapters(const Tensors& matrices, const Tensors& lora_A, const std::vector<double>& factors,
                              const std::vector<double>& ps) {
  std::vector<Adapter> found;
  for (size_t a = 0; a < lora_A.size(); ++a) {
    const void* data = matrices.empty() ? nullptr : matrices[a].const_data_ptr();
    const int64_t ld = matrices.empty() ? 0 : matrices[a].stride(0);
    found.push_back({data, ld, lora_A[a].size(0), static_cast<float>(factors[a]), !ps.empty() && ps[a] > 0, 0, 0});
  }
  return found;
}

Tensors like_each(const Tensors& tensors, bool needed) {
  Tensors made;
  for (const Tensor& t : tensors) made.push_back(needed ? new_empty(t, {t.size(0), t.size(1)}) : new_empty(t, {0}));
  return made;
}

std::tuple<Tensor, Tensors, Tensors> multi_lora_backward(
    const Tensor& dY, const std::optional<Tensor>& x, const std::optional<Tensor>& weight, const Tensors& lora_A,
    const Tensors& lora_B, const Tensor& adapter_index, const Tensor& s, const std::optional<Tensor>& mask,
    const std::vector<double>& scalings, const std::vector<double>& ps, bool need_dX, bool need_dA, bool need_dB,
    const std::optional<std::string>& format, const std::optional<Tensors>& scales) {
  const char* op = "multi_lora_backward";
  check_storages(op, "dY", dY, "x", x, "adapter_index", adapter_index, "s", s, "mask", mask);
  const size_t n = lora_A.size();
  fits(dY.dim() > 0 && is_activation(dY) && is_matrix(s) && is_adapter(s, dY) && n > 0 && is_matrix(lora_A[0]));
  const int64_t M = rows_of(dY), N = dY.size(-1), K = lora_A[0].size(1);
  const int64_t most = fit_adapters(op, dY, lora_A, lora_B, scalings, ps, N, K);
  bool drops = false;
  Tensors A, B;
  std::vector<double> kept;
  for (size_t a = 0; a < n; ++a) {
    A.push_back(with_dense_rows(lora_A[a])), B.push_back(with_dense_rows(lora_B[a]));
    kept.push_back(dropout_scale(ps[a]));
    drops = drops || ps[a] > 0;
  }
  fits(s.size(0) == M && s.size(1) == most && like(s, lora_A[0]));
  std::optional<Frozen> w;
  if (need_dX) {
    fits(weight.has_value());
    w = frozen(op, *weight, format, scales, N, K);
    fits(w->N == N && w->K == K && (!w->is_dense() || like(*weight, dY)));
  }
  if (need_dA) fits(x && x->dim() > 0 && like(*x, dY) && rows_of(*x) == M && x->size(-1) == K);
  if (mask) fits(mask->is_cpu() && mask->scalar_type() == ScalarType::Byte && is_matrix(*mask));
  if (drops && (need_dX || need_dA)) fits(mask && mask->size(0) == M && mask->size(1) == ceil_div(K, 8));
  const Segments segments = pypeft::segments(adapter_index, M, static_cast<int64_t>(n));

  const Tensor grad = with_dense_rows(as_rows(dY));
  const Tensor bits = mask ? with_dense_rows(*mask) : new_empty(dY, {0, ceil_div(K, 8)}, ScalarType::Byte);
  const Tensors dA = like_each(lora_A, need_dA), dB = like_each(lora_B, need_dB);
  const Tensor dS = new_empty(s, {need_dX || need_dA ? M : 0, most}, ScalarType::Float);
  if (need_dX || need_dA) segmented_ds(segments, adapters(B, A, scalings, {}), grad, dS, dtype_of(B[0]));
  if (need_dB) {
    const Tensor rows = torch::stable::contiguous(as_float(s));
    segmented_gradient(segments, adapters({}, A, scalings, {}), rows, grad, bits, dB, true);
  }
  Tensor dX = new_empty(dY, {0});
  if (need_dX) {
    dX = product(grad, {*w, false});
    segmented_add(segments, adapters(A, A, kept, ps), dX, dS, false, bits, dtype_of(A[0]));
    dX = in_shape_of(dY, dX);
  }
  if (need_dA) {
    segmented_gradient(segments, adapters({}, A, kept, ps), dS, with_dense_rows(as_rows(*x)), bits, dA, false);
  }
  return {dX, dA, dB};
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) {
  m.impl("multi_lora_backward_cpu", TORCH_BOX(&pypeft::multi_lora_backward));
}
