// s = drop(x) A^T and the packed mask of the dropout, one pass over x.
//
//   x [M, K], lora_A [r, K], seed int64 [1] -> s [M, r] in the wider dtype, mask uint8 [M, ceil(K/8)] ([0, ..] if p =
//   0)
//
// Rows are taken sixteen at a time: their mask is drawn, a tile of them is staged as float with the dropped elements 0,
// and multiplied with A^T, which was packed as float once. The factor 65536 / (65536 - T) is applied to the sums.
#include <tuple>

#include "cpu/scratch.h"

namespace pypeft {
namespace {
constexpr int64_t SHRINK_ROWS = 16;

struct ShrinkArgs {
  const void* x;  // [M, K], rows ldx apart
  int64_t ldx, M, K, r;
  const float* At;  // [K, ld], A transposed
  int64_t ld;
  void* s;        // [M, r]
  uint8_t* mask;  // [M, mask_row], or null
  int64_t mask_row;
  int64_t seed;
  uint16_t threshold;
  float scale;
  Dtype x_dtype, s_dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/lora_shrink_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor> lora_shrink(const Tensor& given, const Tensor& lora_A, double p,
                                       const std::optional<Tensor>& seed) {
  const Tensor x = with_dense_rows(given);
  const int64_t M = x.size(0), K = x.size(1), r = lora_A.size(0), bytes = ceil_div(K, 8);
  const bool widens = lora_A.scalar_type() == ScalarType::Float;
  Tensor s = torch::stable::new_empty(x, {M, r}, widens ? ScalarType::Float : x.scalar_type());
  Tensor mask = torch::stable::new_empty(x, {p > 0 ? M : 0, bytes}, ScalarType::Byte);
  const Packed At = pack(lora_A, 1.0f, true);
  ShrinkArgs args{};
  args.x = x.const_data_ptr(), args.ldx = x.stride(0), args.x_dtype = dtype_of(x);
  args.M = M, args.K = K, args.r = r;
  args.At = At.data.get(), args.ld = At.ld;
  args.s = s.mutable_data_ptr(), args.s_dtype = dtype_of(s);
  args.mask_row = bytes, args.scale = static_cast<float>(dropout_scale(p));
  if (p > 0) {
    args.mask = static_cast<uint8_t*>(mask.mutable_data_ptr());
    args.seed = *static_cast<const int64_t*>(seed.value().const_data_ptr());
    args.threshold = dropout_threshold(p);
  }
  const auto run = PYPEFT_SELECT(shrink_rows);
  const int64_t grain = 1 + 32768 / (SHRINK_ROWS * (K + 1));
  torch::stable::parallel_for(0, ceil_div(M, SHRINK_ROWS), grain, [&](int64_t begin, int64_t end) {
    const Floats sums(SHRINK_ROWS * args.ld);
    run(args, sums.get(), begin, end);
  });
  return {s, mask};
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("lora_shrink_cpu", TORCH_BOX(&pypeft::lora_shrink)); }
