// y = (x W^T + b) o l and z = x W^T + b; with feedforward y = (x o l) W^T + b. One launch; gemm.cuh, decode.cu and
// decode_codes.cu have the kernels and their plans.
//
//   x [M, K], weight [N, K] (any strides, or quantised), bias [N] or none, ia3_l [N] or with feedforward [K]
//   -> y [M, N] and z [M, N] in the dtype of x; z is [0, N] if not needed and with feedforward
#include <tuple>

#include "cuda/product/weight.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor> ia3_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                      const Tensor& ia3_l, bool feedforward, bool need_z, bool allow_tf32,
                                      const std::optional<std::string>& format,
                                      const std::optional<std::vector<Tensor>>& scales) {
  check_storages("ia3_linear", "x", x, "bias", bias, "ia3_l", ia3_l);
  const OnDevice on(x);
  Weight W("ia3_linear", weight, format, scales, feedforward ? -1 : ia3_l.size(0), x.size(1));
  const int64_t M = x.size(0), N = W.N();
  Tensor y = torch::stable::new_empty(x, {M, N});
  Tensor z = torch::stable::new_empty(x, {need_z && !feedforward ? M : 0, N});
  if (M == 0 || N == 0) return {y, z};
  ProductArgs args{};
  args.X = view(x), args.out = write(y);
  Epilogue& end = args.epilogue;
  if (bias) end.bias = read(*bias), end.bias_stride = bias->stride(0);
  ColumnScale& l = feedforward ? args.inputs : end.scale;
  l.present = true, l.factors = as_row(ia3_l);
  if (z.size(0) > 0) end.z = write(z);
  W.give(on, args, x);
  product(on, args, x, allow_tf32);
  return {y, z};
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("ia3_linear_cuda", TORCH_BOX(&pypeft::ia3_linear)); }
