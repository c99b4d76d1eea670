// y_m = W x_m + b + scaling_a B_a A_a x_m with a = adapter_index[m]; y_m = W x_m + b if a is -1. This is for decoding:
// few rows, no dropout. Two launches for any number of adapters; segments/shrink.cu and product/decode.cuh have them.
//
//   x [.., K], weight [N, K] (any strides, or quantised), bias [N] or none, lora_A n x [r_a, K], lora_B n x [N, r_a],
//   adapter_index int64 [M], M <= 16 -> y [.., N], s [M, max r], mask [0, ceil(K/8)]
#include <algorithm>
#include <tuple>

#include "cuda/product/decode.h"
#include "cuda/product/weight.h"
#include "cuda/segments/shrink.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor, Tensor> multi_lora_forward(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const std::vector<Tensor>& lora_A,
    const std::vector<Tensor>& lora_B, const Tensor& adapter_index, const std::vector<double>& scalings,
    const std::vector<double>& ps, const std::optional<Tensor>&, bool allow_tf32,
    const std::optional<std::string>& format, const std::optional<std::vector<Tensor>>& scales) {
  const char* op = "multi_lora_forward";
  const bool drops = std::any_of(ps.begin(), ps.end(), [](double p) { return p > 0; });
  STD_TORCH_CHECK(adapter_index.size(0) <= kDecodeRows && lora_A.size() <= kMostAdapters && !drops, op,
                  ": the CUDA kernel takes up to ", kDecodeRows, " rows of up to ", kMostAdapters,
                  " adapters without dropout");
  check_storages(op, "x", x, "bias", bias, "adapter_index", adapter_index);
  int64_t most = 0;
  for (size_t a = 0; a < lora_A.size(); ++a) {
    check_storages(op, "lora_A", lora_A[a], "lora_B", lora_B[a]);
    most = std::max(most, lora_A[a].size(0));
  }
  const OnDevice on(x);
  Weight W(op, weight, format, scales, lora_B[0].size(0), x.size(-1));
  const int64_t M = adapter_index.size(0), K = W.K(), N = W.N();
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = N;
  Tensor y = torch::stable::new_empty(x, sizes);
  Tensor s = torch::stable::new_empty(lora_A[0], {M, most});
  const Tensor mask = torch::stable::new_empty(x, {0, ceil_div(K, 8)}, ScalarType::Byte);
  if (M == 0) return {y, s, mask};
  const Tensor rows = torch::stable::reshape(x, {M, K});
  SegmentedProductArgs args{};
  args.X = view(rows);
  segmented_shrink(on, args.X, adapters(lora_A, {}, adapter_index), s);
  if (N == 0) return {y, s, mask};
  args.low_rank.S = view(s), args.out = write(y);
  args.adapters = adapters(lora_B, scalings, adapter_index);
  if (bias) args.epilogue.bias = read(*bias), args.epilogue.bias_stride = bias->stride(0);
  args.low_rank.overlaps = !W.give(on, args, x);
  args.codes.data ? decode_codes(on, args, allow_tf32) : decode(on, args, allow_tf32);
  return {y, s, mask};
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("multi_lora_forward_cuda", TORCH_BOX(&pypeft::multi_lora_forward)); }
