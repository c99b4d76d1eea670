// dX = (dY o l) W, dl = sum over the rows of dY o z; with feedforward dX = (dY W) o l, dl = sum over the rows of
// (dY W) o x. One launch; gemm.cuh has the kernel and its plan.
//
//   dY [M, N], weight [N, K] (any strides), ia3_l [N] or with feedforward [K], saved: z [M, N] or with feedforward
//   x [M, K] -> dX [M, K] in the dtype of dY, dl in the dtype of ia3_l; [0, K] and [0] if not needed
#include <tuple>

#include "cuda/product/weight.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor> ia3_dx_dl(const Tensor& dY, const Tensor& weight, const Tensor& ia3_l, const Tensor& saved,
                                     bool feedforward, bool need_dX, bool need_dl, bool allow_tf32,
                                     const std::optional<std::string>& format,
                                     const std::optional<std::vector<Tensor>>& scales) {
  check_storages("ia3_dx_dl", "dY", dY, "ia3_l", ia3_l, "saved", saved);
  const OnDevice on(dY);
  Weight W("ia3_dx_dl", weight, format, scales, dY.size(1), feedforward ? ia3_l.size(0) : -1);
  const int64_t M = dY.size(0), K = W.K();
  Tensor dX = torch::stable::new_empty(dY, {need_dX ? M : 0, K});
  Tensor dl = torch::stable::new_empty(ia3_l, {need_dl ? ia3_l.size(0) : 0});
  if (!need_dX && !need_dl) return {dX, dl};
  if (M == 0) {
    torch::stable::zero_(dl);
    return {dX, dl};
  }
  ProductArgs args{};
  args.X = view(dY), args.W = transposed(W.dense(on, dY));
  if (need_dX) args.out = write(dX);
  ColumnScale& l = feedforward ? args.epilogue.scale : args.inputs;
  l.present = true, l.factors = as_row(ia3_l);
  if (need_dl) l.gradient.by = view(saved), l.gradient.out = write(dl), l.gradient.dtype = dtype_of(dl);
  product(on, args, dY, allow_tf32);
  return {dX, dl};
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("ia3_dx_dl_cuda", TORCH_BOX(&pypeft::ia3_dx_dl)); }
