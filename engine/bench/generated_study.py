"""A study of any size written through the real Writer, with the statistics of a trained one: what pages are measured on.

Nothing is trained or matched: features, cosines, contexts, explanations and shared spans are drawn (`generated_features`,
`generated_texts`, `generated_shared_spans`), member by member, so that memory holds one block of one member and what the Writer
holds. The same settings give the same store. What was drawn and why it is no noise stands in these modules; curves of the geometry
of spans follow formulas.

A finished store is made once: `generated_study` records its settings in the study's `built_from` and finds them again. The parts
of a generation that was interrupted are not kept; the next call begins again.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seedscope.engine.bench.generated_features import (
    BLOCK,
    FEWEST_EXPLAINED,
    HIGHEST,
    LOWEST,
    N_BINS,
    N_EVALUATED,
    Behaviour,
    Partners,
    block_size,
    draw_behaviour,
    draw_partners,
    feature_stream,
)
from seedscope.engine.bench.generated_shared_spans import add_shared_spans
from seedscope.engine.bench.generated_spans import (
    CLUSTERS,
    D_IN,
    RANK,
    SPAN_REMARKS,
    MapSample,
    add_feature_spans,
    add_span_tables,
)
from seedscope.engine.bench.generated_texts import N_TOKENS, TokenVocabulary, token_vocabulary, zipf
from seedscope.engine.bench.publishing import TimedWriter
from seedscope.engine.contract.published import published
from seedscope.engine.contract.schema import NO_MATCH, RULE_COLUMN, SCHEMA_VERSION, TRIGGERS
from seedscope.engine.contract.stability import EPSILON, THETA, buckets, count_on_grid
from seedscope.engine.contract.tables.explanations import Explanation, Score, Word
from seedscope.engine.contract.tables.features import Ablation, Context, Feature, Logit, Match, NullMatch, Pair
from seedscope.engine.contract.tables.study import Document, Ensemble, Member, Study, Token
from seedscope.engine.explanations.rule_search import NAME as TOKEN_RULE
from seedscope.engine.features.ablation import N_DRAWS
from seedscope.engine.features.activity import AFTER, BEFORE
from seedscope.engine.matching.match import NULL_ANCHORS, NULL_KINDS
from seedscope.engine.store.catalogue import MATCHING
from seedscope.engine.store.database import Writer
from seedscope.engine.store.rows import add_row, row_keys

STUDY, ENSEMBLE = "scale", "topk"
VERSION = 3  # of the generator: a store of another one is made again
K = 40
N_DOCUMENTS, DOCUMENT = 500, 2_048  # their number and tokens
N_LOGITS = 3  # of either sign
_SCORED_ON = 12  # active contexts, and as many silent ones
_CONTEXT, _SCORE, _LOGIT = range(3)  # streams of random numbers
_CHANCE = {"haar": 0.33, "second_moment": 0.37}  # best cosines in random dictionaries, mean
COMPUTED = ["match", "activity", "ablate", "explain", "loss", "subspaces", "shared_spans"]
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class StudySize:
    """How large a generated study is."""

    n_members: int = 96
    d_sae: int = 32_768
    n_contexts: int = 8  # per feature that has any
    context_features: int | None = None  # per member that have contexts, the first ones; None: all

    @property
    def built_from(self) -> str:
        """What a store of this size is found again by."""
        settings = " ".join(f"{name}={value}" for name, value in asdict(self).items())
        return f"generated study {VERSION}, schema {SCHEMA_VERSION}: {settings}"


def generated_study(root: Path, size: StudySize, *, report: Report = lambda done, total: None) -> Path:
    """The store of a generated study of that size in ROOT/scale: the one that is there, else a new one.

    `report` gets (members written, all). Raises ValueError for fewer than two members and for fewer than 32 features.
    """
    if size.n_members < 2 or size.d_sae < 32:
        raise ValueError(f"found {size.n_members} x {size.d_sae}, expected at least 2 members of 32 features")
    folder = root / STUDY
    present = published(folder)
    if present is not None and present.built_from == size.built_from:
        return folder / present.name
    vocabulary = token_vocabulary()
    sample = MapSample.draw(size.n_members, block_size(0, size.d_sae))
    with TimedWriter(folder) as writer:
        _add_frame(writer, size, vocabulary)
        stream = zipf(np.random.default_rng(0), (N_DOCUMENTS * DOCUMENT,), N_TOKENS).astype(np.int32)
        for member in range(size.n_members):
            _add_member(writer, size, member, vocabulary, stream, sample)
            report(member + 1, size.n_members)
        return writer.publish(built_from=size.built_from)


# -- the frame ---------------------------------------------------------------------------------------------------


def _add_frame(writer: Writer, size: StudySize, vocabulary: TokenVocabulary) -> None:
    """Study, ensemble, tokens, documents, and the tables on spans."""
    add_row(
        writer,
        Study(
            STUDY, SCHEMA_VERSION, "bench", "generated", "0" * 16, True, 128, "all but BOS", "0" * 16, N_EVALUATED,
            "tokens drawn by Zipf's law: nothing was trained, see `seedscope bench serve`", "cpu", "float32",
        ),
    )  # fmt: skip
    n = size.n_members
    row = Ensemble(
        ensemble=ENSEMBLE, origin="trained", hookpoint="blocks.5.hook_resid_pre", variant="topk", convention="{}", d_in=D_IN,
        d_sae=size.d_sae, k=K, n_members=n, n_comparisons=n - 1, shared_start="no", data_order="shared",
        train_token_digest=None, n_train_tokens=100_000_000, train_tokens=500_000_000, batch=8192, lr=3e-4, recipe=None,
        anchor=None, rule=MATCHING, theta=THETA, epsilon=EPSILON, n_tokens=N_EVALUATED, n_outliers=0, span_rank=RANK,
        span_remarks=SPAN_REMARKS, n_clusters=CLUSTERS[0], largest_cluster=CLUSTERS[1], digest="0" * 16, folder="sae",
        control_of=None, computed=COMPUTED, remarks=["generated for measurements: every number is drawn, none is computed"],
    )  # fmt: skip
    add_row(writer, row)
    writer.add(Token, {"id": np.arange(N_TOKENS), "text": vocabulary.texts})
    names = [f"document {i}" for i in range(N_DOCUMENTS)]
    writer.add(Document, {"id": np.arange(N_DOCUMENTS), "name": names})
    add_span_tables(writer, ENSEMBLE, n, size.d_sae)
    add_shared_spans(writer, ENSEMBLE, n, size.d_sae, D_IN, N_DOCUMENTS, vocabulary)


def _add_member(
    writer: Writer, size: StudySize, member: int, vocabulary: TokenVocabulary, stream: np.ndarray, sample: MapSample
) -> None:
    """One member: its features block by block, then what is of all of them."""
    n_blocks = -(-size.d_sae // BLOCK)
    pairs = _PairCounts(size.n_members - 1)
    in_bucket = dict.fromkeys(("stable", "middle", "unstable"), 0)
    n_dead, n_active, with_contexts = 0, 0, size.context_features
    for block in range(n_blocks):
        n = block_size(block, size.d_sae)
        partners = draw_partners(member, block, n, size.n_members)
        behaviour = draw_behaviour(member, block, n)
        rules = _rule_cosines(partners)
        keys = row_keys(ENSEMBLE, member, block * BLOCK + np.arange(n))
        explained = _add_features(writer, keys, member, block, rules, behaviour, vocabulary)
        _add_matches(writer, keys, partners)
        _add_contexts(writer, size, member, block, behaviour, stream, with_contexts)
        with_contexts = None if with_contexts is None else max(with_contexts - n, 0)
        _add_logits(writer, keys, feature_stream(_LOGIT, member, block))
        _add_words(writer, keys, behaviour, explained, vocabulary)
        add_feature_spans(writer, ENSEMBLE, member, block, behaviour, sample)
        pairs.add(rules, behaviour.dead)
        names = buckets((partners.cosine >= np.float32(THETA)).sum(1), size.n_members - 1, behaviour.dead, EPSILON)
        for bucket in in_bucket:
            in_bucket[bucket] += int((names == bucket).sum())
        n_dead, n_active = n_dead + int(behaviour.dead.sum()), n_active + int(behaviour.n_active.sum())
    pairs.write(writer, member)
    digest = hashlib.sha256(f"{ENSEMBLE} {member}".encode()).hexdigest()[:16]
    edges = np.geomspace(LOWEST, HIGHEST, N_BINS + 1)
    ev = 0.8 + 0.004 * np.sin(member)
    row = Member(
        ensemble=ENSEMBLE, seed=member, sae_digest=digest, source=None, library=None, trained_on=None, remarks=[],
        ev=ev, l0=n_active / N_EVALUATED, n_dead=n_dead, loss_own=3.3, loss_spliced=3.45 + 0.002 * np.cos(member),
        loss_zero=9.1, n_loss_tokens=N_EVALUATED, n_undirected=0, histogram_edges=edges.tolist(),
    )  # fmt: skip
    add_row(writer, row)
    _add_ablation(writer, member, ev, in_bucket)
    _add_nulls(writer, size, member)


# -- features ----------------------------------------------------------------------------------------------------


def _rule_cosines(partners: Partners) -> dict[str, np.ndarray]:
    """Cosines under every rule that is computed at this size: one-to-one matching is not."""
    mutual = np.where(partners.mutual, partners.cosine, np.float32(NO_MATCH))
    return {"argmax": partners.cosine, "live": partners.live_cosine, "mutual": mutual}


def _add_features(
    writer: Writer,
    keys: dict[str, Any],
    member: int,
    block: int,
    rules: dict[str, np.ndarray],
    b: Behaviour,
    v: TokenVocabulary,
) -> np.ndarray:
    """Rows of Feature, Explanation and Score; returns which features (features,) have an explanation."""
    n, c = len(b.dead), b.characters
    rng = feature_stream(_SCORE, member, block)
    explained = b.n_active >= FEWEST_EXPLAINED
    texts = _masked(v.explain(c.rule, c.top, c.before), explained)
    quality = np.select([c.trigger == 0, c.trigger < 5, c.trigger < 7], [0.93, 0.84, 0.78], default=0.66)
    value = (np.round((quality + 0.09 * rng.standard_normal(n)).clip(0.3, 1) * 20) / 20).astype(np.float32)
    score = pa.array(value, mask=~explained)
    worth = b.characters.share * b.n_active / N_EVALUATED * b.mean * (0.5 + rng.random(n)) * 1e-2
    none = np.zeros((n, 0), np.float32)
    explainers = _masked(pa.repeat(pa.scalar(TOKEN_RULE), n), explained)
    columns = {
        "dead": b.dead,
        "density": b.n_active / N_EVALUATED,
        "n_active": b.n_active,
        "n_tokens": np.full(n, N_EVALUATED),
        "mean_activation": b.mean,
        "max_activation": b.peak,
        "decoder_norm": np.ones(n, np.float32),
        "worth_ev": worth,
        "worth_loss": worth * (0.8 + 0.4 * rng.random(n)),
        "explanation": texts,
        "explainer": explainers,
        "score": score,
        "quantiles": b.quantiles,
        "token_entropy": b.entropy,
        "top_token_share": c.share,
        "trigger": pa.array(TRIGGERS).take(pa.array(c.trigger)),
        "trigger_share": b.covered,
        "trigger_what": v.trigger_texts(c.trigger, c.top[:, 0], c.before),
        "histogram": b.histogram,
        "top_token_ids": b.top_ids,
        "top_token_counts": b.top_counts,
        "cofiring": None,
        "substitution": None,
    }
    writer.add(Feature, keys | {RULE_COLUMN[rule]: rules.get(rule, none) for rule in RULE_COLUMN} | columns)
    fires = ~b.dead
    at = {name: values if isinstance(values, str) else values[fires] for name, values in keys.items()}
    keep = pa.array(fires)
    reason = f"fewer than {FEWEST_EXPLAINED} firings to learn from"
    failures = _masked(pa.repeat(pa.scalar(reason), int(fires.sum())), ~explained[fires])
    writer.add(Explanation, at | {"explainer": TOKEN_RULE, "text": texts.filter(keep), "failure": failures})
    m = int(fires.sum())
    shuffled = (0.5 + 0.01 * rng.standard_normal(m)).astype(np.float32)
    scored = {"value": score.filter(keep), "failure": failures, "said": np.zeros((m, 0), np.int32)}
    # A balanced accuracy on so many contexts is a multiple of 1 / 24, and so is the level that 95 % of the shuffled ones keep to.
    p95 = (np.round((shuffled + 0.15) * 2 * _SCORED_ON) / (2 * _SCORED_ON)).astype(np.float32)
    for name, numbers in (("shuffled", shuffled), ("shuffled_p95", p95)):
        scored[name] = pa.array(numbers, mask=~explained[fires])
    counts = {"n_active": np.where(explained[fires], _SCORED_ON, 0), "n_silent": np.full(m, _SCORED_ON)}
    writer.add(Score, at | {"explainer": TOKEN_RULE, "kind": "detection"} | scored | counts)
    return explained


def _masked(values: pa.Array, known: np.ndarray) -> pa.Array:
    """The values where they are `known`, else none."""
    return values.take(pa.array(np.arange(len(known)), mask=~known))


def _add_matches(writer: Writer, keys: dict[str, Any], partners: Partners) -> None:
    none = np.zeros((len(partners.cosine), 0), np.int32)
    columns = {
        "partners": partners.partner,
        "runner_up_cosines": partners.runner_up,
        "mutuals": partners.mutual,
        "encoder_cosines": partners.encoder,
        "live_partners": partners.live_partner,
        "hungarian_partners": none,
        "hungarian_encoder_cosines": none.astype(np.float32),
        "encoder_partners": none,
        "active_partners": none,
    }
    writer.add(Match, keys | columns)


def _add_contexts(
    writer: Writer, size: StudySize, member: int, block: int, b: Behaviour, stream: np.ndarray, most: int | None
) -> None:
    """Contexts of the living features: some of the strongest, some of every fifth of (0, max], some silent ones."""
    features = np.flatnonzero(~b.dead)
    features = features if most is None else features[features < most]
    if not len(features):
        return
    rng = feature_stream(_CONTEXT, member, block)
    group, rank = context_groups(size.n_contexts)
    n, length = len(features) * len(group), BEFORE + AFTER + 1
    peak = rng.integers(BEFORE, DOCUMENT - AFTER, n) + rng.integers(0, N_DOCUMENTS, n) * DOCUMENT
    tokens = stream[peak[:, None] + np.arange(-BEFORE, AFTER + 1)]
    of, group, rank = np.repeat(features, len(group)), np.tile(group, len(features)), np.tile(rank, len(features))
    fires = group <= 5
    slot = (rng.random(n) ** 2 * b.top_ids.shape[1]).astype(int)
    top = np.where(b.top_ids[of, slot] < 0, b.top_ids[of, 0], b.top_ids[of, slot])
    tokens[:, BEFORE] = np.where(fires, top, tokens[:, BEFORE])
    strength = np.where(group == 0, 1 - 0.03 * rank, 1.1 - 0.2 * group.clip(1, 5)) * b.peak[of] * fires
    activations = np.zeros((n, length), np.float32)
    activations[:, BEFORE] = strength
    for _ in range(2):  # further tokens of the window that it fires on, more weakly
        activations[np.arange(n), rng.integers(0, length, n)] += 0.3 * strength * (rng.random(n) < 0.5)
    columns = {
        "group": group, "rank": rank, "document": peak // DOCUMENT, "position": peak % DOCUMENT,
        "peak": np.full(n, BEFORE), "token_ids": tokens, "activations": activations,
    }  # fmt: skip
    writer.add(Context, row_keys(ENSEMBLE, member, block * BLOCK + of) | columns)


def context_groups(n: int) -> tuple[np.ndarray, np.ndarray]:
    """(groups, ranks) of n contexts in order, in the shares of a real study: 20 strongest, 5 of every fifth, 5 silent."""
    share = np.array([20, *[5] * 6]) / 50
    groups = np.searchsorted(share.cumsum(), (np.arange(n) + 0.5) / n)
    counts = np.bincount(groups, minlength=7)
    return groups, np.concatenate([np.arange(count) for count in counts])


def _add_logits(writer: Writer, keys: dict[str, Any], rng: np.random.Generator) -> None:
    """The strongest direct effects, lowered tokens first as the table is sorted."""
    n = len(keys["feature"])
    per = 2 * N_LOGITS
    signs, ranks = np.repeat([-1, 1], N_LOGITS), np.tile(np.arange(N_LOGITS), 2)
    logit = np.sort(rng.gamma(4, 0.1, (n, 2, N_LOGITS)), 2)[:, :, ::-1].reshape(n, per) * signs
    columns = {"sign": np.tile(signs, n), "rank": np.tile(ranks, n), "token": zipf(rng, (n * per,), N_TOKENS)}
    at = {name: values if isinstance(values, str) else np.repeat(values, per) for name, values in keys.items()}
    writer.add(Logit, at | columns | {"logit": logit.ravel()})


def _add_words(writer: Writer, keys: dict[str, Any], b: Behaviour, explained: np.ndarray, v: TokenVocabulary) -> None:
    c = b.characters
    word, row = v.words_of(c.rule[explained], c.top[explained], c.before[explained])
    if len(word):
        at = {name: values if isinstance(values, str) else values[explained][row] for name, values in keys.items()}
        writer.add(Word, at | {"word": v.word_array.take(pa.array(word))})


# -- of all features of a member ---------------------------------------------------------------------------------


class _PairCounts:
    """One anchor's rows of Pair, summed over blocks of its features."""

    def __init__(self, n_comparisons: int) -> None:
        self._n = n_comparisons
        self._n_anchors = self._n_living = 0
        self._sums: dict[
            str, list[np.ndarray]
        ] = {}  # {rule: paired, sum of cosines, matched, matched among the living}

    def add(self, rules: dict[str, np.ndarray], dead: np.ndarray) -> None:
        """Count one block; `dead` is (features,), cosines are (features, comparisons)."""
        self._n_anchors, self._n_living = self._n_anchors + len(dead), self._n_living + int((~dead).sum())
        for rule, cosines in rules.items():
            by_comparison = np.ascontiguousarray(cosines.T)
            paired = by_comparison > NO_MATCH
            living = count_on_grid(by_comparison[:, ~dead])
            matched = living + count_on_grid(by_comparison[:, dead])
            sums = [paired.sum(1), (by_comparison * paired).sum(1, dtype=np.float64), matched, living]
            former = self._sums.get(rule)
            self._sums[rule] = [a + b for a, b in zip(former, sums, strict=True)] if former else sums

    def write(self, writer: Writer, member: int) -> None:
        """Add the rows."""
        others = np.delete(np.arange(self._n + 1), member)
        for rule, (paired, total, matched, living) in self._sums.items():
            columns = {
                "seed": np.full(self._n, member), "other": others, "n_anchors": np.full(self._n, self._n_anchors),
                "n_living": np.full(self._n, self._n_living), "n_paired": paired,
                "mean_cosine": total / np.maximum(paired, 1), "gap": np.zeros(self._n), "matched": matched,
                "matched_living": living,
            }  # fmt: skip
            writer.add(Pair, {"ensemble": ENSEMBLE, "rule": rule} | columns)


