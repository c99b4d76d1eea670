// The frozen weight [N, K] of an op's call, dense or quantised, as a product takes it.
#pragma once
#include "cuda/product/product.h"

namespace pypeft {

class Weight {
 public:
  // Without a format: weight [N, K] of any strides, no scales. N or K may be -1 where the tensors tell it.
  Weight(const char* op, const Tensor& weight, const std::optional<std::string>& format,
         const std::optional<std::vector<Tensor>>& scales, int64_t N, int64_t K);

  int64_t N() const { return N_; }
  int64_t K() const { return K_; }

  // [N, K] itself; of a quantised weight a temporary in like's dtype, which lives as long as this.
  Matrix dense(const OnDevice& on, const Tensor& like);

  // Sets args.W, and args.codes if the kernel for these arguments reads codes. All else in args is there already.
  void give(const OnDevice& on, ProductArgs& args, const Tensor& like);

 private:
  Tensor tensor_;  // dense or dequantised
  Codes codes_;
  int64_t N_, K_;
};

}  // namespace pypeft
