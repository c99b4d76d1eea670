// The functions of the CUDA runtime that csrc/cuda calls, for one emulated device, and the settings of the emulator.
#include <dlfcn.h>

#include <map>
#include <set>

#include "control.h"
#include "state.h"

using emulator::settings;

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = settings.capability / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = settings.capability % 10;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = settings.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = settings.shared_per_block;
      return cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid argument"; }

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (settings.full) return cudaErrorMemoryAllocation;
  *memory = ::operator new(bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  emulator::note_memset(memory, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamGetId(cudaStream_t, unsigned long long* id) {
  *id = settings.failures;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = settings.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

namespace emulator {
namespace {
std::set<const void*> may_have_more;        // kernels for which more than 48 KiB has been requested
std::map<const void*, size_t> most_shared;  // the most bytes of shared memory of a launch of each kernel
}  // namespace

void note_launch(const void* kernel, size_t shared) {
  size_t& most = most_shared[kernel];
  most = std::max(most, shared);
}

bool may_have(const void* kernel, size_t shared) { return shared <= 48 * 1024 || may_have_more.count(kernel); }
}  // namespace emulator

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value > settings.shared_per_block) {
    return cudaErrorInvalidValue;
  }
  emulator::may_have_more.insert(kernel);
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = settings.driver;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->binaryVersion = settings.capability;
  attributes->ptxVersion = settings.ptx ? settings.ptx : settings.capability;
  return cudaSuccess;
}

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void emulator_configure(uint32_t seed, int counting, int multiprocessors) {
  settings.seed = seed;
  settings.counting = counting;
  settings.multiprocessors = multiprocessors;
}
// `ptx`: the target of the PTX from which the driver would have compiled the kernels; 0: they are of the device's own.
EXPORT void emulator_set_capability(int capability, int ptx, int driver) {
  settings.capability = capability, settings.ptx = ptx, settings.driver = driver;
}
EXPORT void emulator_read_counters(emulator::Counters* out) { *out = emulator::counters; }
EXPORT void emulator_reset_counters() { emulator::counters = {}; }
// Calls report(address of the kernel in this library, its most_shared) for every kernel that has been launched.
EXPORT void emulator_launched(void (*report)(uint64_t, uint64_t)) {
  for (const auto& [kernel, shared] : emulator::most_shared) {
    Dl_info library{};
    dladdr(kernel, &library);
    report(static_cast<const char*>(kernel) - static_cast<const char*>(library.dli_fbase), shared);
  }
}
EXPORT void emulator_know(const void* data, int64_t elements, int64_t size, bool writable) {
  const int64_t one = 1;
  emulator::know_tensor(data, &elements, &one, 1, size, writable);
}
EXPORT void emulator_forget() { emulator::forget_tensors(); }
EXPORT void emulator_capture(bool capturing) { settings.capturing = capturing; }
EXPORT void emulator_fill(bool full) { settings.full = full; }
