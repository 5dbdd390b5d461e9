"""Explain the features of a study's ensembles, from the contexts that the activity analysis kept; no model is needed.

Every explainer leaves a part of its own beside the analyses: `explain` of the token rules, `explain-..` of others.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seedscope.engine.activations.tokens import TokenSet, load_tokens
from seedscope.engine.explanations import rule_search
from seedscope.engine.explanations.answer_log import Answers
from seedscope.engine.explanations.chat import NOT_ASKED, Prices, Refused, Server
from seedscope.engine.explanations.conditions import Reading
from seedscope.engine.explanations.explanation import FeatureExplanation, as_arrays, from_arrays
from seedscope.engine.explanations.language_model import NO_CONTEXT, AskPlan, Estimate, estimate, explain_with
from seedscope.engine.features.examples import HALVES, KINDS, Examples
from seedscope.engine.matching.buckets import judge
from seedscope.engine.progress import Progress, Report
from seedscope.engine.store import catalogue
from seedscope.engine.store.evaluation import Evaluation, measured_from, read_evaluation
from seedscope.engine.store.parts import VERSION, Part, Parts, read_arrays, write_arrays

ANALYSIS = "explain"
ANSWERS = "answers.jsonl"  # of language models, in the study's folder: what was paid for
IMPORTED = "imported"  # origin of parts with explanations that others made


def examples_of(activity: Mapping[str, np.ndarray]) -> Examples:
    """The examples among the arrays of one member's activity."""
    return Examples(*(activity[name] for name in _EXAMPLES))


_EXAMPLES = [f"example_{name}" for name in Examples._fields]


def explain_by_rules(
    parts: Parts,
    ensemble: catalogue.EnsemblePlan,
    activity: Part,
    tokens: TokenSet,
    texts: Sequence[str],
    measured: dict[str, Any],
    progress: Progress,
    *,
    elsewhere: Callable[[Report], dict[int, Path]] | None = None,
) -> None:
    """Token rules of every living feature, unless they were found before.

    `elsewhere` finds them where units run, and says in which file each member's are.
    """
    about = measured | {"explainer": rule_search.NAME, "explainer_version": rule_search.VERSION}
    if parts.find(ANALYSIS, **about):
        return
    with progress.stage(f"{ensemble.name}: token rules", "features") as report, parts.write(ANALYSIS, about) as put:
        if elsewhere is not None:
            for seed, path in elsewhere(report).items():
                put(seed, read_arrays(path))
            return
        reading = None
        for index, seed in enumerate(ensemble.seeds):
            arrays = activity.read(seed, "n_active", "left_out", *_EXAMPLES)
            reading = reading or Reading(
                tokens._replace(left_out=arrays["left_out"]), texts
            )  # the same for all members
            n = len(arrays["n_active"])

            def report_member(done: int, _: int, before: int = index * n, total: int = n * len(ensemble.seeds)) -> None:
                report(before + done, total)

            explained = rule_search.explain_member(
                examples_of(arrays), tokens, texts, n, reading=reading, report=report_member
            )
            put(seed, as_arrays(explained))


def explain_member_by_rules(study: str, activity: str, seed: int, path: str) -> str:
    """Token rules of one member, from the folder of its activity, written to a file; a unit of work."""
    arrays = Part(Path(activity), {}).read(seed, "n_active", "left_out", *_EXAMPLES)
    tokens, texts = kept_text(study)
    reading = Reading(tokens._replace(left_out=arrays["left_out"]), texts)
    explained = rule_search.explain_member(examples_of(arrays), tokens, texts, len(arrays["n_active"]), reading=reading)
    write_arrays(Path(path), as_arrays(explained))
    return path


def kept_text(study: str) -> tuple[TokenSet, list[str]]:
    """The evaluation tokens of a study, and the texts of all token ids."""
    evaluation, tokens = read_evaluation(Path(study)), load_tokens(Path(study) / "parts")
    if evaluation is None or tokens is None or tokens.digest != evaluation.token_digest:
        raise ValueError(f"found no evaluation tokens in {study}, which were there when this unit was asked for")
    return tokens, list(evaluation.texts)


def part_name(explainer: str) -> str:
    """The name of the part that holds an explainer's explanations."""
    if explainer == rule_search.NAME:
        return ANALYSIS
    plain = re.sub(r"[^a-z0-9]+", "-", explainer.lower()).strip("-")[:40]
    return f"{ANALYSIS}-{plain}-{hashlib.sha256(explainer.encode()).hexdigest()[:8]}"


def explanations(parts: Parts, **must: Any) -> list[Part]:
    """Every explainer's part whose record agrees with `must`; the token rules first."""
    names = [name for name in parts.analyses() if name == ANALYSIS or name.startswith(f"{ANALYSIS}-")]
    return [part for name in names if (part := parts.find(name, **must))]


