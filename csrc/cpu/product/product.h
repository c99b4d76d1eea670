// The product with the frozen weight: of the plain layer, LoRA, DoRA, IA3, and of their gradients with respect to x.
#pragma once
#include "cpu/frozen/frozen.h"
#include "cpu/product/epilogue.h"

namespace pypeft {

// a b, with a low-rank part if there is one, and the epilogue: [M, N] in a's dtype from a [M, K] and b [K, N], a dense
// b of a's dtype. This is where gemm(), few_rows() and the vendor's product are chosen from.
Tensor product(const Tensor& a, const Right& b, const LowRank* low_rank = nullptr, const Epilogue& epilogue = {});

}  // namespace pypeft
