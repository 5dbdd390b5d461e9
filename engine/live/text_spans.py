"""How strong shared spans are on a text: of every token, what a span's members in one seed write inside the span.

A token's *strength* is SharedSpanContext's: the norm of sum_i a_i P d_i over the span's members i of a seed, a_i the activation,
d_i the unit decoder row, P the projection on the span of all seeds together. Beside it stands the *raw* projection: the norm of
P (x - b) with the activation x at the hook point as the SAE reads it (after its own normalisation) and its decoder bias b, so of
everything that lies in the span, whoever writes it. Both are in units of activation. Definitions of this project.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seedscope.engine.contract.queries import ALL_SPANS, MAX_TEXT_SPANS
from seedscope.engine.contract.tables.shared_spans import SharedSpan, SharedSpanDirection, SharedSpanFeature
from seedscope.engine.live.active import ActiveFeatures
from seedscope.engine.saes.sae import SAE, Codes, unit_rows
from seedscope.engine.store.database import StoreReader

ALL_SEEDS = -1  # SharedSpanDirection.basis of the members of all seeds together


class TextSpan(NamedTuple):
    """A kept span: its basis over all seeds, and its members by seed."""

    id: str
    basis: Float[np.ndarray, "rank d_out"]  # orthonormal rows
    features: dict[int, np.ndarray]  # indices, ascending


class TextSpans(NamedTuple):
    """The kept spans of an ensemble, in the order of their numbers."""

    spans: list[TextSpan]

    @property
    def n_bytes(self) -> int:
        """What their arrays take."""
        return sum(one.basis.nbytes + sum(each.nbytes for each in one.features.values()) for one in self.spans)


def read_spans(store: Path, ensemble: str) -> TextSpans:
    """The kept spans of an ensemble in a published store; raises ValueError for a store that cannot be read."""
    with StoreReader(store) as reader:
        kept = [row for row in reader.rows(SharedSpan, ensemble=ensemble) if row.kept]
        if not kept:
            return TextSpans([])
        axes = reader.table(SharedSpanDirection, ["span", "vector"], ensemble=ensemble, basis=ALL_SEEDS)
        members = reader.table(SharedSpanFeature, ["span", "seed", "feature"], ensemble=ensemble)
    of_axis, vectors = np.array(axes["span"].to_pylist()), axes["vector"].to_pylist()
    of_member, seed, feature = (np.array(members[name].to_pylist()) for name in ("span", "seed", "feature"))
    spans = []
    for row in sorted(kept, key=lambda row: row.number):
        basis = np.array([vectors[at] for at in np.flatnonzero(of_axis == row.span)], np.float32)
        mine = of_member == row.span
        spans.append(
            TextSpan(row.span, basis, {int(s): np.sort(feature[mine & (seed == s)]) for s in np.unique(seed[mine])})
        )
    return TextSpans(spans)


class SpanStrengths:
    """The strengths of spans on one text, collected seed after seed: of ALL_SPANS, of the one with the id `asked`, or of none.

    Raises ValueError for an id that no kept span has.
    """

    def __init__(self, spans: Sequence[TextSpan], asked: str) -> None:
        self._spans = [one for one in spans if asked in (ALL_SPANS, one.id)]
        self._alone = asked != ALL_SPANS
        if asked not in ("", ALL_SPANS) and not self._spans:
            kept = ", ".join(one.id for one in spans)[:200] or "none, for no span was kept"
            raise ValueError(f"span is {asked!r:.80}, expected one of the kept spans: {kept}")
        self._strength: list[np.ndarray] = []  # per seed (spans, tokens)
        self._raw: list[np.ndarray] = []  # per seed (tokens,)

    def add(self, seed: int, member: SAE, rows: Tensor, codes: Codes, active: ActiveFeatures) -> None:
        """Measure one member (an ensemble of one): the text's activations `rows` (tokens, d_in), its codes and what is active."""
        if not self._spans:
            return
        self._strength.append(_strengths(self._spans, seed, member, active))
        if self._alone and not member.convention.transcoder:
            self._raw.append(_raw(self._spans[0], member, rows, codes))

    def arrays(self, n_tokens: int) -> dict[str, np.ndarray]:
        """The fields of a LiveAnswer, of the first tokens alone; none where no span is kept."""
        if not self._spans:
            return {}
        strength = np.stack([of_seed[:, :n_tokens] for of_seed in self._strength], 1)
        order = np.argsort(-(strength.astype(np.float64) ** 2).sum((1, 2)), kind="stable")[:MAX_TEXT_SPANS]
        numbers = np.array([int(self._spans[at].id, 16) for at in order], np.int64)
        arrays = {"span": numbers, "strength": np.ascontiguousarray(strength[order])}
        return arrays | ({"raw": np.stack([of_seed[:n_tokens] for of_seed in self._raw])} if self._raw else {})


def _strengths(spans: Sequence[TextSpan], seed: int, member: SAE, active: ActiveFeatures) -> np.ndarray:
    """(spans, tokens) of one member."""
    n_tokens = len(active.n_active)
    width = max(len(one.basis) for one in spans)
    owner = np.full(member.d_sae, -1)  # of every feature, the span that it is in: one at most
    inside = np.zeros((member.d_sae, width), np.float32)  # P d_i in the span's own coordinates
    rows = member.decoder_rows(0)
    for at, one in enumerate(spans):
        features = one.features.get(seed, np.zeros(0, np.int64))
        owner[features] = at
        unit = unit_rows(rows[torch.from_numpy(features).to(rows.device)].float()).cpu().numpy()
        inside[features, : len(one.basis)] = unit @ one.basis.T
    mine = np.flatnonzero(owner[active.feature] >= 0)
    feature = active.feature[mine]
    token = np.repeat(np.arange(n_tokens), active.n_active)[mine]
    # Only places where a member fires have a sum: a text has many tokens, and an ensemble may have many spans.
    places, cell = np.unique(owner[feature] * n_tokens + token, return_inverse=True)
    sums = np.zeros((len(places), width))
    np.add.at(sums, cell, inside[feature] * active.activation[mine, None].astype(np.float64))
    strength = np.zeros(len(spans) * n_tokens, np.float32)
    strength[places] = np.linalg.norm(sums, axis=1)
    return strength.reshape(len(spans), n_tokens)


def _raw(span: TextSpan, member: SAE, rows: Tensor, codes: Codes) -> np.ndarray:
    """(tokens,) norm of what lies in a span of the SAE's input less its decoder bias."""
    x = rows.to(member.W_dec)
    if codes.shift is not None:
        x = x - codes.shift
    if codes.scale is not None:
        x = x / codes.scale.clamp_min(torch.finfo(x.dtype).tiny)
    basis = torch.from_numpy(span.basis).to(x)
    found: np.ndarray = ((x - member.b_dec[0]) @ basis.T).norm(dim=1).float().cpu().numpy()
    return found
