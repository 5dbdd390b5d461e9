"""NearestRow rows of two dictionaries in both directions, exact, for a part of the product where most rows have a near partner.

A version of an SAE and its fine-tuned copy: the partner of almost every row has a cosine near 1, and nothing else comes close. To
prove that, a few numbers per row are enough. Rotate both dictionaries by the eigenvectors of their common second moment, keep the
first HEAD - 1 numbers of every row and, as one more, the norm of the others. By Cauchy-Schwarz the product of two such short rows
is an upper bound of their cosine:

    a.b = a_head.b_head + a_rest.b_rest <= a_head.b_head + |a_rest| |b_rest|

One product of the short rows gives the bound of every pair; of it the maximum of every group of rows is kept, as in
`engine.matching.kernels`. A row is multiplied in full with the group of its highest bound, and with the next ones while their
bounds reach what was found. Rows that would take more than _GROUPS groups, those without a near partner, are multiplied with all.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seedscope.engine.contract.abandon import stop_if_abandoned
from seedscope.engine.matching.kernels import BLOCK, TIE, best_cosines, chosen_products, first_true, group_maxima

HEAD = (
    192  # numbers of a short row. At 768 a quarter of the product; on spread-out rows it certifies cosines from 0.85 on
)
ROWS_AT_ONCE = 12_288  # rows of `a` whose maxima are in memory together; a whole number of blocks
_GROUP = 128  # columns per maximum, for the rows of `a`
_COLUMN_GROUP = 512  # rows per maximum, for the rows of `b`: all of these maxima are in memory at once
_GROUPS = 4  # groups that one row is multiplied with before it is multiplied with all
_SAMPLE = 8_192  # rows of each side that the eigenvectors come from; they need not be exact, only orthonormal


class NearestRow(NamedTuple):
    """For every row of one dictionary: the nearest row of another."""

    cosine: Float[Tensor, " rows"]
    partner: Int[Tensor, " rows"]  # ties (closer than kernels.TIE) go to the lowest index


def nearest(
    a: Float[Tensor, "rows_a d_in"], b: Float[Tensor, "rows_b d_in"], *, head: int = HEAD
) -> tuple[NearestRow, NearestRow]:
    """The nearest row of `b` for every row of `a`, and of `a` for every row of `b`; unit float32 rows, signed cosines.

    Equal to `best_cosines` without its runner-up, which is why it can be cheaper: head / d_in of its product, and the whole
    product again for rows without a near partner. Dictionaries of fewer than 2 `head` numbers gain nothing and are multiplied
    whole. Memory above the inputs: the short rows (head / d_in of the inputs) and rows_a * rows_b / 512 numbers. Both sides
    need at least one row.
    """
    if a.shape[1] < 2 * head:
        return _whole(a, b)
    short_a, short_b = _shortened(a, b, head)
    slack = a.shape[1] * 2.0**-22  # of sums in float32, of both products
    by_column = a.new_empty(-(-len(a) // _COLUMN_GROUP), len(b))
    buffer = a.new_empty(BLOCK * BLOCK)
    forward, left_a = _unknown(a), []
    for first in range(0, len(a), ROWS_AT_ONCE):
        chunk = slice(first, min(first + ROWS_AT_ONCE, len(a)))
        by_row = a.new_empty(chunk.stop - first, -(-len(b) // _GROUP))
        for first_row in range(first, chunk.stop, BLOCK):
            stop_if_abandoned()
            rows = slice(first_row, min(first_row + BLOCK, chunk.stop))
            for first_column in range(0, len(b), BLOCK):
                columns = slice(first_column, min(first_column + BLOCK, len(b)))
                shape = rows.stop - rows.start, columns.stop - columns.start
                bounds = buffer[: shape[0] * shape[1]].view(shape)
                torch.mm(short_a[rows], short_b[columns].T, out=bounds)
                here = slice(rows.start - first, rows.stop - first)
                by_row[here, columns.start // _GROUP : -(-columns.stop // _GROUP)] = group_maxima(bounds, _GROUP, 1)
                by_column[rows.start // _COLUMN_GROUP : -(-rows.stop // _COLUMN_GROUP), columns] = group_maxima(
                    bounds, _COLUMN_GROUP, 0
                )
        left_a.append(
            first + _search(a[chunk], b, by_row, _GROUP, slack, NearestRow(*(each[chunk] for each in forward)))
        )
    del short_a, short_b, buffer
    backward, left_b = _unknown(b), []
    for first in range(0, len(b), ROWS_AT_ONCE):
        stop_if_abandoned()
        chunk = slice(first, first + ROWS_AT_ONCE)
        found = NearestRow(*(each[chunk] for each in backward))
        left_b.append(first + _search(b[chunk], a, by_column[:, chunk].T.contiguous(), _COLUMN_GROUP, slack, found))
    del by_column
    rest_a, rest_b = torch.cat(left_a), torch.cat(left_b)
    if len(rest_a) / len(a) + len(rest_b) / len(b) > 1:
        return _whole(a, b)
    _multiply_with_all(a, b, rest_a, forward)
    _multiply_with_all(b, a, rest_b, backward)
    return forward, backward


def _unknown(rows: Tensor) -> NearestRow:
    return NearestRow(
        rows.new_full((len(rows),), -torch.inf), torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    )


def _shortened(a: Tensor, b: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """The first head - 1 numbers of every rotated row and the norm of the others, (rows, head)."""
    sample = torch.cat([rows[:: -(-len(rows) // _SAMPLE)] for rows in (a, b)]).double()
    basis = torch.linalg.eigh(sample.T @ sample).eigenvectors.flip(1)[:, : head - 1].to(a)

    def short(rows: Tensor) -> Tensor:
        result = rows.new_empty(len(rows), head)
        torch.mm(rows, basis, out=result[:, :-1])
        inside = torch.linalg.vector_norm(result[:, :-1], dim=1, dtype=torch.float64)
        whole = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        result[:, -1] = (whole.square() - inside.square()).clamp_min(0).sqrt()
        return result

    return short(a), short(b)


def _search(a: Tensor, b: Tensor, bounds: Tensor, group: int, slack: float, found: NearestRow) -> Tensor:
    """Fill in `found` from the maxima of bounds (rows, groups), which are overwritten; the indices of rows that need all of `b`."""
    open_rows = torch.arange(len(a), device=a.device)
    for _ in range(_GROUPS):
        chosen = bounds[open_rows].argmax(1)
        product = chosen_products(a[open_rows], b, chosen, group)
        value = product.amax(1)
        partner = chosen * group + first_true(product >= value[:, None] - TIE)[:, 0]
        _take(found, open_rows, value, partner)
        bounds[open_rows, chosen] = -torch.inf
        beaten = bounds[open_rows].amax(1) + slack < found.cosine[open_rows] - TIE
        open_rows = open_rows[~beaten]
        if not len(open_rows):
            break
    return open_rows


def _take(found: NearestRow, rows: Tensor, value: Tensor, partner: Tensor) -> None:
    """Keep the larger cosine of `rows`; among equal ones the lowest index."""
    cosine, at = found.cosine[rows], found.partner[rows]
    larger, equal = value > cosine + TIE, (value - cosine).abs() <= TIE
    found.partner[rows] = torch.where(larger, partner, torch.where(equal, torch.minimum(partner, at), at))
    found.cosine[rows] = torch.maximum(value, cosine)


def _multiply_with_all(a: Tensor, b: Tensor, rows: Tensor, found: NearestRow) -> None:
    for part in torch.split(rows, ROWS_AT_ONCE) if len(rows) else ():
        best, _ = best_cosines(a[part], b)
        found.cosine[part], found.partner[part] = best.cosine, best.partner


def _whole(a: Tensor, b: Tensor) -> tuple[NearestRow, NearestRow]:
    """Both directions from one product, with the maxima of ROWS_AT_ONCE rows in memory."""
    forward, backward = _unknown(a), _unknown(b)
    everything = torch.arange(len(b), device=b.device)
    for first in range(0, len(a), ROWS_AT_ONCE):
        chunk = slice(first, first + ROWS_AT_ONCE)
        there, back = best_cosines(a[chunk], b)
        forward.cosine[chunk], forward.partner[chunk] = there.cosine, there.partner
        _take(backward, everything, back.cosine, back.partner + first)
    return forward, backward
