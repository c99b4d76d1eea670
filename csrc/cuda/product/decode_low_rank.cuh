// The low-rank term of the epilogue of decoding, in float. S is staged in shared memory. Either L is one matrix for all
// rows, or each row has the L of its own adapter. A thread computes the output's element (`row`, n0 + `col`).
#pragma once
#include "cuda/device/tile.cuh"
#include "cuda/product/decode.h"

namespace pypeft {

constexpr int kDecodeCols = 16;

// The tiles of kRanks ranks in shared memory, for an X in T: a pair for every 16 ranks, of S and of L's 16 rows for the
// block's columns. As many ranks as there are registers for.
template <class T>
struct RankTiles {
  using Tile16 = Tile<float, kDecodeRows, 16>;
  static constexpr int kParts = sizeof(T) == 2 ? 4 : 1, kRanks = 16 * kParts, kBytes = 2 * kParts * Tile16::kBytes;
  static_assert(kDecodeCols == kDecodeRows);

  PYPEFT_DEVICE static char* of_S(char* tiles, int r) { return tiles + r / 16 * 2 * Tile16::kBytes; }
  PYPEFT_DEVICE static char* of_L(char* tiles, int r) { return of_S(tiles, r) + Tile16::kBytes; }
  // Ranks r to r + 3 of a row of a tile; r is a multiple of 4.
  PYPEFT_DEVICE static float4 four(char* tile, int row, int r) {
    return load_shared<float4>(Tile16::chunk(tile, row, r % 16 / 4));
  }
};

// One L for all rows: a thread holds one element for every 16 ranks, and stores it in a tile.
template <class T>
struct SharedFactor {
  using Tiles = RankTiles<T>;
  const LowRank& p;
  const int n0, row, col;
  uint32_t l[Tiles::kParts];

  PYPEFT_DEVICE SharedFactor(const ProductArgs& args, int n0, int row, int col)
      : p(args.low_rank), n0(n0), row(row), col(col) {}

  PYPEFT_DEVICE float factor() const { return p.factor; }

  // Requests ranks r0 to r0 + kRanks - 1.
  PYPEFT_DEVICE void load(int r0) {
    const Matrix& L = p.L;
#pragma unroll
    for (int part = 0; part < Tiles::kParts; ++part) {
      const int r = r0 + 16 * part + col;
      l[part] = n0 + row < L.rows && r < L.cols ? load_bits(L, (n0 + row) * L.row + r * L.col) : 0;
    }
  }

  PYPEFT_DEVICE void store(char* tiles) const {
#pragma unroll
    for (int part = 0; part < Tiles::kParts; ++part) {
      store_shared(Tiles::Tile16::at(Tiles::of_L(tiles, 16 * part), row, col), value_of(l[part], p.L.dtype));
    }
  }

  // sum + the product of ranks r0 to r0 + kRanks - 1, whose tiles are in shared memory.
  PYPEFT_DEVICE float multiply(float sum, char* tiles, int r0) const {
#pragma unroll 4
    for (int r = 0; r < min(p.S.cols - r0, Tiles::kRanks); r += 4) {
      const float4 a = Tiles::four(Tiles::of_S(tiles, r), row, r), b = Tiles::four(Tiles::of_L(tiles, r), col, r);
      sum += a.x * b.x, sum += a.y * b.y, sum += a.z * b.z, sum += a.w * b.w;
    }
    return sum;
  }
};

// The L of the row's adapter. L has no tile, because no two threads need the same row of L, unless rows of X have the
// same adapter. A thread holds the first kHeld pieces of 16 bytes, and loads the others after the loop along K.
template <class T>
struct FactorOfRow {
  using Tiles = RankTiles<T>;
  static constexpr int kHeld = sizeof(T) == 2 ? 2 : 1;
  const Adapters& p;
  const int n, row;
  int adapter;
  uint4 held[kHeld];

  PYPEFT_DEVICE FactorOfRow(const SegmentedProductArgs& args, int n0, int row, int col)
      : p(args.adapters), n(n0 + col), row(row), adapter(-1) {
    if (row < args.X.rows && n < args.W.rows) adapter = p.of_row(row);
  }

  PYPEFT_DEVICE float factor() const { return adapter < 0 ? 0.0f : p.factors[adapter]; }
  PYPEFT_DEVICE const Matrix& L() const { return p.matrices[adapter]; }
  PYPEFT_DEVICE static int per_piece(const Matrix& L) { return L.dtype == Dtype::f32 ? 4 : 8; }
  PYPEFT_DEVICE uint4 load_piece(const Matrix& L, int r) const {
    return load_global<uint4>(static_cast<const char*>(L.data) + (n * L.row + r) * (16 / per_piece(L)));
  }

  PYPEFT_DEVICE void load(int r0) {
    if (r0 > 0 || adapter < 0 || !L().vectors) return;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int r = i * per_piece(L());
      held[i] = r < L().cols ? load_piece(L(), r) : make_uint4(0, 0, 0, 0);
    }
  }

  PYPEFT_DEVICE void store(char*) const {}

  PYPEFT_DEVICE float multiply(float sum, char* tiles, int r0) const {
    if (adapter < 0) return sum;
    const Matrix& L = this->L();
    const int ranks = min(L.cols - r0, Tiles::kRanks), per = per_piece(L);
    int r = 0;
    if (!L.vectors) {
      for (; r < ranks; ++r) {
        const float s = load_shared<float>(Tiles::Tile16::at(Tiles::of_S(tiles, r), row, r % 16));
        sum += s * load_element(L, n * L.row + (r0 + r) * L.col);
      }
      return sum;
    }
    if (r0 == 0) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i, r += per) {
        if (r < ranks) sum = multiply_piece(sum, tiles, r, held[i], L.dtype);
      }
    }
#pragma unroll 2
    for (; r < ranks; r += per) sum = multiply_piece(sum, tiles, r, load_piece(L, r0 + r), L.dtype);
    return sum;
  }

 private:
  PYPEFT_DEVICE float multiply_piece(float sum, char* tiles, int r, const uint4& piece, Dtype dtype) const {
    const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
    float l[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (dtype == Dtype::f32) {
        l[i] = __uint_as_float(words[i]);
      } else {
        const float2 two = dtype == Dtype::bf16 ? unpack2<__nv_bfloat16>(words[i]) : unpack2<__half>(words[i]);
        l[2 * i] = two.x, l[2 * i + 1] = two.y;
      }
    }
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      if (i > 0 && dtype == Dtype::f32) break;
      const float4 s = Tiles::four(Tiles::of_S(tiles, r + i), row, r + i);
      sum += s.x * l[i], sum += s.y * l[i + 1], sum += s.z * l[i + 2], sum += s.w * l[i + 3];
    }
    return sum;
  }
};

}  // namespace pypeft
