"""Predict from a decoder row whether its feature is stable: logistic regression from seed to seed, with controls.

Stable rows are copies across seeds: a classifier that merely remembers directions does well on other seeds. So the plain
figure, which papers report, comes with the same figure without shared copies, and with that of rows without any geometry.
Float64, as fits are small. The fit is not scikit-learn's: LogisticRegression stops on another criterion, its weights differ
by up to 1e-2. All definitions but the plain one are this project's.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from seedscope.engine.contract.stability import THETA, is_match

N_DRAWS = 4  # balanced subsamples and splits that figures are averaged over
INVERSE_PENALTY = 1.0  # C of |w|^2 / 2 + C sum(log loss), scikit-learn's default
FEWEST = 2  # rows of each class below which a draw says nothing
MOST_NUMBERS = 2**26  # of the rows that are fitted, all members together: half a GiB, six times which is worked on
EDGES_AT_ONCE = 2**24


def match_clusters(
    partner: Sequence[np.ndarray] | np.ndarray,
    cosine: Sequence[np.ndarray] | np.ndarray,
    other: np.ndarray,
    theta: float = THETA,
) -> np.ndarray:
    """(members, d_sae) cluster ids: connected components of matches at theta across all members, as `engine.matching.match.Matches`
    names its arrays. One chain of matches makes one cluster; a feature without a match is one of its own. Ids are in the order of
    clusters' first features. Memory: one member's matches, EDGES_AT_ONCE, and a few numbers per feature.
    """
    n, d_sae = len(other), len(partner[0])
    cluster = np.arange(n * d_sae)
    firsts, seconds = list[np.ndarray](), list[np.ndarray]()
    for anchor in range(n):
        partners = partner[anchor]
        feature, slot = (is_match(cosine[anchor], theta) & (partners >= 0)).nonzero()
        firsts.append(cluster[anchor * d_sae + feature])
        seconds.append(cluster[other[anchor, slot] * d_sae + partners[feature, slot]])
        if anchor == n - 1 or sum(map(len, firsts)) > EDGES_AT_ONCE:
            ends = np.concatenate(firsts), np.concatenate(seconds)
            edges = sparse.coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(int(cluster.max()) + 1,) * 2)
            cluster = connected_components(edges, directed=False)[1][cluster]
            firsts, seconds = [], []
    return cluster.reshape(n, d_sae)


def some_clusters(clusters: Sequence[np.ndarray], most: int, seed: int = 0) -> list[np.ndarray]:
    """Masks of the rows in clusters chosen at random, whole ones, of `most` rows at most all members together."""
    ids = _renumbered(clusters)
    sizes = np.bincount(np.concatenate(ids))
    order = np.random.default_rng(seed).permutation(len(sizes))
    chosen = np.zeros(len(sizes), bool)
    chosen[order[sizes[order].cumsum() <= most]] = True
    return [chosen[of_member] for of_member in ids]


class Figures(NamedTuple):
    """Scores over ordered pairs of members (trained on one, tested on another), each averaged over draws."""

    f1: np.ndarray  # (members, members) positive class stable; NaN on the diagonal and where rows were too few
    auroc: np.ndarray  # likewise
    f1_mean: float
    f1_spread: float  # standard deviation over ordered pairs
    auroc_mean: float
    auroc_spread: float
    n_pairs: int  # ordered pairs that could be scored
    n_train: float  # rows that a classifier saw, both classes, mean
    n_test: float


class Predictability(NamedTuple):
    """How well stable and unstable are told apart by the decoder row; train and test rows are balanced by subsampling."""

    plain: Figures  # trained on one member, tested on another [paper A]: copies leak
    fewer: Figures  # as many rows as `disjoint`, clusters ignored
    disjoint: Figures  # no matched cluster in both training and test rows
    isotropic: Figures  # `plain` on random directions, copied across members as closely as the real clusters are
    isotropic_disjoint: Figures  # `disjoint` on those: chance
    shuffled: Figures  # `plain` with the training labels shuffled: chance
    always_stable_f1: float  # 2q / (1 + q) at the positive share q of the test rows: 2/3, as they are balanced
    n_clusters: int
    largest_cluster: float  # its share of all rows: near 1, matches chain and `disjoint` says little

    @property
    def left(self) -> float:
        """AUROC that is left of `disjoint` above that of directions without geometry."""
        return self.disjoint.auroc_mean - self.isotropic_disjoint.auroc_mean


class _Split(NamedTuple):
    """Rows of every member to train and to test on, indices; half of each stable."""

    train: list[np.ndarray]
    test: list[np.ndarray]


def predictability(
    rows: Sequence[np.ndarray],
    is_stable: Sequence[np.ndarray],
    clusters: Sequence[np.ndarray],
    *,
    n_draws: int = N_DRAWS,
    inverse_penalty: float = INVERSE_PENALTY,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Predictability:
    """Train on every member, test on every other, with every control; `rows` (n, d) are stable or unstable, none between.

    `is_stable` and `clusters` (n,) belong to the rows. Cost: 6 fits per member and draw. Raises ValueError for fewer than
    two members and for one with fewer than FEWEST stable or unstable rows.
    """
    rows, labels = _checked_rows(rows, is_stable)
    ids = _renumbered(clusters)
    rng = np.random.default_rng(seed)
    copies = _isotropic_copies(rows, ids, rng)
    names = ("plain", "fewer", "disjoint", "isotropic", "isotropic_disjoint", "shuffled")
    scores: dict[str, list[np.ndarray]] = {name: [] for name in names}
    sizes: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for draw in range(n_draws):
        every = [np.arange(len(one)) for one in labels]
        plain = _Split(*([_balanced(at, one, rng) for at, one in zip(every, labels, strict=True)] for _ in range(2)))
        apart = _split_by_cluster(labels, ids, rng)
        halves = ([len(at) // 2 for at in side] for side in apart)
        fewer = _Split(*(
            [_balanced(at, one, rng, n) for at, one, n in zip(every, labels, half, strict=True)] for half in halves
        ))  # fmt: skip
        for name, of, split in (
            ("plain", rows, plain),
            ("fewer", rows, fewer),
            ("disjoint", rows, apart),
            ("isotropic", copies, plain),
            ("isotropic_disjoint", copies, apart),
            ("shuffled", rows, plain),
        ):
            mix = rng.permutation if name == "shuffled" else np.asarray
            scores[name].append(_score_pairs(of, labels, split, mix, inverse_penalty))
            n_train, n_test = (float(np.mean([len(at) for at in side])) for side in split)
            sizes[name].append((n_train, n_test))
        report(draw + 1, n_draws)
    figures = {name: _figures(np.stack(scores[name]), sizes[name]) for name in names}
    counts = np.bincount(np.concatenate(ids))
    return Predictability(**figures, always_stable_f1=_always_stable_f1(0.5), n_clusters=len(counts),
                          largest_cluster=float(counts.max() / counts.sum()))  # fmt: skip


def _always_stable_f1(q: float) -> float:
    return 2 * q / (1 + q)


def _checked_rows(
    rows: Sequence[np.ndarray], is_stable: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    if len(rows) < 2:
        raise ValueError(f"found {len(rows)} member, expected at least 2: it is trained on one and tested on another")
    labels = [np.asarray(one, bool) for one in is_stable]
    for member, one in enumerate(labels):
        if min(one.sum(), (~one).sum()) < FEWEST:
            raise ValueError(
                f"member {member} has {one.sum()} stable and {(~one).sum()} unstable rows, expected at least {FEWEST} of each:"
                " leave it out, or move theta or epsilon"
            )
    unit = [np.asarray(every, float) for every in rows]
    return [every / np.linalg.norm(every, axis=1, keepdims=True) for every in unit], labels


def _renumbered(clusters: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The ids as 0, 1, 2, .."""
    joined = np.unique(np.concatenate([np.asarray(one) for one in clusters]), return_inverse=True)[1]
    return np.split(joined, np.cumsum([len(one) for one in clusters])[:-1])


