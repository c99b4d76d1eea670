// The host code that every kernel file shares: the device and its stream, the pointers of tensors, and the launch.
#pragma once
#include <cuda_runtime.h>

#include "common.h"
#include "storage.h"
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#pragma GCC diagnostic pop

#include <initializer_list>
#include <string>
#include <type_traits>

#ifdef CUDA_EMULATOR
#define PYPEFT_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m)
#else
// Every kernel file ends with PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("<op>_cuda", TORCH_BOX(&pypeft::<op>)); }
#define PYPEFT_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CUDA, m)
#endif

namespace pypeft {

// Throws std::runtime_error if `status` is an error; the message holds `what` and CUDA's own message.
void check(cudaError_t status, const char* what);

struct DeviceInfo {
  int number;      // 0 for cuda:0
  int capability;  // 80 for sm_80
  int multiprocessors;
  int shared_per_block;  // bytes of shared memory that one block may use
};

// Makes the device of t current, and holds the current stream of that device. Every op begins with an OnDevice. Throws
// std::runtime_error if the device is older than the oldest target that this library was compiled for.
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

// The address of the first element of t, for a kernel that reads t. The emulator records the addresses of t.
template <class T = void>
const T* read(const Tensor& t) {
#ifdef CUDA_EMULATOR
  emulator::know_tensor(t.const_data_ptr(), t.sizes().data(), t.strides().data(), t.dim(), t.element_size(), false);
#endif
  return static_cast<const T*>(t.const_data_ptr());
}

// The address of the first element of t, for a kernel that writes t.
template <class T = void>
T* write(const Tensor& t) {
#ifdef CUDA_EMULATOR
  emulator::know_tensor(t.const_data_ptr(), t.sizes().data(), t.strides().data(), t.dim(), t.element_size(), true);
#endif
  return static_cast<T*>(t.mutable_data_ptr());
}

// Whether launch_overlapping() may launch the kernel. It may on sm_90 and later, unless this library has no code for
// such a GPU and the driver compiles PTX of an older target, whose kernels do not wait.
bool can_overlap(const OnDevice& on, const void* kernel);

template <class... P>
void launch_with(const OnDevice& on, std::initializer_list<cudaLaunchAttribute> attributes, void (*kernel)(P...),
                 dim3 grid, dim3 threads, size_t shared, const std::type_identity_t<P>&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          "reserving shared memory");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = threads, config.dynamicSmemBytes = shared, config.stream = on.stream();
  config.attrs = const_cast<cudaLaunchAttribute*>(attributes.begin());
  config.numAttrs = static_cast<unsigned>(attributes.size());
  check(cudaLaunchKernelEx(&config, kernel, P(arguments)...), "launching a kernel");
}

// Launches kernel(arguments...) on `grid` blocks of `threads` threads. Each block has `shared` bytes of shared memory.
// An empty grid launches nothing.
template <class... P>
void launch(const OnDevice& on, void (*kernel)(P...), dim3 grid, dim3 threads, size_t shared,
            const std::type_identity_t<P>&... arguments) {
  launch_with(on, {}, kernel, grid, threads, shared, arguments...);
}

// The same, but the kernel begins before the launch before it on this stream has ended. The kernel keeps the rules of
// wait_for_launch_before() in ptx.h. The launch before must be one of this library's, because what it stores may not be
// loaded before the wait.
template <class... P>
void launch_overlapping(const OnDevice& on, void (*kernel)(P...), dim3 grid, dim3 threads, size_t shared,
                        const std::type_identity_t<P>&... arguments) {
  cudaLaunchAttribute overlapping{};
  overlapping.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlapping.val.programmaticStreamSerializationAllowed = 1;
  launch_with(on, {overlapping}, kernel, grid, threads, shared, arguments...);
}

}  // namespace pypeft
