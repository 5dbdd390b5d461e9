"""Explanations of an ensemble's features, from what its activity left behind: contexts are drawn, the model is not needed.

Every explainer leaves a part of its own beside the analyses: `explain` of the token rules, `explain-..` of others.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine import catalogue, explain, stability
from engine.answers import Answers
from engine.evaluation import Evaluation, read_evaluation
from engine.explanation import Examples, Explanation, as_arrays, from_arrays
from engine.interpret import Estimate, Plan, estimate, explain_with
from engine.llm import Prices, Server
from engine.parts import Part, Parts
from engine.progress import Progress
from engine.reading import Reading
from engine.tokens import TokenSet, load_tokens

ANALYSIS = "explain"
ANSWERS = "answers.jsonl"  # of language models, in the study's folder: what was paid for


def examples_of(held: Mapping[str, np.ndarray]) -> Examples:
    """The examples that one member's activity holds."""
    return Examples(*(held[f"example_{name}"] for name in Examples._fields))


def explain_by_rules(
    parts: Parts,
    ensemble: catalogue.Ensemble,
    activity: Part,
    tokens: TokenSet,
    texts: Sequence[str],
    measured: dict[str, Any],
    progress: Progress,
) -> None:
    """Token rules of every living feature, unless they were found before."""
    about = measured | {"explainer": explain.NAME, "explainer_version": explain.VERSION}
    if parts.find(ANALYSIS, **about):
        return
    with progress.stage(f"{ensemble.name}: token rules", "features") as report, parts.write(ANALYSIS, about) as put:
        reading = None
        for index, seed in enumerate(ensemble.seeds):
            held = activity.read(seed)
            reading = reading or Reading(tokens._replace(left_out=held["left_out"]), texts)
            n, total = len(held["n_active"]), len(held["n_active"]) * len(ensemble.seeds)
            found = explain.explain_member(
                examples_of(held), tokens, texts, n, reading=reading,
                report=lambda done, _, before=index * n, total=total: report(before + done, total),
            )  # fmt: skip
            put(seed, as_arrays(found))


def part_name(explainer: str) -> str:
    """The name of the part that holds an explainer's explanations."""
    if explainer == explain.NAME:
        return ANALYSIS
    plain = re.sub(r"[^a-z0-9]+", "-", explainer.lower()).strip("-")[:40]
    return f"{ANALYSIS}-{plain}-{hashlib.sha256(explainer.encode()).hexdigest()[:8]}"


def explanations(parts: Parts, **must: Any) -> list[Part]:
    """Every explainer's part that was made from the same as `must` says; the token rules first."""
    names = [name for name in parts.analyses() if name == ANALYSIS or name.startswith(f"{ANALYSIS}-")]
    return [found for name in names if (found := parts.find(name, **must))]


class _Subjects(NamedTuple):
    """One ensemble as a language model is asked about it."""

    ensemble: catalogue.Ensemble
    parts: Parts
    activity: Part
    measured: dict[str, Any]
    chosen: dict[int, list[int]]  # features by seed


