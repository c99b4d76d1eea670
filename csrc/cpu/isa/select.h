// Which instruction set the kernels run with: every kernel is compiled for each, and one is chosen once per process.
#pragma once

namespace pypeft {

enum class Isa { avx512bf16, avx512, avx2, baseline };  // best first

const char* isa_name(Isa isa);

// The best that this CPU has, or the one that the environment variable PYPEFT_FAST_CPU names. Throws std::runtime_error
// if it names none of them, or one that this CPU lacks.
Isa selected_isa();

}  // namespace pypeft

// The address of function `name` of the selected instruction set; for_each.h made one in each of these namespaces.
#if defined(__x86_64__)
// The same of a file with ISA_AVX512_ONLY, on a CPU that has it.
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
