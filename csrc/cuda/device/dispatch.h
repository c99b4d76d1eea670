// Chooses the template arguments of a kernel from the type and the layout of an operand.
#pragma once
#include "cuda/device/tile.cuh"

namespace pypeft {

// Calls run<T, kFill, kTf32>(). T is the type of the products: float if m is float or `wide` is set, otherwise the type
// of m. kFill says how the tiles of m are filled. kTf32 is true only if T is float and `tf32` is set.
template <class F>
void dispatch(const Matrix& m, bool wide, bool tf32, F&& run) {
  if (m.dtype == Dtype::f32 || wide) {
    const Fill way = !m.vectors ? Fill::any : m.dtype == Dtype::f32 ? Fill::async : Fill::widened;
    auto with = [&]<bool kTf32>() {
      if (way == Fill::any) run.template operator()<float, Fill::any, kTf32>();
      if (way == Fill::async) run.template operator()<float, Fill::async, kTf32>();
      if (way == Fill::widened) run.template operator()<float, Fill::widened, kTf32>();
    };
    tf32 ? with.template operator()<true>() : with.template operator()<false>();
  } else {
    auto with = [&]<class T>() {
      m.vectors ? run.template operator()<T, Fill::async, false>() : run.template operator()<T, Fill::any, false>();
    };
    m.dtype == Dtype::bf16 ? with.template operator()<__nv_bfloat16>() : with.template operator()<__half>();
  }
}

}  // namespace pypeft
