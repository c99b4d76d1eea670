// Decides whether a product reads the codes of a quantised weight or a dequantised copy.
#include "cuda/product/weight.h"

#include "cuda/product/decode.h"
#include "stored.h"

namespace pypeft {

Weight::Weight(const Tensor& weight, const std::optional<std::string>& format,
               const std::optional<std::vector<Tensor>>& scales, const Stored& its)
    : tensor_(weight), codes_{}, N_(its.N), K_(its.K) {
  if (format) codes_ = codes_of(weight, *format, *scales, its);
}

Weight::Weight(const char* op, const Tensor& weight, const std::optional<std::string>& format,
               const std::optional<std::vector<Tensor>>& scales, int64_t N, int64_t K)
    : Weight(weight, format, scales, stored(op, weight, format, scales, N, K)) {}

Matrix Weight::dense(const OnDevice& on, const Tensor& like) {
  if (codes_.data) tensor_ = dequantized(on, codes_, like, like.scalar_type()), codes_ = {};
  return view(tensor_);
}

bool Weight::give(const OnDevice& on, ProductArgs& args, const Tensor& like) {
  args.codes = codes_;
  args.W = {codes_.data, K_, 1, size_of(N_), size_of(K_), args.X.dtype, true};
  if (codes_.data && decodes_codes(args)) return false;
  const bool launches = codes_.data != nullptr;
  args.codes = {};
  args.W = dense(on, like);
  return launches;
}

}  // namespace pypeft
