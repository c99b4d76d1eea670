// One matrix and one factor of each adapter, for a call whose rows belong to different adapters. They are an argument
// of the kernel, so that no table is written to the device, and a CUDA graph contains the values.
#pragma once
#include <vector>

#include "cuda/device/matrix.h"
#include "cuda/device/memory.h"

namespace pypeft {

constexpr int kMostAdapters = 128;  // more than 4096 bytes of arguments; CUDA 12.1 and later take up to 32764 bytes

struct Adapters {
  const int64_t* index;  // [M]: the adapter of each row
  int64_t index_stride;
  int count;
  Matrix matrices[kMostAdapters];  // of one dtype
  float factors[kMostAdapters];

  // The adapter of row m; -1 for a row without one. A number that no adapter has counts as -1.
  PYPEFT_DEVICE int of_row(int m) const {
    const int64_t adapter = load_global<int64_t>(index + m * index_stride);
    return adapter >= 0 && adapter < count ? static_cast<int>(adapter) : -1;
  }
};

// At most kMostAdapters matrices. `factors` is empty if the kernel does not use the factors.
inline Adapters adapters(const std::vector<Tensor>& matrices, const std::vector<double>& factors, const Tensor& index) {
  Adapters found{};
  found.index = read<int64_t>(index), found.index_stride = index.stride(0);
  found.count = static_cast<int>(matrices.size());
  for (size_t a = 0; a < matrices.size(); ++a) {
    found.matrices[a] = view(matrices[a]);
    if (!factors.empty()) found.factors[a] = static_cast<float>(factors[a]);
  }
  return found;
}

}  // namespace pypeft
