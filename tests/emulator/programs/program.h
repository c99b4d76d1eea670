// The interface between the test programs and Python: arguments are pointers and sizes, and an error is a text.
#pragma once
#include <exception>
#include <string>

#include "cuda/device/memory.h"

using namespace pypeft;

// Runs the kernel on `blocks` blocks of `threads` threads. Returns null, or the error message of the emulator.
template <class... P>
const char* run_program(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t shared,
                        const std::type_identity_t<P>&... arguments) {
  static std::string failure;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks), config.blockDim = dim3(threads), config.dynamicSmemBytes = shared;
  try {
    cudaLaunchKernelEx(&config, kernel, P(arguments)...);
  } catch (const std::exception& error) {
    failure = error.what();
    return failure.c_str();
  }
  return nullptr;
}

#define PROGRAM extern "C" __attribute__((visibility("default"))) const char*
