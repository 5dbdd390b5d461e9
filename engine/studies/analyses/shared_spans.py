"""Small spans that unstable features share, kept as a part: found by decoders, and followed on the evaluation tokens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.contract.stability import buckets, count_matches
from seedscope.engine.contract.tables.shared_spans import (
    SharedSpan,
    SharedSpanContext,
    SharedSpanDirection,
    SharedSpanExplanation,
    SharedSpanToken,
)
from seedscope.engine.explanations.of_spans import explain_spans
from seedscope.engine.features.ablation import AblationPass, Masked, MaskPass
from seedscope.engine.features.logits import direct_logits
from seedscope.engine.features.span_tokens import (
    N_CONTROLS,
    SpanFeatures,
    SpanPass,
    SpanSets,
    Strengths,
    as_tensor,
    span_sets,
    strong_contexts,
    token_shares,
)
from seedscope.engine.geometry.expansions import K_MAX
from seedscope.engine.geometry.find_spans import FoundSpans, Unsearchable, find_spans
from seedscope.engine.geometry.shared_span_rows import ANALYSIS, Rows, as_arrays, nothing_searched, principal, rows_of
from seedscope.engine.matching.best_matches import stored_best_matches
from seedscope.engine.matching.buckets import judge
from seedscope.engine.saes.encode import encoded
from seedscope.engine.saes.sae import unit_rows
from seedscope.engine.saes.stored import MemberRows
from seedscope.engine.store.parts import Part
from seedscope.engine.studies.analyses.activity import target_rows
from seedscope.engine.studies.analyses.loss import LossSettings
from seedscope.engine.studies.analyses.span_loss import add_span_loss
from seedscope.engine.studies.ensemble_run import EnsembleRun
from seedscope.engine.studies.evaluator import Evaluator

VERSION = 2  # of the content of its part
_NO_SCORE = (None, None, None, 0, 0)
# Multiply-adds of expansions on a CPU beyond which it is searched only on request. 8 x 4,096 x 256 has 1e12 and takes 25 s on two
# cores, 8 x 16,384 x 768 has 5e13 and takes over seven minutes.
LONG = 1e12


def spans_about(run: EnsembleRun, match: Part, activity: Part | None) -> dict[str, Any]:
    """What the part is computed from."""
    return match.about | (activity.about if activity else {}) | run.judgement | {"shared_spans": VERSION}


def wants_shared_spans(run: EnsembleRun, *, expressly: bool) -> bool:
    """Whether it was asked for expressly, or is cheap; says why not.

    Cheap: at most LONG multiply-adds on a CPU if every feature were written with K_MAX of every other member.
    """
    members = run.stored
    n, d_sae = members.n_members, members.d_sae
    work = n * (n - 1) * d_sae**2 * members.d_out * K_MAX
    if expressly or run.device.type != "cpu" or work <= LONG:
        return True
    run.progress.say(
        f"{run.name}: shared spans: left out, expansions of {n} members of {d_sae:,} features take long on a CPU; ask for them "
        f"with: seedscope analyze {run.plan.name} --only {ANALYSIS}"
    )
    return False


def measure_shared_spans(run: EnsembleRun, match: Part, activity: Part | None, loss: LossSettings) -> None:
    """Find, test and follow small shared spans, then measure what masking them costs the model, unless that was done before.

    The loss is measured where it is cheap or was asked for expressly.
    """
    about = spans_about(run, match, activity)
    if run.parts.find(ANALYSIS, **about) is None:
        _search(run, match, activity, about)
    add_span_loss(run, run.part(ANALYSIS, about), activity, loss)


class _UnitDecoders(Sequence[np.ndarray]):
    """Members' decoder rows in float32, of length one, read anew each time."""

    def __init__(self, members: MemberRows, chosen: range) -> None:
        self._members, self._chosen = members, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, member: Any) -> Any:  # the members of a slice likewise
        if isinstance(member, slice):
            return _UnitDecoders(self._members, self._chosen[member])
        return unit_rows(self._members.decoder_rows(self._chosen[member]).float()).numpy()


