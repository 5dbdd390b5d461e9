"""Best partners of all features in all other members, and what the same search finds by chance.

Rule argmax of paper A: partner = the feature with the largest signed cosine, one-directional, many-to-one.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from engine.kernels import best_cosines
from engine.sae import SAE

NULL_KINDS = ("haar", "second_moment")


class Matches(NamedTuple):
    """Best partners of every anchor feature in every other member; comparisons in seed order, the anchor left out.

    All arrays are (members, d_sae, comparisons). `other` (members, comparisons) names the comparison's member index.
    """

    other: np.ndarray
    partner: np.ndarray
    cosine: np.ndarray
    runner_up: np.ndarray
    mutual: np.ndarray
    encoder_cosine: np.ndarray  # cosine of the two encoder columns, at the decoder's partner
    live_partner: np.ndarray  # best partner among the comparison's living features
    live_cosine: np.ndarray


def match_ensemble(sae: SAE, live: np.ndarray) -> Matches:
    """Match every member with every other: one product a pair serves both directions.

    `live` (members, d_sae) says which features fired on the evaluation tokens. Cost: members^2 / 2 * d_sae^2 * d_in
    multiply-adds, twice where dead features exist. Raises ValueError for fewer than two members.
    """
    n, d_sae = sae.n_members, sae.d_sae
    if n < 2:
        raise ValueError(f"found {n} member, expected at least 2: stability compares independently trained SAEs")
    decoder = sae.directions()
    encoder = torch.nn.functional.normalize(sae.W_enc.detach().float().transpose(1, 2), dim=-1)
    other = np.array([[j for j in range(n) if j != i] for i in range(n)])
    shape = (n, d_sae, n - 1)
    found = Matches(
        other,
        *(
            np.zeros(shape, dtype)
            for dtype in (np.int32, np.float32, np.float32, bool, np.float32, np.int32, np.float32)
        ),
    )
    living = [torch.from_numpy(np.flatnonzero(row)) for row in live]
    for i in range(n):
        for j in range(i + 1, n):
            ij, ji = best_cosines(decoder[i], decoder[j])
            live_ij, live_ji = ij, ji
            if len(living[i]) < d_sae or len(living[j]) < d_sae:
                live_ij = best_cosines(decoder[i], decoder[j][living[j]])[0]
                live_ij = live_ij._replace(partner=living[j][live_ij.partner])
                live_ji = best_cosines(decoder[j], decoder[i][living[i]])[0]
                live_ji = live_ji._replace(partner=living[i][live_ji.partner])
            for anchor, comparison, best, back, best_live in ((i, j, ij, ji, live_ij), (j, i, ji, ij, live_ji)):
                slot = comparison - (comparison > anchor)
                at = (anchor, slice(None), slot)
                found.partner[at] = best.partner
                found.cosine[at] = best.cosine.clamp(-1, 1)
                found.runner_up[at] = best.runner_up.clamp(-1, 1)
                found.mutual[at] = back.partner[best.partner] == torch.arange(d_sae)
                found.encoder_cosine[at] = (encoder[anchor] * encoder[comparison][best.partner]).sum(-1)
                found.live_partner[at] = best_live.partner
                found.live_cosine[at] = best_live.cosine.clamp(-1, 1)
    return found


def null_cosines(sae: SAE, kind: str, *, seed: int = 0) -> Float[np.ndarray, "members d_sae comparisons"]:
    """Best cosines that chance alone gives: every comparison dictionary is replaced by a random one.

    `haar` rotates it by a random orthogonal matrix: geometry within it stays, its place does not. `second_moment`
    draws unit rows with its own uncentred second moment S (S^(1/2) times Gaussian, normalised): a mean direction and
    anisotropy that the members share stay, which Haar destroys. Definitions of this project (the first is also used by
    re-implementations of paper A).
    """
    generator = torch.Generator().manual_seed(seed)
    decoder = sae.directions()
    n, d_sae, _ = decoder.shape
    cosines = np.zeros((n, d_sae, n - 1), np.float32)
    for comparison in range(n):
        for anchor in (a for a in range(n) if a != comparison):
            random = _random_dictionary(decoder[comparison], kind, generator)
            best, _ = best_cosines(decoder[anchor], random)
            cosines[anchor, :, comparison - (comparison > anchor)] = best.cosine
    return cosines


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
