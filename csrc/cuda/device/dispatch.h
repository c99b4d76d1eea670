// Chooses the template arguments of a kernel from the type and the layout of an operand.
#pragma once
#include "cuda/device/parts.cuh"

namespace pypeft {

// Calls run<M, kFill>(). M forms the products: in the type of m; if `wide` is set, which says that an adapter is in
// float, in Parts for a bfloat16 m, and in float for a float16 m, whose range has no place for parts. Products in float
// are tf32 if `tf32` is set. kFill says how the tiles of m are filled.
template <class F>
void dispatch(const Matrix& m, bool wide, bool tf32, F&& run) {
  auto with = [&]<class M, Fill kAligned>() {
    m.vectors ? run.template operator()<M, kAligned>() : run.template operator()<M, Fill::any>();
  };
  auto in_float = [&]<Fill kAligned>() {
    tf32 ? with.template operator()<Math<float, true>, kAligned>()
         : with.template operator()<Math<float, false>, kAligned>();
  };
  if (m.dtype == Dtype::f32) return in_float.template operator()<Fill::async>();
  if (m.dtype == Dtype::bf16) {
    return wide ? with.template operator()<Parts, Fill::async>()
                : with.template operator()<Math<__nv_bfloat16>, Fill::async>();
  }
  wide ? in_float.template operator()<Fill::widened>() : with.template operator()<Math<__half>, Fill::async>();
}

}  // namespace pypeft
