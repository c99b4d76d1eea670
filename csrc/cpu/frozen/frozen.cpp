#include "cpu/frozen/frozen.h"

#include "stored.h"

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

const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }

// log2 of the size of a block, which is a power of two or at least the size of the weight.
int shift_of(int64_t size) {
  int shift = 0;
  while (shift < 62 && int64_t{1} << shift < size) ++shift;
  return shift;
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

Frozen frozen(const Tensor& weight, const std::optional<std::string>& format,
              const std::optional<std::vector<Tensor>>& scales, const Stored& its) {
  if (!format) return {Format::dense, weight, its.N, its.K, {}, {}};
  const bool four_bit = is_four_bit(*format);
  Frozen w{
      four_bit ? Format::table4 : *format == "fp8" ? Format::fp8 : Format::int8, weight, its.N, its.K, *scales, {}};
  Codes& c = w.codes;
  c.format = w.format, c.N = w.N, c.K = w.K;
  c.data = static_cast<const uint8_t*>(weight.const_data_ptr());
  c.scale = floats(w.scales[its.nested]), c.shift = its.shift, c.nested_shift = NESTED_SHIFT;
  if (four_bit) c.table = *format == "nf4" ? NF4 : FP4;
  if (its.nested) {
    c.nested = static_cast<const uint8_t*>(w.scales[0].const_data_ptr());
    c.map = floats(w.scales[2]), c.offset = *floats(w.scales[3]);
  }
  c.row_shift = shift_of(its.scale_rows), c.column_shift = shift_of(its.scale_columns);
  c.scales_across = its.scales_across;
  return w;
}

Frozen frozen(const char* op, const Tensor& weight, const std::optional<std::string>& format,
              const std::optional<std::vector<Tensor>>& scales, int64_t N, int64_t K) {
  return frozen(weight, format, scales, stored(op, weight, format, scales, N, K));
}

void decode(const Codes& codes, int64_t n, int64_t rows, int64_t k, int64_t columns, void* to, int64_t ld,
            Dtype dtype) {
  const DecodeArgs args{codes, n, k, columns, to, ld, dtype};
  const auto run = PYPEFT_SELECT(decode_rows);
  torch::stable::parallel_for(0, rows, 1 + 16384 / (columns + 1),
                              [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

}  // namespace pypeft