def _search(run: EnsembleRun, match: Part, activity: Part | None, about: dict[str, Any]) -> None:
    decoders = _UnitDecoders(run.stored, range(run.stored.n_members))
    unstable, living, n_active = _searched(run, match, activity, decoders)
    try:
        with run.progress.stage(f"{run.name}: shared spans", "steps") as report:
            found = find_spans(
                decoders, unstable, living, n_active, digests=run.sae_digests, device=run.device,
                scratch=run.study / "scratch", report=report,
            )  # fmt: skip
        rows = _followed(run, found, n_active)
    except Unsearchable as error:
        run.progress.say(f"{run.name}: shared spans: left out, {error}")
        rows = nothing_searched(run.name, str(error))
    with run.parts.write(ANALYSIS, about) as put:
        put(run.seeds[0], as_arrays(rows))


def _searched(
    run: EnsembleRun, match: Part, activity: Part | None, decoders: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Which features have no counterparts, which live, and on how many tokens each is active, where that is known."""
    directed = np.stack([(np.linalg.norm(rows, axis=1) > 0) & np.isfinite(rows).all(1) for rows in decoders])
    if activity is None:
        matches = stored_best_matches(match, run.seeds)
        n_matched = np.stack([count_matches(cosines, run.plan.theta) for cosines in matches.cosine])
        named = buckets(n_matched, matches.other.shape[1], ~directed, run.plan.epsilon)
        return named == "unstable", directed, None
    judged = list(judge(run.plan, run.ensemble, match, activity))
    named, n_active = (np.stack(column) for column in zip(*judged, strict=True))
    return (named == "unstable") & directed, (n_active > 0) & directed, n_active


def _followed(run: EnsembleRun, found: FoundSpans, n_active: np.ndarray | None) -> Rows:
    """The rows of what was found; of kept spans with what they do on the tokens."""
    evaluator = run.evaluator
    if not found.kept or evaluator is None or n_active is None:
        # Where nothing is kept no feature's energy lies in a shared span, however features are weighed.
        return rows_of(found, run.name, run.seeds, None)
    spans = _features_of(run, found)
    sets = span_sets([[each.features for each in of_members] for of_members in spans], n_active)
    collected = _passes(run, evaluator, spans, sets)
    pool = found.pool
    rows = rows_of(found, run.name, run.seeds, collected.energy[pool.seed, pool.feature])
    if collected.answers:
        rows[SharedSpan] = _with_ablation(rows[SharedSpan], sets, collected.answers)
    _add_logits(evaluator, run, rows)
    if not evaluator.recorded and collected.tokens is not None:  # else the activations came without tokens
        _add_tokens(evaluator, run, found, collected.strengths, collected.tokens, rows)
    return rows


def _features_of(run: EnsembleRun, found: FoundSpans) -> list[list[SpanFeatures]]:
    """Every kept span's features in every member."""
    pool, spans = found.pool, []
    for candidate in found.kept:
        axes = principal(found, candidate)
        members = candidate.span.members
        of_seeds = [members[pool.seed[members] == index] for index in range(pool.n_seeds)]
        spans.append([SpanFeatures(pool.feature[mine], pool.rows[mine] @ axes) for mine in of_seeds])
    return spans


class _OnTokens(NamedTuple):
    """What the evaluation tokens say of kept spans."""

    energy: np.ndarray  # (members, d_sae) sum over tokens of squared activations
    strengths: list[list[Strengths]]  # of every span in every member
    answers: list[Masked]  # of every member; none where it is not known what members should give back
    tokens: TokenSet | None  # those that count at the hook point; None where the activations came without


def _passes(run: EnsembleRun, evaluator: Evaluator, spans: list[list[SpanFeatures]], sets: SpanSets) -> _OnTokens:
    """Strengths and, where it is known what members should give back, masks: a pass over the tokens per group of members."""
    activations = evaluator.activations(run.hookpoint, run.stored.d_in, run.output)
    rows, tokens = activations.rows, activations.tokens
    targets = None if run.undefined else rows if activations.targets is None else activations.targets
    positions = np.arange(len(rows)) if tokens is None else np.flatnonzero(tokens.counted)
    found = _OnTokens(np.zeros((run.stored.n_members, run.stored.d_sae)), [[] for _ in spans], [], tokens)
    with run.progress.stage(f"{run.name}: shared spans on tokens", "tokens") as report:
        for group in run.groups:
            members = run.load(group)
            of_group = slice(group.start, group.stop)
            collected = SpanPass(members, [of_members[of_group] for of_members in spans])
            worth = AblationPass(members, pair_numbers=0)
            masks = [{str(at): chosen for at, chosen in of_member.items()} for of_member in sets[of_group]]
            masked = MaskPass(members, masks)
            for first, batch, codes in encoded(members, rows, run.device, n_members=run.stored.n_members):
                collected.add(codes, positions[first : first + len(batch)])
                if targets is not None:
                    goal = target_rows(targets, first, len(batch))
                    worth.add(goal, codes)
                    masked.add(goal, codes)
                done = group.start * len(rows) + (first + len(batch)) * len(group)
                report(done // run.stored.n_members, len(rows))
            found.energy[of_group] = collected.energy
            for index in range(len(group)):
                for at, of_span in enumerate(found.strengths):
                    of_span.append(collected.strengths(at, index))
                if targets is not None:
                    found.answers.append(masked.finish(index, worth.finish(index)))
    return found


def _with_ablation(rows: list[SharedSpan], sets: SpanSets, answers: list[Masked]) -> list[SharedSpan]:
    measured = []
    for at, row in enumerate(rows):
        held = [(answer, of_member[at]) for answer, of_member in zip(answers, sets, strict=True) if at in of_member]
        if row.kept and held:
            whole = float(np.mean([answer.explained_variance() for answer, _ in held]))
            masked_ev = float(np.mean([answer.explained_variance(chosen[0]) for answer, chosen in held]))
            row = replace(row, ev=masked_ev, ev_whole=whole)
            if all(
                len(chosen) == 1 + N_CONTROLS for _, chosen in held
            ):  # else too few other features live in some seed
                evs = np.array([[answer.explained_variance(each) for each in chosen[1:]] for answer, chosen in held])
                evs = evs.mean(0)
                row = replace(row, ev_control=float(evs.mean()), ev_control_sd=float(evs.std()))
        measured.append(row)
    return measured


def _add_logits(evaluator: Evaluator, run: EnsembleRun, rows: Rows) -> None:
    """What the principal directions of all seeds together do to the next tokens' logits."""
    at = [place for place, row in enumerate(rows[SharedSpanDirection]) if row.basis < 0]
    if run.undefined or not at:
        return
    vectors = np.array([rows[SharedSpanDirection][place].vector for place in at])
    logits = direct_logits(evaluator.model, as_tensor(vectors))
    if logits is None:
        return
    columns = [
        column.tolist() for column in (logits.positive_ids, logits.positive, logits.negative_ids, logits.negative)
    ]
    for place, raised, up, lowered, down in zip(at, *columns, strict=True):
        rows[SharedSpanDirection][place] = replace(
            rows[SharedSpanDirection][place], raised=raised, raised_logits=up, lowered=lowered, lowered_logits=down
        )


def _add_tokens(
    evaluator: Evaluator,
    run: EnsembleRun,
    found: FoundSpans,
    strengths: list[list[Strengths]],
    tokens: TokenSet,
    rows: Rows,
) -> None:
    """Contexts, tokens and token rules of kept spans."""
    for candidate, of_members in zip(found.kept, strengths, strict=True):
        for seed, of_seed in zip(run.seeds, of_members, strict=True):
            for rank, context in enumerate(strong_contexts(of_seed, tokens)):
                rows[SharedSpanContext].append(SharedSpanContext(run.name, candidate.id, seed, rank, *context))
        for rank, share in enumerate(token_shares(of_members, tokens)):
            rows[SharedSpanToken].append(SharedSpanToken(run.name, candidate.id, rank, *share))
    for level, explained in explain_spans(strengths, tokens, evaluator.texts):
        score = explained.scores[0] if explained.scores else None
        rows[SharedSpanExplanation].append(
            SharedSpanExplanation(
                run.name, found.kept[explained.feature].id, explained.explainer, explained.text, level,
                *((score.value, score.shuffled, score.shuffled_p95, score.n_active, score.n_silent) if score else _NO_SCORE),
                failure=explained.failure or (score.failure if score else None),
            )
        )  # fmt: skip
