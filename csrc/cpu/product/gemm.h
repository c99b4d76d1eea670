// The frozen matrix product with the low-rank part inside it, on CPUs with AVX-512.
#pragma once
#include "cpu/frozen/frozen.h"
#include "cpu/product/epilogue.h"
#include "cpu/scratch.h"

#if defined(__x86_64__)
namespace pypeft {

// Whether gemm() is the faster way to a product of `rows` rows, sums over K and a low-rank part on this CPU; else the
// vendor multiplies, and a pass over its result adds the rest. gemm() must pack b, which pays from some number of rows
// on, or read it in place (gemm_wins_across). The vendor's product is closer to the peak, but lacks the low-rank part.
// `rank` is that of a low-rank part of a's dtype without a mask, which costs little to add afterwards; else 0.
bool gemm_wins(ScalarType dtype, int64_t rows, int64_t K, int64_t rank);

// The same for few rows, and for a dense b [K, N] whose rows are dense, so that it is read where it lies.
bool gemm_wins_across(ScalarType dtype, int64_t rows, const Tensor& b);

// Whether gemm() takes a quantised weight on this CPU, which it decodes while it packs its panels.
bool gemm_decodes(ScalarType dtype);

// product() in float32 or bfloat16. Sums are float32; in bfloat16 the low-rank operands are rounded to bfloat16 first,
// as tensor cores would take them.
Tensor gemm(const Tensor& a, const Right& b, const LowRank* low_rank, const Epilogue& epilogue);

}  // namespace pypeft
#endif
