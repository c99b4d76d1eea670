// dS = scaling * dY B and dB = scaling * dY^T s by one pass over dY.
//
//   dY [M, N], lora_B [N, r], s [M, r] -> dS [M, r] in the dtype of s, dB [N, r] in the dtype of
//   lora_B; each [0, r] if not needed
//
// A task reads a range of columns of all rows of dY. It computes the rows of dB of these columns, and a partial sum of
// dS over these columns. At the end the partial sums are added in the order of the columns. The number of tasks depends
// on the shape alone, so the result does not depend on the number of threads.
#include "cpu/lora.h"

#include "cpu/kept.h"
#include "cpu/product/gemm.h"
#include "cpu/product/vendor.h"
#include "cpu/scratch.h"
#include "fits.h"

namespace pypeft {
namespace {
constexpr int64_t GRAD_ROWS = 64;      // rows of a tile of dY
constexpr int64_t GRAD_COLUMNS = 128;  // columns of a tile of dY, which fits into the L1 or L2 cache

struct GradArgs {
  const void* dY;  // [M, N], rows ldy apart
  int64_t ldy, M, N, r;
  const float* B;  // [N, ld]
  const float* s;  // [M, r], any strides
  int64_t s_row, s_column;
  int64_t ld;     // padded(r)
  int64_t task;   // columns of a task, a multiple of 32
  int64_t tasks;  // ceil(N / task)
  float* parts;   // [tasks, M, ld], the partial sums of dS
  float scaling;
  bool need_dS, need_dB;
  void *dS, *dB;  // [M, r], [N, r]
  Dtype dY_dtype, dS_dtype, dB_dtype;
};

// The number of columns of a task. There are enough tasks for many threads, but only about 32 at most, with about 2^24
// floats of partial sums of dS at most.
int64_t task_columns(int64_t M, int64_t N, int64_t ld) {
  constexpr int64_t MOST_TASKS = 32, MOST_FLOATS = int64_t{1} << 24;
  const int64_t affordable = std::max<int64_t>(1, MOST_FLOATS / std::max<int64_t>(1, M * ld));
  if (affordable == 1) return round_up(std::max<int64_t>(1, N), GRAD_COLUMNS);
  return even_columns(N, round_up(ceil_div(std::max<int64_t>(1, N), std::min(MOST_TASKS, affordable)), GRAD_COLUMNS));
}
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/lora_ds_db_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {
// dS and dB by the vendor's library, dS of few rows by gemm(). If dY must be copied, one block of columns is copied and
// multiplied at a time, and dS is summed over the blocks in float.
static std::tuple<Tensor, Tensor> ds_db_by_vendor(const Tensor& dY, const Tensor& lora_B, const Tensor& s,
                                                  double scaling, bool need_dS, bool need_dB) {
  const int64_t M = dY.size(0), N = dY.size(1), r = s.size(1);
  Tensor dS;
  const Tensor dB = new_empty(lora_B, {need_dB ? N : 0, r});
  const int64_t step = dY.scalar_type() != s.scalar_type() ? block_length(M) : std::max<int64_t>(1, N);
  bool sums_dS = need_dS;
#if defined(__x86_64__)
  if (need_dS && dY.scalar_type() == lora_B.scalar_type() && gemm_wins_across(dY.scalar_type(), M, lora_B)) {
    const std::vector<float> factors(r, static_cast<float>(scaling));
    Epilogue scaled;
    scaled.scale.factors = factors.data();
    dS = gemm(dY, {dense(lora_B), false}, nullptr, scaled);
    sums_dS = false;
  }
#endif
  if (!dS.defined()) dS = new_empty(s, {need_dS ? M : 0, r});
  int64_t n = 0;
  do {  // runs once if N is 0, and sets dS to 0
    const int64_t columns = std::min(step, N - n);
    const Tensor part = kept(block(dY, 0, M, n, columns), s.scalar_type(), nullptr);
    if (sums_dS) vendor_multiply(dS, part, block(lora_B, n, columns, 0, r), scaling, n > 0 ? 1 : 0);
    if (need_dB) vendor_multiply(block(dB, n, columns, 0, r), transposed(part), s, scaling);
  } while ((n += step) < N);
  return {dS, dB};
}

std::tuple<Tensor, Tensor> lora_ds_db(const Tensor& given_dY, const Tensor& lora_B, const Tensor& given_s,
                                      double scaling, bool need_dS, bool need_dB) {
  const Tensor dY = with_dense_rows(given_dY);
  const ScalarType dtype = lora_B.scalar_type();
  if (given_s.scalar_type() == dtype &&
      vendor_wins(dY.scalar_type(), dtype, dY.size(0), given_s.size(1), scaling, false)) {
    return ds_db_by_vendor(dY, lora_B, given_s, scaling, need_dS, need_dB);
  }
  const Tensor s = as_float(given_s);
  GradArgs args{};
  args.dY = dY.const_data_ptr(), args.ldy = dY.stride(0), args.dY_dtype = dtype_of(dY);
  args.M = dY.size(0), args.N = dY.size(1), args.r = s.size(1);
  args.ld = padded(args.r), args.scaling = static_cast<float>(scaling);
  args.task = task_columns(args.M, args.N, args.ld), args.tasks = std::max<int64_t>(1, ceil_div(args.N, args.task));
  Tensor dS = new_empty(given_s, {need_dS ? args.M : 0, args.r});
  Tensor dB = new_empty(lora_B, {need_dB ? args.N : 0, args.r});
  args.dS = dS.mutable_data_ptr(), args.dS_dtype = dtype_of(dS);
  args.dB = dB.mutable_data_ptr(), args.dB_dtype = dtype_of(dB);
  const Packed B = need_dS ? pack(lora_B, 1.0f, false) : Packed{Floats(0), 0};
  const Floats parts(need_dS ? args.tasks * args.M * args.ld : 0);
  args.need_dS = need_dS, args.B = B.data.get(), args.parts = parts.get();
  args.need_dB = need_dB, args.s = static_cast<const float*>(s.const_data_ptr());
  args.s_row = s.stride(0), args.s_column = s.stride(1);
  const auto run = PYPEFT_SELECT(grad_tasks);
  torch::stable::parallel_for(0, args.tasks, 1 + 256 / (args.M + 1), [&](int64_t begin, int64_t end) {
    const Floats sums(need_dB ? args.r * GRAD_COLUMNS : 0);
    run(args, sums.get(), begin, end);
  });
  if (need_dS) {
    const auto combine = PYPEFT_SELECT(combine_rows);
    torch::stable::parallel_for(0, args.M, 1 + 32768 / (args.tasks * args.ld + 1),
                                [&](int64_t begin, int64_t end) { combine(args, begin, end); });
  }
  return {dS, dB};
}

namespace {
std::tuple<Tensor, Tensor> lora_ds_db_entry(const Tensor& dY, const Tensor& lora_B, const Tensor& s, double scaling,
                                            bool need_dS, bool need_dB) {
  check_storages("lora_ds_db", "dY", dY, "lora_B", lora_B, "s", s);
  fits(is_matrix(dY) && is_matrix(lora_B) && is_matrix(s) && is_activation(dY));
  fits(is_adapter(lora_B, dY) && is_adapter(s, dY) && lora_B.size(0) == dY.size(1));
  fits(s.size(0) == dY.size(0) && s.size(1) == lora_B.size(1));
  return lora_ds_db(dY, lora_B, s, scaling, need_dS, need_dB);
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("lora_ds_db_cpu", TORCH_BOX(&pypeft::lora_ds_db_entry)); }
