// The LoRA ops on CPUs, without argument checks. pypeft_fast/ops/ documents each op in a file of the same name.
#pragma once
#include <tuple>

#include "cpu/frozen/frozen.h"

namespace pypeft {

std::tuple<Tensor, Tensor> lora_shrink(const Tensor& given, const Tensor& lora_A, double p,
                                       const std::optional<Tensor>& seed);
std::tuple<Tensor, Tensor> lora_ds_db(const Tensor& given_dY, const Tensor& lora_B, const Tensor& given_s,
                                      double scaling, bool need_dS, bool need_dB);
Tensor lora_dx(const Tensor& dY, const Frozen& weight, const Tensor& dS, const Tensor& lora_A, const Tensor& mask,
               double p);
Tensor lora_da(const Tensor& given_dS, const Tensor& given_x, const Tensor& given_mask, double p, ScalarType dtype);

}  // namespace pypeft
