// Reads pointers and sizes from the tensors of a quantised weight.
#include "cuda/frozen/codes.h"

namespace pypeft {
namespace {
constexpr int64_t kFp8Block = 128;

Format format_of(const std::string& name) {
  if (name == "nf4") return Format::nf4;
  if (name == "fp4") return Format::fp4;
  STD_TORCH_CHECK(name == "int8" || name == "fp8", "pypeft_fast: the CUDA kernels know no format ", name);
  return name == "int8" ? Format::int8 : Format::fp8;
}

// log2 of the block size, for `weights` weights with `blocks` scales; the block size is a power of two.
int shift_of(int64_t weights, int64_t blocks) {
  int shift = 4;
  while (shift < 40 && ceil_div(weights, int64_t{1} << shift) > blocks) ++shift;
  return shift;
}

void read_four_bit(Codes& c, const std::vector<Tensor>& scales) {
  c.shift = shift_of(c.weights, scales[0].numel());
  if (scales.size() == 1) {
    c.scale = read<float>(scales[0]);
    return;
  }
  c.nested = read<uint8_t>(scales[0]), c.scale = read<float>(scales[1]);
  c.map = read<float>(scales[2]), c.offset = read<float>(scales[3]);
}

void read_eight_bit(Codes& c, const Tensor& scale) {
  c.scale = read<float>(scale);
  c.scale_rows = 1, c.scale_columns = std::max<int64_t>(1, c.K), c.scales_across = 1;
  if (scale.numel() == 1) {
    c.scale_rows = std::max<int64_t>(1, c.N);
  } else if (c.format == Format::fp8 && scale.dim() == 2 && scale.size(0) != c.N) {
    c.scale_rows = c.scale_columns = kFp8Block, c.scales_across = scale.size(1);
  }
}
}  // namespace

Codes codes_of(const char* op, const Tensor& weight, const std::string& format, const std::vector<Tensor>& scales,
               int64_t N, int64_t K) {
  check_storages(op, "weight", weight);
  for (const Tensor& scale : scales) check_storages(op, "scales", scale);
  Codes c{};
  c.format = format_of(format);
  if (is_four_bit(c.format)) {
    const int64_t weights = 2 * weight.numel();  // one too many if the number of weights is odd
    if (N < 0) N = weights / std::max<int64_t>(1, K);
    if (K < 0) K = weights / std::max<int64_t>(1, N);
  } else {
    N = weight.size(0), K = weight.size(1);
  }
  c.N = N, c.K = K, c.weights = N * K, c.bytes = is_four_bit(c.format) ? ceil_div(N * K, 2) : N * K;
  c.data = static_cast<const uint8_t*>(read(weight));
  c.vectors = reinterpret_cast<uintptr_t>(c.data) % 16 == 0;
  is_four_bit(c.format) ? read_four_bit(c, scales) : read_eight_bit(c, scales[0]);
  return c;
}

}  // namespace pypeft
