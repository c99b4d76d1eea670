// What a kernel file's host half needs: the device and stream to run on, pointers of tensors, the launch itself.
#pragma once
#include <cuda_runtime.h>

#include "common.h"
#include "storage.h"
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#pragma GCC diagnostic pop

#include <string>
#include <type_traits>

#ifdef CUDA_EMULATOR
#define PYPEFT_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m)
#else
// The foot of every kernel file: PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("<op>_cuda", TORCH_BOX(&pypeft::<op>)); }
#define PYPEFT_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CUDA, m)
#endif

namespace pypeft {

// std::runtime_error that says what was tried, and what CUDA says of it.
void check(cudaError_t status, const char* what);

struct DeviceInfo {
  int capability;  // 80 for sm_80
  int multiprocessors;
  int shared_per_block;  // bytes that one block may ask for
};

// Makes the device of t current, and holds its stream; the first line of every op. std::runtime_error if the device is
// older than everything that this library was compiled for.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t);
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
#ifdef CUDA_EMULATOR
  ~OnDevice() { emulator::forget_tensors(); }
#endif

  const DeviceInfo& info() const { return *info_; }
  cudaStream_t stream() const { return stream_; }

 private:
#ifndef CUDA_EMULATOR
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  const DeviceInfo* info_;
  cudaStream_t stream_;
};

// The first element, for a kernel that reads. The emulator learns here which addresses are the tensor's.
template <class T = void>
const T* read(const Tensor& t) {
#ifdef CUDA_EMULATOR
  emulator::know_tensor(t.const_data_ptr(), t.sizes().data(), t.strides().data(), t.dim(), t.element_size(), false);
#endif
  return static_cast<const T*>(t.const_data_ptr());
}

// The same, for a kernel that writes.
template <class T = void>
T* write(const Tensor& t) {
#ifdef CUDA_EMULATOR
  emulator::know_tensor(t.const_data_ptr(), t.sizes().data(), t.strides().data(), t.dim(), t.element_size(), true);
#endif
  return static_cast<T*>(t.mutable_data_ptr());
}

// Runs kernel(arguments...) on a grid of blocks of `threads`, each with `shared` bytes of shared memory. An empty grid
// is no launch.
template <class... P>
void launch(const OnDevice& on, void (*kernel)(P...), dim3 grid, dim3 threads, size_t shared,
            const std::type_identity_t<P>&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          "reserving shared memory");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = threads, config.dynamicSmemBytes = shared, config.stream = on.stream();
  check(cudaLaunchKernelEx(&config, kernel, P(arguments)...), "launching a kernel");
}

}  // namespace pypeft
