#include "cpu/kept.h"

#include "cpu/scratch.h"

namespace pypeft {
namespace {
struct KeptArgs {
  const void* from;  // [M, N], rows `row` apart
  int64_t row, N;
  const uint8_t* mask;  // rows mask_row apart, or null
  int64_t mask_row;
  void* to;  // [M, N], contiguous
  Dtype from_dtype, to_dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/kept_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

Tensor block(const Tensor& t, int64_t m, int64_t rows, int64_t n, int64_t columns) {
  const int64_t sizes[] = {rows, columns}, strides[] = {t.stride(0), t.stride(1)};
  AtenTensorHandle view;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), 2, sizes, strides, m * strides[0] + n * strides[1], &view));
  return Tensor(view);
}

int64_t block_length(int64_t other) {
  constexpr int64_t ELEMENTS = int64_t{1} << 18;  // a MiB of floats
  return std::max<int64_t>(32, ELEMENTS / std::max<int64_t>(1, other) / 32 * 32);
}

Tensor kept(const Tensor& t, ScalarType dtype, const Tensor* mask) {
  if (mask == nullptr && t.scalar_type() == dtype) return t;
  const Tensor to = new_empty(t, {t.size(0), t.size(1)}, dtype);
  KeptArgs args{};
  args.from = t.const_data_ptr(), args.row = t.stride(0), args.N = t.size(1), args.from_dtype = dtype_of(t);
  args.to = to.mutable_data_ptr(), args.to_dtype = dtype_of(to);
  if (mask) args.mask = static_cast<const uint8_t*>(mask->const_data_ptr()), args.mask_row = mask->stride(0);
  const auto run = PYPEFT_SELECT(keep_rows);
  torch::stable::parallel_for(0, t.size(0), 1 + 32768 / (args.N + 1),
                              [&](int64_t begin, int64_t end) { run(args, begin, end); });
  return to;
}

}  // namespace pypeft