class Interpretation:
    """A study's features explained and scored by a language model; raises ValueError where activity is missing.

    Without `limit` every living feature is asked about; with it that many of each ensemble, drawn (seed 0) in turn from
    stable, unstable and middle ones, so that a larger limit adds to a smaller one.
    """

    def __init__(
        self,
        study: Path,
        server: Server,
        *,
        limit: int | None = None,
        plan: Plan | None = None,
        prices: Prices | None = None,
    ) -> None:
        held = catalogue.read(study)
        evaluation, tokens = read_evaluation(study), load_tokens(study / "parts")
        if held is None or evaluation is None or tokens is None or tokens.digest != evaluation.token_digest:
            raise ValueError(
                f"found no evaluation tokens in {study}, which contexts are shown from; measure activity first: "
                f"seedscope analyze {study.name} --only activity"
            )
        self._study, self._server, self._plan, self._prices = study, server, plan, prices
        self._tokens, self._texts = tokens, list(evaluation.texts)
        self._subjects = [
            found for each in held.ensembles if (found := _subjects(study, held, each, evaluation, limit))
        ]
        if not self._subjects:
            raise ValueError(
                f"no ensemble of {study.name} has activity and matches; compute them first: seedscope analyze {study.name}"
            )

    @property
    def n_features(self) -> int:
        """Features that are asked about."""
        return sum(len(each) for subject in self._subjects for each in subject.chosen.values())

    def estimate(self) -> Estimate:
        """What is still to be asked of the server; asks nothing."""
        with Answers(self._study / ANSWERS) as cache:
            found = [
                estimate(self._server, *asked, **self._options(digest, cache)) for _, _, digest, asked in self._asked()
            ]
        cost = None if self._prices is None else sum(each.cost for each in found)
        numbers = (sum(column) for column in zip(*(each[:4] for each in found), strict=True))
        return Estimate(*numbers, found[0].counted, cost)

    def run(self, progress: Progress) -> tuple[int, int]:
        """Ask, and keep what comes as parts, member by member; returns (explained, failed).

        What a former run asked costs nothing again. Raises llm.Refused where the server takes no question.
        """
        name, n_explained, n_failed = part_name(self._server.explainer), 0, 0
        with Answers(self._study / ANSWERS) as cache:
            for subject, seed, digest, asked in self._asked():
                found = explain_with(self._server, *asked, **self._options(digest, cache), progress=progress)
                _keep(subject, name, self._server.explainer, seed, found)
                n_failed += sum(each.text is None for each in found)
                n_explained += sum(each.text is not None for each in found)
        return n_explained, n_failed

    def _asked(self) -> Iterator[tuple[_Subjects, int, str, tuple]]:
        for subject in self._subjects:
            for member in subject.ensemble.members:
                held = subject.activity.read(member.seed)
                tokens = self._tokens._replace(left_out=held["left_out"])
                chosen = subject.chosen[member.seed]
                if chosen:
                    yield subject, member.seed, member.digest, (examples_of(held), tokens, self._texts, chosen)

    def _options(self, digest: str, cache: Answers) -> dict[str, Any]:
        return {"digest": digest, "cache": cache, "plan": self._plan, "prices": self._prices}


def _subjects(
    study: Path, plan: catalogue.Study, ensemble: catalogue.Ensemble, evaluation: Evaluation, limit: int | None
) -> _Subjects | None:
    parts = Parts(study, ensemble.name)
    saes = [member.digest for member in ensemble.members]
    measured = {"saes": saes, "tokens": evaluation.token_digest, "hookpoint": ensemble.hookpoint}
    activity, match = parts.find("activity", **measured), parts.find("match", saes=saes)
    if activity is None or match is None:
        return None
    places: list[tuple[int, int]] = []  # (seed, feature), in the order in which they are asked about
    by_bucket: dict[str, list[tuple[int, int]]] = {"stable": [], "unstable": [], "middle": []}
    for seed in ensemble.seeds:
        n_active = activity.read(seed)["n_active"]
        n_matched = stability.count_matches(match.read(seed)["cosine"], plan.theta)
        buckets = stability.buckets(n_matched, len(saes) - 1, n_active == 0, plan.epsilon)
        for name, members in by_bucket.items():
            members += [(seed, int(feature)) for feature in np.flatnonzero(buckets == name)]
    rng = np.random.default_rng(0)
    queues = [[members[i] for i in rng.permutation(len(members))] for members in by_bucket.values()]
    for turn in range(max(map(len, queues))):
        places += [queue[turn] for queue in queues if turn < len(queue)]
    chosen: dict[int, list[int]] = {seed: [] for seed in ensemble.seeds}
    for seed, feature in places[:limit]:
        chosen[seed].append(feature)
    return _Subjects(ensemble, parts, activity, activity.about, {s: sorted(each) for s, each in chosen.items()})


def _keep(subject: _Subjects, name: str, explainer: str, seed: int, found: list[Explanation]) -> None:
    """Put what was found for one member beside what was found before; a success is never replaced by a failure."""
    about = subject.measured | {"explainer": explainer}
    former = subject.parts.find(name, **about)
    before = {
        each: from_arrays(former.read(each)) if former and each in former.seeds else []
        for each in subject.ensemble.seeds
    }
    mine = {each.feature: each for each in before[seed]}
    for each in found:
        if each.text is not None or each.feature not in mine or mine[each.feature].text is None:
            mine[each.feature] = each
    before[seed] = [mine[feature] for feature in sorted(mine)]
    with subject.parts.write(name, about) as put:
        for each, held in before.items():
            put(each, as_arrays(held))
