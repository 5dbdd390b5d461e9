"""What counterparts do, kept as a part: whether they fire alike, whether they substitute, and the partners by activity."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from seedscope.engine.contract.schema import NO_MATCH
from seedscope.engine.contract.tables.function import (
    COUNTERPART_KINDS,
    N_NEAREST,
    FunctionSummary,
    SmallSet,
    TransportPlan,
)
from seedscope.engine.features.ablation import AblationPass
from seedscope.engine.features.cofiring import Moments, correlation, jaccard, moments, pair_sums, varies
from seedscope.engine.features.counterparts import density_control, hard_negative, most_alike, runner_up
from seedscope.engine.features.firings import FiringSpool
from seedscope.engine.features.function import MemberFunction, OfKind
from seedscope.engine.features.function_rows import as_columns
from seedscope.engine.features.function_summary import summarise
from seedscope.engine.features.substitution import Gains, Scores, scores
from seedscope.engine.matching.nearest_rows import NearestRows, nearest_rows
from seedscope.engine.matching.transport import partners_between
from seedscope.engine.saes.sae import unit_rows
from seedscope.engine.store.parts import Part
from seedscope.engine.studies.analyses.small_sets import SetMember, sets_of_pair, summaries_of_sets
from seedscope.engine.studies.ensemble_run import EnsembleRun

ANALYSIS = "function"
VERSION = 2  # of the content of its part
LONG = 3e13  # multiply-adds on a CPU beyond which it is measured only on request: minutes on two cores
# What transport takes, in multiply-adds per pair of rows and pass beside those of the product: an exponential and its sums.
# Measured on two cores; so are the passes that it takes to its tolerance.
EXPONENTIAL, PASSES = 150, 25
ROWS_AT_ONCE = 2**22  # numbers of decoder rows that are multiplied at once for the cosines of chosen pairs


class FunctionPass(NamedTuple):
    """What a pass over the evaluation tokens collected for it."""

    firings: FiringSpool
    gains: AblationPass | None  # with products across members; None where it is not known what members should give back


def function_about(run: EnsembleRun, match: Part) -> dict[str, Any]:
    """What the part is computed from."""
    transported = carries(run)
    return run.measured | run.judgement | {
        "function": VERSION, "one_to_one": match.about["one_to_one"], "transport": transported,
    }  # fmt: skip


def find_function(run: EnsembleRun) -> Part | None:
    """What was measured before with these matches; None where nothing was.

    None, too, where it lacks the one-to-one matching that there is, or the transport that is cheap here.
    """
    match = run.parts.find("match", saes=run.sae_digests)
    one_to_one = run.assigns or bool(match and match.about["one_to_one"])
    expected = run.measured | run.judgement | {"function": VERSION, "one_to_one": one_to_one}
    with_transport = run.parts.find(ANALYSIS, **expected, transport=True)
    return with_transport or (None if carries(run) else run.parts.find(ANALYSIS, **expected))


def carries(run: EnsembleRun) -> bool:
    """Whether partners by optimal transport are looked at, too: where that takes at most LONG multiply-adds, or on a GPU."""
    members = run.stored
    n_pairs = members.n_members * (members.n_members - 1) / 2
    work = n_pairs * PASSES * members.d_sae**2 * (members.d_out + EXPONENTIAL)
    return run.device.type != "cpu" or work <= LONG


def wants_function(run: EnsembleRun, *, expressly: bool) -> bool:
    """Whether it has a meaning here and was asked for expressly, or is cheap; says why not.

    Cheap: at most LONG multiply-adds on a CPU for encoding the tokens once more, the products of all pairs of decoders, and the
    products of every active row with every member's residual. Memory: see `measure_function`.
    """
    members = run.stored
    if members.n_members < 2:
        run.progress.say(f"{run.name}: function: left out, counterparts are in other seeds and there is one")
        return False
    if run.evaluator is None:
        run.progress.say(
            f"{run.name}: function: left out, it needs activity; measure that with: seedscope analyze {run.plan.name} "
            "--model DIR_OR_ID --tokens FILES"
        )
        return False
    if find_function(run):
        return True
    n, d_sae, n_tokens = members.n_members, members.d_sae, run.evaluator.evaluation.n_tokens
    k = getattr(members.convention, "k", 0) or d_sae / 16
    work = n * n_tokens * (members.d_in * d_sae + n * k * members.d_out) + n * n / 2 * d_sae**2 * members.d_out
    if not expressly and run.device.type == "cpu" and work > LONG:
        run.progress.say(
            f"{run.name}: function: left out, {n} members of {d_sae:,} features on {n_tokens:,} tokens take long on a CPU; ask for "
            f"it with: seedscope analyze {run.plan.name} --only function"
        )
        return False
    return True


def measure_function(run: EnsembleRun, match: Part, buckets: Sequence[np.ndarray], collected: FunctionPass) -> None:
    """Measure and keep what the counterparts of every kind do; `buckets` are (d_sae,) of every member.

    Memory: two members' decoder rows, the pages of their firings, a number per token, and 28 bytes for every kind, feature and
    comparison.
    """
    n, d_sae = run.stored.n_members, run.stored.d_sae
    live = collected.firings.n_active > 0
    absent = {
        kind
        for kind, is_there in (("hungarian", match.about["one_to_one"]), ("transport", carries(run)))
        if not is_there
    }
    kinds = [kind for kind in COUNTERPART_KINDS if kind not in absent]
    functions = [
        MemberFunction({kind: OfKind.none(d_sae, n - 1) for kind in kinds}, live[member]) for member in range(n)
    ]
    members = [_member(run, match, buckets, live, collected, member) for member in range(n)]
    sets: list[SmallSet] = []
    plans: list[TransportPlan] = []
    if "transport" in absent:
        run.progress.say(
            f"{run.name}: function: counterparts by optimal transport left out, {run.stored.d_sae:,} rows of {n} members take long "
            "on a CPU; a GPU measures them"
        )
    if collected.gains is None:
        run.progress.say(f"{run.name}: function: substitution left out, {run.undefined}")
    with run.progress.stage(f"{run.name}: co-firing and substitution", "pairs") as report:
        for done, (a, b) in enumerate(combinations(range(n), 2)):
            plans += _measure_pair(run, collected, (a, b), (members[a], members[b]), functions)
            report(done + 1, n * (n - 1) // 2)
    if collected.gains is not None:
        with run.progress.stage(f"{run.name}: small sets", "seeds") as report:
            for a in range(n):
                b = (a + 1) % n
                of_sets = [_for_sets(run, members[member]) for member in (a, b)]
                sets += sets_of_pair(collected.firings, collected.gains, a, b, *of_sets)
                report(a + 1, n)
    rows = summarise(run.name, functions, buckets, run.plan.epsilon) + summaries_of_sets(run.name, run.seeds, sets)
    tables = as_columns(FunctionSummary, rows) | as_columns(SmallSet, sets) | as_columns(TransportPlan, plans)
    with run.parts.write(ANALYSIS, function_about(run, match)) as put:
        for index, (seed, function) in enumerate(zip(run.seeds, functions, strict=True)):
            put(seed, function.as_arrays() | ({} if index else tables))


class _Member(NamedTuple):
    """One member: its partners under the match rules, its own sums, and what its features are worth; arrays over features."""

    at: int  # its place among the members
    partners: dict[str, np.ndarray]  # {match rule: (d_sae, comparisons)}
    moments: Moments
    worth: np.ndarray  # what masking each adds to the squared error; NaN where that is not known
    buckets: np.ndarray
    living: np.ndarray


def _member(
    run: EnsembleRun, match: Part, buckets: Sequence[np.ndarray], live: np.ndarray, collected: FunctionPass, index: int
) -> _Member:
    fields = {"argmax": "partner", "live": "live_partner", "hungarian": "hungarian_partner"}
    arrays = match.read(run.seeds[index], *fields.values())
    partners = {rule: arrays[field] for rule, field in fields.items() if arrays[field].shape[1]}
    gains = collected.gains
    worth = np.full(run.stored.d_sae, np.nan)
    if gains is not None:
        worth = 2 * gains.along(index, index) + gains.diagonal(index)
    return _Member(index, partners, moments(collected.firings, index), worth, buckets[index], live[index])


def _for_sets(run: EnsembleRun, member: _Member) -> SetMember:
    directions = unit_rows(run.stored.decoder_rows(member.at).float())
    return SetMember(run.seeds[member.at], member.buckets, member.living, member.worth, directions)


def _measure_pair(
    run: EnsembleRun,
    collected: FunctionPass,
    at: tuple[int, int],
    members: tuple[_Member, _Member],
    functions: list[MemberFunction],
) -> list[TransportPlan]:
    """Fill in both directions of one pair of members; every pair of features is summed once, whichever names it.

    Returns the plan of transport between the two, none where it is left out.
    """
    d_sae, n_tokens = run.stored.d_sae, collected.firings.n_tokens
    rows = [unit_rows(run.stored.decoder_rows(index).float()) for index in at]
    nearest = nearest_rows(rows[0].to(run.device), rows[1].to(run.device), N_NEAREST)
    chosen = [_chosen(run, members[side], members[1 - side], nearest[side]) for side in (0, 1)]
    plans = _add_transported(run, at, rows, chosen) if carries(run) else []
    keys = np.unique(np.concatenate([_keys(chosen[side], nearest[side].row, d_sae, side) for side in (0, 1)]))
    first, second = np.divmod(keys, d_sae)
    sums = pair_sums(collected.firings, *at, first, second)
    alike = correlation(sums, members[0].moments, members[1].moments, first, second, n_tokens)
    overlap = jaccard(sums.together, members[0].moments.n_active[first], members[1].moments.n_active[second])
    cosine = np.empty(len(keys))
    for begin in range(0, len(keys), step := max(ROWS_AT_ONCE // rows[0].shape[1], 1)):
        some = slice(begin, begin + step)
        cosine[some] = (rows[0][first[some]] * rows[1][second[some]]).sum(-1).clamp(-1, 1).numpy()
    for side in (0, 1):
        own, other = members[side], members[1 - side]
        anchors, partners = (first, second) if side == 0 else (second, first)
        scored = Scores(*np.full((3, len(keys)), np.nan))
        if collected.gains is not None:
            gains = Gains(collected.gains.along(other.at, own.at), collected.gains.diagonal(other.at))
            scored = scores(own.worth[anchors], gains, partners, sums.scaled, cosine)

        def found(partner: np.ndarray, side: int = side) -> np.ndarray:
            """Where features with such partners (d_sae, ..) stand among the keys; anywhere for those without."""
            return np.searchsorted(keys, _key(np.arange(d_sae), partner.clip(0), d_sae, side)).clip(0, len(keys) - 1)

        near = nearest[side].row
        of_near = np.stack([alike[found(near[:, place])] for place in range(near.shape[1])], 1)
        by_kind = chosen[side] | {
            "active": most_alike(near, of_near, other.living, own.living & varies(own.moments, n_tokens))
        }
        slot = other.at - (other.at > own.at)
        for kind, partner in by_kind.items():
            has, where = partner >= 0, found(partner)
            target = functions[own.at].kinds[kind]
            target.partner[:, slot] = partner
            target.cosine[:, slot] = np.where(has, cosine[where], NO_MATCH)
            target.correlation[:, slot] = np.where(has, alike[where], 0)
            target.jaccard[:, slot] = np.where(has, overlap[where], 0)
            unscored = np.where(own.worth > 0, 0, np.nan)  # nothing in a feature's place
            for name, values in scored._asdict().items():
                getattr(target, name)[:, slot] = np.where(has, values[where], unscored)
    return plans


def _add_transported(
    run: EnsembleRun, at: tuple[int, int], rows: list[Tensor], chosen: list[dict[str, np.ndarray]]
) -> list[TransportPlan]:
    """Add partners by optimal transport to those `chosen` on both sides; the plan, none where a side has no direction at all."""
    if not all(bool(each.any()) for each in rows):
        for of_side in chosen:
            of_side["transport"] = np.full(run.stored.d_sae, -1)
        return []
    between = partners_between(rows[0].to(run.device), rows[1].to(run.device))
    chosen[0]["transport"], chosen[1]["transport"] = between.forward, between.backward
    seed, other = (run.seeds[index] for index in at)
    return [TransportPlan("", seed, other, between.epsilon, between.n_passes, between.marginal_gap, between.share)]


def _chosen(run: EnsembleRun, own: _Member, other: _Member, nearest: NearestRows) -> dict[str, np.ndarray]:
    """{kind: (d_sae,) counterparts in the other member}, of all kinds but `transport` and `active`."""
    slot = other.at - (other.at > own.at)
    by_rule = {rule: partners[:, slot] for rule, partners in own.partners.items()}
    rng = np.random.default_rng((0, own.at, other.at))
    counts = own.moments.n_active, other.moments.n_active
    return by_rule | {
        "runner_up": runner_up(nearest.row, by_rule["argmax"]),
        "random_density": density_control(*counts, nearest.row, rng),
        "hard_negative": hard_negative(nearest.row, nearest.cosine, other.living, run.plan.theta),
    }


def _keys(chosen: dict[str, np.ndarray], nearest: np.ndarray, d_sae: int, side: int) -> np.ndarray:
    """The pairs of features that one side names, as one number each: the first member's feature, then the second's."""
    partners = np.concatenate([np.stack(list(chosen.values()), 1), nearest], 1)
    feature = np.broadcast_to(np.arange(d_sae)[:, None], partners.shape)[partners >= 0]
    return _key(feature, partners[partners >= 0], d_sae, side)


def _key(feature: np.ndarray, partner: np.ndarray, d_sae: int, side: int) -> np.ndarray:
    first, second = (feature, partner) if side == 0 else (partner, feature)
    return first.astype(np.int64) * d_sae + second
