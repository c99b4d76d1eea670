// The frozen matrix product with the low-rank part inside it, on CPUs with AVX-512.
#pragma once
#include "cpu/frozen/frozen.h"
#include "cpu/product/epilogue.h"
#include "cpu/scratch.h"

#if defined(__x86_64__)
namespace pypeft {

// Whether gemm() is the faster way to a product of `rows` rows, sums over K and a low-rank part of rank r (0: none) on
// this CPU; else the vendor multiplies, and a pass over its result adds the rest.
bool gemm_wins(ScalarType dtype, int64_t rows, int64_t K, int64_t r);

// Whether gemm() takes a quantised weight on this CPU, which it decodes while it packs its panels.
bool gemm_decodes(ScalarType dtype);

// product() in float32 or bfloat16. Sums are float32; in bfloat16 the low-rank operands are rounded to bfloat16 first,
// as tensor cores would take them.
Tensor gemm(const Tensor& a, const Right& b, const LowRank* low_rank, const Epilogue& epilogue);

}  // namespace pypeft
#endif
