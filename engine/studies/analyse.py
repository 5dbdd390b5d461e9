"""What a study's catalogue asks for, computed where it is missing: activity, matching and worth of every ensemble.

Every analysis leaves a part on disk as soon as it is done, so a stopped run goes on behind it, and a study that gains an
ensemble computes that one alone. `publish` turns the parts into a store.
"""

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from seedscope.engine.activations.documents import Document
from seedscope.engine.activations.harvest import LanguageModel
from seedscope.engine.contract.schema import ANALYSES
from seedscope.engine.explanations.of_study import explain_by_rules
from seedscope.engine.features.ablation import AblationPass, MaskPass, curve_masks, explained_under, headline_masks
from seedscope.engine.features.activity import ActivityPass
from seedscope.engine.features.examples import ContextGrid
from seedscope.engine.features.logits import direct_logits
from seedscope.engine.features.loss import Losses, Splice, attributed_loss, losses_under, takes_long
from seedscope.engine.geometry.map import draw_atlas
from seedscope.engine.geometry.measure import measure
from seedscope.engine.geometry.rows import ANALYSIS as SUBSPACES
from seedscope.engine.geometry.rows import as_arrays
from seedscope.engine.matching.buckets import judge
from seedscope.engine.matching.cuda import choice, named_device
from seedscope.engine.matching.match import NULL_KINDS, Matches, affordable, match_ensemble, null_cosines
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.saes.encode import encoded
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.store.parts import VERSION, Part, Parts
from seedscope.engine.studies.evaluator import Bench, measured_from, open_bench
from seedscope.engine.training import snapshots, trajectory
from seedscope.engine.training.trajectory import ANALYSIS as TRAJECTORY

COVARIANCE_ROWS = 2**14  # activations multiplied at once in double precision
LOSS_TOKENS = 4096  # that spliced losses are measured on: windows of the evaluation tokens, drawn at random
NEED_ACTIVITY = {"ablate", "loss", "explain", TRAJECTORY}
LOSS_DRAWS = 2  # of the headline's masks; curves are drawn once


@torch.no_grad()
def analyse(
    study: Path,
    *,
    only: Sequence[str] | None = None,
    one_to_one: bool | None = None,
    loss_tokens: int | None = None,
    device: str = "auto",
    texts: Iterable[Document] | None = None,
    model: LanguageModel | None = None,
    progress: Progress | None = None,
) -> None:
    """Compute the analyses named in `only`, and what they need, for every ensemble of a study, where they are missing.

    By default all, the loss where it is cheap. `one_to_one` asks for one-to-one matching of all pairs, by default where it
    is cheap. `texts` and `model` stand for what the catalogue names. Without a model activity and worth are left out, and
    that is said. Raises ValueError for a study without a catalogue, a model or tokens that cannot be read, and a hook
    point that the model does not have.
    """
    plan = catalogue.read(study)
    if plan is None:
        raise ValueError(f"found no {catalogue.FILE} in {study}; import SAEs into the study first: seedscope import")
    asked = set(ANALYSES if only is None else only)
    if unknown := asked - set(ANALYSES):
        raise ValueError(f"analyses are {', '.join(sorted(unknown))}, expected some of {', '.join(ANALYSES)}")
    progress = progress or Progress()
    on = named_device(device)
    wanted = {"match"} | asked | ({"activity"} if NEED_ACTIVITY & asked else set())
    bench = None
    if wanted != {"match"}:
        bench = open_bench(study, plan, model, texts, on, progress)
    progress.say(f"best cosines: {choice(on)[1]}")
    for ensemble in plan.ensembles:
        where = bench and (bench.control if ensemble.control_of else bench)
        where = where if ensemble.hookpoint else None
        loss = _LossAsked(loss_tokens, only is not None) if "loss" in wanted else None
        _analyse(study, plan, ensemble, where, wanted, one_to_one, loss, on, progress)
    shutil.rmtree(study / "scratch", ignore_errors=True)


class _LossAsked(NamedTuple):
    """How the loss is to be measured."""

    n_tokens: int | None  # None: on LOSS_TOKENS, or on as many as it was measured on before
    expressly: bool  # however long it takes


