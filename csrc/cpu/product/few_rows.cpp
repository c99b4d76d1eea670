#include "cpu/product/few_rows.h"

#include "cpu/isa/select.h"

namespace pypeft {
namespace {
constexpr int FEW_COLUMNS = 4;  // of the result, which are rows of the weight, that are made at a time

struct FewArgs {
  const void *a, *b;  // [M, K] rows lda apart, [K, N] columns ldb apart
  int64_t lda, ldb, M, N, K, r;
  const void* bias;  // [N], bias_step apart, or null
  int64_t bias_step;
  const void *left, *right;  // [M, r] rows ldl apart, [r, N] columns ldr apart, of one dtype
  int64_t ldl, ldr;
  float factor;
  ColumnScale scale;
  void* y;  // [M, N] of b's dtype
  Dtype a_dtype, b_dtype, right_dtype;
  const Codes* codes;   // instead of b; `a` is float then
  const float* spread;  // [M, K], `a` as decoded_dots() takes it; or null: the weight's rows are decoded beforehand
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/product/few_rows_body.h"
#include "cpu/isa/for_each.h"

namespace pypeft {

bool few_rows_win(ScalarType dtype, int64_t rows, bool decodes) {
  if (decodes) return rows <= 8;
  if (dtype == ScalarType::Float && selected_isa() <= Isa::avx512) return rows < 32;  // from there on gemm() may win
  if (dtype == ScalarType::BFloat16 && selected_isa() == Isa::avx512bf16) return rows <= 16;
  return rows <= (dtype == ScalarType::Half ? 16 : 8);
}

bool few_rows_shrink(ScalarType dtype, int64_t rows, int64_t rank) {
  return few_rows_win(dtype, rows) || (rows < 32 && rank <= 128 && selected_isa() <= Isa::avx512);
}

// What the sizes, a and b left open.
static Tensor few_rows(FewArgs args, const Tensor& a, ScalarType dtype, const LowRank* low_rank,
                       const Epilogue& epilogue) {
  args.M = a.size(0), args.K = a.size(1);
  args.scale = epilogue.scale;
  args.a = a.const_data_ptr(), args.lda = a.stride(0), args.a_dtype = dtype_of(a);
  std::optional<Tensor> left, right;
  if (low_rank) {
    const bool alike = low_rank->left.scalar_type() == low_rank->right.scalar_type();
    left = with_dense_rows(alike ? low_rank->left : as_float(low_rank->left));
    const Tensor given = alike ? low_rank->right : as_float(low_rank->right);
    right = has_dense_columns(given) ? given : transposed(torch::stable::contiguous(transposed(given)));
    args.factor = static_cast<float>(low_rank->factor);
    args.left = left->const_data_ptr(), args.ldl = left->stride(0), args.r = left->size(1);
    args.right = right->const_data_ptr(), args.ldr = right->stride(1), args.right_dtype = dtype_of(*right);
  }
  if (epilogue.bias) args.bias = epilogue.bias->const_data_ptr(), args.bias_step = epilogue.bias->stride(0);
  const Tensor y = new_empty(a, {args.M, args.N}, dtype);
  args.y = y.mutable_data_ptr();
  const auto run = PYPEFT_SELECT(few_columns);
  const bool unpacks = args.codes && !args.spread;
  torch::stable::parallel_for(0, args.N, 1 + 65536 / (args.M * (args.K + args.r) + 1), [&](int64_t begin, int64_t end) {
    const Floats room(unpacks ? FEW_COLUMNS * args.K : 0);
    run(args, room.get(), begin, end);
  });
  return y;
}

// Whether no step of decoded_dots() has two scales or ends a row.
static bool decodes_in_registers(const Codes& c) {
  if (c.format == Format::table4) return c.shift >= 5 && c.K % (1 << c.shift) == 0;
  return c.K % 32 == 0 && c.column_shift >= 5;
}

// a W^T for a dense W [N, K] if `transposed`, else a W.
static Tensor few_rows(const Tensor& a, const Tensor& W, bool transposed, const LowRank* low_rank,
                       const Epilogue& epilogue) {
  FewArgs args{};
  args.b = W.const_data_ptr(), args.b_dtype = dtype_of(W);
  args.N = W.size(!transposed), args.ldb = W.stride(!transposed);
  return few_rows(args, with_dense_rows(a), W.scalar_type(), low_rank, epilogue);
}

Tensor few_rows(const Tensor& a, const Tensor& W) { return few_rows(a, W, true, nullptr, {}); }

Tensor few_rows(const Tensor& given_a, const Right& b, const LowRank* low_rank, const Epilogue& epilogue) {
  if (b.w.is_dense()) return few_rows(given_a, b.w.weight, b.transposed, low_rank, epilogue);
  FewArgs args{};
  const Tensor a = with_dense_rows(as_float(given_a));
  const int64_t M = a.size(0), K = a.size(1);
  args.N = b.columns(), args.codes = &b.w.codes, args.b_dtype = dtype_of(given_a);
  const bool spreads = selected_isa() <= Isa::avx512 && decodes_in_registers(*args.codes);
  const Floats spread(spreads ? M * K : 0);
  if (spreads) {
    args.spread = spread.get();
    const Format format = args.codes->format;
    for (int64_t m = 0; m < M; ++m) {
      const float* from = static_cast<const float*>(a.const_data_ptr()) + m * a.stride(0);
      float* to = spread.get() + m * K;
      for (int64_t k = 0; k < K; ++k) {
        // of table4 the even ones of every 32 first
        to[format == Format::table4 ? k / 32 * 32 + k % 2 * 16 + k % 32 / 2 : k] = from[k];
      }
    }
  }
  return few_rows(args, a, given_a.scalar_type(), low_rank, epilogue);
}

}  // namespace pypeft
