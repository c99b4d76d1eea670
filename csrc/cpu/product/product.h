// The product with the frozen weight: of the plain layer, LoRA, DoRA, IA3, and of their gradients with respect to x.
#pragma once
#include "cpu/product/epilogue.h"
#include "cpu/scratch.h"

namespace pypeft {

// a b, with a low-rank part if there is one, and the epilogue: [M, N] in a's dtype from a [M, K], b [K, N] of one dtype
// and any strides. This is where gemm(), few_rows() and the vendor's product are chosen from.
Tensor product(const Tensor& a, const Tensor& b, const LowRank* low_rank = nullptr, const Epilogue& epilogue = {});

}  // namespace pypeft