def _isotropic_copies(rows: list[np.ndarray], ids: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Random unit rows whose cosine within a cluster is on average that of the real rows.

    sqrt(rho) g + sqrt(1 - rho) h with g the cluster's and h the row's own random unit row; rho from the length of the
    cluster's sum: |sum|^2 = m + m (m - 1) rho.
    """
    joined, at = np.concatenate(rows), np.concatenate(ids)
    m = np.bincount(at)
    sums = sparse.csr_array((np.ones(len(at)), (at, np.arange(len(at)))), shape=(len(m), len(at))) @ joined
    rho = np.where(m > 1, ((sums**2).sum(1) - m) / np.maximum(m * (m - 1), 1), 0).clip(0, 1)[at, None]
    shared, own = _random_rows(len(m), joined.shape[1], rng)[at], _random_rows(len(joined), joined.shape[1], rng)
    mixed = np.sqrt(rho) * shared + np.sqrt(1 - rho) * own
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    return np.split(mixed, np.cumsum([len(one) for one in ids])[:-1])


def _random_rows(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    rows = rng.normal(size=(n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _balanced(at: np.ndarray, label: np.ndarray, rng: np.random.Generator, n: int | None = None) -> np.ndarray:
    """As many stable as unstable rows out of `at`, n of each, or as many as there are of the rarer."""
    stable, unstable = at[label[at]], at[~label[at]]
    n = min(len(stable), len(unstable)) if n is None else n
    return np.concatenate([rng.permutation(stable)[:n], rng.permutation(unstable)[:n]])


def _split_by_cluster(labels: list[np.ndarray], ids: list[np.ndarray], rng: np.random.Generator) -> _Split:
    """Half of the clusters to train on, the other half to test on, the same for all members."""
    trained = rng.permutation(max(one.max() for one in ids) + 1) % 2 == 0
    return _Split(*(
        [_balanced(np.flatnonzero(trained[one] == side), label, rng) for one, label in zip(ids, labels, strict=True)]
        for side in (True, False)
    ))  # fmt: skip


def _score_pairs(
    rows: list[np.ndarray],
    labels: list[np.ndarray],
    split: _Split,
    mix: Callable[[np.ndarray], np.ndarray],
    inverse_penalty: float,
) -> np.ndarray:
    """(2, members, members): F1 and AUROC, trained on the first, tested on the second index."""
    n, d = len(rows), rows[0].shape[1]
    enough = [np.array([len(at) >= 2 * FEWEST for at in side]) for side in split]
    weights = np.zeros((n, d + 1))
    for member in np.flatnonzero(enough[0]):
        at = split.train[member]
        weights[member] = fit(rows[member][at], mix(labels[member][at]), inverse_penalty)
    scores = np.full((2, n, n), np.nan)
    for member in np.flatnonzero(enough[1]):
        at = split.test[member]
        logits = rows[member][at] @ weights[:, :-1].T + weights[:, -1]
        scores[:, :, member] = f1(logits, labels[member][at]), auroc(logits, labels[member][at])
    scores[:, ~enough[0]] = np.nan
    scores[:, np.arange(n), np.arange(n)] = np.nan
    return scores


def fit(rows: np.ndarray, stable: np.ndarray, inverse_penalty: float = INVERSE_PENALTY) -> np.ndarray:
    """(d + 1,) weights and intercept, the latter not penalised; L-BFGS until the gradient is below 1e-5."""
    sign = np.where(stable, 1.0, -1.0)

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (rows @ w[:-1] + w[-1])
        pull = -inverse_penalty * sign * expit(-margin)
        loss = w[:-1] @ w[:-1] / 2 + inverse_penalty * np.logaddexp(0, -margin).sum()
        return loss, np.append(w[:-1] + pull @ rows, pull.sum())

    start = np.zeros(rows.shape[1] + 1)
    return minimize(objective, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-5, "ftol": 0, "maxiter": 500}).x


def f1(logits: np.ndarray, stable: np.ndarray) -> np.ndarray:
    """(classifiers,) F1 of logits (rows, classifiers) above 0; 0 where nothing was called stable."""
    from sklearn.metrics import f1_score  # a second to import

    return np.array([f1_score(stable, column > 0, zero_division=0) for column in logits.T])


def auroc(logits: np.ndarray, stable: np.ndarray) -> np.ndarray:
    """(classifiers,) probability that a stable row has the larger logit than an unstable one; ties count half."""
    from sklearn.metrics import roc_auc_score  # a second to import

    return np.array([roc_auc_score(stable, column) for column in logits.T])


def _figures(scores: np.ndarray, sizes: list[tuple[float, float]]) -> Figures:
    """Mean over draws that scored a pair, then over pairs."""
    is_scored = ~np.isnan(scores)
    n = is_scored.sum(0)
    by_pair = np.where(n > 0, np.where(is_scored, scores, 0).sum(0) / np.maximum(n, 1), np.nan)
    pairs = ~np.isnan(by_pair[0])
    f1_values, auroc_values = by_pair[0][pairs], by_pair[1][pairs]
    n_train, n_test = np.mean(sizes, 0).tolist()
    return Figures(
        by_pair[0],
        by_pair[1],
        float(f1_values.mean()) if pairs.any() else np.nan,
        float(f1_values.std()) if pairs.any() else np.nan,
        float(auroc_values.mean()) if pairs.any() else np.nan,
        float(auroc_values.std()) if pairs.any() else np.nan,
        int(pairs.sum()),
        n_train,
        n_test,
    )
