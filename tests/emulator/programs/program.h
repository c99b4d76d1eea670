// How a test's program is run from Python: plain pointers and sizes, and an error as text.
#pragma once
#include <exception>
#include <string>

#include "cuda/device/memory.h"

using namespace pypeft;

// `body` on `blocks` x `threads`; null if all went well, else the emulator's words.
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