def _analyse(
    study: Path,
    plan: catalogue.Study,
    ensemble: catalogue.Ensemble,
    bench: Bench | None,
    wanted: set[str],
    one_to_one: bool | None,
    loss: _LossAsked | None,
    device: torch.device,
    progress: Progress,
) -> None:
    """All wanted parts of one ensemble: one pass over the tokens for activity and worth, then matching, then masks."""
    parts, name = Parts(study, ensemble.name), ensemble.name
    saes = [member.digest for member in ensemble.members]
    members = sae.load(study / ensemble.folder, ensemble.seeds)
    measured = measured_from(ensemble, bench.evaluation) if bench else {}
    known = measured or {"version": VERSION, "saes": saes, "hookpoint": ensemble.hookpoint}
    activity = parts.find("activity", **known)
    new_activity = bench is not None and activity is None
    live = None if new_activity else _live(activity, ensemble)
    match = None if new_activity else _found_match(parts, saes, live, one_to_one, members)
    judged = {"theta": plan.theta, "epsilon": plan.epsilon}
    worth = parts.find("ablate", **measured, **judged) if bench and not new_activity else None
    new_worth = bench is not None and "ablate" in wanted and worth is None
    activity_pass = ActivityPass(members) if new_activity else None
    ablation_pass = AblationPass(members) if new_worth else None
    rows = None
    if new_activity or new_worth:
        rows, tokens = bench.place(ensemble.hookpoint, members.d_in)
        positions = np.flatnonzero(tokens.counted)
        with progress.stage(f"{name}: activity{' and ablation' if new_worth else ''}", "tokens") as report:
            for first, batch, codes in encoded(members, rows, device):
                if activity_pass:
                    activity_pass.add(codes, positions[first : first + len(batch)])
                if ablation_pass:
                    ablation_pass.add(batch, codes)
                report(first + len(batch), len(rows))
    if activity_pass:
        with (
            progress.stage(f"{name}: contexts", "members") as report,
            parts.write("activity", measured) as put,
        ):
            grid = ContextGrid(tokens, bench.texts)
            summaries = activity_pass.summaries(tokens, vocabulary=bench.vocabulary, grid=grid)
            for index, (seed, found) in enumerate(zip(ensemble.seeds, summaries, strict=True)):
                logits = direct_logits(bench.model, members.W_dec[index])
                named = {f"logit_{name}": tensor.numpy() for name, tensor in logits._asdict().items()} if logits else {}
                put(seed, _flat(found) | named | {"left_out": tokens.left_out})
                report(index + 1, members.n_members)
        activity = parts.find("activity", **measured)
        live = _live(activity, ensemble)
        match = _found_match(parts, saes, live, one_to_one, members)
    if match is None:
        match = _match(parts, ensemble, members, saes, live, one_to_one, device, progress)
    if bench and "explain" in wanted:
        explain_by_rules(parts, ensemble, activity, bench.tokens, bench.texts, measured, progress)
    covariance = None
    if bench and ("subspaces" in wanted or rows is not None):  # cheap while the rows are there
        covariance = _activation_covariance(parts, ensemble, bench, members.d_in, measured, rows, progress)
    if "subspaces" in wanted:
        _subspaces(parts, plan, ensemble, members, match, live, covariance, device, progress)
    if TRAJECTORY in wanted:
        about = (measured or known | {"tokens": None}) | {"theta": plan.theta}
        _trajectory(parts, study, ensemble, members, bench, activity, one_to_one, about, device, progress)
    lacks_loss = loss and bench and _lacks_loss(parts, name, bench, measured | judged, loss, progress)
    if ablation_pass or lacks_loss:
        judged_by = _Judged(*zip(*judge(plan, ensemble, match, activity), strict=True))
    if ablation_pass:
        _ablate(parts, ensemble, members, ablation_pass, judged_by, rows, measured | judged, device, progress)
    if lacks_loss:
        left_out = activity.read(ensemble.seeds[0], "left_out")["left_out"]
        _loss(parts, plan, ensemble, members, bench, left_out, judged_by, measured | judged, loss, progress)


