#include "cpu/few_rows.h"

namespace pypeft {
namespace {
struct FewArgs {
  const void *x, *weight;  // [M, K] and [N, K], rows ldx and ldw apart
  int64_t ldx, ldw, M, N, K, r;
  const void* addend;  // or null
  int64_t addend_row, addend_column;
  const float* left;  // [M, r], rows ldl apart, multiplied by the factor
  const void* right;  // [N, r], rows ldr apart
  int64_t ldl, ldr;
  void* y;  // [M, N] of weight's dtype
  Dtype x_dtype, weight_dtype, right_dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/few_rows_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

Tensor few_rows(const Tensor& given_x, const Tensor& weight, const std::optional<Tensor>& addend, const Tensor* left,
                const Tensor* right, double factor) {
  const Tensor x = with_dense_rows(given_x), B = with_dense_rows(right ? *right : weight);
  FewArgs args{};
  args.M = x.size(0), args.K = x.size(1), args.N = weight.size(0), args.r = right ? B.size(1) : 0;
  args.x = x.const_data_ptr(), args.ldx = x.stride(0), args.x_dtype = dtype_of(x);
  args.weight = weight.const_data_ptr(), args.ldw = weight.stride(0), args.weight_dtype = dtype_of(weight);
  args.right = B.const_data_ptr(), args.ldr = B.stride(0), args.right_dtype = dtype_of(B);
  const Packed scaled = left ? pack(*left, static_cast<float>(factor), false) : Packed{Floats(0), 0};
  args.left = scaled.data.get(), args.ldl = scaled.ld;
  if (addend) {
    args.addend = addend->const_data_ptr(), args.addend_column = addend->stride(-1);
    args.addend_row = addend->dim() == 2 ? addend->stride(0) : 0;
  }
  const Tensor y = new_empty(x, {args.M, args.N}, weight.scalar_type());
  args.y = y.mutable_data_ptr();
  const auto run = PYPEFT_SELECT(few_columns);
  torch::stable::parallel_for(0, args.N, 1 + 65536 / (args.M * (args.K + args.r) + 1),
                              [&](int64_t begin, int64_t end) { run(args, begin, end); });
  return y;
}

}  // namespace pypeft
