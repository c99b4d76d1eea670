// The kernels of gemm.cuh, as their launch needs to know them.
#pragma once
#include "cuda/product/product.h"

namespace pypeft::gemm {

enum class Scale : int { none, inputs, outputs };  // on what a ColumnScale lies: nothing, X or z

struct Kernel {
  void (*kernel)(ProductArgs);
  int rows, columns;  // of a block's tile of the output
  int threads;
  int bytes, mask_bytes, factors_bytes;  // of shared memory: always, with a mask, with a scale on X
};

// The kernel for these arguments, whose scale lies on kScale, with large tiles or small ones. Each kScale is compiled
// in a file of its own, gemm_<kScale>.cu.
template <Scale kScale>
Kernel kernel_for(const ProductArgs& p, bool large, bool allow_tf32);
extern template Kernel kernel_for<Scale::none>(const ProductArgs&, bool, bool);
extern template Kernel kernel_for<Scale::inputs>(const ProductArgs&, bool, bool);
extern template Kernel kernel_for<Scale::outputs>(const ProductArgs&, bool, bool);

}  // namespace pypeft::gemm
