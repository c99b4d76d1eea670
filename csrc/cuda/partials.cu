// One thread an element: neighbours read neighbours. Traffic: parts once, out once.
#include "cuda/partials.h"

#include "cuda/tile.cuh"

namespace pypeft {
namespace {
constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) add_partials_kernel(Sum first, Sum second) {
  const Sum sum = blockIdx.y == 0 ? first : second;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= sum.size) return;
  float total = 0;
#pragma unroll 4
  for (int part = 0; part < sum.count; ++part) total += load_global<float>(sum.parts + part * sum.size + i);
  total *= sum.factor;
  store_element(sum.out, sum.dtype, i, total);
}
}  // namespace

Tensor new_partials(const Tensor& like, int64_t count, int64_t rows, int64_t cols) {
  return torch::stable::new_empty(like, {count, rows, cols}, ScalarType::Float);
}

Sum sum_of(const Tensor& parts, float factor, const Tensor& out) {
  return {read<float>(parts), out.numel(), size_of(parts.size(0)), factor, write(out), dtype_of(out)};
}

void add_partials(const OnDevice& on, const Sum& first, const Sum& second) {
  const unsigned blocks = static_cast<unsigned>(ceil_div(std::max(first.size, second.size), kThreads));
  launch(on, add_partials_kernel, dim3(blocks, second.size > 0 ? 2 : 1), dim3(kThreads), 0, first, second);
}

}  // namespace pypeft
