// Chooses the kernel of a product, and launches it.
#include "cuda/product/product.h"

#include "cuda/product/decode.h"
#include "cuda/product/gemm.h"

namespace pypeft {
namespace {
// Whether there are at least as many tiles of 128 x 128 as multiprocessors.
bool takes_large_tiles(const OnDevice& on, const ProductArgs& p) {
  const int64_t tiles = ceil_div(p.X.rows, 128) * ceil_div(p.W.rows, 128);
  return p.X.dtype != Dtype::f32 && tiles >= on.info().multiprocessors;
}

gemm::Kernel choose(const OnDevice& on, const ProductArgs& p, bool allow_tf32) {
  const bool large = takes_large_tiles(on, p);
  if (p.inputs.present) return gemm::kernel_for<gemm::Scale::inputs>(p, large, allow_tf32);
  if (p.epilogue.scale.present) return gemm::kernel_for<gemm::Scale::outputs>(p, large, allow_tf32);
  return gemm::kernel_for<gemm::Scale::none>(p, large, allow_tf32);
}

// Divides the rows of X among the separate blocks that compute the gradient of factors on X. Returns the number of
// blocks across the columns of X. There are about two blocks for each multiprocessor, but a block has at least 64 rows,
// because with fewer rows the traffic of the parts would be too large.
int64_t cut_rows(const OnDevice& on, const Matrix& X, ColumnSum& sum) {
  const int64_t across = ceil_div(X.cols * bytes_of(X.dtype), kSumBytes);
  const int64_t wanted = ceil_div(2 * on.info().multiprocessors, std::max<int64_t>(1, across));
  sum.span = size_of(ceil_div(X.rows, std::max<int64_t>(1, std::min<int64_t>(wanted, X.rows / 64))));
  sum.blocks = size_of(ceil_div(X.rows, sum.span));
  return across;
}
}  // namespace

void product(const OnDevice& on, ProductArgs p, const Tensor& like, bool allow_tf32) {
  if (p.codes.data) return decode_codes(on, p, allow_tf32);
  if (decodes(p)) return decode(on, p, allow_tf32);
  const gemm::Kernel chosen = choose(on, p, allow_tf32);
  const int64_t down = ceil_div(p.X.rows, chosen.rows), across = ceil_div(p.W.rows, chosen.columns);
  ColumnSum &of_inputs = p.inputs.gradient, &of_sums = p.epilogue.scale.gradient;
  int64_t blocks = p.out || of_sums.out ? down * across : 0, across_inputs = 0;
  if (of_inputs.out) across_inputs = cut_rows(on, p.X, of_inputs);
  if (of_sums.out) of_sums.blocks = size_of(down);
  const Workspace workspace(on, like,
                            {{&of_inputs.split, across_inputs, of_inputs.blocks, kSumBytes / bytes_of(p.X.dtype)},
                             {&of_sums.split, across, of_sums.blocks, chosen.columns}});
  blocks += across_inputs * of_inputs.blocks;
  const int more = p.low_rank.mask ? chosen.mask_bytes : p.inputs.present ? chosen.factors_bytes : 0;
  launch(on, chosen.kernel, dim3(static_cast<unsigned>(blocks)), dim3(chosen.threads), chosen.bytes + more, p);
}

}  // namespace pypeft
