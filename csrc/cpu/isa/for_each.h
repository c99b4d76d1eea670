// Compiles the file that ISA_BODY names once for every instruction set, in the namespaces pypeft::avx512, pypeft::avx2
// and pypeft::baseline, each with the vocabulary of simd.h. Included once by a .cpp file, last.
//
// Inner namespaces are unnamed: a template instance with external linkage could be merged by the linker across files
// compiled for other instruction sets. For the same reason a body uses nothing of the standard library but memcpy.
// Neither this file nor what it includes has an include guard but through here.
#include <cstring>

#include "cpu/isa/select.h"
#include "cpu/isa/types.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
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
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
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
#endif  // defined(__x86_64__)

namespace pypeft::baseline {
namespace {
#include "cpu/isa/baseline.h"
#include "cpu/isa/simd.h"
#include ISA_BODY
}  // namespace
}  // namespace pypeft::baseline
