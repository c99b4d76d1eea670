// Decides whether a product reads the codes of a quantised weight or a dequantised copy.
#include "cuda/product/weight.h"

#include "cuda/product/decode.h"

namespace pypeft {

Weight::Weight(const char* op, const Tensor& weight, const std::optional<std::string>& format,
               const std::optional<std::vector<Tensor>>& scales, int64_t N, int64_t K)
    : tensor_(weight), codes_{} {
  if (!format) {
    check_storages(op, "weight", weight);
    N_ = weight.size(0), K_ = weight.size(1);
  } else {
    codes_ = codes_of(op, weight, *format, scales.value_or(std::vector<Tensor>{}), N, K);
    N_ = codes_.N, K_ = codes_.K;
  }
}

Matrix Weight::dense(const OnDevice& on, const Tensor& like) {
  if (codes_.data) tensor_ = dequantized(on, codes_, like, like.scalar_type()), codes_ = {};
  return view(tensor_);
}

void Weight::give(const OnDevice& on, ProductArgs& args, const Tensor& like) {
  args.codes = codes_;
  args.W = {codes_.data, K_, 1, size_of(N_), size_of(K_), args.X.dtype, true};
  if (codes_.data && decodes_codes(args)) return;
  args.codes = {};
  args.W = dense(on, like);
}

}  // namespace pypeft