def keep(
    parts: Parts,
    explainer: str,
    about: dict[str, Any],
    explained: Mapping[int, Sequence[FeatureExplanation]],
    *,
    replace: bool = False,
) -> None:
    """Put explanations by one explainer, {seed: one per feature}, beside those that its part of the same `about` holds.

    Of two of one feature the new one stays; without `replace` not where it lacks what the former has: a success is never
    replaced by a failure.
    """
    name, about = part_name(explainer), about | {"explainer": explainer}
    former = parts.find(name, **about)
    with_former = {seed: from_arrays(former.read(seed)) for seed in former.seeds} if former else {}
    with parts.write(name, about) as put:
        for seed in sorted({*with_former, *explained}):
            best = {each.feature: each for each in with_former.get(seed, ())}
            for each in explained.get(seed, ()):
                if replace or each.feature not in best or _completeness(each) >= _completeness(best[each.feature]):
                    best[each.feature] = each
            put(seed, as_arrays(best[feature] for feature in sorted(best)))


def _completeness(explanation: FeatureExplanation) -> tuple[bool, int]:
    """How much there is of an explanation: a text, and scores."""
    return explanation.text is not None, sum(score.value is not None for score in explanation.scores)


class Outcome(NamedTuple):
    """What became of the features that a language model was asked about."""

    n_features: int
    n_explained: int  # with every score that there are contexts for
    n_bare: int  # too few contexts to explain or to score: another run would not mend that
    failures: Counter[str]  # {reason: features}: of all others

    @property
    def n_failed(self) -> int:
        """Features that another run asks about again."""
        return sum(self.failures.values())


class _Subjects(NamedTuple):
    """One ensemble as a language model is asked about it."""

    ensemble: catalogue.EnsemblePlan
    parts: Parts
    activity: Part
    measured: dict[str, Any]
    chosen: dict[int, list[int]]  # features by seed


class Interpretation:
    """A study's features explained and scored by a language model; raises ValueError where activity is missing.

    Without `limit` every living feature is asked about; with it that many of each ensemble, drawn (seed 0) in turn from
    stable, unstable and middle ones, so that a larger limit adds to a smaller one; those that nothing can be shown of last.
    """

    def __init__(
        self,
        study: Path,
        server: Server,
        *,
        limit: int | None = None,
        plan: AskPlan | None = None,
        prices: Prices | None = None,
    ) -> None:
        study_plan = catalogue.read(study)
        evaluation, tokens = read_evaluation(study), load_tokens(study / "parts")
        if evaluation is not None and not evaluation.texts:
            raise ValueError(
                f"{study.name} is measured on activations without tokens, so there are no contexts that a language model could "
                "read; explain a study that has a model and text"
            )
        if evaluation is not None and evaluation.model is None:
            raise ValueError(
                f"{study.name} is a synthetic study: its samples are no text that a language model could read; explain a study "
                "of a language model's SAEs"
            )
        remedy = f"measure activity first: seedscope analyze {study.name} --only activity"
        if study_plan is None or evaluation is None or tokens is None or tokens.digest != evaluation.token_digest:
            raise ValueError(
                f"found no evaluation tokens in {study}, which contexts are shown from; {remedy} --model DIR_OR_ID "
                "--tokens FILES"
            )
        self._study, self._server, self._plan, self._prices = study, server, plan, prices
        self._tokens, self._texts = tokens, list(evaluation.texts)
        self._subjects = [
            subjects
            for each in study_plan.ensembles
            if (subjects := _subjects(study, study_plan, each, evaluation, limit))
        ]
        if not self._subjects:
            raise ValueError(f"no ensemble of {study.name} has activity on its present tokens, and matches; {remedy}")
        if not self.n_features:
            raise ValueError(
                f"no feature of {study.name} is alive on its evaluation tokens; there is nothing to explain"
            )

    @property
    def n_features(self) -> int:
        """Features that are asked about."""
        return sum(len(each) for subject in self._subjects for each in subject.chosen.values())

    def estimate(self) -> Estimate:
        """What is still to be asked of the server; asks nothing."""
        with Answers(self._study / ANSWERS) as cache:
            estimates = [
                estimate(self._server, *arguments, **self._options(digest, cache))
                for _, _, digest, arguments in self._members_to_ask()
            ]
        costs = [each.cost for each in estimates if each.cost is not None]
        return Estimate(
            sum(each.requests for each in estimates),
            sum(each.answered for each in estimates),
            sum(each.prompt_tokens for each in estimates),
            sum(each.completion_tokens for each in estimates),
            estimates[0].counted,
            None if self._prices is None else sum(costs),
        )

    def run(self, progress: Progress) -> Outcome:
        """Ask, and keep what comes as parts, member by member; once the server is given up, nothing more is asked.

        What a former run asked costs nothing again. Ctrl-C and llm.Refused, where the server takes no question, are raised
        after what was answered until then was kept.
        """
        explained: list[FeatureExplanation] = []
        with Answers(self._study / ANSWERS) as cache:
            for subject, seed, digest, arguments in self._members_to_ask():
                options = self._options(digest, cache)
                about = subject.parts, self._server.explainer, subject.measured
                try:
                    stage = f"{subject.ensemble.name}: seed {seed}"
                    explanations = explain_with(self._server, *arguments, **options, progress=progress, stage=stage)
                except (KeyboardInterrupt, Refused):
                    quiet = Progress(quiet=True)
                    answered = explain_with(self._server, *arguments, **options, progress=quiet, asking=False)
                    if answered := [each for each in answered if each.text is not None]:
                        keep(*about, {seed: answered})
                    raise
                explained += explanations
                if tried := [each for each in explanations if not (each.failure or "").startswith(NOT_ASKED)]:
                    keep(*about, {seed: tried})
                if any(NOT_ASKED in (failure or "") for each in explanations for failure in _failures(each)):
                    break
        return _outcome(explained, self.n_features)

    def _members_to_ask(self) -> Iterator[tuple[_Subjects, int, str, tuple]]:
        for subject in self._subjects:
            for member in subject.ensemble.members:
                if chosen := subject.chosen[member.seed]:
                    arrays = subject.activity.read(member.seed, "left_out", *_EXAMPLES)
                    tokens = self._tokens._replace(left_out=arrays["left_out"])
                    yield subject, member.seed, member.digest, (examples_of(arrays), tokens, self._texts, chosen)

    def _options(self, digest: str, cache: Answers) -> dict[str, Any]:
        return {"digest": digest, "cache": cache, "plan": self._plan, "prices": self._prices}


