// Every access of a kernel to global or shared memory goes through these functions. On the device each function is one
// instruction. In tests/emulator each function checks bounds and races, and counts bytes, sectors and bank conflicts.
//
// V is the type of one access: 1, 2, 4, 8 or 16 bytes (uint4, float4, uint2, float, __half, uint8_t, ...). The address
// is a multiple of the size of V.
#pragma once
#include "cuda/device/ptx.h"

namespace pypeft {

template <class V, class T>
PYPEFT_DEVICE V load_global(const T* from) {
#ifdef CUDA_EMULATOR
  emulator::global_access(from, sizeof(V), emulator::LOAD);
#endif
  return *reinterpret_cast<const V*>(from);
}

// Loads read-only data that is read once, such as the weight in decoding. The load bypasses L1 and prefetches 128 bytes
// into L2.
PYPEFT_DEVICE uint4 load_global_streaming(const void* from) {
#ifdef __CUDA_ARCH__
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
#else
  return load_global<uint4>(static_cast<const uint4*>(from));
#endif
}

template <class V, class T>
PYPEFT_DEVICE void store_global(T* to, V value) {
#ifdef CUDA_EMULATOR
  emulator::global_access(to, sizeof(V), emulator::STORE);
#endif
  *reinterpret_cast<V*>(to) = value;
}

template <class V, class T>
PYPEFT_DEVICE V load_shared(const T* from) {
#ifdef CUDA_EMULATOR
  emulator::shared_access(from, sizeof(V), emulator::LOAD);
#endif
  return *reinterpret_cast<const V*>(from);
}

template <class V, class T>
PYPEFT_DEVICE void store_shared(T* to, V value) {
#ifdef CUDA_EMULATOR
  emulator::shared_access(to, sizeof(V), emulator::STORE);
#endif
  *reinterpret_cast<V*>(to) = value;
}

// The block's dynamic shared memory, of the size that was given to the launch, aligned to 128 bytes. Kernels use no
// other shared memory, because the emulator cannot see variables that are declared __shared__.
PYPEFT_DEVICE char* shared_memory() {
#ifdef __CUDA_ARCH__
  extern __shared__ __align__(128) char pypeft_shared_memory[];
  return pypeft_shared_memory;
#elif defined(CUDA_EMULATOR)
  return emulator::shared_memory();
#else
  return nullptr;
#endif
}

}  // namespace pypeft
