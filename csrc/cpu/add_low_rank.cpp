#include "cpu/add_low_rank.h"

#include "cpu/few_rows.h"
#include "cpu/gemm.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

namespace pypeft {
namespace {
constexpr int64_t ADD_ROWS = 64;      // of y that a task takes
constexpr int64_t ADD_COLUMNS = 256;  // and columns: 16 rows of `right` as wide as this stay in the L1 cache

struct AddArgs {
  void* y;  // [M, N]
  int64_t M, N, r;
  const float* left;  // [M, r], any strides
  int64_t left_row, left_column;
  const float* right;  // [r, ld]
  int64_t ld;
  const uint8_t* mask;  // [M, ..], rows mask_row apart, or null
  int64_t mask_row;
  ColumnScale scale;
  Dtype dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/add_low_rank_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

Tensor vendor_matmul(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
  // By the C shim of the CPU kernel, not through the dispatcher: there autocast would change the dtype of the result,
  // and autograd record a graph for it.
  Tensor out = new_empty(a, {a.size(0), b.size(1)});
  if (bias) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), bias->get(), a.get(), b.get(), 1.0, 1.0));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
  }
  return out;
}

// y [M, N] += keep * (left right), summed in float, scaled if there is a scale (and then no mask), and rounded once to
// y's dtype; any factor is in `right`.
static void add_low_rank(const Tensor& y, const Tensor& given, const Packed& right, const Tensor* given_mask,
                         const ColumnScale& scale) {
  const Tensor left = as_float(given);
  AddArgs args{};
  args.y = y.mutable_data_ptr(), args.dtype = dtype_of(y);
  args.M = y.size(0), args.N = y.size(1), args.r = left.size(1);
  args.left = static_cast<const float*>(left.const_data_ptr());
  args.left_row = left.stride(0), args.left_column = left.stride(1);
  args.right = right.data.get(), args.ld = right.ld;
  args.scale = scale;
  std::optional<Tensor> mask;
  if (given_mask) {
    mask = with_dense_rows(*given_mask);
    args.mask = static_cast<const uint8_t*>(mask->const_data_ptr()), args.mask_row = mask->stride(0);
  }
  const auto run = PYPEFT_SELECT(add_tasks);
  const int64_t tasks = ceil_div(args.M, ADD_ROWS) * ceil_div(args.N, ADD_COLUMNS);
  torch::stable::parallel_for(0, tasks, 1 + 16 / (args.r + 1),
                              [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

Tensor frozen_and_low_rank(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias, const Tensor& left,
                           const Tensor& right, double factor, const Tensor* mask, const ColumnScale& scale) {
#if defined(__x86_64__)
  if (gemm_wins(a.scalar_type(), a.size(0))) return gemm(a, b, bias, left, right, factor, mask, scale);
#endif
  if (mask == nullptr && few_rows_win(a.scalar_type(), a.size(0))) {
    if (has_dense_columns(b)) return few_rows(a, b, bias, &left, &right, factor, scale);
    const Tensor no_a = new_empty(a, {a.size(0), 0}), no_b = new_empty(b, {0, b.size(1)});
    return few_rows(no_a, no_b, vendor_matmul(a, b, bias), &left, &right, factor, scale);
  }
  const Tensor out = vendor_matmul(a, b, bias);
  const bool across = right.stride(1) != 1;  // a transposed matrix is packed as the one it is the transpose of
  const Tensor stored = across ? transposed(right) : right;
  add_low_rank(out, left, pack(stored, static_cast<float>(factor), across), mask, scale);
  return out;
}

}  // namespace pypeft
