// dX = (dY * l) W, dl = sum over the rows of dY * z; with feedforward dX = (dY W) * l, dl = sum over the rows of
// x * (dY W).
//
//   dY [M, N], weight [N, K] (any strides, or quantised), ia3_l [N] or with feedforward [K], saved: z [M, N] or with
//   feedforward x [M, K] -> dX [M, K] in the dtype of dY, dl in the dtype of ia3_l; [0, K] and [0] if not needed
//
// One pass over dY scales its columns and adds dl, before the frozen product. With feedforward the pass is over dY W,
// after the frozen product.
#include <tuple>

#include "cpu/product/product.h"
#include "cpu/product/scale_columns.h"
#include "fits.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor> ia3_dx_dl(const Tensor& given_dY, const Tensor& weight, const Tensor& ia3_l,
                                     const Tensor& given_saved, bool feedforward, bool need_dX, bool need_dl,
                                     const std::optional<std::string>& format,
                                     const std::optional<std::vector<Tensor>>& scales) {
  check_storages("ia3_dx_dl", "dY", given_dY, "ia3_l", ia3_l, "saved", given_saved);
  fits(is_matrix(given_dY) && is_matrix(given_saved) && ia3_l.dim() == 1 && is_activation(given_dY));
  const int64_t M = given_dY.size(0), N = given_dY.size(1);
  const Frozen w = frozen("ia3_dx_dl", weight, format, scales, N, feedforward ? ia3_l.size(0) : -1);
  fits(w.N == N && (!w.is_dense() || like(weight, given_dY)) && ia3_l.size(0) == (feedforward ? w.K : N));
  fits(is_adapter(ia3_l, given_dY) && like(given_saved, given_dY));
  if (need_dl) fits(given_saved.size(0) == M && given_saved.size(1) == (feedforward ? w.K : N));
  Tensor dl = new_empty(ia3_l, {need_dl ? ia3_l.size(0) : 0});
  Tensor dX = new_empty(given_dY, {0, w.K});
  if (!need_dX && !need_dl) return {dX, dl};
  const Tensor saved = need_dl ? with_dense_rows(given_saved) : given_saved;
  const Tensor* sum = need_dl ? &dl : nullptr;
  if (feedforward) {
    Tensor factor = product(given_dY, {w, false});  // the gradient of x * l
    scale_columns(factor, ia3_l, need_dX ? &factor : nullptr, &saved, sum);
    return {need_dX ? factor : dX, dl};
  }
  const Tensor dY = with_dense_rows(given_dY);
  Tensor scaled = new_empty(dY, {need_dX ? M : 0, N});
  scale_columns(dY, ia3_l, need_dX ? &scaled : nullptr, &saved, sum);
  return {need_dX ? product(scaled, {w, false}) : dX, dl};
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("ia3_dx_dl_cpu", TORCH_BOX(&pypeft::ia3_dx_dl)); }
