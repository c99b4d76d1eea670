#include "cpu/product/add.h"

#include "cpu/kept.h"
#include "cpu/product/vendor.h"

namespace pypeft {
namespace {
constexpr int64_t ADD_ROWS = 64;      // of y that a task takes
constexpr int64_t ADD_COLUMNS = 256;  // and columns: 16 rows of `right` as wide as this stay in the L1 cache

struct AddArgs {
  void* y;  // [M, N]
  int64_t M, N, r;
  const float* left;  // [M, r], any strides; null if there is no low-rank part, or if `product` is it
  int64_t left_row, left_column;
  const float* right;  // [r, ld]
  int64_t ld;
  const void* product;  // [M, N], contiguous: left right where it is made already; else null
  float factor;         // of the low-rank part
  const uint8_t* mask;  // [M, ..], rows mask_row apart, or null
  int64_t mask_row;
  ColumnScale scale;
  Dtype dtype, product_dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/product/add_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

static void add_tasks_in_parallel(const AddArgs& args) {
  const auto run = PYPEFT_SELECT(add_tasks);
  const int64_t tasks = ceil_div(args.M, ADD_ROWS) * ceil_div(args.N, ADD_COLUMNS);
  torch::stable::parallel_for(0, tasks, 1 + 16 / (args.r + 1),
                              [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

// Of add_and_scale: the products by the vendor, the sums in float.
static void add_blocks(AddArgs args, const Tensor& y, const Tensor& left, const Tensor& right, double factor) {
  const int64_t M = args.M, step = block_length(args.N), row_bytes = args.N * y.element_size();
  const Tensor product = new_empty(left, {std::min(M, step), args.N});
  args.product_dtype = dtype_of(product), args.factor = 1;
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

void add_and_scale(const Tensor& y, const LowRank* low_rank, const ColumnScale& scale) {
  AddArgs args{};
  args.y = y.mutable_data_ptr(), args.dtype = dtype_of(y);
  args.M = y.size(0), args.N = y.size(1);
  args.scale = scale;
  if (low_rank == nullptr) return add_tasks_in_parallel(args);
  const auto& [left, right, factor, given_mask] = *low_rank;
  args.r = left.size(1);
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
  const Packed packed = pack(across ? transposed(right) : right, 1.0f, across);
  args.factor = static_cast<float>(factor);
  const Tensor floats = as_float(left);
  args.left = static_cast<const float*>(floats.const_data_ptr());
  args.left_row = floats.stride(0), args.left_column = floats.stride(1);
  args.right = packed.data.get(), args.ld = packed.ld;
  add_tasks_in_parallel(args);
}

}  // namespace pypeft
