// The dequantised weight [N, K] in `dtype`.
//
//   weight, scales: the tensors of the format (pypeft_fast/frozen/formats.py) -> [N, K], contiguous
#include "cpu/frozen/frozen.h"

namespace pypeft {
namespace {
Tensor dequantize(const Tensor& weight, const std::vector<Tensor>& scales, const std::string& format, int64_t N,
                  int64_t K, ScalarType dtype) {
  const Frozen w = frozen("dequantize", weight, format, scales, N, K);
  const Tensor out = new_empty(weight, {N, K}, dtype);
  if (N > 0 && K > 0) decode(w.codes, 0, N, 0, K, out.mutable_data_ptr(), K, dtype_of(out));
  return out;
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("dequantize_cpu", TORCH_BOX(&pypeft::dequantize)); }
