// The gradients of h = silu(gate) * up, and h again, by one pass; each is computed in float and rounded once.
//
//   dh, gate, up [.., N], of one dtype -> dgate, dup, h [.., N]; h [0] if it is not needed
#include <tuple>

#include "cpu/scratch.h"
#include "cpu/swiglu.h"
#include "fits.h"

namespace pypeft {
namespace {
struct SwigluBackwardArgs {
  const void *dh, *gate, *up;  // [M, N], rows dh_row, gate_row and up_row apart
  int64_t dh_row, gate_row, up_row, N;
  void *dgate, *dup, *h;  // [M, N]; h may be null
  Dtype dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/swiglu_backward_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor, Tensor> swiglu_backward(const Tensor& given_dh, const Tensor& given_gate,
                                                   const Tensor& given_up, bool need_h) {
  check_storages("swiglu_backward", "dh", given_dh, "gate", given_gate, "up", given_up);
  fits(given_dh.dim() > 0 && is_activation(given_dh) && like(given_gate, given_dh) && like(given_up, given_dh));
  fits(same_shape(given_gate, given_dh) && same_shape(given_up, given_dh));
  const Tensor dh = with_dense_rows(as_rows(given_dh)), gate = with_dense_rows(as_rows(given_gate));
  const Tensor up = with_dense_rows(as_rows(given_up));
  const int64_t M = dh.size(0), N = dh.size(1);
  Tensor dgate = new_empty(dh, {M, N}), dup = new_empty(dh, {M, N});
  Tensor h = need_h ? new_empty(dh, {M, N}) : new_empty(dh, {0});
  SwigluBackwardArgs args{};
  args.dh = dh.const_data_ptr(), args.gate = gate.const_data_ptr(), args.up = up.const_data_ptr();
  args.dh_row = dh.stride(0), args.gate_row = gate.stride(0), args.up_row = up.stride(0), args.N = N;
  args.dgate = dgate.mutable_data_ptr(), args.dup = dup.mutable_data_ptr();
  args.h = need_h ? h.mutable_data_ptr() : nullptr, args.dtype = dtype_of(dh);
  const auto run = PYPEFT_SELECT(swiglu_backward_rows);
  torch::stable::parallel_for(0, M, swiglu_grain(N), [&](int64_t begin, int64_t end) {
    const Floats room(6 * PAD);
    run(args, room.get(), begin, end);
  });
  return {in_shape_of(given_dh, dgate), in_shape_of(given_dh, dup), need_h ? in_shape_of(given_dh, h) : h};
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("swiglu_backward_cpu", TORCH_BOX(&pypeft::swiglu_backward)); }
