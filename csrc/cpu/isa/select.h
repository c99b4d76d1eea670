// The choice of an instruction set, once per process. Every kernel is compiled for each instruction set.
#pragma once

namespace pypeft {

enum class Isa { avx512bf16, avx512, avx2, baseline };  // best first

const char* isa_name(Isa isa);

// The instruction set that the environment variable PYPEFT_FAST_CPU names, or if the variable is not set the best one
// of this CPU. Throws std::runtime_error if the variable names an unknown instruction set, or one that this CPU lacks.
Isa selected_isa();

}  // namespace pypeft

// PYPEFT_SELECT(name): the address of function `name` in the namespace of the selected instruction set (for_each.h).
#if defined(__x86_64__)
// As PYPEFT_SELECT, for a file compiled with ISA_AVX512_ONLY, on a CPU with AVX-512.
#define PYPEFT_SELECT_AVX512(name) \
  (::pypeft::selected_isa() == ::pypeft::Isa::avx512bf16 ? &::pypeft::avx512bf16::name : &::pypeft::avx512::name)
#define PYPEFT_SELECT(name)                                                            \
  (::pypeft::selected_isa() == ::pypeft::Isa::avx512bf16 ? &::pypeft::avx512bf16::name \
   : ::pypeft::selected_isa() == ::pypeft::Isa::avx512   ? &::pypeft::avx512::name     \
   : ::pypeft::selected_isa() == ::pypeft::Isa::avx2     ? &::pypeft::avx2::name       \
                                                         : &::pypeft::baseline::name)
#else
#define PYPEFT_SELECT(name) (static_cast<void>(::pypeft::selected_isa()), &::pypeft::baseline::name)
#endif
