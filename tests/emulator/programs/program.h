// The interface between the test programs and Python: arguments are pointers and sizes, and an error is a text.
#pragma once
#include <exception>
#include <string>

#include "cuda/device/memory.h"

using namespace pypeft;

// Runs the kernel on `blocks` blocks of `threads` threads. The launch has `count` attributes. Returns null, or the
// error message of the emulator.
template <class... P>
const char* run_with(cudaLaunchAttribute* attributes, unsigned count, void (*kernel)(P...), unsigned blocks,
                     unsigned threads, size_t shared, const std::type_identity_t<P>&... arguments) {
  static std::string failure;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks), config.blockDim = dim3(threads), config.dynamicSmemBytes = shared;
  config.attrs = attributes, config.numAttrs = count;
  try {
    cudaLaunchKernelEx(&config, kernel, P(arguments)...);
  } catch (const std::exception& error) {
    failure = error.what();
    return failure.c_str();
  }
  return nullptr;
}

template <class... P>
const char* run_program(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t shared,
                        const std::type_identity_t<P>&... arguments) {
  return run_with(nullptr, 0, kernel, blocks, threads, shared, arguments...);
}

// The same, but the launch overlaps with the launch before.
template <class... P>
const char* run_overlapping(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t shared,
                            const std::type_identity_t<P>&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return run_with(&attribute, 1, kernel, blocks, threads, shared, arguments...);
}

#define PROGRAM extern "C" __attribute__((visibility("default"))) const char*
