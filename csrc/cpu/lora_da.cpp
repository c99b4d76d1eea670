// dA = dS^T drop(x) by one pass over x.
//
//   dS [M, r], x [M, K], mask uint8 [M, ceil(K/8)] -> dA [r, K] in `dtype`
//
// A task computes some columns of dA from all rows of x. No sum is shared between tasks, so the result does not depend
// on the number of threads.
#include "cpu/lora.h"

#include "cpu/kept.h"
#include "cpu/product/vendor.h"
#include "cpu/scratch.h"
#include "fits.h"

namespace pypeft {
namespace {
constexpr int64_t DA_COLUMNS = 128;  // the most columns of a task
constexpr int64_t DA_ROWS = 64;      // rows of a tile of x; a tile of DA_ROWS x DA_COLUMNS fits into the L1 or L2 cache

struct DaArgs {
  const float* dS;  // [M, r], any strides
  int64_t dS_row, dS_column;
  const void* x;  // [M, K], rows ldx apart
  int64_t ldx, M, K, r;
  int64_t task;         // columns of a task
  const uint8_t* mask;  // [M, ..], rows mask_row apart, or null
  int64_t mask_row;
  float scale;
  void* dA;  // [r, K]
  Dtype x_dtype, dA_dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/lora_da_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {
// dA by the vendor's library. If x must be copied, one block of columns is copied and multiplied at a time.
static Tensor da_by_vendor(const Tensor& dS, const Tensor& x, const Tensor* mask, double p) {
  const int64_t M = x.size(0), K = x.size(1), r = dS.size(1);
  const Tensor dA = new_empty(dS, {r, K}), across = transposed(dS);
  const int64_t step = mask || x.scalar_type() != dS.scalar_type() ? block_length(M) : std::max<int64_t>(1, K);
  for (int64_t k = 0; k < K; k += step) {
    const int64_t columns = std::min(step, K - k);
    std::optional<Tensor> bits;
    if (mask) bits = block(*mask, 0, M, k / 8, ceil_div(columns, 8));
    const Tensor part = kept(block(x, 0, M, k, columns), dS.scalar_type(), mask ? &*bits : nullptr);
    vendor_multiply(block(dA, 0, r, k, columns), across, part, dropout_scale(p));
  }
  return dA;
}

Tensor lora_da(const Tensor& given_dS, const Tensor& given_x, const Tensor& given_mask, double p, ScalarType dtype) {
  const Tensor x = with_dense_rows(given_x), mask = with_dense_rows(given_mask);
  const bool floats = dtype == ScalarType::Float && x.size(0) > 16;  // the kernel below is as fast and reads x once
  if (given_dS.scalar_type() == dtype && !floats &&
      vendor_wins(x.scalar_type(), dtype, x.size(0), given_dS.size(1), 1, p > 0)) {
    return da_by_vendor(given_dS, x, p > 0 ? &mask : nullptr, p);
  }
  const Tensor dS = as_float(given_dS);
  DaArgs args{};
  args.dS = static_cast<const float*>(dS.const_data_ptr());
  args.dS_row = dS.stride(0), args.dS_column = dS.stride(1);
  args.x = x.const_data_ptr(), args.ldx = x.stride(0), args.x_dtype = dtype_of(x);
  args.M = x.size(0), args.K = x.size(1), args.r = dS.size(1);
  if (p > 0) args.mask = static_cast<const uint8_t*>(mask.const_data_ptr()), args.mask_row = mask.stride(0);
  args.task = even_columns(args.K, DA_COLUMNS);
  args.scale = static_cast<float>(dropout_scale(p));
  Tensor dA = new_empty(x, {args.r, args.K}, dtype);
  args.dA = dA.mutable_data_ptr(), args.dA_dtype = dtype_of(dA);
  const auto run = PYPEFT_SELECT(da_tasks);
  const int64_t grain = 1 + 256 / (args.M + 1);
  torch::stable::parallel_for(0, ceil_div(args.K, args.task), grain, [&](int64_t begin, int64_t end) {
    const Floats sums(args.r * DA_COLUMNS);
    run(args, sums.get(), begin, end);
  });
  return dA;
}

namespace {
Tensor lora_da_entry(const Tensor& dS, const Tensor& x, const Tensor& mask, double p, ScalarType dtype) {
  check_storages("lora_da", "dS", dS, "x", x, "mask", mask);
  fits(is_matrix(dS) && is_matrix(x) && is_activation(x) && is_adapter(dS, x) && dS.size(0) == x.size(0));
  fits((dtype == x.scalar_type() || dtype == dS.scalar_type()) && is_mask(mask, x, p, x.size(0), x.size(1)));
  return lora_da(dS, x, mask, p, dtype);
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("lora_da_cpu", TORCH_BOX(&pypeft::lora_da_entry)); }
