"""Features of a generated study: which come back in which seeds, their best cosines, and how they behave.

Every feature is one of d_sae concepts. A concept has a core probability q: in each member it is there with this probability,
otherwise the member has a feature of its own in its place. Two members that both have a concept match on it with a cosine
around 0.9; all other best cosines are around chance. With q near 1 for a third of the concepts, between 0 and 1 for a fifth
and 0 for the rest, p is bimodal as in trained ensembles. A concept has the same tokens, trigger and density in all members.

Features come in blocks of BLOCK, and a concept stays in its block: nothing larger than a block times the comparisons is in
memory. What is drawn depends on the generator's seed, the member (or the pair) and the block alone.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from seedscope.engine.bench.generated_texts import (
    FIRST_RULE_OF,
    N_DRAWN,
    N_RULES_OF,
    N_TOKENS,
    draw_tokens,
    zipf,
)
from seedscope.engine.contract.schema import TRIGGERS

BLOCK = 32_768  # features
N_EVALUATED = 1_000_000  # evaluation tokens
N_BINS = 24  # of histograms
LOWEST, HIGHEST = 0.01, 100.0  # activations: the edges of histograms
FEWEST_EXPLAINED = 10  # firings; with fewer there is no explanation
_SEED = 25
_CONCEPTS, _MEMBERS, _FEATURES, _PAIRS = range(4)  # what a stream of random numbers is for
_TRIGGER_SHARES = (0.28, 0.12, 0.04, 0.09, 0.12, 0.02, 0.10, 0.23)  # in the order of TRIGGERS
_ALMOST_ALWAYS, _SOMETIMES = 0.335, 0.21  # shares of concepts by their q; the rest is in one member alone
_DEAD = 0.14  # of features that are no member's but this one's: 8 % of all


class Characters(NamedTuple):
    """What concepts are about; arrays over them."""

    top: np.ndarray  # (concepts, N_DRAWN) token ids
    before: np.ndarray  # token id in front
    trigger: np.ndarray  # index into TRIGGERS
    rule: np.ndarray  # index into RULES: the explanation
    log_density: np.ndarray  # base 10
    share: np.ndarray  # of firings on the top token


class Concepts(NamedTuple):
    """The concepts of one block."""

    core: np.ndarray  # q
    cosine: np.ndarray  # mean over pairs that share it
    characters: Characters
    place: np.ndarray  # (concepts, 2) on the map


class MemberBlock(NamedTuple):
    """One member's part of a block; arrays over concepts, but for the last."""

    present: np.ndarray
    dead: np.ndarray
    feature: np.ndarray  # index within the block of the feature that a concept is
    concept: np.ndarray  # the concept of each feature of the block


class Partners(NamedTuple):
    """Matches of one block of a member; (features, comparisons)."""

    cosine: np.ndarray
    partner: np.ndarray
    mutual: np.ndarray
    runner_up: np.ndarray
    encoder: np.ndarray
    live_cosine: np.ndarray
    live_partner: np.ndarray


class Behaviour(NamedTuple):
    """Activity of one block of a member; arrays over features."""

    dead: np.ndarray
    present: np.ndarray
    place: np.ndarray
    characters: Characters
    n_active: np.ndarray
    mean: np.ndarray
    peak: np.ndarray  # largest activation
    quantiles: np.ndarray
    histogram: np.ndarray
    top_ids: np.ndarray  # (features, N_DRAWN), -1 where it fires on fewer
    top_counts: np.ndarray
    entropy: np.ndarray
    covered: np.ndarray  # share of firings that the trigger covers


def block_size(block: int, d_sae: int) -> int:
    """How many features a block has."""
    return min(BLOCK, d_sae - block * BLOCK)


