#include "cpu/product/gemm.h"

#include <algorithm>

#include "cpu/isa/select.h"

#if defined(__x86_64__)
#include <cpuid.h>

namespace pypeft {
namespace {
constexpr int64_t GEMM_COLUMNS = 48;  // of c that a panel covers
constexpr int TILE_ROWS = 8;          // of c that a tile covers, at most
constexpr int64_t FEW_UNITS = 64;     // of a panel, that few_gemm_body.h reads at a time

// A matrix [rows, columns] of T whose element (i, j) is data[i * row + j * column]; one of the two steps is 1.
struct Operand {
  const void* data;
  int64_t row, column;
  const Codes* codes;  // instead of data: the matrix is this weight, or its transpose if row == 1; the other step is 0
};

struct GemmArgs {
  const void* a;  // [M, K], rows lda apart
  int64_t lda, M, K, N, r;
  Operand b, right;  // [K, N], [r, N]
  const void* left;  // [M, r], rows left_ld apart; an even number of bfloat16 of them can be read
  int64_t left_ld;
  float factor;         // of left right; 1 but for a few rows, whose `right` is not scaled beforehand
  const void* bias;     // [N], or null
  const uint8_t* mask;  // rows mask_row apart, or null
  int64_t mask_row;
  ColumnScale scale;
  void* c;  // [M, N]
  Dtype dtype;
  int64_t panels, block;  // tasks are blocks of rows times panels of columns, counted along the panels,
  int64_t group;          // or groups of panels, if this is not 0
};

struct NarrowArgs {
  const float* from;  // any strides
  int64_t row, column, columns;
  float factor;
  void* to;  // [rows, ld], filled up with zeros
  int64_t ld;
  Dtype dtype;
};
}  // namespace
}  // namespace pypeft

#define ISA_BODY "cpu/product/gemm_body.h"
#define ISA_AVX512_ONLY
#include "cpu/isa/for_each.h"