def _add_ablation(writer: Writer, member: int, ev: float, in_bucket: dict[str, int]) -> None:
    """Every mask that pages show, with the means that a study like paper A's finds: stable features are worth most."""
    n_living = sum(in_bucket.values())
    n = min(in_bucket["stable"], in_bucket["unstable"] // 4)
    worth = {"stable": 0.55, "middle": 0.15, "unstable": 0.2, "random": 0.8}  # EV lost without all of the kind
    size = in_bucket | {"random": n_living}
    kinds = {"matched to stable": "stable", "matched to unstable": "unstable"}
    masks = [("none", 0, 1, "random", 1.0), *((f"all {name}", size[name], 1, name, 1.0) for name in in_bucket)]
    if n:
        masks += [
            ("N stable", n, N_DRAWS, "stable", 1.0), ("4N unstable", 4 * n, N_DRAWS, "unstable", 1.0),
            ("N random", n, N_DRAWS, "random", 1.0), ("4N random", min(4 * n, n_living), N_DRAWS, "random", 1.0),
            ("N matched to stable", n, N_DRAWS, "stable", 0.8),
            ("4N matched to unstable", 4 * n, N_DRAWS, "unstable", 1.1),
        ]  # fmt: skip
    for curve in ("stable", "unstable", "random", *kinds):
        of = kinds.get(curve, curve)
        if size[of]:
            sizes = np.unique(np.geomspace(1, size[of], 6).round().astype(int)).tolist()
            masks += [(curve, each, 3, of, 0.9 if curve in kinds else 1.0) for each in sizes]
    lost = np.array([worth[of] * factor * n_masked / max(size[of], 1) for _, n_masked, _, of, factor in masks])
    columns = {
        "mask": [name for name, *_ in masks],
        "n_masked": [n_masked for _, n_masked, *_ in masks],
        "n_draws": [n_draws for _, _, n_draws, *_ in masks],
        "ev": ev - lost,
        "ev_sd": np.where([n_draws > 1 for _, _, n_draws, *_ in masks], 0.02 * lost, 0),
        "loss": 3.45 + 2.5 * lost,
        "loss_sd": 0.05 * lost,
    }
    writer.add(Ablation, {"ensemble": ENSEMBLE, "seed": np.full(len(masks), member)} | columns)


def _add_nulls(writer: Writer, size: StudySize, member: int) -> None:
    rng = np.random.default_rng((VERSION, member))
    chosen = np.random.default_rng(VERSION).permutation(size.d_sae)[:NULL_ANCHORS]
    chosen.sort()
    for kind in NULL_KINDS:
        shape = (len(chosen), size.n_members - 1)
        cosines = (_CHANCE[kind] + 0.035 * rng.standard_normal(shape, np.float32)).clip(0.1, 0.75)
        writer.add(NullMatch, row_keys(ENSEMBLE, member, chosen) | {"kind": kind, "cosines": cosines})
