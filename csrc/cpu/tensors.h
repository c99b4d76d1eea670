// New tensors and views by PyTorch's C shims: by name through the dispatcher, as torch::stable does it, each costs
// about a microsecond more, a tenth of what a whole LoRA layer of the smallest size takes.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>

#include <initializer_list>
#include <optional>

#include "common.h"
#include "storage.h"

namespace pypeft {

// Uninitialised, on the CPU, of the dtype given or that of `like`.
inline Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> sizes,
                        std::optional<ScalarType> dtype = std::nullopt) {
  int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype.value_or(like.scalar_type())));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(like.get(), sizes.begin(), static_cast<int64_t>(sizes.size()),
                                                          &type, nullptr, nullptr, 0, nullptr, &made));
  return Tensor(made);
}

// A view [columns, rows] of a matrix [rows, columns].
inline Tensor transposed(const Tensor& t) {
  const int64_t sizes[] = {t.size(1), t.size(0)}, strides[] = {t.stride(1), t.stride(0)};
  AtenTensorHandle view;
  // The last argument is added to t's own offset in its storage.
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.get(), 2, sizes, strides, 0, &view));
  return Tensor(view);
}

}  // namespace pypeft
