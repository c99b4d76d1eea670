// Every kernel entry first checks that a tensor's storage is as large as its shape, strides and offset need. A storage
// may have been freed or truncated, as FSDP2 does with parameters, while the tensor keeps its shape.
#pragma once
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#pragma GCC diagnostic pop

#include <optional>
#include <stdexcept>
#include <string>

#include "common.h"

namespace pypeft {

inline int64_t bytes_needed(const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t last = 0, offset = 0;  // last: the position of the element furthest from the start
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return 0;
    last += (sizes[d] - 1) * strides[d];
  }
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(t.get(), &offset));
  return (offset + last + 1) * static_cast<int64_t>(t.element_size());
}

inline void check_storage(const char* op, const char* name, const Tensor& t) {
  int64_t there = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &there));
  const int64_t needed = bytes_needed(t);
  if (needed <= there) return;
  throw std::runtime_error(std::string(op) + ": the storage of " + name + " holds " + std::to_string(there) +
                           " bytes and its shape and strides need " + std::to_string(needed) +
                           ": it was freed or truncated; restore it before the call");
}

inline void check_storage(const char* op, const char* name, const std::optional<Tensor>& t) {
  if (t) check_storage(op, name, *t);
}

// check_storages("lora_da", "dS", dS, "x", x): std::runtime_error that names the op, the tensor and both sizes.
inline void check_storages(const char*) {}

template <class T, class... More>
void check_storages(const char* op, const char* name, const T& t, const More&... more) {
  check_storage(op, name, t);
  check_storages(op, more...);
}

}  // namespace pypeft
