// s = drop(x) A^T and the packed mask of the dropout, by one pass over x.
//
//   x [M, K], lora_A [r, K], seed int64 [G] if p > 0 -> s [M, r] in the wider dtype, mask uint8 [G M, ceil(K/8)]
//   ([0, ..] if p = 0)
//
// A block is sixteen rows. For each block the kernel computes the mask, copies a tile of the rows as float with the
// dropped elements set to 0, and multiplies the tile with A^T, which is packed as float once. few_rows() computes the
// case of few rows without dropout. The sums are multiplied by 65536 / (65536 - T).
#include "cpu/lora.h"

#include "cpu/kept.h"
#include "cpu/product/few_rows.h"
#include "cpu/product/vendor.h"
#include "fits.h"

namespace pypeft {
namespace {
constexpr int64_t SHRINK_ROWS = 16;

struct ShrinkArgs {
  const void* x;  // [M, K], rows ldx apart
  int64_t ldx, M, K, r;
  const float* At;  // [K, ld], A transposed
  int64_t ld;
  void* s;  // [M, r] of this group; rows are lds apart
  int64_t lds;
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
// s [M, r] = scale * (keep * x) A^T by the vendor's library. If x must be copied, one block of rows is copied and
// multiplied at a time.
static void shrink_by_vendor(const Tensor& s, const Tensor& x, const Tensor& A, const Tensor* mask, double scale) {
  const int64_t M = x.size(0), K = x.size(1), r = A.size(0);
  const int64_t step = mask || x.scalar_type() != s.scalar_type() ? block_length(K) : std::max<int64_t>(1, M);
  for (int64_t m = 0; m < M; m += step) {
    const int64_t rows = std::min(step, M - m);
    std::optional<Tensor> bits;
    if (mask) bits = block(*mask, m, rows, 0, mask->size(1));
    const Tensor part = kept(block(x, m, rows, 0, K), s.scalar_type(), mask ? &*bits : nullptr);
    vendor_multiply(block(s, m, rows, 0, r), part, transposed(A), scale);
  }
}

std::tuple<Tensor, Tensor> lora_shrink(const Tensor& given, const Tensor& lora_A, double p,
                                       const std::optional<Tensor>& seed) {
  const Tensor x = with_dense_rows(given);
  const int64_t M = x.size(0), K = x.size(1), r = lora_A.size(0), bytes = ceil_div(K, 8);
  const bool widens = lora_A.scalar_type() == ScalarType::Float;
  const ScalarType dtype = widens ? ScalarType::Float : x.scalar_type();
  const int64_t groups = p > 0 ? seed.value().numel() : 1;
  Tensor mask = new_empty(x, {p > 0 ? groups * M : 0, bytes}, ScalarType::Byte);
  if (p == 0 && few_rows_shrink(x.scalar_type(), M, r)) {
    return {few_rows(x, with_dense_rows(lora_A)), mask};
  }
  Tensor s = new_empty(x, {M, r}, dtype);
  ShrinkArgs args{};
  args.x = x.const_data_ptr(), args.ldx = x.stride(0), args.x_dtype = dtype_of(x);
  args.M = M, args.K = K, args.r = r / groups;
  args.s_dtype = dtype_of(s), args.lds = r;
  args.mask_row = bytes, args.scale = static_cast<float>(dropout_scale(p)), args.threshold = dropout_threshold(p);
  const bool by_vendor = lora_A.scalar_type() == dtype && vendor_wins(x.scalar_type(), dtype, M, args.r, 1, p > 0);
  const auto run = PYPEFT_SELECT(shrink_rows);
  const auto draw = PYPEFT_SELECT(draw_rows);
  const int64_t grain = 1 + 32768 / (SHRINK_ROWS * (K + 1));
  for (int64_t group = 0; group < groups; ++group) {  // a group has rows of lora_A, columns of s and a mask
    Tensor A = lora_A;
    if (groups > 1) A = torch::stable::narrow(A, 0, group * args.r, args.r);
    args.s = static_cast<char*>(s.mutable_data_ptr()) + group * args.r * (args.s_dtype == Dtype::f32 ? 4 : 2);
    if (p > 0) {
      args.mask = static_cast<uint8_t*>(mask.mutable_data_ptr()) + group * M * bytes;
      const Tensor& of_groups = seed.value();
      args.seed = static_cast<const int64_t*>(of_groups.const_data_ptr())[group * of_groups.stride(0)];
    }
    if (by_vendor) {
      if (p > 0) {
        torch::stable::parallel_for(0, ceil_div(M, SHRINK_ROWS), grain,
                                    [&](int64_t begin, int64_t end) { draw(args, begin, end); });
      }
      const Tensor bits = block(mask, p > 0 ? group * M : 0, p > 0 ? M : 0, 0, bytes);
      shrink_by_vendor(block(s, 0, M, group * args.r, args.r), x, A, p > 0 ? &bits : nullptr, args.scale);
      continue;
    }
    const Packed At = pack(A, 1.0f, true);
    args.At = At.data.get(), args.ld = At.ld;
    torch::stable::parallel_for(0, ceil_div(M, SHRINK_ROWS), grain, [&](int64_t begin, int64_t end) {
      const Floats sums(SHRINK_ROWS * args.ld);
      run(args, sums.get(), begin, end);
    });
  }
  return {s, mask};
}

namespace {
std::tuple<Tensor, Tensor> lora_shrink_entry(const Tensor& x, const Tensor& lora_A, double p,
                                             const std::optional<Tensor>& seed) {
  check_storages("lora_shrink", "x", x, "lora_A", lora_A, "seed", seed);
  fits(is_matrix(x) && is_matrix(lora_A) && is_activation(x) && is_adapter(lora_A, x) && is_probability(p));
  fits(lora_A.size(1) == x.size(1) && lora_A.size(0) > 0 && seed.has_value() == (p > 0));
  if (seed) {
    fits(seed->is_cpu() && seed->scalar_type() == ScalarType::Long && seed->dim() == 1 && seed->size(0) > 0);
    fits(lora_A.size(0) % seed->size(0) == 0);
  }
  return lora_shrink(x, lora_A, p, seed);
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("lora_shrink_cpu", TORCH_BOX(&pypeft::lora_shrink_entry)); }