class _Judged(NamedTuple):
    """What masks are drawn from: every member's buckets and densities, (d_sae,) each."""

    buckets: Sequence[np.ndarray]
    densities: Sequence[np.ndarray]

    def masks(self, index: int) -> dict[str, list[np.ndarray]]:
        """All of one member, the headline's and the curves'."""
        pair = self.buckets[index], self.densities[index]
        return headline_masks(*pair) | curve_masks(*pair)

    def fewer_masks(self, index: int) -> dict[str, list[np.ndarray]]:
        """Those that the loss is measured under: LOSS_DRAWS of the headline's, one draw of the curves."""
        pair = self.buckets[index], self.densities[index]
        return headline_masks(*pair, n_draws=LOSS_DRAWS) | curve_masks(*pair, n_draws=1)


def _flat(activity) -> dict[str, Any]:
    """Activity as named arrays, its contexts, triggers and examples among them."""
    held = activity._asdict()
    inside = {name: held.pop(f"{name}s")._asdict() for name in ("context", "trigger", "example")}
    inside["trigger"]["what"] = inside["trigger"]["what"].astype(str)  # text of fixed width: no pickle
    return held | {f"{kind}_{name}": array for kind, each in inside.items() for name, array in each.items()}


def _live(activity: Part | None, ensemble: catalogue.Ensemble) -> np.ndarray | None:
    """(members, d_sae) features that fired; None where activity is not known."""
    if activity is None:
        return None
    return np.stack([activity.read(seed, "n_active")["n_active"] > 0 for seed in ensemble.seeds])


def _live_digest(live: np.ndarray | None) -> str | None:
    return None if live is None else hashlib.sha256(np.packbits(live).tobytes()).hexdigest()[:16]


def _found_match(
    parts: Parts, saes: list[str], live: np.ndarray | None, one_to_one: bool | None, members: SAE
) -> Part | None:
    found = parts.find("match", version=VERSION, saes=saes, live=_live_digest(live))
    asked = affordable(members.n_members, members.d_sae, members.d_in) if one_to_one is None else one_to_one
    return None if found and asked and not found.about["one_to_one"] else found


def _match(
    parts: Parts,
    ensemble: catalogue.Ensemble,
    members: SAE,
    saes: list[str],
    live: np.ndarray | None,
    one_to_one: bool | None,
    device: torch.device,
    progress: Progress,
) -> Part:
    name = ensemble.name
    assign = affordable(members.n_members, members.d_sae, members.d_in) if one_to_one is None else one_to_one
    with progress.stage(f"{name}: matching", "pairs") as report:
        matches = match_ensemble(members, live, assign=assign, device=device, report=report)
    with progress.stage(f"{name}: chance", "nulls") as report:
        chance = {}
        for done, kind in enumerate(NULL_KINDS):
            chance[kind] = null_cosines(members, kind, device=device)
            report(done + 1, len(NULL_KINDS))
    about = {"version": VERSION, "saes": saes, "live": _live_digest(live), "one_to_one": assign, "device": device.type}
    with parts.write("match", about) as put:
        for index, seed in enumerate(ensemble.seeds):
            mine = {field: array[index] for field, array in matches._asdict().items()}
            null = {f"null_{kind}": found.cosine[index] for kind, found in chance.items()}
            put(seed, mine | null | {"null_feature": chance[NULL_KINDS[0]].feature})
    return parts.find("match", **about)


