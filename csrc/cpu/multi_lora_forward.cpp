// y_m = W x_m + b + scaling_a B_a A_a drop_a(x_m) with a = adapter_index[m]; y_m = W x_m + b if a is -1.
//
//   x [.., K], weight [N, K], bias [N] or none, lora_A n x [r_a, K], lora_B n x [N, r_a], adapter_index int64 [M],
//   seeds int64 [n] if some p > 0 -> y [.., N], s [M, max r], mask uint8 [M, ceil(K/8)] ([0, ..] if every p = 0)
//
// There is one frozen product for all rows. Each adapter is then added to its own rows only, so that NaN or infinity in
// one row does not change another row.
#include "cpu/product/product.h"
#include "cpu/segments/adapter_table.h"
#include "cpu/segments/kernels.h"
#include "fits.h"

namespace pypeft {
namespace {
using Tensors = std::vector<Tensor>;
using Numbers = std::vector<double>;

std::tuple<Tensor, Tensor, Tensor> multi_lora_forward(const Tensor& x, const Tensor& weight,
                                                      const std::optional<Tensor>& bias, const Tensors& lora_A,
                                                      const Tensors& lora_B, const Tensor& adapter_index,
                                                      const Numbers& scalings, const Numbers& ps,
                                                      const std::optional<Tensor>& seeds,
                                                      const std::optional<std::string>& format,
                                                      const std::optional<Tensors>& scales) {
  const char* op = "multi_lora_forward";
  check_storages(op, "x", x, "bias", bias, "adapter_index", adapter_index, "seeds", seeds);
  const size_t n = lora_A.size();
  fits(is_activation(x) && x.dim() > 0 && !lora_B.empty() && is_matrix(lora_B[0]));
  const int64_t K = x.size(-1), N = lora_B[0].size(0), M = rows_of(x);
  const Frozen w = frozen(op, weight, format, scales, N, K);
  fits(w.N == N && w.K == K && (!w.is_dense() || like(weight, x)));
  if (bias) fits(bias->dim() == 1 && bias->size(0) == N && like(*bias, x));
  const int64_t most = fit_adapters(op, x, lora_A, lora_B, scalings, ps, N, K);
  Tensors A, B;
  std::vector<Adapter> down, up;
  bool drops = false;
  for (size_t a = 0; a < n; ++a) {
    A.push_back(with_dense_rows(lora_A[a])), B.push_back(with_dense_rows(lora_B[a]));
    const int64_t r = A[a].size(0);
    const float kept = static_cast<float>(dropout_scale(ps[a]));
    down.push_back({A[a].const_data_ptr(), A[a].stride(0), r, kept, ps[a] > 0, dropout_threshold(ps[a]), 0});
    up.push_back({B[a].const_data_ptr(), B[a].stride(0), r, static_cast<float>(scalings[a]), false, 0, 0});
    drops = drops || ps[a] > 0;
  }
  fits(seeds.has_value() == drops);
  if (seeds) {
    fits(seeds->is_cpu() && seeds->scalar_type() == ScalarType::Long && seeds->dim() == 1);
    fits(seeds->size(0) == static_cast<int64_t>(n));
    const int64_t* its = static_cast<const int64_t*>(seeds->const_data_ptr());
    for (size_t a = 0; a < n; ++a) down[a].seed = its[static_cast<int64_t>(a) * seeds->stride(0)];
  }
  const Segments segments = pypeft::segments(adapter_index, M, static_cast<int64_t>(n));

  const Tensor rows = with_dense_rows(as_rows(x));
  const Tensor s = new_empty(lora_A[0], {M, most});
  const Tensor mask = new_empty(x, {drops ? M : 0, ceil_div(K, 8)}, ScalarType::Byte);
  segmented_shrink(segments, down, rows, s, mask, dtype_of(s));
  const Tensor y = product(rows, {w, true}, nullptr, {bias, {}});
  segmented_add(segments, up, y, as_float(s), true, mask, dtype_of(B[0]));
  return {in_shape_of(x, y), s, mask};
}

// y of the same product, with the adapters of a table.
Tensor multi_lora_linear_of_table(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                  int64_t table, const Tensor& adapter_index, const std::optional<Tensor>& seeds,
                                  const std::optional<std::string>& format, const std::optional<Tensors>& scales) {
  const auto kept = kept_table(table);
  const auto made = multi_lora_forward(x, weight, bias, kept->A, kept->B, adapter_index, kept->scalings, kept->ps,
                                       seeds, format, scales);
  return std::get<0>(made);
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) {
  m.impl("multi_lora_forward_cpu", TORCH_BOX(&pypeft::multi_lora_forward));
  m.impl("multi_lora_linear_of_table_cpu", TORCH_BOX(&pypeft::multi_lora_linear_of_table));
}
