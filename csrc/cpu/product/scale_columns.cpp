#include "cpu/product/scale_columns.h"

namespace pypeft {
namespace {
constexpr int64_t SCALE_ROWS = 64;  // of a task: sums this short lose little to rounding

struct ScaleArgs {
  const void* in;  // [M, N], rows in_row apart
  int64_t in_row, M, N;
  const float* ia3_l;  // [N]
  void* out;           // [M, N], rows out_row apart, or null
  int64_t out_row;
  const void* saved;  // [M, N], rows saved_row apart, or null
  int64_t saved_row;
  float* parts;  // [tasks, ld], the tasks' parts of dl
  int64_t ld, tasks;
  void* dl;  // [N]
  Dtype dtype, dl_dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/product/scale_columns_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

void scale_columns(const Tensor& in, const Tensor& ia3_l, const Tensor* out, const Tensor* saved, const Tensor* dl) {
  const Tensor factors = torch::stable::contiguous(as_float(ia3_l));
  ScaleArgs args{};
  args.in = in.const_data_ptr(), args.in_row = in.stride(0), args.dtype = dtype_of(in);
  args.M = in.size(0), args.N = in.size(1);
  args.ia3_l = static_cast<const float*>(factors.const_data_ptr());
  args.tasks = ceil_div(args.M, SCALE_ROWS), args.ld = padded(args.N);
  const Floats parts(dl ? args.tasks * args.ld : 0);
  args.parts = parts.get();
  if (out) args.out = out->mutable_data_ptr(), args.out_row = out->stride(0);
  if (dl) args.saved = saved->const_data_ptr(), args.saved_row = saved->stride(0);
  const auto run = PYPEFT_SELECT(scale_rows);
  torch::stable::parallel_for(0, args.tasks, 1 + 32768 / (SCALE_ROWS * (args.N + 1)),
                              [&](int64_t begin, int64_t end) { run(args, begin, end); });
  if (!dl) return;
  args.dl = dl->mutable_data_ptr(), args.dl_dtype = dtype_of(*dl);
  const auto combine = PYPEFT_SELECT(combine_columns);
  torch::stable::parallel_for(0, ceil_div(args.N, PAD), 1 + 32768 / (PAD * (args.tasks + 1)),
                              [&](int64_t begin, int64_t end) { combine(args, begin, end); });
}

}  // namespace pypeft