def _ablate(
    parts: Parts,
    ensemble: catalogue.Ensemble,
    members: SAE,
    ablation_pass: AblationPass,
    judged: _Judged,
    rows,
    about: dict[str, Any],
    device: torch.device,
    progress: Progress,
) -> None:
    """Every feature's worth, and what growing sets of each bucket are worth."""
    mask_pass, drawn = None, [judged.masks(index) for index in range(members.n_members)]
    if not ablation_pass.pairwise:
        mask_pass = MaskPass(members, drawn)
        with progress.stage(f"{ensemble.name}: masks", "tokens") as report:
            for first, batch, codes in encoded(members, rows, device):
                mask_pass.add(batch, codes)
                report(first + len(batch), len(rows))
    with progress.stage(f"{ensemble.name}: worth", "members") as report, parts.write("ablate", about) as put:
        for index, seed in enumerate(ensemble.seeds):
            worth = ablation_pass.finish(index)
            answers = mask_pass.finish(index, worth) if mask_pass else worth
            found = explained_under(answers, drawn[index])
            put(seed, {"ev": worth.explained_variance(), "marginal": worth.marginal_worth()} | _columns(found))
            report(index + 1, members.n_members)


def _columns(rows: list[Any]) -> dict[str, np.ndarray]:
    """Named rows of masks as named arrays."""
    return {
        f"mask_{name}": np.array(column) for name, column in zip(rows[0]._fields, zip(*rows, strict=True), strict=True)
    }


def _activation_covariance(
    parts: Parts, ensemble: catalogue.Ensemble, bench: Bench, d_in: int, about: dict[str, Any], rows, progress: Progress
) -> np.ndarray:
    """(d_in, d_in) of the activations at the ensemble's hook point, kept as a part; `rows` are those, or None."""
    found = parts.find("activations", **about)
    if found is None:
        rows = bench.place(ensemble.hookpoint, d_in).rows if rows is None else rows
        total, product = np.zeros(d_in), np.zeros((d_in, d_in))
        with progress.stage(f"{ensemble.name}: directions of activations", "tokens") as report:
            for first in range(0, len(rows), COVARIANCE_ROWS):
                batch = torch.from_numpy(rows[first : first + COVARIANCE_ROWS].astype(np.float32)).double()
                total += batch.sum(0).numpy()
                product += (batch.T @ batch).numpy()
                report(first + len(batch), len(rows))
        mean = total / len(rows)
        with parts.write("activations", about) as put:  # one for all members: under the first one's name
            put(ensemble.seeds[0], {"covariance": product / len(rows) - np.outer(mean, mean)})
        found = parts.find("activations", **about)
    return found.read(ensemble.seeds[0])["covariance"]


def _subspaces(
    parts: Parts,
    plan: catalogue.Study,
    ensemble: catalogue.Ensemble,
    members: SAE,
    match: Part,
    live: np.ndarray | None,
    covariance: np.ndarray | None,
    device: torch.device,
    progress: Progress,
) -> None:
    """Spans of the members' buckets, and the map of directions, unless they were found before."""
    judged = {"theta": plan.theta, "epsilon": plan.epsilon}
    about = match.about | judged | {"covariance": covariance is not None}
    if parts.find(SUBSPACES, **about):
        return
    if members.n_members < 2:
        progress.say(f"{ensemble.name}: subspaces: left out, they compare members and there is one")
        return
    alive = sae.directed(members.W_dec).numpy() if live is None else live & sae.directed(members.W_dec).numpy()
    held = [match.read(seed, *Matches._fields) for seed in ensemble.seeds]
    matches = Matches(*(np.stack([each[name] for each in held]) for name in Matches._fields))
    decoders = members.W_dec.detach()
    with progress.stage(f"{ensemble.name}: subspaces", "steps") as report:
        found = measure(
            list(decoders), matches, ~alive, theta=plan.theta, epsilon=plan.epsilon, covariance=covariance, device=device,
            seeds=ensemble.seeds, report=report,
        )  # fmt: skip
    with progress.stage(f"{ensemble.name}: map of directions", "features") as report:
        atlas = draw_atlas(decoders, matches, alive)
        report(n := int(np.isfinite(atlas.x).sum()), n)
    with parts.write(SUBSPACES, about) as put:
        put(ensemble.seeds[0], as_arrays(found, atlas, ~alive, ensemble.seeds))


