#include "cpu/scratch.h"

namespace pypeft {

Tensor with_dense_rows(const Tensor& t) {
  return t.size(1) <= 1 || t.stride(1) == 1 ? t : torch::stable::contiguous(t);
}

Tensor as_float(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float);
}

namespace {
struct PackArgs {
  const void* from;
  Dtype dtype;
  int64_t stride, columns;  // of `from`; its rows are dense
  float factor;
  float* to;
  int64_t ld;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/pack_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

Packed pack(const Tensor& given, float factor, bool transpose) {
  const Tensor t = with_dense_rows(given);
  const int64_t rows = t.size(0), columns = t.size(1), ld = padded(transpose ? rows : columns);
  Packed packed{Floats((transpose ? columns : rows) * ld), ld};
  const PackArgs args{t.const_data_ptr(), dtype_of(t), t.stride(0), columns, factor, packed.data.get(), ld};
  if (transpose) {
    const auto run = PYPEFT_SELECT(pack_transposed);
    torch::stable::parallel_for(0, ceil_div(columns, PAD), 1 + 4096 / (rows + 1),
                                [&](int64_t begin, int64_t end) { run(args, rows, begin, end); });
  } else {
    const auto run = PYPEFT_SELECT(pack_rows);
    torch::stable::parallel_for(0, rows, 1 + 65536 / (columns + 1),
                                [&](int64_t begin, int64_t end) { run(args, begin, end); });
  }
  return packed;
}

}  // namespace pypeft
