// h = silu(gate) * up with silu(t) = t / (1 + exp(-t)), by one pass, computed in float and rounded once.
//
//   gate, up [.., N], of one dtype -> h [.., N]
#include "cpu/swiglu.h"
#include "cpu/scratch.h"
#include "fits.h"

namespace pypeft {
namespace {
struct SwigluArgs {
  const void *gate, *up;  // [M, N], rows gate_row and up_row apart
  int64_t gate_row, up_row, N;
  void* h;  // [M, N]
  Dtype dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/swiglu_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {
namespace {
Tensor swiglu(const Tensor& given_gate, const Tensor& given_up) {
  check_storages("swiglu", "gate", given_gate, "up", given_up);
  fits(given_gate.dim() > 0 && is_activation(given_gate) && like(given_up, given_gate));
  fits(same_shape(given_gate, given_up));
  const Tensor gate = with_dense_rows(as_rows(given_gate)), up = with_dense_rows(as_rows(given_up));
  const int64_t M = gate.size(0), N = gate.size(1);
  Tensor h = new_empty(gate, {M, N});
  SwigluArgs args{};
  args.gate = gate.const_data_ptr(), args.gate_row = gate.stride(0);
  args.up = up.const_data_ptr(), args.up_row = up.stride(0);
  args.h = h.mutable_data_ptr(), args.N = N, args.dtype = dtype_of(gate);
  const auto run = PYPEFT_SELECT(swiglu_rows);
  torch::stable::parallel_for(0, M, swiglu_grain(N), [&](int64_t begin, int64_t end) { run(args, begin, end); });
  return in_shape_of(given_gate, h);
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("swiglu_cpu", TORCH_BOX(&pypeft::swiglu)); }
