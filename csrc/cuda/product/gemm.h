// The kernels of gemm.cuh with the sizes that their launches need.
#pragma once
#include "cuda/product/product.h"

namespace pypeft::gemm {

enum class Scale : int { none, inputs, outputs };  // which matrix has factors on its columns: none, X, or z

struct Kernel {
  void (*kernel)(ProductArgs);
  int rows, columns;  // of the output tile of a block
  int threads;
  int bytes, mask_bytes, factors_bytes;  // shared memory: always, more with a mask, more with factors on X
};

// The kernel for these arguments. With `large` it has large tiles if the operands allow copies of 16 bytes. kScale says
// which matrix has factors. The kernels of each kScale are compiled in their own file, gemm_<kScale>.cu.
template <Scale kScale>
Kernel kernel_for(const ProductArgs& p, bool large, bool allow_tf32);
extern template Kernel kernel_for<Scale::none>(const ProductArgs&, bool, bool);
extern template Kernel kernel_for<Scale::inputs>(const ProductArgs&, bool, bool);
extern template Kernel kernel_for<Scale::outputs>(const ProductArgs&, bool, bool);

}  // namespace pypeft::gemm
