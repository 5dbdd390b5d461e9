"""Small shared spans of a generated study: members, tests, bases, contexts and explanations are drawn, none is found by a search.

As many as a large study may well keep, so that the list is two pages long and a span's page reads one of many.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from seedscope.engine.bench.generated_texts import N_TOKENS, TokenVocabulary, zipf
from seedscope.engine.contract.tables.shared_spans import (
    NULL_SETS,
    SharedSpan,
    SharedSpanContext,
    SharedSpanDirection,
    SharedSpanExplanation,
    SharedSpanFeature,
    SharedSpanPair,
    SharedSpanSeed,
    SharedSpanSummary,
    SharedSpanToken,
)
from seedscope.engine.explanations.rule_search import NAME as TOKEN_RULE
from seedscope.engine.features.span_tokens import AFTER, BEFORE
from seedscope.engine.features.span_tokens import N_CONTEXTS as N_SPAN_CONTEXTS
from seedscope.engine.features.span_tokens import N_TOKENS as N_SPAN_TOKENS
from seedscope.engine.geometry.expansions import K_MAX
from seedscope.engine.geometry.find_spans import LEVEL
from seedscope.engine.store.database import Writer

MOST = 200  # candidates, most of them kept
MOST_PARTS = 3_200  # spans x members: of many seeds there are fewer spans, for each has a basis per seed
PER_SPAN = 8  # features of every member in a span
RANKS = (3, 17)
N_LOGITS = 8
_SHARED = 7  # stream of random numbers
_NULL = dict(zip(NULL_SETS, (0.24, 0.26, 0.12, 0.14), strict=True))  # what each null captures


def n_spans(n_members: int, d_sae: int) -> int:
    """Candidates of a generated study; none with fewer than three members."""
    return min(MOST, d_sae // (2 * PER_SPAN), MOST_PARTS // n_members) if n_members > 2 else 0


def span_ids(ensemble: str, n: int) -> tuple[str, ...]:
    """The ids of the first n candidates, by number."""
    return tuple(hashlib.sha256(f"{ensemble} {number + 1}".encode()).hexdigest()[:12] for number in range(n))


def add_shared_spans(
    writer: Writer, ensemble: str, n_members: int, d_sae: int, d_in: int, n_documents: int, vocabulary: TokenVocabulary
) -> None:
    """All tables on shared spans; every span takes the same places among the features of every member."""
    n, rng = n_spans(n_members, d_sae), np.random.default_rng((_SHARED, n_members, d_sae))
    rows: dict[type, list[Any]] = {}
    seeds = range(n_members)
    for number, span in enumerate(span_ids(ensemble, n), 1):
        kept, rank = number <= n - n // 10, int(rng.integers(*RANKS))
        energy = float(0.95 - 0.3 * number / n)
        drawn: list[Any] = [*_tests(ensemble, span, seeds, rank, energy, kept, rng)]
        members = np.arange(PER_SPAN) + PER_SPAN * (number - 1)
        rows.setdefault(SharedSpanFeature, []).extend(_members(ensemble, span, seeds, members, energy, rng))
        rows.setdefault(SharedSpan, []).append(_span(ensemble, span, number, n_members, rank, energy, kept, n))
        if kept:
            drawn += _on_tokens(ensemble, span, seeds, rank, d_in, n_documents, vocabulary, rng)
        for row in drawn:
            rows.setdefault(type(row), []).append(row)
    spans = rows.get(SharedSpan, [])
    n_kept = sum(row.kept for row in spans)
    if n_members > 2:
        rows[SharedSpanSummary] = [
            _summary(ensemble, n_members * d_sae // 2, spans, n_kept, n_kept * n_members * PER_SPAN)
        ]
    for table, of_table in rows.items():
        names = [field.name for field in fields(table)]
        writer.add(table, {name: [getattr(row, name) for row in of_table] for name in names})


def _span(
    ensemble: str, span: str, number: int, n_members: int, rank: int, energy: float, kept: bool, n: int
) -> SharedSpan:
    p = 0.005 if kept else 0.4
    ps = {f"p_{name}": p for name in NULL_SETS} | {f"{name}_energy": value for name, value in _NULL.items()}
    measured: dict[str, float | None] = dict.fromkeys(
        ("ev", "ev_control", "ev_control_sd", "ev_whole", "loss", "loss_control", "loss_control_sd", "loss_whole")
    )
    if kept:
        measured = {
            "ev": 0.79, "ev_control": 0.797, "ev_control_sd": 0.001, "ev_whole": 0.8, "loss": 3.47, "loss_control": 3.455,
            "loss_control_sd": 0.002, "loss_whole": 3.45,
        }  # fmt: skip
    return SharedSpan(
        ensemble=ensemble, span=span, number=number, kept=kept, failed=None if kept else "living", rank=rank,
        n_features=PER_SPAN * n_members, n_seeds=n_members, n_sharing=n_members if kept else 0, energy=energy,
        p_value=p, found_again=n_members, n_left_out=n_members, stability=0.9, energy_share=0.3 / n, **ps, **measured,
    )  # fmt: skip


def _tests(
    ensemble: str, span: str, seeds: range, rank: int, energy: float, kept: bool, rng: np.random.Generator
) -> Iterator[SharedSpanSeed | SharedSpanPair]:
    nulls = {f"{name}_mean": value for name, value in _NULL.items()}
    nulls |= {f"{name}_high": value + 0.06 for name, value in _NULL.items()}
    noise = 0.03 * rng.standard_normal((len(seeds), len(seeds)))
    for seed in seeds:
        yield SharedSpanSeed(
            ensemble, span, seed, PER_SPAN, min(rank, PER_SPAN), rank, float(np.clip(energy + noise[seed, seed], 0, 1)), PER_SPAN,
            0.005 if kept else 0.4, 0.9, **nulls,
        )  # fmt: skip
        for other in seeds:
            if seed != other:
                captured = float(np.clip(energy - 0.1 + noise[seed, other], 0, 1))
                yield SharedSpanPair(ensemble, span, seed, other, captured, 0.12, 0.18, captured)


def _members(
    ensemble: str, span: str, seeds: range, features: np.ndarray, energy: float, rng: np.random.Generator
) -> Iterator[SharedSpanFeature]:
    places = rng.uniform(-0.7, 0.7, (len(seeds), len(features), 2))
    for seed in seeds:
        for feature, (x, y) in zip(features.tolist(), places[seed].tolist(), strict=True):
            yield SharedSpanFeature(ensemble, seed, feature, span, energy, x, y, 1e-4)


def _on_tokens(
    ensemble: str,
    span: str,
    seeds: range,
    rank: int,
    d_in: int,
    n_documents: int,
    vocabulary: TokenVocabulary,
    rng: np.random.Generator,
) -> Iterator[SharedSpanDirection | SharedSpanContext | SharedSpanToken | SharedSpanExplanation]:
    whole = np.linalg.qr(rng.standard_normal((d_in, rank)))[0].T
    for basis in (-1, *seeds):
        axes = whole if basis < 0 else np.roll(whole[: min(rank, PER_SPAN)], basis, 0)
        for axis, vector in enumerate(axes):
            ids = zipf(rng, (2, N_LOGITS), N_TOKENS).tolist() if basis < 0 else [[], []]
            logits = [[sign * 0.5] * len(ids[0]) for sign in (1, -1)]
            yield SharedSpanDirection(
                ensemble, span, basis, axis, vector.tolist(), 1 / rank, ids[0], logits[0], ids[1], logits[1]
            )
    length = BEFORE + AFTER + 1
    for seed in seeds:
        for place in range(N_SPAN_CONTEXTS):
            norms = rng.gamma(1, 0.5, length) * (rng.random(length) < 0.3)
            norms[BEFORE] = 9 - 0.5 * place
            ids = zipf(rng, (length,), N_TOKENS).tolist()
            document = int(rng.integers(n_documents))
            yield SharedSpanContext(ensemble, span, seed, place, document, 100, BEFORE, ids, norms.tolist())
    tokens = np.unique(zipf(rng, (4 * N_SPAN_TOKENS,), N_TOKENS))[:N_SPAN_TOKENS]
    for place, token in enumerate(tokens.tolist()):
        yield SharedSpanToken(ensemble, span, place, token, 0.2 / (place + 1) ** 1.5, 1000 // (place + 1))
    text = f'the tokens "{vocabulary.texts[tokens[0]]}" or "{vocabulary.texts[tokens[-1]]}"'
    yield SharedSpanExplanation(ensemble, span, TOKEN_RULE, text, 2.5, 0.8, 0.5, 0.62, 50, 50, None)


def _summary(ensemble: str, n_features: int, spans: list[SharedSpan], n_kept: int, n_members: int) -> SharedSpanSummary:
    n_failed = len(spans) - n_kept
    return SharedSpanSummary(
        ensemble, None, n_features, 4 * n_features, K_MAX, 199, LEVEL, len(spans), n_kept, ["living"] if n_failed else [],
        [n_failed] if n_failed else [], n_members, 0.9, True, 0.3, 0.27, 0.33, 0.35, 0.01, 4096,
    )  # fmt: skip