namespace pypeft {
namespace {
// Tiles of the AMX units, where a CPU has them, are out of reach for vectors.
bool has_amx_bf16() {
  static const bool has = [] {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
  }();
  return has;
}

// So few rows are multiplied by few_gemm_body.h, in groups of at most MOST_PANELS panels of b.
constexpr int64_t FEW_ROWS = 64, MOST_PANELS = 16;

// Panels are packed while their rows of `a` wait in a cache: this many bytes of them at a time, but so many rows that
// packing costs little beside the products; more rows if packing also decodes.
constexpr int64_t BLOCK_BYTES = int64_t{2} << 20, LEAST_ROWS = 256, LEAST_DECODED = 512;

int64_t rows_of_a_block(int64_t M, int64_t row_bytes, int64_t panels, int64_t least) {
  const int64_t threads = torch::stable::get_num_threads();
  int64_t rows = std::min(M, std::max(least, BLOCK_BYTES / std::max<int64_t>(1, row_bytes)));
  while (rows > 64 && ceil_div(M, rows) * panels < 4 * threads) rows = ceil_div(rows, 2);
  return round_up(std::max<int64_t>(1, rows), TILE_ROWS);
}

// The two steps of a matrix one of which must be 1; a matrix with neither is copied.
Tensor with_a_dense_side(const Tensor& t) { return t.stride(0) == 1 ? t : with_dense_rows(t); }

Operand operand(const Tensor& t) {
  const bool dense_rows = t.size(1) <= 1 || t.stride(1) == 1;
  return {t.const_data_ptr(), dense_rows ? t.stride(0) : 1, dense_rows ? 1 : t.stride(1), nullptr};
}

// factor * t [rows, columns] in `dtype`, in rows ld apart.
Tensor narrowed(const Tensor& t, ScalarType dtype, float factor, int64_t ld) {
  const Tensor from = as_float(t);
  Tensor to = new_empty(t, {t.size(0), ld}, dtype);
  const NarrowArgs args{static_cast<const float*>(from.const_data_ptr()),
                        from.stride(0),
                        from.stride(1),
                        t.size(1),
                        factor,
                        to.mutable_data_ptr(),
                        ld,
                        dtype_of(to)};
  const auto run = PYPEFT_SELECT_AVX512(narrow_rows);
  torch::stable::parallel_for(0, t.size(0), 1 + 32768 / (ld + 1),
                              [&](int64_t begin, int64_t end) { run(args, begin, end); });
  return to;
}
}  // namespace

bool gemm_wins(ScalarType dtype, int64_t rows, int64_t K, int64_t rank) {
  if (dtype == ScalarType::Float) {
    return rows >= std::min<int64_t>(256, std::max<int64_t>(32, rank / 6)) && selected_isa() <= Isa::avx512;
  }
  if (dtype != ScalarType::BFloat16 || selected_isa() != Isa::avx512bf16 || has_amx_bf16()) return false;
  // Of a large rank the vendor multiplies the low-rank part near the peak as well.
  const int64_t least = rank > 0 ? std::min<int64_t>(448, 3 * K / 8) : std::min<int64_t>(512, K / 5);
  return rows >= std::max<int64_t>(64, least) + (rank > 64 ? std::min<int64_t>(512, 4 * rank) : 0);
}

bool gemm_wins_across(ScalarType dtype, int64_t rows, const Tensor& b) {
  // One row in float32 is left to the vendor, whose product is as fast as memory.
  if (rows < (dtype == ScalarType::Float ? 2 : 1) || rows > FEW_ROWS) return false;
  return b.dim() == 2 && b.stride(1) == 1 && gemm_decodes(dtype);
}

bool gemm_decodes(ScalarType dtype) {
  if (dtype == ScalarType::Float) return selected_isa() <= Isa::avx512;
  return dtype == ScalarType::BFloat16 && selected_isa() == Isa::avx512bf16 && !has_amx_bf16();
}

Tensor gemm(const Tensor& given_a, const Right& given_b, const LowRank* low_rank, const Epilogue& epilogue) {
  const ScalarType dtype = given_a.scalar_type();
  const bool pairs = dtype == ScalarType::BFloat16;
  const bool is_few = given_a.size(0) <= FEW_ROWS;
  GemmArgs args{};
  args.M = given_a.size(0), args.K = given_a.size(1), args.N = given_b.columns();
  args.r = low_rank ? low_rank->left.size(1) : 0;
  args.dtype = dtype_of(given_a);
  Tensor c = new_empty(given_a, {args.M, args.N});
  // Rows of pairs are read in whole pairs: an odd number of columns needs a copy with one more.
  const int64_t even_K = round_up(args.K, 2), even_r = round_up(args.r, 2);
  const Tensor a = pairs && args.K % 2 ? narrowed(given_a, dtype, 1.0f, even_K) : with_dense_rows(given_a);
  std::optional<Tensor> b;
  args.a = a.const_data_ptr(), args.lda = a.stride(0);
  if (given_b.w.is_dense()) {
    b = with_a_dense_side(given_b.matrix());
    args.b = operand(*b);
  } else {
    args.b = {nullptr, given_b.transposed ? 1 : 0, given_b.transposed ? 0 : 1, &given_b.w.codes};
  }
  std::optional<Tensor> left, right, mask, bias;
  if (low_rank) {
    const Tensor &given_left = low_rank->left, &given_right = low_rank->right;
    const bool ready = given_left.scalar_type() == dtype && (!pairs || args.r % 2 == 0);
    left = ready ? with_dense_rows(given_left) : narrowed(given_left, dtype, 1.0f, even_r);
    // `right` keeps its order in memory: the transpose of a matrix of dense rows is narrowed as that matrix.
    const bool across = given_right.size(1) > 1 && given_right.stride(1) != 1;
    const Tensor stored = across ? transposed(given_right) : given_right;
    const float factor = static_cast<float>(low_rank->factor);
    args.factor = is_few ? factor : 1.0f;
    if (is_few && stored.scalar_type() == dtype && (stored.size(1) <= 1 || stored.stride(1) == 1)) {
      right = stored;
    } else {
      right = narrowed(stored, dtype, is_few ? 1.0f : factor, stored.size(1));
    }
    args.left = left->const_data_ptr(), args.left_ld = left->stride(0);
    args.right = {right->const_data_ptr(), across ? 1 : right->stride(0), across ? right->stride(0) : 1, nullptr};
  }
  if (epilogue.bias) {
    bias = epilogue.bias->stride(0) == 1 ? *epilogue.bias : torch::stable::contiguous(*epilogue.bias);
    args.bias = bias->const_data_ptr();
  }
  if (low_rank && low_rank->mask) {
    mask = with_dense_rows(*low_rank->mask);
    args.mask = static_cast<const uint8_t*>(mask->const_data_ptr()), args.mask_row = mask->stride(0);
  }
  args.scale = epilogue.scale;
  args.c = c.mutable_data_ptr();
  args.panels = ceil_div(args.N, GEMM_COLUMNS);
  args.block =
      rows_of_a_block(args.M, args.K * (pairs ? 2 : 4), args.panels, given_b.w.is_dense() ? LEAST_ROWS : LEAST_DECODED);
  const int64_t units = pairs ? even_K / 2 + even_r / 2 : args.K + args.r;
  const auto run = PYPEFT_SELECT_AVX512(gemm_tasks);
  if (is_few) {
    const int64_t shared = ceil_div(args.panels, torch::stable::get_num_threads());
    args.group = args.b.column == 1 ? std::clamp<int64_t>(shared, 1, MOST_PANELS) : 1;
    const int64_t size = (FEW_UNITS + (1 + args.group) * round_up(args.M, TILE_ROWS)) * GEMM_COLUMNS;
    torch::stable::parallel_for(0, ceil_div(args.panels, args.group), 1, [&](int64_t begin, int64_t end) {
      const Floats room(size);
      run(args, room.get(), begin, end);
    });
    return c;
  }
  torch::stable::parallel_for(0, ceil_div(args.M, args.block) * args.panels, 1, [&](int64_t begin, int64_t end) {
    const Floats panel(units * GEMM_COLUMNS);
    run(args, panel.get(), begin, end);
  });
  return c;
}

}  // namespace pypeft

#endif  // defined(__x86_64__)