def _subjects(
    study: Path, plan: catalogue.StudyPlan, ensemble: catalogue.EnsemblePlan, evaluation: Evaluation, limit: int | None
) -> _Subjects | None:
    parts, measured = Parts(study, ensemble.name), measured_from(ensemble, evaluation)
    activity, match = (
        parts.find("activity", **measured),
        parts.find("match", version=VERSION, saes=measured["saes"]),
    )
    if activity is None or match is None:
        return None
    rng, places = np.random.default_rng(0), []  # (seed, feature), in the order in which they are asked about
    for queues in _by_bucket(ensemble, activity, match, plan):
        drawn = [[members[i] for i in rng.permutation(len(members))] for members in queues.values()]
        for turn in range(max(map(len, drawn))):
            places += [queue[turn] for queue in drawn if turn < len(queue)]
    chosen: dict[int, list[int]] = {seed: [] for seed in ensemble.seeds}
    for seed, feature in places[:limit]:
        chosen[seed].append(feature)
    return _Subjects(ensemble, parts, activity, measured, {s: sorted(each) for s, each in chosen.items()})


def _by_bucket(
    ensemble: catalogue.EnsemblePlan, activity: Part, match: Part, plan: catalogue.StudyPlan
) -> tuple[dict[str, list[tuple[int, int]]], ...]:
    """{bucket: living features as (seed, feature)}: those that there is something to show of, and the others."""
    showable: dict[str, list[tuple[int, int]]] = {bucket: [] for bucket in ("stable", "unstable", "middle")}
    bare: dict[str, list[tuple[int, int]]] = {bucket: [] for bucket in showable}
    for seed, (buckets, n_active) in zip(ensemble.seeds, judge(plan, ensemble, match, activity), strict=True):
        arrays = activity.read(seed, *_EXAMPLES[:3])
        is_shown = (arrays["example_half"] == HALVES.index("shown")) & (arrays["example_kind"] == KINDS.index("active"))
        shown = np.isin(np.arange(len(n_active)), arrays["example_feature"][is_shown])
        for queues, such in ((showable, shown), (bare, ~shown)):
            for bucket, members in queues.items():
                members += [(seed, int(feature)) for feature in np.flatnonzero((buckets == bucket) & such)]
    return showable, bare


def _failures(explanation: FeatureExplanation) -> list[str]:
    return [each for each in (explanation.failure, *(score.failure for score in explanation.scores)) if each]


def _outcome(explained: Sequence[FeatureExplanation], n_features: int) -> Outcome:
    """Counted by the first failure that another run might mend; features that were never asked about are failures too."""
    n_whole, n_bare = 0, 0
    failures: Counter[str] = Counter()
    for each in explained:
        reasons = _failures(each)
        if mendable := [failure for failure in reasons if NO_CONTEXT not in failure]:
            failures[mendable[0].split("without an answer: ")[-1]] += 1
        else:
            n_whole, n_bare = n_whole + (not reasons), n_bare + bool(reasons)
    if n_never := n_features - len(explained):
        failures[f"{NOT_ASKED}the server was given up"] += n_never
    return Outcome(n_features, n_whole, n_bare, failures)
