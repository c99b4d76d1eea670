// What every kernel file needs of PyTorch's stable ABI, and nothing else of PyTorch.
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

// PyTorch 2.10 and 2.11 have the check without the error's text alone.
#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
