// Replaces cuda_runtime.h of the toolkit when g++ compiles a .cu file. Defines the keywords of CUDA C++, the built-in
// variables and functions that kernels use, and the runtime functions that csrc/cuda calls.
#pragma once
#define CUDA_EMULATOR 1
#define __CUDA_ARCH_LIST__ 800

#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "emulator.h"

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __align__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#undef __shared__
#define __shared__ static_assert(false, "use pypeft::shared_memory(): the emulator does not see other shared memory");

extern uint3 threadIdx, blockIdx;  // of the running thread; set at every switch
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ------------------------------------------------------------------------------------------------- barriers and votes
#define __syncthreads() emulator::barrier(__FILE__, __LINE__)
#define __syncthreads_or(predicate) emulator::barrier_or(predicate, __FILE__, __LINE__)
inline void __syncwarp(unsigned mask = 0xFFFFFFFF) { emulator::sync_warp(mask); }

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulator::exchange<int, unsigned>(
      mask, predicate,
      [](auto lanes, int) {
        unsigned votes = 0;
        for (int i = 0; i < 32; ++i) votes |= unsigned(lanes[i] && lanes[i]->in) << i;
        return votes;
      },
      "a vote");
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// Shuffles within groups of `width` lanes. To read a lane outside the mask is an error.
template <class T>
struct Shuffle {
  T value;
  int source;
};
template <class T>
T shuffle(unsigned mask, T value, int source, const char* name) {
  return emulator::exchange<Shuffle<T>, T>(
      mask, Shuffle<T>{value, source},
      [](auto lanes, int lane) {
        const int from = lanes[lane]->in.source;
        if (!lanes[from]) emulator::fail("a shuffle reads lane %d, which is not in its mask", from);
        return lanes[from]->in.value;
      },
      name);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = emulator::lane_index();
  return shuffle(mask, value, (lane & ~(width - 1)) + (source & (width - 1)), "__shfl_sync");
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = emulator::lane_index(), source = lane - int(delta);
  return shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source, "__shfl_up_sync");
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = emulator::lane_index(), source = lane + int(delta);
  return shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, "__shfl_down_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int lane = emulator::lane_index(), source = lane ^ lanes;
  return shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, "__shfl_xor_sync");
}

// ---------------------------------------------------------------------------------------------------------- arithmetic
template <class A, class B>
constexpr auto min(A a, B b) {
  using C = std::common_type_t<A, B>;
  return C(b) < C(a) ? C(b) : C(a);
}
template <class A, class B>
constexpr auto max(A a, B b) {
  using C = std::common_type_t<A, B>;
  return C(a) < C(b) ? C(b) : C(a);
}
template <class To, class From>
To __bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(static_cast<void*>(&to), &from, sizeof(to));
  return to;
}
inline unsigned __float_as_uint(float v) { return __bits_as<unsigned>(v); }
inline int __float_as_int(float v) { return __bits_as<int>(v); }
inline float __uint_as_float(unsigned v) { return __bits_as<float>(v); }
inline float __int_as_float(int v) { return __bits_as<float>(v); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> 4 * i & 15, byte = unsigned(bytes >> 8 * (s & 7)) & 255;
    result |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return result;
}

// --------------------------------------------------------------------------------------------------------- the runtime
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode);

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*kernel)(P...), A&&... arguments) {
  bool overlapping = false;
  for (unsigned i = 0; i < c->numAttrs; ++i) {
    if (c->attrs[i].id != cudaLaunchAttributeProgrammaticStreamSerialization) return cudaErrorInvalidValue;
    overlapping = c->attrs[i].val.programmaticStreamSerializationAllowed;
  }
  const emulator::Launch launch{{c->gridDim.x, c->gridDim.y, c->gridDim.z},
                                {c->blockDim.x, c->blockDim.y, c->blockDim.z},
                                c->dynamicSmemBytes,
                                overlapping};
  // Each thread has its own copy of the arguments, as on the device.
  emulator::run(launch, reinterpret_cast<const void*>(kernel), [&] { kernel(P(arguments)...); });
  return cudaSuccess;
}
