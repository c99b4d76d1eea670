#include "cpu/product/vendor.h"

#include "cpu/isa/select.h"

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

void vendor_multiply(const Tensor& out, const Tensor& a, const Tensor& b, double factor, double beta) {
  if (beta == 0 && factor == 1) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), beta, factor));
  }
}

bool vendor_wins(ScalarType x, ScalarType adapter, int64_t M, int64_t r, double factor, bool masked) {
  if (factor == 0 || x == ScalarType::Half || adapter == ScalarType::Half) return false;
  if (adapter == ScalarType::BFloat16 && selected_isa() != Isa::avx512bf16) return false;
  if (adapter == ScalarType::BFloat16) return (M >= 16 ? 2 * r : r) >= (masked ? 128 : 64);
  return r >= 256 || (M <= 16 && r >= 64);
}

}  // namespace pypeft