@lru_cache(4)
def draw_concepts(block: int, n: int) -> Concepts:
    """The concepts of a block."""
    rng = _stream(_CONCEPTS, block)
    kind = rng.random(n)
    core = np.where(kind < _ALMOST_ALWAYS, 1 - 0.025 * rng.random(n), 0)
    core = np.where((kind >= _ALMOST_ALWAYS) & (kind < _ALMOST_ALWAYS + _SOMETIMES), rng.beta(1, 1, n), core)
    cosine = np.clip(0.84 + 0.08 * core + 0.065 * rng.standard_normal(n), 0.5, 0.985)
    place = np.stack([60 * np.sqrt(rng.random(n)), 2 * np.pi * rng.random(n)], 1)
    place = np.stack([place[:, 0] * np.cos(place[:, 1]), place[:, 0] * np.sin(place[:, 1])], 1)
    return Concepts(core, cosine.astype(np.float32), _characters(rng, core), place)


@lru_cache(256)
def draw_member(member: int, block: int, n: int) -> MemberBlock:
    """Which concepts of a block a member has, and where."""
    rng = _stream(_MEMBERS, member, block)
    present = rng.random(n) < draw_concepts(block, n).core
    dead = ~present & (rng.random(n) < _DEAD)
    concept = rng.permutation(n)
    return MemberBlock(present, dead, np.argsort(concept), concept)


def draw_partners(member: int, block: int, n: int, n_members: int) -> Partners:
    """Best cosines of a block's features in every other member, in seed order."""
    rng = _stream(_PAIRS, member, member, block)
    mine, concepts = draw_member(member, block, n), draw_concepts(block, n)
    others = [other for other in range(n_members) if other != member]
    shape = (n, len(others))
    chance = (0.37 + 0.05 * rng.standard_normal(shape, np.float32)).clip(0.15, 0.68)
    runner_up = chance - 0.02 - 0.03 * rng.random(shape, np.float32)
    partners = Partners(
        cosine=chance, partner=rng.integers(0, n, shape, np.int32), mutual=np.zeros(shape, bool), runner_up=runner_up,
        encoder=np.empty(0), live_cosine=np.empty(0), live_partner=np.empty(0),
    )  # fmt: skip
    lives, second = np.empty(shape, bool), rng.integers(0, n, shape, np.int32)  # where the nearest is dead, another one
    for slot, other in enumerate(others):
        theirs = draw_member(other, block, n)
        pair = _stream(_PAIRS, min(member, other), max(member, other), block)  # the same numbers seen from both sides
        noise, chosen = pair.standard_normal(n, np.float32), pair.random(n, np.float32)
        shared = mine.present & theirs.present
        alike = ~mine.present & ~theirs.present & (chosen < 0.25)  # each other's nearest, although by chance
        best = np.where(shared, concepts.cosine + 0.03 * noise, 0.42 + 0.05 * noise).clip(0.2, 0.999)
        paired = shared | alike
        rows = mine.feature[paired]
        partners.cosine[rows, slot] = best[paired]
        partners.partner[rows, slot] = theirs.feature[paired]
        partners.mutual[rows, slot] = True
        lives[:, slot] = ~theirs.dead[theirs.concept][partners.partner[:, slot]]
        living = theirs.feature[~theirs.dead]
        second[:, slot] = living[second[:, slot] % len(living)]
    return partners._replace(
        partner=partners.partner + block * BLOCK,
        runner_up=np.minimum(runner_up, partners.cosine),
        encoder=partners.cosine - 0.1 * rng.random(shape, np.float32),
        live_cosine=np.where(lives, partners.cosine, np.minimum(runner_up, partners.cosine)),
        live_partner=np.where(lives, partners.partner, second) + block * BLOCK,
    )


