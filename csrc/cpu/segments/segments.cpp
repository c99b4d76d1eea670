#include "cpu/segments/segments.h"

#include "fits.h"

namespace pypeft {

int64_t fit_adapters(const char* op, const Tensor& x, const std::vector<Tensor>& A, const std::vector<Tensor>& B,
                     const std::vector<double>& scalings, const std::vector<double>& ps, int64_t N, int64_t K) {
  const size_t n = A.size();
  fits(n > 0 && B.size() == n && scalings.size() == n && ps.size() == n);
  int64_t most = 0;
  for (size_t a = 0; a < n; ++a) {
    check_storages(op, "lora_A", A[a], "lora_B", B[a]);
    fits(is_matrix(A[a]) && is_matrix(B[a]) && A[a].size(1) == K && B[a].size(0) == N);
    fits(A[a].size(0) > 0 && B[a].size(1) == A[a].size(0) && is_probability(ps[a]));
    fits(is_adapter(A[a], x) && is_adapter(B[a], x) && like(A[a], A[0]) && like(B[a], B[0]));
    most = std::max(most, A[a].size(0));
  }
  return most;
}

Segments segments(const Tensor& index, int64_t M, int64_t n) {
  fits(index.is_cpu() && index.scalar_type() == ScalarType::Long && index.dim() == 1 && index.size(0) == M);
  const int64_t* of = static_cast<const int64_t*>(index.const_data_ptr());
  const int64_t step = index.stride(0);
  std::vector<int64_t> counts(n + 1), next(n + 1);  // index 0 is for rows without an adapter
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
