// The frozen matrix product with the low-rank part inside it, on CPUs with AVX-512.
#pragma once
#include "cpu/column_scale.h"
#include "cpu/scratch.h"

#if defined(__x86_64__)
namespace pypeft {

// Whether gemm() is the faster way to a product of `rows` rows, sums over K, on this CPU; else the vendor's GEMM and
// add_low_rank.
bool gemm_wins(ScalarType dtype, int64_t rows, int64_t K);

// a b + bias + keep * (left right): [M, N] in a's dtype, float32 or bfloat16, scaled and then rounded once.
//
//   a [M, K], b [K, N] of one dtype, bias [N] or none, left [M, r], right [r, N] of the ops' dtypes; any strides
//   mask [M, ceil(N/8)] packed bits of what to keep of the low-rank part, or null for all of it
//
// `right` is multiplied by `factor`. Sums are float32; in bfloat16 the low-rank operands are rounded to bfloat16 first,
// as tensor cores would take them.
Tensor gemm(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias, const Tensor& left,
            const Tensor& right, float factor, const Tensor* mask, const ColumnScale& scale = {});

}  // namespace pypeft
#endif
