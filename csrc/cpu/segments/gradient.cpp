#include "cpu/scratch.h"
#include "cpu/segments/kernels.h"

namespace pypeft {
namespace {
constexpr int64_t GRADIENT_COLUMNS = 128;  // columns of a task

struct SegmentGradientArgs {
  const float* left;  // [M, R]
  int64_t R;
  const void* right;  // [M, N], rows ldr apart
  int64_t ldr, N;
  const int64_t* order;
  const RowBlock* blocks;  // one for each adapter
  const Adapter* adapters;
  const uint8_t* mask;  // rows mask_row apart
  int64_t mask_row;
  void* const* out;
  bool transposed;
  int64_t across;  // the number of strips of columns
  Dtype dtype, out_dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/segments/gradient_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

void segmented_gradient(const Segments& rows, const std::vector<Adapter>& adapters, const Tensor& left,
                        const Tensor& right, const Tensor& mask, const std::vector<Tensor>& out, bool transposed) {
  std::vector<void*> results;
  for (const Tensor& one : out) results.push_back(one.mutable_data_ptr());
  SegmentGradientArgs args{};
  args.left = static_cast<const float*>(left.const_data_ptr()), args.R = left.size(1);
  args.right = right.const_data_ptr(), args.ldr = right.stride(0), args.N = right.size(1);
  args.order = rows.order.data(), args.blocks = rows.adapters.data(), args.adapters = adapters.data();
  args.mask = static_cast<const uint8_t*>(mask.const_data_ptr()), args.mask_row = mask.stride(0);
  args.out = results.data(), args.transposed = transposed;
  args.across = ceil_div(args.N, GRADIENT_COLUMNS);
  args.dtype = dtype_of(right), args.out_dtype = dtype_of(out[0]);
  const int64_t ld = padded(args.R);
  const auto run = PYPEFT_SELECT(segment_gradient);
  torch::stable::parallel_for(0, out.size() * args.across, 1, [&](int64_t begin, int64_t end) {
    const Floats few(MOST_BLOCK_ROWS * ld), sums(args.R * GRADIENT_COLUMNS);
    run(args, few.get(), ld, sums.get(), begin, end);
  });
}

}  // namespace pypeft
