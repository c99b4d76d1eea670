// Products by the vendor's library that PyTorch is built with (MKL, oneDNN), and where they are the faster way.
#pragma once
#include <optional>

#include "cpu/frozen/frozen.h"

namespace pypeft {

// out = a b, or a b + bias: [M, N] from a [M, K], b [K, N] with any strides, bias [N], all of one dtype.
Tensor vendor_matmul(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias);

// The same with the frozen weight. A quantised one is decoded a block of columns of `out` at a time.
Tensor vendor_product(const Tensor& a, const Right& b, const std::optional<Tensor>& bias);

// out [M, N] = beta * out + factor * a b; with beta 0 what `out` held does not count. All of one dtype, any strides.
void vendor_multiply(const Tensor& out, const Tensor& a, const Tensor& b, double factor, double beta = 0);

// Whether the vendor multiplies an adapter's matrices of rank r faster than the kernels here, whose strength is that
// they read a wide matrix once. M is the rows of that matrix, `x` its dtype, `adapter` that of the narrow one. A factor
// of 0 or NaN must be multiplied with the sums, as 0 * inf is NaN; libraries leave the product out.
bool vendor_wins(ScalarType x, ScalarType adapter, int64_t M, int64_t r, double factor, bool masked);

}  // namespace pypeft
