#include "cpu/add_low_rank.h"

#include "cpu/few_rows.h"
#include "cpu/gemm.h"
#include "cpu/kept.h"
#include "cpu/vendor.h"

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
  const void* product;  // [M, N], contiguous: left right where it is made already; else null
  const uint8_t* mask;  // [M, ..], rows mask_row apart, or null
  int64_t mask_row;
  ColumnScale scale;
  Dtype dtype, product_dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/add_low_rank_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

static void add_tasks_in_parallel(const AddArgs& args) {
  const auto run = PYPEFT_SELECT(add_tasks);
  const int64_t tasks = ceil_div(args.M, ADD_ROWS) * ceil_div(args.N, ADD_COLUMNS);
  torch::stable::parallel_for(0, tasks, 1 + 16 / (args.r + 1),
                              [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

// Of add_low_rank: the products by the vendor, the sums in float.
static void add_blocks(AddArgs args, const Tensor& y, const Tensor& left, const Tensor& right, double factor) {
  const int64_t M = args.M, step = block_length(args.N), row_bytes = args.N * y.element_size();
  const Tensor product = new_empty(left, {std::min(M, step), args.N});
  args.product_dtype = dtype_of(product);
  for (int64_t m = 0; m < M; m += step) {
    args.M = std::min(step, M - m);
    const Tensor part = block(product, 0, args.M, 0, args.N);
    vendor_multiply(part, block(left, m, args.M, 0, args.r), right, factor);
    args.product = part.const_data_ptr();
    add_tasks_in_parallel(args);
    args.y = static_cast<char*>(args.y) + args.M * row_bytes;
    if (args.mask) args.mask += args.M * args.mask_row;
    if (args.scale.z) args.scale.z = static_cast<char*>(args.scale.z) + args.M * row_bytes;
  }
}

// y [M, N] += keep * factor * (left right), scaled if there is a scale (and then no mask), and rounded once to y's
// dtype. Either summed here in float, or by the vendor in the dtype of `left` and `right`, a block of rows at a time.
static void add_low_rank(const Tensor& y, const Tensor& left, const Tensor& right, double factor,
                         const Tensor* given_mask, const ColumnScale& scale) {
  AddArgs args{};
  args.y = y.mutable_data_ptr(), args.dtype = dtype_of(y);
  args.M = y.size(0), args.N = y.size(1), args.r = left.size(1);
  args.scale = scale;
  std::optional<Tensor> mask;
  if (given_mask) {
    mask = with_dense_rows(*given_mask);
    args.mask = static_cast<const uint8_t*>(mask->const_data_ptr()), args.mask_row = mask->stride(0);
  }
  const ScalarType dtype = left.scalar_type();
  if (right.scalar_type() == dtype && vendor_wins(y.scalar_type(), dtype, args.M, args.r, factor, given_mask)) {
    if (y.scalar_type() == dtype && !given_mask && !scale.factors) return vendor_multiply(y, left, right, factor, 1);
    return add_blocks(args, y, left, right, factor);
  }
  const bool across = right.stride(1) != 1;  // a transposed matrix is packed as the one it is the transpose of
  const Packed packed = pack(across ? transposed(right) : right, static_cast<float>(factor), across);
  const Tensor floats = as_float(left);
  args.left = static_cast<const float*>(floats.const_data_ptr());
  args.left_row = floats.stride(0), args.left_column = floats.stride(1);
  args.right = packed.data.get(), args.ld = packed.ld;
  add_tasks_in_parallel(args);
}

Tensor frozen_and_low_rank(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias, const Tensor& left,
                           const Tensor& right, double factor, const Tensor* mask, const ColumnScale& scale) {
#if defined(__x86_64__)
  if (gemm_wins(a.scalar_type(), a.size(0), a.size(1))) return gemm(a, b, bias, left, right, factor, mask, scale);
#endif
  if (mask == nullptr && few_rows_win(a.scalar_type(), a.size(0)) && has_dense_columns(b)) {
    return few_rows(a, b, bias, &left, &right, factor, scale);
  }
  const Tensor out = vendor_matmul(a, b, bias);
  add_low_rank(out, left, right, factor, mask, scale);
  return out;
}

}  // namespace pypeft