def draw_behaviour(member: int, block: int, n: int) -> Behaviour:
    """Activity of a block's features: of concepts as in every member, of the member's own features as drawn here."""
    rng = _stream(_FEATURES, member, block)
    mine, concepts = draw_member(member, block, n), draw_concepts(block, n)
    here = mine.concept
    present, dead = mine.present[here], mine.dead[here]
    own = _characters(rng, np.zeros(n))
    characters = Characters(
        *(
            np.where(present if shared.ndim == 1 else present[:, None], shared[here], alone)
            for shared, alone in zip(concepts.characters, own, strict=True)
        )
    )
    density = 10 ** (characters.log_density + 0.08 * rng.standard_normal(n)).clip(-6, np.log10(0.3))
    n_active = np.where(dead, 0, np.maximum((density * N_EVALUATED).round(), 1)).astype(np.int64)
    mean = np.where(dead, 0, np.exp(0.3 + 0.6 * rng.standard_normal(n))).clip(0, 20).astype(np.float32)
    spread = 0.35 + 0.3 * rng.random(n, np.float32)
    peak = mean * (1 + (0.5 + spread) * np.log1p(n_active) / 4).astype(np.float32)
    quantiles = mean[:, None] * np.exp(spread[:, None] * np.array([-0.08, 1.2, 2.2], np.float32))
    quantiles = np.minimum(quantiles, peak[:, None])
    share = (characters.share * (0.95 + 0.1 * rng.random(n))).clip(0.01, 0.99)
    counts = np.floor(n_active[:, None] * share[:, None] * np.array([1, 0.4, 0.2, 0.1, 0.06])).astype(np.int64)
    counts = np.maximum(counts, n_active[:, None] > np.arange(N_DRAWN))
    centred = (np.arange(N_BINS) + 0.5) / N_BINS * np.log(HIGHEST / LOWEST) + np.log(LOWEST)
    at = np.log(np.maximum(mean, LOWEST))[:, None]
    weights = np.exp(-0.5 * ((centred[None] - at) / spread[:, None]) ** 2).astype(np.float32)
    weights /= weights.sum(1, keepdims=True)
    histogram = np.floor(weights * n_active[:, None]).astype(np.int64)
    histogram[np.arange(n), weights.argmax(1)] += n_active - histogram.sum(1)
    top_share = counts[:, 0] / np.maximum(n_active, 1)
    other = len(TRIGGERS) - 1
    trigger = np.where(dead, other, characters.trigger)
    covered = np.where(trigger == other, top_share, np.maximum(0.5 + 0.48 * rng.random(n), top_share))
    entropy = np.where(dead, 0, 1.4 * -np.log2(share) + 0.6 * rng.random(n))
    top_ids = np.where(counts > 0, characters.top, -1).astype(np.int32)
    characters = characters._replace(trigger=trigger, share=top_share)
    place = np.where(present[:, None], concepts.place[here], 60 * (2 * rng.random((n, 2)) - 1))
    place = place + 0.4 * rng.standard_normal((n, 2))
    return Behaviour(
        dead, present, place, characters, n_active, mean, peak, quantiles, histogram, top_ids, counts, entropy, covered
    )


def feature_stream(purpose: int, member: int, block: int) -> np.random.Generator:
    """Random numbers for what is drawn of a member's block elsewhere; `purpose` from 0."""
    return _stream(_PAIRS + 1 + purpose, member, block)


def _stream(*key: int) -> np.random.Generator:
    return np.random.default_rng((_SEED, *key))


def _characters(rng: np.random.Generator, core: np.ndarray) -> Characters:
    n = len(core)
    trigger = rng.choice(len(TRIGGERS), n, p=np.array(_TRIGGER_SHARES) / sum(_TRIGGER_SHARES))
    rule = FIRST_RULE_OF[trigger] + (rng.random(n) * N_RULES_OF[trigger]).astype(np.int64)
    log_density = -3.9 + 0.8 * core + 0.65 * rng.standard_normal(n)
    clear = trigger == TRIGGERS.index("single token")
    share = np.where(clear, 0.52 + 0.46 * rng.random(n), rng.beta(1.6, 5, n))
    before = zipf(rng, (n,), N_TOKENS).astype(np.int32)
    return Characters(draw_tokens(rng, n), before, trigger, rule, log_density, share)
