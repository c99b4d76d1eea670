// The checks of the arguments of lora_forward and lora_backward, for CPUs and for GPUs. They throw std::runtime_error
// if the arguments do not fit.
#pragma once
#include "stored.h"

namespace pypeft {

inline bool is_stored_beside(const Stored& its, const Tensor& weight, bool dense, const Tensor& x, int64_t N,
                             int64_t K) {
  return its.N == N && its.K == K && (dense ? like(weight, x) : beside(weight, x));
}

// Returns the shape of the weight.
inline Stored check_lora_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                 const Tensor& lora_A, const Tensor& lora_B, double p,
                                 const std::optional<Tensor>& seed, const std::optional<std::string>& format,
                                 const std::optional<std::vector<Tensor>>& scales) {
  check_storages("lora_forward", "x", x, "bias", bias, "lora_A", lora_A, "lora_B", lora_B, "seed", seed);
  const int64_t K = x.dim() ? x.size(-1) : -1;
  fits(is_activation(x) && is_matrix(lora_A) && is_matrix(lora_B) && lora_A.size(1) == K);
  const int64_t N = lora_B.size(0), r = lora_A.size(0);
  fits(r > 0 && lora_B.size(1) == r && is_adapter(lora_A, x) && is_adapter(lora_B, x) && is_probability(p));
  if (bias) fits(bias->dim() == 1 && bias->size(0) == N && like(*bias, x));
  fits(seed.has_value() == (p > 0));
  if (seed) {
    fits(beside(*seed, x) && seed->scalar_type() == ScalarType::Long && seed->dim() == 1 && seed->size(0) == 1);
  }
  const Stored its = stored("lora_forward", weight, format, scales, N, K);
  fits(is_stored_beside(its, weight, !format, x, N, K));
  return its;
}

// Returns the shape of the weight if dX is needed.
inline std::optional<Stored> check_lora_backward(const Tensor& dY, const std::optional<Tensor>& x,
                                                 const std::optional<Tensor>& weight,
                                                 const std::optional<Tensor>& lora_A, const Tensor& lora_B,
                                                 const Tensor& s, const std::optional<Tensor>& mask, double p,
                                                 bool need_dX, bool need_dA, ScalarType dtype_A,
                                                 const std::optional<std::string>& format,
                                                 const std::optional<std::vector<Tensor>>& scales) {
  check_storages("lora_backward", "dY", dY, "x", x, "lora_A", lora_A, "lora_B", lora_B, "s", s, "mask", mask);
  fits(dY.dim() > 0 && is_activation(dY) && is_matrix(lora_B) && is_matrix(s) && is_probability(p));
  const int64_t M = rows_of(dY), N = dY.size(-1), r = lora_B.size(1);
  fits(r > 0 && lora_B.size(0) == N && s.size(0) == M && s.size(1) == r);
  fits(is_adapter(lora_B, dY) && is_adapter(s, dY));
  if (p > 0 && (need_dX || need_dA)) fits(mask.has_value());
  if (need_dA) {
    fits(x && x->dim() > 0 && like(*x, dY) && (dtype_A == x->scalar_type() || dtype_A == s.scalar_type()));
    fits(rows_of(*x) == M && (!mask || is_mask(*mask, dY, p, M, x->size(-1))));
  }
  if (!need_dX) return std::nullopt;
  fits(weight && lora_A && is_matrix(*lora_A) && lora_A->size(0) == r && is_adapter(*lora_A, dY));
  const int64_t K = lora_A->size(1);
  fits(!mask || is_mask(*mask, dY, p, M, K));
  const Stored its = stored("lora_backward", *weight, format, scales, N, K);
  fits(is_stored_beside(its, *weight, !format, dY, N, K));
  return its;
}

}  // namespace pypeft
