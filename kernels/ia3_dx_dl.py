"""dX and dl of IA3 in one launch. dl is a sum over rows; _reduce adds its partial sums in a fixed order.

Feedforward: dX = (dY W) * l. Each tile of dY W is multiplied with its tile of x for dl before it is scaled.
Otherwise:   dX = (dY * l) W, with the scale inside the product. The programs then compute the tiles of dY * z for dl.
"""

import torch
import triton
import triton.language as tl

from . import _tiles
from ._dot import precision
from ._gemm import accumulate, load_2d, load_row, store_tile, tile_origin
from ._reduce import add_partials, last_of, tickets


@triton.jit
def _add_rows(
    product, m, o, M, O, dl_ptr, parts_ptr, ticket_ptr, BM: tl.constexpr, BO: tl.constexpr
):  # fmt: skip
    """Stores the sum of this tile over its rows; the last tile of a column of tiles adds the sums of all into dl."""
    row_tiles = tl.cdiv(M, BM)
    column = o + tl.arange(0, BO)
    part = parts_ptr + (m // BM).to(tl.int64) * O + column
    tl.store(part, tl.sum(product, axis=0), mask=column < O)
    if last_of(ticket_ptr + o // BO, row_tiles):
        total = add_partials((parts_ptr + column)[None, :], (column < O)[None, :], row_tiles, O, 1, BO)
        tl.store((dl_ptr + column)[None, :], total.to(dl_ptr.dtype.element_ty), mask=(column < O)[None, :])


@triton.jit
def _ia3_dx_dl(
    dy, w, l_ptr, dy_ptr, saved_ptr, dx, dl_ptr, parts_ptr, ticket_ptr,
    M, N, K, dy_m, dy_n, w_n, w_k, l_i, saved_m, saved_i,
    FEEDFORWARD: tl.constexpr, NEED_DX: tl.constexpr, NEED_DL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, TMA: tl.constexpr, W_BY_ROWS: tl.constexpr, SPECIALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    if NEED_DX or FEEDFORWARD:
        for tile in range(tl.program_id(0), tl.cdiv(M, BM) * tl.cdiv(K, BK), tl.num_programs(0)):
            m, k = tile_origin(tile, M, K, BM, BK, GROUP)
            row, column = m + tl.arange(0, BM), k + tl.arange(0, BK)
            acc = accumulate(
                tl.zeros((BM, BK), tl.float32), dy, w, m, k, M, K, N, dy_m, dy_n, w_n, w_k,
                None if FEEDFORWARD else l_ptr, l_i, BM, BK, BN, TMA, W_BY_ROWS, SPECIALIZE, PRECISION,
            )  # fmt: skip
            if FEEDFORWARD and NEED_DL:
                x = load_2d(saved_ptr, row, column, saved_m, saved_i, M, K)  # 0 outside, so that the product is 0 there
                product = tl.where(row[:, None] < M, acc * x.to(tl.float32), 0.0)
                _add_rows(product, m, k, M, K, dl_ptr, parts_ptr, ticket_ptr, BM, BK)
            if NEED_DX:
                if FEEDFORWARD:
                    acc *= load_row(l_ptr, column, l_i, K)
                store_tile(dx, acc, m, k, M, K, BM, BK, TMA)
    if NEED_DL and not FEEDFORWARD:
        for tile in range(tl.program_id(0), tl.cdiv(M, BM) * tl.cdiv(N, BN), tl.num_programs(0)):
            m, n = tile_origin(tile, M, N, BM, BN, GROUP)
            row, column = m + tl.arange(0, BM), n + tl.arange(0, BN)
            factor = load_2d(dy_ptr, row, column, dy_m, dy_n, M, N)
            z = load_2d(saved_ptr, row, column, saved_m, saved_i, M, N)
            product = factor.to(tl.float32) * z.to(tl.float32)
            _add_rows(product, m, n, M, N, dl_ptr, parts_ptr, ticket_ptr, BM, BN)


def ia3_dx_dl(dY, weight, ia3_l, saved, feedforward, need_dX, need_dl):
    """dY [M, N], weight [N, K], ia3_l, saved x or z, any strides -> dX [M, K], dl; empty if not needed."""
    (M, N), K = dY.shape, weight.shape[1]
    dX = dY.new_empty(M if need_dX else 0, K)
    dl = torch.empty(ia3_l.shape if need_dl else (0,), dtype=ia3_l.dtype, device=ia3_l.device)
    if M == 0 or N == 0 or (K == 0 and feedforward):
        return dX.zero_(), dl.zero_()

    def launch(config):
        tile = _tiles.Gemm.fit(config, dY, weight, dX if need_dX else dY.new_empty(1, K).expand(M, K))
        row_tiles, columns = _tiles.cdiv(M, tile.BM), dl.numel()
        parts = torch.empty(row_tiles if need_dl else 0, columns, dtype=torch.float32, device=dY.device)
        _ia3_dx_dl[(tile.programs,)](
            tile.x, tile.w, ia3_l, dY, saved, tile.out, dl, parts, tickets(columns, dY.device),
            M, N, K, *dY.stride(), *weight.stride(), ia3_l.stride(0), *saved.stride(),
            FEEDFORWARD=feedforward, NEED_DX=need_dX, NEED_DL=need_dl, BM=tile.BM, BN=tile.BI, BK=tile.BO,
            GROUP=tile.group, TMA=tile.tma, W_BY_ROWS=tile.w_by_rows, SPECIALIZE=tile.specialize,
            PRECISION=precision(dY.device, dY.dtype), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    if need_dX or need_dl:
        _tiles.launch("ia3_dx_dl", launch, (dY,), (M, K, N), feedforward, need_dX, need_dl, weight.stride(1) == 1)
    return dX, dl
