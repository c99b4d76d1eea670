// Compiles the file ISA_BODY once for every instruction set, in the namespaces pypeft::avx512bf16, pypeft::avx512,
// pypeft::avx2 and pypeft::baseline, each with the functions of simd.h. A .cpp file includes this file once, as its
// last include. If ISA_AVX512_ONLY is defined, only the first two namespaces are compiled.
//
// The code of each instruction set is in an unnamed namespace, because the linker could merge template instances with
// external linkage across files compiled for different instruction sets. For the same reason a body uses no function of
// the standard library but memcpy. This file and the files of each instruction set have no include guards, because they
// are included several times.
#include <cstring>

#include "cpu/isa/select.h"
#include "cpu/isa/types.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif
#define ISA_AVX512 1
#define ISA_BF16 1  // a dot product of pairs of bfloat16
namespace pypeft::avx512bf16 {
namespace {
#include "cpu/isa/avx512.h"
#include "cpu/isa/simd.h"
#include ISA_BODY
}  // namespace
}  // namespace pypeft::avx512bf16
#undef ISA_BF16
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif
namespace pypeft::avx512 {
namespace {
#include "cpu/isa/avx512.h"
#include "cpu/isa/simd.h"
#include ISA_BODY
}  // namespace
}  // namespace pypeft::avx512
#undef ISA_AVX512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if !defined(ISA_AVX512_ONLY)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace pypeft::avx2 {
namespace {
#include "cpu/isa/avx2.h"
#include "cpu/isa/simd.h"
#include ISA_BODY
}  // namespace
}  // namespace pypeft::avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // !defined(ISA_AVX512_ONLY)
#endif  // defined(__x86_64__)

#if !defined(ISA_AVX512_ONLY)
namespace pypeft::baseline {
namespace {
#include "cpu/isa/baseline.h"
#include "cpu/isa/simd.h"
#include ISA_BODY
}  // namespace
}  // namespace pypeft::baseline
#endif
