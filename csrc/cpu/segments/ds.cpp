#include "cpu/scratch.h"
#include "cpu/segments/kernels.h"

namespace pypeft {
namespace {
constexpr int64_t DS_COLUMNS = 128;  // columns of dY, and rows of B, that are staged at once

struct SegmentDsArgs {
  const void* dY;  // [M, N], rows ldy apart
  int64_t ldy, N;
  const int64_t* order;
  const RowBlock* blocks;
  const Adapter* adapters;
  float* dS;  // [M, R]
  int64_t R;
  Dtype dY_dtype, adapter_dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/segments/ds_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

void segmented_ds(const Segments& rows, const std::vector<Adapter>& adapters, const Tensor& dY, const Tensor& dS,
                  Dtype adapter_dtype) {
  const std::vector<RowBlock> blocks = rows.blocks(MOST_BLOCK_ROWS);
  SegmentDsArgs args{};
  args.dY = dY.const_data_ptr(), args.ldy = dY.stride(0), args.N = dY.size(1), args.dY_dtype = dtype_of(dY);
  args.order = rows.order.data(), args.blocks = blocks.data(), args.adapters = adapters.data();
  args.dS = static_cast<float*>(dS.mutable_data_ptr()), args.R = dS.size(1), args.adapter_dtype = adapter_dtype;
  const int64_t ld = padded(args.R);
  const auto run = PYPEFT_SELECT(segment_ds);
  torch::stable::parallel_for(0, blocks.size(), 1 + 4096 / (args.N + 1), [&](int64_t begin, int64_t end) {
    const Floats B(DS_COLUMNS * ld), sums(MOST_BLOCK_ROWS * ld);
    run(args, B.get(), sums.get(), begin, end);
  });
}

}  // namespace pypeft
