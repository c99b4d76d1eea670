#include "cpu/scratch.h"
#include "cpu/segments/kernels.h"

namespace pypeft {
namespace {
constexpr int64_t SHRINK_BLOCK = 16;  // rows of a task
constexpr int SHRINK_AT_ONCE = 4;     // rows that are staged at once, and rows of A that are multiplied at once

struct SegmentShrinkArgs {
  const void* x;  // [M, K], rows ldx apart
  int64_t ldx, K;
  const int64_t* order;
  const RowBlock* blocks;
  const Adapter* adapters;
  void* s;  // [M, R]
  int64_t R;
  uint8_t* mask;  // [M, mask_row], or null
  int64_t mask_row;
  Dtype x_dtype, s_dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/segments/shrink_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

void segmented_shrink(const Segments& rows, const std::vector<Adapter>& adapters, const Tensor& x, const Tensor& s,
                      const Tensor& mask, Dtype adapter_dtype) {
  std::vector<RowBlock> blocks = rows.blocks(SHRINK_BLOCK);
  if (rows.none.count > 0) blocks.push_back(rows.none);
  SegmentShrinkArgs args{};
  args.x = x.const_data_ptr(), args.ldx = x.stride(0), args.K = x.size(1), args.x_dtype = dtype_of(x);
  args.order = rows.order.data(), args.blocks = blocks.data(), args.adapters = adapters.data();
  args.s = s.mutable_data_ptr(), args.R = s.size(1), args.s_dtype = adapter_dtype;
  if (mask.size(0) > 0) args.mask = static_cast<uint8_t*>(mask.mutable_data_ptr());
  args.mask_row = mask.size(1);
  const int64_t ld = padded(args.K);
  const auto run = PYPEFT_SELECT(segment_shrink);
  torch::stable::parallel_for(0, blocks.size(), 1 + 4096 / (args.K + 1), [&](int64_t begin, int64_t end) {
    const Floats staged(SHRINK_AT_ONCE * ld);
    run(args, staged.get(), ld, begin, end);
  });
}

}  // namespace pypeft
