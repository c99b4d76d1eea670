// The LoRA ops on GPUs, without argument checks. pypeft_fast/ops/ documents each op in a file of the same name. `on` is
// the device of all tensors. A mask is read only if p > 0.
#pragma once
#include <tuple>

#include "cuda/product/weight.h"
#include "cuda/sums/split_sum.h"
#include "tensors.h"

namespace pypeft {

// Returns s, mask and the memory of the launch. Who launches to overlap keeps that memory until after the next launch.
std::tuple<Tensor, Tensor, Workspace> lora_shrink(const OnDevice& on, const Tensor& x, const Tensor& lora_A, double p,
                                                  const std::optional<Tensor>& seed, bool allow_tf32);
// Writes y [M, N], and z [M, N] if it is not null. `overlaps`: the last operation on the stream was the launch of
// lora_shrink, which stored s and nothing else that this op reads.
void lora_linear(const OnDevice& on, const Tensor& x, Weight& weight, const std::optional<Tensor>& bias,
                 const Tensor& s, const Tensor& lora_B, double scaling, const std::optional<Tensor>& scale,
                 const Tensor* z, bool allow_tf32, const Tensor& y, bool overlaps = false);
std::tuple<Tensor, Tensor> lora_ds_db(const OnDevice& on, const Tensor& dY, const Tensor& lora_B, const Tensor& s,
                                      double scaling, bool need_dS, bool need_dB, bool allow_tf32);
Tensor lora_dx(const OnDevice& on, const Tensor& dY, Weight& weight, const Tensor& dS, const Tensor& lora_A,
               const std::optional<Tensor>& mask, double p, bool allow_tf32);
Tensor lora_da(const OnDevice& on, const Tensor& dS, const Tensor& x, const std::optional<Tensor>& mask, double p,
               ScalarType dtype, bool allow_tf32);

}  // namespace pypeft
