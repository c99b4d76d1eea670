// norm[n] = |W_n + scaling * (B A)_n|, the lengths of rows, in float.
//
//   weight [N, K] (any strides, or quantised), lora_A [r, K] and lora_B [N, r] of one dtype -> norm [N] float32
//
// product() computes B A for one block of rows at a time: in bfloat16 if the adapter is bfloat16 and the CPU
// has bfloat16 instructions, otherwise in float32. B A and the same rows of W are then read once.
#include "cpu/frozen/frozen.h"
#include "cpu/kept.h"
#include "cpu/product/product.h"
#include "cpu/scratch.h"
#include "fits.h"

namespace pypeft {
namespace {
struct NormArgs {
  const void* weight;  // [rows, K], rows `row` apart
  int64_t row, K;
  const void* update;  // [rows, K], contiguous
  float scaling;
  float* norm;  // [rows]
  Dtype weight_dtype, update_dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/dora_norm_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {
namespace {
Tensor dora_norm(const Tensor& weight, const Tensor& given_A, const Tensor& given_B, double scaling,
                 const std::optional<std::string>& format, const std::optional<std::vector<Tensor>>& scales) {
  check_storages("dora_norm", "lora_A", given_A, "lora_B", given_B);
  fits(is_matrix(given_A) && is_matrix(given_B) && is_activation(given_A));
  const int64_t N = given_B.size(0), K = given_A.size(1), r = given_A.size(0);
  const Frozen w = frozen("dora_norm", weight, format, scales, N, K);
  fits(w.N == N && w.K == K && r > 0 && given_B.size(1) == r && like(given_B, given_A));
  if (w.is_dense()) fits(is_activation(weight) && is_adapter(given_A, weight));

  const bool half = given_A.scalar_type() == ScalarType::BFloat16 && selected_isa() == Isa::avx512bf16;
  const Tensor A = half ? given_A : as_float(given_A), B = half ? given_B : as_float(given_B);
  Tensor norm = new_empty(weight, {N}, ScalarType::Float);
  const int64_t step = std::max(block_length(K), r);  // A is read once a block
  const Frozen right = dense(A);
  const auto run = PYPEFT_SELECT(norm_rows);
  NormArgs args{};
  args.K = K, args.scaling = static_cast<float>(scaling);
  args.weight_dtype = w.is_dense() ? dtype_of(weight) : Dtype::f32, args.update_dtype = dtype_of(A);
  const Floats room(w.is_dense() ? 0 : std::min(N, step) * K);
  args.norm = static_cast<float*>(norm.mutable_data_ptr());
  for (int64_t n = 0; n < N; n += step, args.norm += step) {
    const int64_t rows = std::min(step, N - n);
    const Tensor update = product(block(B, n, rows, 0, r), {right, false});
    args.update = update.const_data_ptr();
    std::optional<Tensor> part;
    if (w.is_dense()) {
      part = with_dense_rows(block(weight, n, rows, 0, K));
      args.weight = part->const_data_ptr(), args.row = part->stride(0);
    } else {
      decode(w.codes, n, rows, 0, K, room.get(), K, Dtype::f32);
      args.weight = room.get(), args.row = K;
    }
    torch::stable::parallel_for(0, rows, 1 + 16384 / (K + 1),
                                [&](int64_t begin, int64_t end) { run(args, begin, end); });
  }
  return norm;
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("dora_norm_cpu", TORCH_BOX(&pypeft::dora_norm)); }
