// The properties of a device, and the messages of CUDA errors.
#include "cuda/device/launch.h"

#include <array>
#include <atomic>
#include <mutex>
#include <stdexcept>

namespace pypeft {
namespace {
// The targets that nvcc compiles for, oldest first: 800 for sm_80, 900 for sm_90, ...
constexpr int TARGETS[] = {__CUDA_ARCH_LIST__};

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "asking for a device's properties");
  return value;
}

DeviceInfo ask(int device) {
  DeviceInfo info{};
  info.number = device;
  info.capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor, device) + attribute(cudaDevAttrComputeCapabilityMinor, device);
  info.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  info.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (10 * info.capability < TARGETS[0]) {
    throw std::runtime_error("pypeft_fast's CUDA kernels need a GPU of sm_" + std::to_string(TARGETS[0] / 10) +
                             " or later; cuda:" + std::to_string(device) + " is sm_" + std::to_string(info.capability));
  }
  return info;
}

// The properties are read once for each device, because reading them takes longer than a launch.
const DeviceInfo& info_of(int device) {
  static std::mutex mutex;
  static std::array<DeviceInfo, 64> known{};
  const std::lock_guard<std::mutex> lock(mutex);
  DeviceInfo& info = known.at(device);
#ifdef CUDA_EMULATOR
  info = ask(device);  // a test may have changed it
#else
  if (info.capability == 0) info = ask(device);
#endif
  return info;
}

#ifndef CUDA_EMULATOR
cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}
#endif
}  // namespace

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::string message = std::string("pypeft_fast: ") + what + ": " + cudaGetErrorString(status);
  if (status == cudaErrorNoKernelImageForDevice) {
    message += "; this build has kernels for";
    for (int target : TARGETS) message += " sm_" + std::to_string(target / 10);
  }
  throw std::runtime_error(message);
}

// All kernels are compiled for the same targets, so each device is asked once, about the first kernel. A CUDA graph can
// hold launches that overlap since CUDA 12.3.
bool can_overlap(const OnDevice& on, const void* kernel) {
  if (on.info().capability < 90) return false;
  static std::array<std::atomic<int>, 64> known{};  // 0: not asked yet; 1 + the answer
  std::atomic<int>& answer = known.at(on.info().number);
  int now = answer.load(std::memory_order_relaxed);
  if (now == 0) {
    int driver = 0;
    check(cudaDriverGetVersion(&driver), "asking for the driver's version");
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), "asking for a kernel's target");
    now = 1 + (attributes.ptxVersion >= 90 && driver >= 12030);
#ifndef CUDA_EMULATOR
    answer.store(now, std::memory_order_relaxed);
#endif
  }
  return now == 2;
}

#ifdef CUDA_EMULATOR
OnDevice::OnDevice(const Tensor&) : info_(&info_of(0)), stream_(nullptr) {}
#else
OnDevice::OnDevice(const Tensor& t)
    : guard_(t.get_device_index()),
      info_(&info_of(t.get_device_index())),
      stream_(current_stream(t.get_device_index())) {}
#endif

}  // namespace pypeft

// Called by pypeft_fast/_native.py: the oldest target that the kernels were compiled for, 80 for sm_80.
extern "C" __attribute__((visibility("default"))) int pypeft_fast_oldest_target() { return pypeft::TARGETS[0] / 10; }
