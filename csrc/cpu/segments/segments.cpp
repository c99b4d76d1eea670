#include "cpu/segments/segments.h"

#include "cpu/fits.h"

namespace pypeft {

Segments segments(const Tensor& index, int64_t M, int64_t n) {
  fits(index.is_cpu() && index.scalar_type() == ScalarType::Long && index.dim() == 1 && index.size(0) == M);
  const int64_t* of = static_cast<const int64_t*>(index.const_data_ptr());
  const int64_t step = index.stride(0);
  std::vector<int64_t> counts(n + 1), next(n + 1);  // first those of no adapter
  for (int64_t m = 0; m < M; ++m) {
    fits(of[m * step] >= -1 && of[m * step] < n);
    ++counts[of[m * step] + 1];
  }
  Segments found{std::vector<int64_t>(M), std::vector<RowBlock>(n), {-1, 0, counts[0]}};
  int64_t first = counts[0];
  for (int64_t a = 0; a < n; ++a) {
    found.adapters[a] = {a, first, counts[a + 1]};
    next[a + 1] = first;
    first += counts[a + 1];
  }
  for (int64_t m = 0; m < M; ++m) found.order[next[of[m * step] + 1]++] = m;
  return found;
}

std::vector<RowBlock> Segments::blocks(int64_t most) const {
  std::vector<RowBlock> found;
  for (const RowBlock& all : adapters) {
    for (int64_t i = 0; i < all.count; i += most) {
      found.push_back({all.adapter, all.first + i, std::min(most, all.count - i)});
    }
  }
  return found;
}

}  // namespace pypeft
