// New tensors and views by PyTorch's C shims. torch::stable calls the dispatcher by name, which takes about a
// microsecond more for each tensor: a tenth of the time of the smallest LoRA layer.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>

#include <initializer_list>
#include <optional>

#include "common.h"
#include "storage.h"

namespace pypeft {

// An uninitialised tensor in the given dtype, or in the dtype of `like`.
inline Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> sizes,
                        std::optional<ScalarType> dtype = std::nullopt) {
  int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype.value_or(like.scalar_type())));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(like.get(), sizes.begin(), static_cast<int64_t>(sizes.size()),
                                                          &type, nullptr, nullptr, 0, nullptr, &made));
  return Tensor(made);
}

inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// The storage of t, from the first element of t on, with other sizes and strides.
inline Tensor reinterpreted(const Tensor& t, int64_t dims, const int64_t* sizes, const int64_t* strides) {
  AtenTensorHandle made;
  // The last argument but one is added to t's own offset in its storage.
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.get(), dims, sizes, strides, 0, &made));
  return Tensor(made);
}

// The transpose [columns, rows] of t [rows, columns], as a view.
inline Tensor transposed(const Tensor& t) {
  const int64_t sizes[] = {t.size(1), t.size(0)}, strides[] = {t.stride(1), t.stride(0)};
  return reinterpreted(t, 2, sizes, strides);
}

}  // namespace pypeft
