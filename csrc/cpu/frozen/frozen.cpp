#include "cpu/frozen/frozen.h"

#include "cpu/fits.h"

namespace pypeft {
namespace {
// NF4: quantiles of a normal distribution (Dettmers et al., arXiv:2305.14314, appendix E). FP4: a float with one sign
// bit, two exponent bits and one mantissa bit, divided by the largest such float. Both tables equal those of
// bitsandbytes.
constexpr float NF4[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
constexpr float FP4[16] = {
    0.0f,  0.0625f / 12,  8.0f / 12,  12.0f / 12,  4.0f / 12,  6.0f / 12,  2.0f / 12,  3.0f / 12,
    -0.0f, -0.0625f / 12, -8.0f / 12, -12.0f / 12, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12,
};
constexpr int64_t FP8_BLOCK = 128;

const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }

bool is_floats(const Tensor& t) { return t.is_cpu() && t.scalar_type() == ScalarType::Float && t.is_contiguous(); }

// log2 of the block size, for `weights` weights with `blocks` scales; the block size is a power of two.
int shift_of(int64_t weights, int64_t blocks) {
  int shift = 4;
  while (shift < 40 && ceil_div(weights, int64_t{1} << shift) > blocks) ++shift;
  fits(ceil_div(weights, int64_t{1} << shift) == blocks);
  return shift;
}

void read_table4(Frozen& w, const float* table) {
  Codes& c = w.codes;
  const int64_t weights = w.N * w.K;
  fits(w.weight.scalar_type() == ScalarType::Byte && w.weight.is_contiguous() && w.weight.is_cpu());
  fits(w.weight.numel() == ceil_div(weights, 2) && (w.scales.size() == 1 || w.scales.size() == 4));
  const Tensor& absmax = w.scales[0];
  fits(absmax.is_cpu() && absmax.is_contiguous());
  c.table = table, c.shift = shift_of(weights, absmax.numel());
  if (w.scales.size() == 1) {
    fits(is_floats(absmax));
    c.scale = floats(absmax);
    return;
  }
  const Tensor &nested = w.scales[1], &map = w.scales[2], &offset = w.scales[3];
  fits(absmax.scalar_type() == ScalarType::Byte && is_floats(nested) && is_floats(map) && is_floats(offset));
  fits(map.numel() == 256 && offset.numel() == 1);
  c.nested = static_cast<const uint8_t*>(absmax.const_data_ptr());
  c.scale = floats(nested), c.map = floats(map), c.offset = *floats(offset);
  c.nested_shift = shift_of(absmax.numel(), nested.numel());
}

void read_bytes(Frozen& w, bool is_fp8) {
  Codes& c = w.codes;
  const ScalarType type = is_fp8 ? ScalarType::Float8_e4m3fn : ScalarType::Char;
  fits(w.weight.dim() == 2 && w.weight.size(0) == w.N && w.weight.size(1) == w.K && w.scales.size() == 1);
  fits(w.weight.scalar_type() == type && w.weight.is_contiguous() && w.weight.is_cpu() && is_floats(w.scales[0]));
  const Tensor& scale = w.scales[0];
  c.scale = floats(scale);
  c.scale_rows = 1, c.scale_columns = std::max<int64_t>(1, w.K), c.scales_across = 1;
  const int64_t down = ceil_div(w.N, FP8_BLOCK), across = ceil_div(w.K, FP8_BLOCK);
  if (is_fp8 && scale.numel() == 1) {
    c.scale_rows = std::max<int64_t>(1, w.N);
  } else if (is_fp8 && scale.dim() == 2 && scale.size(0) == down && scale.size(1) == across && down != w.N) {
    c.scale_rows = c.scale_columns = FP8_BLOCK, c.scales_across = across;
  } else {
    fits(scale.numel() == w.N && (!is_fp8 || scale.dim() == 1 || (scale.dim() == 2 && scale.size(1) == 1)));
  }
}

struct DecodeArgs {
  Codes codes;
  int64_t n, k, columns;
  void* to;
  int64_t ld;
  Dtype dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/frozen/decode_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

Frozen frozen(const char* op, const Tensor& weight, const std::optional<std::string>& format,
              const std::optional<std::vector<Tensor>>& given, int64_t N, int64_t K) {
  check_storages(op, "weight", weight);
  if (!format) {
    fits(is_matrix(weight) && !given);
    return {Format::dense, weight, weight.size(0), weight.size(1), {}, {}};
  }
  fits(given.has_value());
  const std::vector<Tensor>& scales = *given;
  for (const Tensor& scale : scales) check_storages(op, "scales", scale);
  const bool table4 = *format == "nf4" || *format == "fp4", fp8 = *format == "fp8";
  fits(table4 || fp8 || *format == "int8");
  Frozen w{table4 ? Format::table4 : fp8 ? Format::fp8 : Format::int8, weight, N, K, scales, {}};
  if (!table4 && weight.dim() == 2) {
    w.N = weight.size(0), w.K = weight.size(1);
  } else {
    const int64_t weights = 2 * weight.numel();  // one too many if the number of weights is odd
    if (N < 0) w.N = weights / std::max<int64_t>(1, K);
    fits((N >= 0 || K > 1) && (K >= 0 || N > 1));  // one row may have this many weights or one less, no row any number
    if (K < 0) w.K = weights / N;
  }
  w.codes.format = w.format, w.codes.N = w.N, w.codes.K = w.K;
  w.codes.data = static_cast<const uint8_t*>(weight.const_data_ptr());
  table4 ? read_table4(w, *format == "nf4" ? NF4 : FP4) : read_bytes(w, fp8);
  return w;
}

void decode(const Codes& codes, int64_t n, int64_t rows, int64_t k, int64_t columns, void* to, int64_t ld,
            Dtype dtype) {
  const DecodeArgs args{codes, n, k, columns, to, ld, dtype};
  const auto run = PYPEFT_SELECT(decode_rows);
  torch::stable::parallel_for(0, rows, 1 + 16384 / (columns + 1),
                              [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

}  // namespace pypeft
