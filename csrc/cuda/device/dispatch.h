// From an operand's type and layout at run time to the kernel's template arguments.
#pragma once
#include "cuda/device/tile.cuh"

namespace pypeft {

// Calls run<T, kFill, kTf32>(): T is what the products are computed in, float if the operand is float or `wide`, else
// its own type; kFill how its tiles are filled. tf32 only replaces float.
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
