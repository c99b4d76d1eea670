#include "cpu/scratch.h"
#include "cpu/segments/kernels.h"

namespace pypeft {
namespace {
// The most columns of y of a task: 16 rows of `right` of this width fit into the L1 cache.
constexpr int64_t ADD_STRIP = 256;
constexpr int64_t ADD_TILE_ROWS = 8;  // rows whose low-rank part is computed at once
constexpr int64_t FEW_UP_ROWS = 4;    // for at most this many rows of an adapter, a matrix [N, r] is not transposed

struct SegmentAddArgs {
  void* y;  // [M, N]
  int64_t N;
  const float* left;  // [M, R], rows ldl apart
  int64_t ldl;
  const int64_t* order;
  const RowBlock* blocks;  // one for each adapter with rows
  const Adapter* adapters;
  bool transposed;
  const uint8_t* mask;  // rows mask_row apart
  int64_t mask_row;
  int64_t most_r, across, strip;  // the largest rank; the number of strips; the width of all but the last
  Dtype dtype, adapter_dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/segments/add_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

void segmented_add(const Segments& rows, const std::vector<Adapter>& adapters, const Tensor& y, const Tensor& left,
                   bool transposed, const Tensor& mask, Dtype adapter_dtype) {
  std::vector<RowBlock> blocks;
  for (const RowBlock& block : rows.adapters) {
    if (block.count > 0) blocks.push_back(block);
  }
  SegmentAddArgs args{};
  args.y = y.mutable_data_ptr(), args.N = y.size(1), args.dtype = dtype_of(y);
  args.left = static_cast<const float*>(left.const_data_ptr()), args.ldl = left.stride(0), args.most_r = left.size(1);
  args.order = rows.order.data(), args.blocks = blocks.data(), args.adapters = adapters.data();
  args.transposed = transposed, args.adapter_dtype = adapter_dtype;
  args.mask = static_cast<const uint8_t*>(mask.const_data_ptr()), args.mask_row = mask.stride(0);
  if (args.N == 0) return;
  args.across = ceil_div(args.N, ADD_STRIP);
  args.strip = round_up(ceil_div(args.N, args.across), 32);
  const auto run = PYPEFT_SELECT(segment_add);
  const int64_t tasks = blocks.size() * args.across, grain = 1 + 16 / (args.most_r + 1);
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    const Floats right(args.most_r * (ADD_STRIP + PAD)), few(ADD_TILE_ROWS * padded(args.most_r));
    run(args, right.get(), few.get(), begin, end);
  });
}

}  // namespace pypeft
