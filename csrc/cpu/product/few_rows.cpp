#include "cpu/product/few_rows.h"

namespace pypeft {
namespace {
struct FewArgs {
  const void *a, *b;  // [M, K] rows lda apart, [K, N] columns ldb apart
  int64_t lda, ldb, M, N, K, r;
  const void* bias;  // [N], bias_step apart, or null
  int64_t bias_step;
  const float* left;  // [M, r], rows ldl apart
  const void* right;  // [r, N], columns ldr apart
  int64_t ldl, ldr;
  float factor;
  ColumnScale scale;
  void* y;  // [M, N] of b's dtype
  Dtype a_dtype, b_dtype, right_dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/product/few_rows_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

bool few_rows_win(ScalarType dtype, int64_t rows) {
  if (dtype == ScalarType::BFloat16 && selected_isa() == Isa::avx512bf16) return rows <= 3;
  return rows <= (dtype == ScalarType::Half ? 16 : 8);
}

Tensor few_rows(const Tensor& given_a, const Tensor& b, const LowRank* low_rank, const Epilogue& epilogue) {
  const Tensor a = with_dense_rows(given_a);
  FewArgs args{};
  args.M = a.size(0), args.K = a.size(1), args.N = b.size(1);
  args.scale = epilogue.scale;
  args.a = a.const_data_ptr(), args.lda = a.stride(0), args.a_dtype = dtype_of(a);
  args.b = b.const_data_ptr(), args.ldb = b.stride(1), args.b_dtype = dtype_of(b);
  std::optional<Tensor> left, right;
  if (low_rank) {
    left = with_dense_rows(as_float(low_rank->left));
    const Tensor& given = low_rank->right;
    right = has_dense_columns(given) ? given : transposed(torch::stable::contiguous(transposed(given)));
    args.factor = static_cast<float>(low_rank->factor);
    args.left = static_cast<const float*>(left->const_data_ptr()), args.ldl = left->stride(0), args.r = left->size(1);
    args.right = right->const_data_ptr(), args.ldr = right->stride(1), args.right_dtype = dtype_of(*right);
  }
  if (epilogue.bias) args.bias = epilogue.bias->const_data_ptr(), args.bias_step = epilogue.bias->stride(0);
  const Tensor y = new_empty(a, {args.M, args.N}, b.scalar_type());
  args.y = y.mutable_data_ptr();
  const auto run = PYPEFT_SELECT(few_columns);
  torch::stable::parallel_for(0, args.N, 1 + 65536 / (args.M * (args.K + args.r) + 1),
                              [&](int64_t begin, int64_t end) { run(args, begin, end); });
  return y;
}

}  // namespace pypeft
