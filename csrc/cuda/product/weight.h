// The frozen weight [N, K] of a call, dense or quantised, and its conversion to the arguments of a product.
#pragma once
#include "cuda/product/product.h"

namespace pypeft {

class Weight {
 public:
  // The weight that these tensors store, whose shape `its` gives. Without a format the weight is dense, of any strides.
  Weight(const Tensor& weight, const std::optional<std::string>& format,
         const std::optional<std::vector<Tensor>>& scales, const Stored& its);
  // As stored() with these arguments, and the weight above.
  Weight(const char* op, const Tensor& weight, const std::optional<std::string>& format,
         const std::optional<std::vector<Tensor>>& scales, int64_t N, int64_t K);

  int64_t N() const { return N_; }
  int64_t K() const { return K_; }

  // The dense weight [N, K]. A quantised weight is dequantised in the dtype of `like`, into a temporary that lives as
  // long as this object.
  Matrix dense(const OnDevice& on, const Tensor& like);

  // Sets args.W, and args.codes if the kernel for these arguments reads codes. The caller has set the rest of args.
  // Returns whether this took a launch.
  bool give(const OnDevice& on, ProductArgs& args, const Tensor& like);

 private:
  Tensor tensor_;  // dense or dequantised
  Codes codes_;
  int64_t N_, K_;
};

}  // namespace pypeft
