#include "cpu/product/vendor.h"

#include <cmath>

#include "cpu/isa/select.h"
#include "cpu/kept.h"
#include "cpu/scratch.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

// By the C shims of the CPU kernels, not through the dispatcher: there autocast would change the dtype of the result,
// and autograd record a graph for it.
namespace pypeft {

Tensor vendor_matmul(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
  Tensor out = new_empty(a, {a.size(0), b.size(1)});
  if (bias) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), bias->get(), a.get(), b.get(), 1.0, 1.0));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
  }
  return out;
}

Tensor vendor_product(const Tensor& a, const Right& b, const std::optional<Tensor>& bias) {
  if (b.w.is_dense()) return vendor_matmul(a, b.matrix(), bias);
  const int64_t M = a.size(0), N = b.columns(), K = b.rows(), step = block_length(K);
  const Tensor out = new_empty(a, {M, N}), room = new_empty(a, {std::min(N, step), K});
  for (int64_t n = 0; n < N; n += step) {
    const int64_t columns = std::min(step, N - n);
    const Tensor part = block(out, 0, M, n, columns);
    // W [N, K] is decoded as it lies: rows of it for W^T, columns for W.
    const int64_t ld = b.transposed ? K : columns;
    const int64_t sizes[] = {b.transposed ? columns : K, ld}, strides[] = {ld, 1};
    AtenTensorHandle view;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(room.get(), 2, sizes, strides, 0, &view));
    const Tensor decoded(view);
    decode(b.w.codes, b.transposed ? n : 0, sizes[0], b.transposed ? 0 : n, ld, decoded.mutable_data_ptr(), ld,
           dtype_of(a));
    const Tensor right = b.transposed ? transposed(decoded) : decoded;
    if (bias) {
      const int64_t size[] = {columns}, stride[] = {bias->stride(0)};
      AtenTensorHandle its;
      STABLE_TORCH_ERROR_CODE_CHECK(
          aoti_torch__reinterpret_tensor(bias->get(), 1, size, stride, n * bias->stride(0), &its));
      STABLE_TORCH_ERROR_CODE_CHECK(
          aoti_torch_cpu_addmm_out(part.get(), Tensor(its).get(), a.get(), right.get(), 1.0, 1.0));
    } else {
      vendor_multiply(part, a, right, 1);
    }
  }
  return out;
}

void vendor_multiply(const Tensor& out, const Tensor& a, const Tensor& b, double factor, double beta) {
  if (beta == 0 && factor == 1) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), beta, factor));
  }
}

bool vendor_wins(ScalarType x, ScalarType adapter, int64_t M, int64_t r, double factor, bool masked) {
  if (factor == 0 || !std::isfinite(factor) || x == ScalarType::Half || adapter == ScalarType::Half) return false;
  if (adapter == ScalarType::BFloat16 && selected_isa() != Isa::avx512bf16) return false;
  if (adapter == ScalarType::BFloat16) return (M >= 16 ? 2 * r : r) >= (masked ? 128 : 64);
  return r >= 256 || (M <= 16 && r >= 64);
}

}  // namespace pypeft
