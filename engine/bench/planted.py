"""Matching rules on planted pairs of members, whose counterparts are known: which pairs are right, best ones first."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from seedscope.engine.bench.generated_pairs import PlantedConfig, PlantedMember, PlantedPair, draw_pair
from seedscope.engine.bench.report import BenchLine
from seedscope.engine.contract.stability import THETA
from seedscope.engine.contract.tables.function import N_NEAREST
from seedscope.engine.features.counterparts import most_alike
from seedscope.engine.matching.match import Dictionary, PairMatches, match_pair
from seedscope.engine.matching.nearest_rows import nearest_rows
from seedscope.engine.matching.transport import transport

HEAD, BEST = 100, 2000  # pairs of the highest score; what follows is the tail
FEWER_TOKENS = (4, 16)  # the rule `active` again, from so many times fewer tokens
GOAL = "every rule against the truth; the co-firing rule best in the tail, or why not"


class Ranked(NamedTuple):
    """A rule's partner for every feature of the first member, and the score that its pairs are ranked by."""

    partner: np.ndarray  # -1: none
    score: np.ndarray


@dataclass(frozen=True)
class RuleScore:
    """How right a rule is. A pair is right if its two features hold the same true feature."""

    rule: str
    n_pairs: int
    at_head: float  # share of the HEAD pairs of highest score that are right: R@100
    at_best: float  # of the BEST: R@2000
    tail_precision: float  # of the pairs after these, up to as many as features have a counterpart
    precision: float  # of all pairs up to there
    recall: float  # share of the features with a counterpart whose partner is one
    tail_recall: float  # the same of those whose nearest counterpart has a cosine below THETA
    seconds: float


