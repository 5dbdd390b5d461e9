"""A two-dimensional map of decoder directions of all members (t-SNE), in which features that come back lie together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from seedscope.engine.matching.best_matches import BestMatches
from seedscope.engine.matching.match import Matches
from seedscope.engine.saes.sae import directed

MOST = 5_000  # features that are drawn; ten seconds on two cores
PERPLEXITY = 30.0
SEED = 0


class DirectionMap(NamedTuple):
    """Coordinates on the map; small distances are meaningful, large ones are not."""

    x: Float[np.ndarray, "members d_sae"]  # NaN where a feature is not drawn
    y: Float[np.ndarray, "members d_sae"]
    remark: str  # what is drawn, and how


def draw_map(
    decoders: Sequence[Float[torch.Tensor, "d_sae d_in"]] | Float[torch.Tensor, "members d_sae d_in"],
    matches: Matches | BestMatches,
    living: Bool[np.ndarray, "members d_sae"],
    *,
    most: int = MOST,
    seed: int = SEED,
) -> DirectionMap:
    """t-SNE (van der Maaten and Hinton 2008; scikit-learn's, from the first two principal components) of unit decoder rows.

    All living features where they are at most `most`; else a random choice of one member's, each with its nearest feature
    in every other member, so that recurring features are seen as such. Features without a direction are never drawn. Memory: one
    member's rows, and those that are drawn.
    """
    from sklearn.manifold import TSNE  # a second to import

    drawn = living & np.stack([directed(rows).cpu().numpy() for rows in decoders])
    remark = f"all {int(drawn.sum()):,} living features"
    if drawn.sum() > most:
        drawn, remark = _with_nearest(drawn, matches, most, seed)
    x, y = np.full((2, *drawn.shape), np.nan, np.float32)
    chosen = [rows[torch.from_numpy(mask).to(rows.device)] for rows, mask in zip(decoders, drawn, strict=True)]
    rows = torch.nn.functional.normalize(torch.cat(chosen).float(), dim=1)
    if len(rows) > 2:
        perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
        embedded = TSNE(2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(rows.cpu().numpy())
        x[drawn], y[drawn] = embedded.T
    return DirectionMap(x, y, f"{remark}; t-SNE of unit decoder rows, perplexity {PERPLEXITY:g}, random seed {seed}")


def _with_nearest(drawn: np.ndarray, matches: Matches | BestMatches, most: int, seed: int) -> tuple[np.ndarray, str]:
    """A random choice of the first member's features that may be drawn, with their partners in the others."""
    members = len(drawn)
    anchor = int(np.argmax(drawn.any(1)))
    n = max(most // members, 1)
    mine = np.random.default_rng(seed).permutation(np.flatnonzero(drawn[anchor]))[:n]
    chosen = np.zeros_like(drawn)
    chosen[anchor, mine] = True
    partners = matches.partner[anchor][mine]
    for other, partner in zip(matches.other[anchor], partners.T, strict=True):
        chosen[other, partner[partner >= 0]] = True
    chosen &= drawn
    return chosen, f"{len(mine):,} features of one seed, drawn at random, and their nearest living ones in every other"
