// Reads pointers and sizes from the tensors of a quantised weight.
#include "cuda/frozen/codes.h"

#include "stored.h"

namespace pypeft {
static_assert(kNestedShift == NESTED_SHIFT);

namespace {
Format format_of(const std::string& name) {
  if (is_four_bit(name)) return name == "nf4" ? Format::nf4 : Format::fp4;
  return name == "int8" ? Format::int8 : Format::fp8;
}
}  // namespace

Codes codes_of(const Tensor& weight, const std::string& format, const std::vector<Tensor>& scales, const Stored& its) {
  Codes c{};
  c.format = format_of(format), c.N = its.N, c.K = its.K, c.weights = its.N * its.K;
  c.bytes = is_four_bit(c.format) ? ceil_div(c.weights, 2) : c.weights;
  c.data = static_cast<const uint8_t*>(read(weight));
  c.vectors = reinterpret_cast<uintptr_t>(c.data) % 16 == 0;
  c.scale = read<float>(scales[its.nested]), c.shift = its.shift;
  if (its.nested)
    c.nested = read<uint8_t>(scales[0]), c.map = read<float>(scales[2]), c.offset = read<float>(scales[3]);
  c.scale_rows = its.scale_rows, c.scale_columns = its.scale_columns, c.scales_across = its.scales_across;
  return c;
}

}  // namespace pypeft