def _trajectory(
    parts: Parts,
    study: Path,
    ensemble: catalogue.Ensemble,
    members: SAE,
    bench: Bench | None,
    activity: Part | None,
    one_to_one: bool | None,
    about: dict[str, Any],
    device: torch.device,
    progress: Progress,
) -> None:
    """What members were at each of their snapshots, unless it was measured before; left out where none were kept."""
    folder, seeds, name = study / ensemble.folder, ensemble.seeds, ensemble.name
    taken = snapshots.kept(folder, seeds)
    if not taken or members.n_members < 2:
        why = "it compares members and there is one" if taken else "no members were kept along its training"
        progress.say(f"{name}: trajectory: left out, {why}")
        return
    assign = one_to_one
    if assign is None:
        assign = trajectory.affordable(len(taken), len(seeds), members.d_sae, members.d_in)
    about = about | {"steps": [each.step for each in taken], "n_asked": trajectory.N_TOKENS}
    found = parts.find(TRAJECTORY, **about)
    if found and (found.about["one_to_one"] or not assign):
        return
    if not assign:
        progress.say(f"{name}: trajectory: pairs are not matched one to one at this size; ask with --rule hungarian")
    rows = None
    if bench and activity:
        left_out = activity.read(seeds[0], "left_out")["left_out"]
        rows = bench.sample(ensemble.hookpoint, trajectory.N_TOKENS, left_out)
    units, followed = snapshots.units(folder, members.d_in), []
    with progress.stage(f"{name}: trajectory", "snapshots") as report:
        for each in taken:
            then = sae.load(each.folder, seeds)
            followed.append(
                trajectory.follow(then, rows, units=units, theta=about["theta"], assign=assign, device=device)
            )
            report(len(followed), len(taken))
        level = trajectory.random_level(members.d_sae, members.d_in, assign=assign)
    n_tokens = None if rows is None else len(rows)
    with parts.write(TRAJECTORY, about | {"one_to_one": assign}) as put:
        for seed, arrays in trajectory.as_arrays(taken, followed, level, seeds, n_tokens).items():
            put(seed, arrays)


def _lacks_loss(
    parts: Parts, name: str, bench: Bench, about: dict[str, Any], asked: _LossAsked, progress: Progress
) -> bool:
    """Whether the loss has a meaning here and was not measured as asked."""
    if not bench.model.causal:
        progress.say(f"{name}: loss: left out, {bench.model.name} predicts no next token")
        return False
    return parts.find("loss", **about, **({} if asked.n_tokens is None else {"loss_tokens": asked.n_tokens})) is None


def _loss(
    parts: Parts,
    plan: catalogue.Study,
    ensemble: catalogue.Ensemble,
    members: SAE,
    bench: Bench,
    left_out: np.ndarray,
    judged: _Judged,
    about: dict[str, Any],
    asked: _LossAsked,
    progress: Progress,
) -> None:
    """What reconstructions and masks cost the model's next-token prediction; left out, with a word, where it takes long."""
    drawn = [judged.fewer_masks(index) for index in range(members.n_members)]
    total, done = sum(len(sets) for masks in drawn for sets in masks.values()), 0
    n_tokens = LOSS_TOKENS if asked.n_tokens is None else asked.n_tokens
    if not asked.expressly and takes_long(bench.model, total, n_tokens):
        progress.say(
            f"{ensemble.name}: loss: left out, {total:,} passes of {bench.model.name} over {n_tokens:,} tokens take long on "
            f"a CPU; ask for them with: seedscope analyze {plan.name} --only loss"
        )
        return
    splice = Splice(bench.model, bench.loss_tokens(n_tokens, left_out), ensemble.hookpoint)
    own, zero = (float(each.double().mean()) for each in (splice.own(), splice.losses(torch.zeros_like)))
    about = about | {"loss_tokens": n_tokens}
    with progress.stage(f"{ensemble.name}: loss", "masks") as report, parts.write("loss", about) as put:
        for index, seed in enumerate(ensemble.seeds):
            member = members.only(index).to(bench.model.network.device)

            def step() -> None:
                nonlocal done
                done += 1
                report(done, total)

            found = Losses(own, splice.spliced(member), zero, splice.n_tokens, attributed_loss(splice, member))
            put(seed, found._asdict() | _columns(losses_under(splice, member, drawn[index], report=step)))