def lines(*, full: bool = False, config: PlantedConfig | None = None) -> Iterator[BenchLine]:
    """One line per rule; `full` plants four times as many features."""
    if config is None:
        n = 4 if full else 1
        config = PlantedConfig(n_shared=3000 * n, n_split=150 * n, n_merged=150 * n, n_alone=900 * n)
    pair = draw_pair(config)
    for score in scores(pair):
        yield _line(score, config, pair)
    for fewer in FEWER_TOKENS:
        less = replace(config, n_tokens=max(config.n_tokens // fewer, 1))
        pair = draw_pair(less)
        began = time.perf_counter()
        ranked = most_correlated(pair.a, pair.b)
        yield _line(judged("active", ranked, pair, time.perf_counter() - began), less, pair)


def _line(score: RuleScore, config: PlantedConfig, pair: PlantedPair) -> BenchLine:
    sizes = f"{len(pair.a.level):,} and {len(pair.b.level):,} features of {config.d_in}, {config.n_tokens:,} tokens"
    return BenchLine(
        work=f"planted pairs, {sizes}: {score.rule}",
        ours_s=score.seconds,
        goal=GOAL,
        figure=f"right of the best {HEAD} / {BEST:,} / tail: {score.at_head:.3f} / {score.at_best:.3f} / "
        f"{score.tail_precision:.3f}",
        remark=f"precision {score.precision:.3f}, recall {score.recall:.3f}, of counterparts below cosine {THETA} "
        f"{score.tail_recall:.3f}; {score.n_pairs:,} pairs, {score.seconds:.1f} s",
        numbers={name: float(value) for name, value in asdict(score).items() if name != "rule"},
    )


def scores(pair: PlantedPair, *, head: int = HEAD, best: int = BEST) -> list[RuleScore]:
    """Every rule's score, by the pairs from the first member to the second."""
    a, b = (_dictionary(member) for member in (pair.a, pair.b))
    began = time.perf_counter()
    forward, _, _ = match_pair(a, b)
    taken = time.perf_counter() - began  # one pass serves these rules

    def stored(rule: str) -> Callable[[], Ranked]:
        return lambda: _stored(forward, rule)

    rules = {rule: stored(rule) for rule in ("argmax", "mutual", "hungarian", "both")}
    rules |= {"transport": lambda: _transported(a, b), "active": lambda: most_correlated(pair.a, pair.b)}
    results = []
    for rule, partners in rules.items():
        began = time.perf_counter()
        ranked = partners()
        seconds = time.perf_counter() - began if rule in ("transport", "active") else taken
        results.append(judged(rule, ranked, pair, seconds, head=head, best=best))
    return results


def judged(
    rule: str, ranked: Ranked, pair: PlantedPair, seconds: float, *, head: int = HEAD, best: int = BEST
) -> RuleScore:
    """A rule's pairs against the truth."""
    partner, n = ranked.partner, len(ranked.partner)
    right = np.zeros(n, bool)
    paired = np.flatnonzero(partner >= 0)
    right[paired] = np.asarray(pair.counterparts[paired, partner[paired]]).ravel()
    has_counterpart = np.diff(pair.counterparts.indptr) > 0
    far = has_counterpart & (_nearest_counterpart(pair) < THETA)
    order = paired[np.argsort(-ranked.score[paired], kind="stable")][: int(has_counterpart.sum())]
    return RuleScore(
        rule=rule,
        n_pairs=len(paired),
        at_head=_share(right[order[:head]]),
        at_best=_share(right[order[:best]]),
        tail_precision=_share(right[order[best:]]),
        precision=_share(right[order]),
        recall=_share(right[has_counterpart]),
        tail_recall=_share(right[far]),
        seconds=seconds,
    )


def most_correlated(a: PlantedMember, b: PlantedMember, n_near: int = N_NEAREST) -> Ranked:
    """The rule `active`: of the nearest decoder rows, the one whose activations correlate most (Pearson, over all tokens).

    Chosen as the product does: a feature that never fires, or always equally, has no partner, features that never fire are
    nobody's, and ties go to the lowest index.
    """
    n_near = min(n_near, len(b.decoder))
    near = nearest_rows(torch.from_numpy(a.decoder), torch.from_numpy(b.decoder), n_near)[0].row
    n_tokens = a.codes.shape[0]
    products = (a.codes.T.tocsr() @ b.codes.tocsr()).tocsr()
    rows = np.repeat(np.arange(len(near)), n_near)
    together = np.asarray(products[rows, near.ravel()], np.float64).reshape(near.shape) / n_tokens
    (mean_a, spread_a), (mean_b, spread_b) = (_moments(each.codes) for each in (a, b))
    covariance = together - mean_a[:, None] * mean_b[near]
    scale = spread_a[:, None] * spread_b[near]
    correlation = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    fires = np.diff(b.codes.tocsc().indptr) > 0
    partner = most_alike(near, correlation, fires, spread_a > 0)
    return Ranked(partner, np.where(near == partner[:, None], correlation, -np.inf).max(1))


def _moments(codes: sparse.csc_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every feature's activations."""
    n_tokens = codes.shape[0]
    mean = np.asarray(codes.sum(0), np.float64).ravel() / n_tokens
    square = np.asarray(codes.multiply(codes).sum(0), np.float64).ravel() / n_tokens
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def _stored(matches: PairMatches, rule: str) -> Ranked:
    return Ranked(matches.rule_partner(rule), matches.rule_cosine(rule))


def _transported(a: Dictionary, b: Dictionary) -> Ranked:
    forward = transport(a.decoder, b.decoder).forward
    return Ranked(forward.partner.numpy(), forward.confidence.numpy())


def _dictionary(member: PlantedMember) -> Dictionary:
    everything = torch.arange(len(member.decoder))
    return Dictionary(torch.from_numpy(member.decoder), torch.from_numpy(member.encoder), everything, everything)


def _nearest_counterpart(pair: PlantedPair) -> np.ndarray:
    """Largest cosine of every feature of the first member with a counterpart; -1 without one."""
    rows, columns = pair.counterparts.nonzero()
    nearest = np.full(len(pair.a.decoder), -1.0)
    np.maximum.at(nearest, rows, (pair.a.decoder[rows] * pair.b.decoder[columns]).sum(1))
    return nearest


def _share(right: np.ndarray) -> float:
    """Share of the pairs that are right; 0 of none."""
    return float(right.mean()) if len(right) else 0.0
