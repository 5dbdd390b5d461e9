"""The evaluator of a study of recorded activations: rows that users bring, in place of a model and tokens.

Activity, EV, L0 and everything else that rows alone decide is measured on them. Contexts, token rules, next-token loss and
direct logits need tokens or a model, and are undefined. So is the reconstruction of transcoders: what they predict stands at
another place than what they read, and one place was recorded.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from seedscope.engine.activations.harvest import LanguageModel
from seedscope.engine.activations.outliers import TIMES, Without, find_outliers
from seedscope.engine.activations.recorded import MOST_ROWS, Recorded, open_recorded, require_width
from seedscope.engine.activations.shards import Chosen, Shards
from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.contract.directions import NOT_RECORDED, UNPREDICTABLE
from seedscope.engine.contract.places import same_place
from seedscope.engine.contract.tables.study import NO_TOKENS
from seedscope.engine.contract.urls import url_in
from seedscope.engine.progress import Progress
from seedscope.engine.store import catalogue
from seedscope.engine.store.evaluation import Evaluation
from seedscope.engine.studies.evaluator import Evaluator, HookActivations, HookPoint, keep_evaluation


class RecordedEvaluator(Evaluator):
    """Recorded activations; they are those of every hook point that an ensemble may be measured at."""

    recorded = True

    def __init__(
        self,
        rows: Shards | Chosen,
        evaluation: Evaluation,
        progress: Progress,
        unreadable: dict[str, str],
        unpredictable: dict[str, str],
    ) -> None:
        # No model is there: what stands in its place computes nothing and predicts no token.
        model = LanguageModel(torch.nn.Identity(), None, NO_TOKENS, evaluation.model_digest, causal=False)
        nothing = np.zeros((0, 1), np.int32)
        none = TokenSet(nothing, nothing[:, 0], nothing[:, 0], [], None)
        super().__init__(model, none, evaluation, Path(), progress, unreadable=unreadable, unpredictable=unpredictable)
        self._rows, self._outlying = rows, np.zeros(0, np.int64)
        if evaluation.outliers is not None:
            with progress.stage("outliers", "rows") as report:
                self._outlying = find_outliers(rows, times=evaluation.outliers, report=report)
            if len(self._outlying):
                progress.say(
                    f"{len(self._outlying):,} of {len(rows):,} rows left out: they are longer than {evaluation.outliers:g} times "
                    "the median"
                )

    def activations(self, hookpoint: str, d_in: int, output: HookPoint | None = None) -> HookActivations:
        """The rows themselves, whatever the hook point is called; raises ValueError for what transcoders predict."""
        if output:
            raise ValueError(f"activations at {output.name} were asked for: {NOT_RECORDED}")
        rows = Without(self._rows, self._outlying) if len(self._outlying) else self._rows
        return HookActivations(rows, None, outliers=self._outlying)

    def sample(self, hookpoint: str, n: int, left_out: np.ndarray) -> np.ndarray:
        """Some of the rows, drawn at random, in their order."""
        rows = self.activations(hookpoint, self._rows.shape[1]).rows
        return np.array(rows[draw(len(rows), n)], np.float32)


def describe(
    source: str,
    hookpoint: str | None,
    progress: Progress,
    *,
    before: catalogue.RecordedActivations | None = None,
    **settings: Any,
) -> catalogue.RecordedActivations:
    """A source of activations as the catalogue keeps it, after every row was read once, unless `before` says that of its files.

    `settings` are fields of catalogue.RecordedActivations. Raises ValueError as `open_recorded` and `Recorded.check` do.
    """
    recorded = open_recorded(source)
    if before and before.stamp == recorded.stamp:
        digest = before.digest
    else:
        with progress.stage("checking activations", "rows") as report:
            digest = recorded.check(report)
    folder = url_in(source) or "/".join(Path(source).parts[-2:])
    remark = f"{len(recorded.rows):,} rows of {recorded.stored_as} in {folder}"
    return catalogue.RecordedActivations(source, digest, recorded.stamp, hookpoint, remark=remark, **settings)


def open_rows(
    study: Path, plan: catalogue.StudyPlan, given: catalogue.RecordedActivations, progress: Progress
) -> RecordedEvaluator:
    """The evaluator of a study whose catalogue names recorded activations.

    Raises ValueError where their files changed since they were checked, where they are too many, and where no ensemble can
    have been trained on them.
    """
    recorded = open_recorded(given.source)
    if recorded.stamp != given.stamp:
        with progress.stage("checking activations", "rows") as report:
            digest = recorded.check(report)
        if digest != given.digest:
            raise ValueError(
                f"the activations at {given.source} are others than those that study {plan.name} was given (digest {digest}, "
                f"before {given.digest}); give them again with: seedscope analyze {plan.name} --activations {given.source}"
            )
    chosen, rows = chosen_rows(recorded, given.n_eval)
    unreadable = {
        each.name: reason
        for each in plan.ensembles
        if not each.control_of and (reason := misfit(study, plan, each, recorded))
    }
    for name, reason in unreadable.items():
        progress.say(f"{name}: no activity: {reason}")
    if plan.ensembles and len(unreadable) == len(plan.ensembles):
        raise ValueError(f"ensemble {plan.ensembles[0].name}: {unreadable[plan.ensembles[0].name]}")
    # They are of one place, and what transcoders predict stands at another.
    transcoders = [each for each in plan.ensembles if each.transcoder and not each.control_of]
    unpredictable = {each.name: NOT_RECORDED for each in transcoders if each.name not in unreadable}
    for name in unpredictable:
        progress.say(f"{name}: {UNPREDICTABLE}{NOT_RECORDED}")
    outliers = TIMES if given.outliers == "exclude" else None
    left_out = f"; rows longer than {outliers:g} times the median excluded" if outliers else "; norm outliers counted"
    record = Evaluation(
        model=None,
        model_digest=given.digest,
        control_digest=None,
        causal=False,
        n_ctx=0,
        policy=f"{chosen}{left_out}",
        token_digest=given.digest if given.n_eval is None else f"{given.digest}-{len(rows)}",
        n_tokens=len(rows),
        remark=given.remark or given.source,
        texts=(),
        documents=(),
        outliers=outliers,
    )
    keep_evaluation(study, record, None)
    return RecordedEvaluator(rows, record, progress, unreadable, unpredictable)


def chosen_rows(recorded: Recorded, n: int | None) -> tuple[str, Shards | Chosen]:
    """Which rows are measured, in words, and those rows: all, or `n` drawn at random; raises ValueError for too many."""
    n_rows = len(recorded.rows)
    if n is not None and n < n_rows:
        return f"{n:,} of {n_rows:,} rows, drawn with seed 0", Chosen(recorded.rows, draw(n_rows, n))
    if n_rows > MOST_ROWS:
        raise ValueError(
            f"found {n_rows:,} rows of activations, expected at most {MOST_ROWS:,}; measure on some: --eval-tokens N"
        )
    return "every row counts", recorded.rows


def draw(n_rows: int, n: int) -> np.ndarray:
    """Indices of `n` rows drawn at random (seed 0), ascending; all where there are fewer."""
    return np.sort(np.random.default_rng(0).choice(n_rows, min(n, n_rows), replace=False, shuffle=False))


def misfit(study: Path, plan: catalogue.StudyPlan, ensemble: catalogue.EnsemblePlan, recorded: Recorded) -> str | None:
    """Why an ensemble cannot be measured on recorded activations; None where it can."""
    given = plan.activations
    with safe_open(study / ensemble.folder / f"seed-{ensemble.seeds[0]}.safetensors", "pt") as file:
        d_in = file.get_slice("W_enc").get_shape()[0]
    try:
        require_width(recorded, d_in, ensemble.name)
    except ValueError as error:
        return str(error)
    if given is None or ensemble.hookpoint is None:
        return None
    if given.hookpoint and not same_place(given.hookpoint, ensemble.hookpoint):
        return f"the activations were recorded at {given.hookpoint}, its SAEs read {ensemble.hookpoint}"
    others = {
        each.hookpoint
        for each in plan.ensembles
        if each.hookpoint and not same_place(each.hookpoint, ensemble.hookpoint)
    }
    if given.hookpoint is None and others:
        return (
            f"its SAEs read {ensemble.hookpoint}, those of other ensembles {', '.join(sorted(others))}, and the activations are of "
            "one place; say which with --hookpoint"
        )
    return None
