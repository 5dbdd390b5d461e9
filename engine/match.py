"""Partners of all features in all other members, and what the same search finds by chance.

Rules: *argmax* of paper A (the feature with the largest signed cosine, one-directional, many-to-one), on which p_hat rests;
beside it *mutual* (each is the other's argmax) and the one-to-one assignments of decoders and of encoders with the largest
summed cosine (paper B; Paulo and Belrose 2025). All is stored unthresholded: theta moves without matching again.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from engine.assign import Assignment, hungarian
from engine.kernels import Best, best_cosines
from engine.sae import SAE

NULL_KINDS = ("haar", "second_moment")
NO_MATCH = -1.0  # cosine of a pair that a rule does not form; no theta in [-1, 1] but -1 itself reaches it
HUNGARIAN_UP_TO = 2e11  # pairs * d_sae^2 * d_in multiply-adds that are spent by default: minutes on two cores


class Matches(NamedTuple):
    """Partners of every anchor feature in every other member; comparisons in seed order, the anchor left out.

    All arrays are (members, d_sae, comparisons). `other` (members, comparisons) names the comparison's member index.
    Rows without a direction (zero or not finite) match nothing: partner -1, cosine -1.
    """

    other: np.ndarray
    partner: np.ndarray
    cosine: np.ndarray
    runner_up: np.ndarray
    mutual: np.ndarray
    encoder_cosine: np.ndarray  # cosine of the two encoder columns, at the decoder's partner
    live_partner: np.ndarray  # best partner among the comparison's living features
    live_cosine: np.ndarray
    hungarian_partner: np.ndarray  # -1: stays alone, or not computed
    hungarian_cosine: np.ndarray
    hungarian_encoder_cosine: np.ndarray
    encoder_partner: np.ndarray  # partner under the assignment of the encoders


class PairMatches(NamedTuple):
    """One direction of one pair: the fields of Matches, each (d_sae of the anchor,)."""

    partner: np.ndarray
    cosine: np.ndarray
    runner_up: np.ndarray
    mutual: np.ndarray
    encoder_cosine: np.ndarray
    live_partner: np.ndarray
    live_cosine: np.ndarray
    hungarian_partner: np.ndarray
    hungarian_cosine: np.ndarray
    hungarian_encoder_cosine: np.ndarray
    encoder_partner: np.ndarray


class Dictionary(NamedTuple):
    """Unit decoder rows and encoder columns of one member; `valid` and `live` are ascending feature indices."""

    decoder: Float[Tensor, "d_sae d_in"]
    encoder: Float[Tensor, "d_sae d_in"]
    valid: Tensor  # rows that have a direction
    live: Tensor  # valid rows that fired


def dictionaries(sae: SAE, live: Bool[np.ndarray, "members d_sae"] | None = None) -> list[Dictionary]:
    """Every member's directions; without `live`, all features count as living."""
    result = []
    for member in range(sae.n_members):
        decoder = sae.W_dec.detach()[member].float()
        norms = decoder.norm(dim=-1)
        valid = (torch.isfinite(norms) & (norms > 0)).nonzero()[:, 0]
        fired = torch.ones(sae.d_sae, dtype=torch.bool) if live is None else torch.from_numpy(live[member])
        encoder = sae.W_enc.detach()[member].float().T
        result.append(Dictionary(_unit(decoder), _unit(encoder), valid, valid[fired[valid]]))
    return result


def _unit(rows: Tensor) -> Tensor:
    """Rows of norm 1; rows without a direction become zero."""
    return torch.nn.functional.normalize(torch.nan_to_num(rows, 0.0, 0.0, 0.0), dim=-1)


def match_pair(a: Dictionary, b: Dictionary, *, assign: bool = True) -> tuple[PairMatches, PairMatches]:
    """Match two members in both directions: one product for argmax, two assignments if `assign`.

    Raises ValueError where the widths d_in differ.
    """
    if a.decoder.shape[1] != b.decoder.shape[1]:
        raise ValueError(
            f"d_in is {a.decoder.shape[1]} and {b.decoder.shape[1]}, expected the same: the SAEs read different activations"
        )
    ab, ba = _best(a.decoder, a.valid, b.decoder, b.valid)
    live_ab, live_ba = ab, ba
    if len(b.live) < len(b.valid):
        live_ab = _best(a.decoder, a.valid, b.decoder, b.live)[0]
    if len(a.live) < len(a.valid):
        live_ba = _best(b.decoder, b.valid, a.decoder, a.live)[0]
    one_to_one = encoders = None
    if assign and len(a.valid) and len(b.valid):
        one_to_one = hungarian(a.decoder[a.valid], b.decoder[b.valid])
        encoders = hungarian(a.encoder[a.valid], b.encoder[b.valid])
    forward = _direction(a, b, ab, ba, live_ab, one_to_one, encoders, False)
    backward = _direction(b, a, ba, ab, live_ba, one_to_one, encoders, True)
    return forward, backward


def _best(rows_a: Tensor, of_a: Tensor, rows_b: Tensor, of_b: Tensor) -> tuple[Best, Best]:
    """best_cosines between the chosen rows, in full-size arrays; rows left out get partner -1 and cosine NO_MATCH."""
    if not len(of_a) or not len(of_b):
        return _none(rows_a), _none(rows_b)
    found = best_cosines(rows_a[of_a], rows_b[of_b])
    full = []
    for best, size, mine, theirs in zip(found, (rows_a, rows_b), (of_a, of_b), (of_b, of_a), strict=True):
        spread = _none(size)
        spread.cosine[mine] = best.cosine.clamp(-1, 1)
        spread.partner[mine] = theirs[best.partner]
        spread.runner_up[mine] = best.runner_up.clamp(-1, 1)
        full.append(spread)
    return full[0], full[1]


