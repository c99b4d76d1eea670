// The part of PyTorch's stable ABI that every kernel file needs; no other part of PyTorch is used.
#pragma once
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"  // PyTorch's headers come by -I, not -isystem
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <cstdint>

#include "numbers.h"

// PyTorch 2.10 and 2.11 have this check only without the error's text.
#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace pypeft {

// std::runtime_error for a float64 or integer tensor, which the ops' checks refuse before.
inline Dtype dtype_of(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "pypeft_fast: the C++ kernels take float32, bfloat16 and float16 only");
  return type == ScalarType::Float ? Dtype::f32 : type == ScalarType::BFloat16 ? Dtype::bf16 : Dtype::f16;
}

}  // namespace pypeft