def _none(rows: Tensor) -> Best:
    worst = rows.new_full((len(rows),), NO_MATCH)
    return Best(worst, torch.full((len(rows),), -1, dtype=torch.long), worst.clone())


def _direction(
    a: Dictionary,
    b: Dictionary,
    best: Best,
    back: Best,
    live: Best,
    one_to_one: Assignment | None,
    encoders: Assignment | None,
    reverse: bool,
) -> PairMatches:
    found = best.partner >= 0
    mutual = found & (back.partner[best.partner] == torch.arange(len(best.partner)))
    encoder_cosine = torch.where(found, (a.encoder * b.encoder[best.partner]).sum(-1), NO_MATCH)
    partner, cosine = _assigned(one_to_one, a, b, reverse)
    at_partner = np.where(partner >= 0, (a.encoder * b.encoder[torch.from_numpy(partner)]).sum(-1), NO_MATCH)
    return PairMatches(
        best.partner.numpy().astype(np.int32),
        best.cosine.numpy(),
        best.runner_up.numpy(),
        mutual.numpy(),
        encoder_cosine.numpy(),
        live.partner.numpy().astype(np.int32),
        live.cosine.numpy(),
        partner.astype(np.int32),
        cosine.astype(np.float32),
        at_partner.astype(np.float32),
        _assigned(encoders, a, b, reverse)[0].astype(np.int32),
    )


def _assigned(found: Assignment | None, a: Dictionary, b: Dictionary, reverse: bool) -> tuple[np.ndarray, np.ndarray]:
    """An assignment of the valid rows as full-size partner and cosine arrays, for the given direction."""
    partner, cosine = np.full(len(a.decoder), -1), np.full(len(a.decoder), NO_MATCH)
    if found is None:
        return partner, cosine
    mine, theirs = (b.valid, a.valid) if reverse else (a.valid, b.valid)
    matched = found.partner >= 0
    left, right = mine.numpy()[matched], theirs.numpy()[found.partner[matched]]
    at, to = (right, left) if reverse else (left, right)
    partner[at], cosine[at] = to, np.clip(found.cosine[matched], -1, 1)
    return partner, cosine


def affordable(n_members: int, d_sae: int, d_in: int) -> bool:
    """Whether one-to-one matching of all pairs is done without being asked for."""
    return n_members * (n_members - 1) / 2 * d_sae**2 * d_in <= HUNGARIAN_UP_TO


def match_ensemble(
    sae: SAE,
    live: Bool[np.ndarray, "members d_sae"],
    *,
    assign: bool | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Matches:
    """Match every member with every other; a product a pair serves both directions.

    `live` says which features fired on the evaluation tokens. `assign` asks for one-to-one matching; by default it is
    done where it is cheap. Cost: members^2 / 2 * d_sae^2 * d_in multiply-adds, twice where dead features exist. Raises
    ValueError for fewer than two members.
    """
    n, d_sae = sae.n_members, sae.d_sae
    if n < 2:
        raise ValueError(f"found {n} member, expected at least 2: stability compares independently trained SAEs")
    assign = affordable(n, d_sae, sae.d_in) if assign is None else assign
    members = dictionaries(sae, live)
    other = np.array([[j for j in range(n) if j != i] for i in range(n)])
    fields: dict[str, np.ndarray] = {}
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    for done, (i, j) in enumerate(pairs):
        forward, backward = match_pair(members[i], members[j], assign=assign)
        for anchor, comparison, found in ((i, j, forward), (j, i, backward)):
            slot = comparison - (comparison > anchor)
            for name, values in found._asdict().items():
                held = fields.setdefault(name, np.zeros((n, d_sae, n - 1), values.dtype))
                held[anchor, :, slot] = values
        report(done + 1, len(pairs))
    return Matches(other, **fields)


def null_cosines(sae: SAE, kind: str, *, seed: int = 0) -> Float[np.ndarray, "members d_sae comparisons"]:
    """Best cosines that chance alone gives: every comparison dictionary is replaced by a random one.

    `haar` rotates it by a random orthogonal matrix: geometry within it stays, its place does not. `second_moment`
    draws unit rows with its own uncentred second moment S (S^(1/2) times Gaussian, normalised): a mean direction and
    anisotropy that the members share stay, which Haar destroys. Definitions of this project (the first is also used by
    re-implementations of paper A). Anchor rows without a direction get NO_MATCH.
    """
    generator = torch.Generator().manual_seed(seed)
    members = dictionaries(sae)
    n = sae.n_members
    cosines = np.zeros((n, sae.d_sae, n - 1), np.float32)
    for comparison, anchor in _ordered_pairs(n):
        random = _random_dictionary(members[comparison].decoder[members[comparison].valid], kind, generator)
        best, _ = _best(members[anchor].decoder, members[anchor].valid, random, torch.arange(len(random)))
        cosines[anchor, :, comparison - (comparison > anchor)] = best.cosine
    return cosines


def _ordered_pairs(n: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(n) for j in range(n) if i != j)


def _random_dictionary(rows: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    d_sae, d_in = rows.shape
    if kind == "haar":
        q, r = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator))
        return rows @ (q * r.diagonal().sign())  # the sign makes the distribution exactly Haar (Mezzadri 2007)
    if kind == "second_moment":
        values, vectors = torch.linalg.eigh(rows.T @ rows / d_sae)
        root = vectors * values.clamp_min(0).sqrt()
        return torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator) @ root.T, dim=-1)
    raise ValueError(f"null kind is {kind!r}, expected one of {', '.join(NULL_KINDS)}")
