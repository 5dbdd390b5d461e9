"""The evaluator of a study: its language model, its evaluation tokens, and activations at any hook point."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from seedscope.engine.activations.harvest import (
    BeyondRangeError,
    LanguageModel,
    TokenSet,
    harvest,
    width,
)
from seedscope.engine.activations.outliers import Without, find_outliers
from seedscope.engine.activations.shards import Chosen, Shards
from seedscope.engine.activations.tokens import KEPT, save_tokens
from seedscope.engine.contract.checksums import write_sums
from seedscope.engine.contract.files import write_whole
from seedscope.engine.executors.local import HERE
from seedscope.engine.executors.unit import Executor
from seedscope.engine.features.triggers import TokenClasses
from seedscope.engine.progress import Progress
from seedscope.engine.store.evaluation import EVALUATION, Evaluation

Rows = np.ndarray | Shards | Chosen  # activations (tokens, width), in memory or on disk


class HookPoint(NamedTuple):
    """A place in the model, and the numbers per token that SAEs expect there."""

    name: str
    width: int


class HookActivations(NamedTuple):
    """Activations at a hook point, and the tokens that count there, in their order."""

    rows: Rows  # (tokens, d_in)
    tokens: TokenSet | None  # None where the rows came without tokens
    targets: Rows | None = None  # (tokens, d_out) at the output hook point; None where none was asked for
    outliers: np.ndarray = np.zeros(0, np.int64)  # of rows without tokens: those that are left out
    outlying: np.ndarray = np.zeros(0, np.int64)  # of all rows that were harvested: those that are left out

    @property
    def left_out(self) -> np.ndarray:
        """Flat indices of further tokens, or of rows, that do not count."""
        return self.outliers if self.tokens is None else self.tokens.left_out


class Evaluator:
    """A model with its evaluation tokens, and activations of it at any hook point."""

    recorded = (
        False  # whether its rows were recorded elsewhere: then there are no tokens, and the hook point may be unknown
    )
    unreadable: dict[str, str] = {}  # noqa: RUF012 - {ensemble: why nothing can be read of the model for it}
    # {ensemble of transcoders: why what they predict cannot be read of the model}
    unpredictable: dict[str, str] = {}  # noqa: RUF012

    def __init__(
        self,
        model: LanguageModel,
        tokens: TokenSet,
        evaluation: Evaluation,
        scratch: Path,
        progress: Progress,
        *,
        control: "Evaluator | None" = None,
        unreadable: Mapping[str, str] | None = None,
        unpredictable: Mapping[str, str] | None = None,
        executor: Executor = HERE,
    ) -> None:
        self._executor = executor
        self.model, self.tokens, self.evaluation = model, tokens, evaluation
        self.control = control  # the same tokens on the model with random weights, where an ensemble asks for it
        self.unreadable = dict(unreadable or {})
        self.unpredictable = dict(unpredictable or {})
        self.texts = list(evaluation.texts)
        self._scratch, self._progress = scratch, progress

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.network.parameters()).device

    def loss_tokens(self, n: int, left_out: np.ndarray) -> TokenSet:
        """Windows, drawn at random, that hold about n tokens that count; `left_out` are flat indices of those that do not."""
        return self.tokens._replace(left_out=left_out).sample(n)

    def sample(self, hookpoint: str, n: int, left_out: np.ndarray) -> np.ndarray | Shards:
        """Activations (tokens, d_in) of about n tokens that count, those of the windows of `loss_tokens`, in float32."""
        folder = self._scratch / f"some-{hashlib.sha256(hookpoint.encode()).hexdigest()[:16]}"
        with self._progress.stage(f"some activations at {hookpoint}", "tokens") as report:
            return harvest(self.model, self.loss_tokens(n, left_out), hookpoint, folder, dtype="float32", report=report)

    @cached_property
    def vocabulary(self) -> TokenClasses:
        """Classes of tokens that triggers are named by."""
        return TokenClasses(self.texts, self.tokens.ids[self.tokens.counted])

    def activations(self, hookpoint: str, d_in: int, output: HookPoint | None = None) -> HookActivations:
        """Activations at a hook point and the tokens that count there; without outliers unless they count.

        With `output`, those at the place that transcoders predict as well; a token that is an outlier at either does not count.
        They lie on disk as float16, or float32 where float16 cannot hold them. Raises ValueError where the model has another
        width there.
        """
        rows = self._harvested(hookpoint, d_in)
        targets = self._harvested(*output) if output else None
        if self.evaluation.outliers is None:
            return HookActivations(rows, self.tokens, targets)
        outlying = self._outliers(rows, hookpoint)
        if output and targets is not None:
            outlying = np.union1d(outlying, self._outliers(targets, output.name))
        tokens = self.tokens._replace(left_out=np.flatnonzero(self.tokens.counted)[outlying])
        if not len(outlying):
            return HookActivations(rows, tokens, targets)
        without_targets = None if targets is None else Without(targets, outlying)
        return HookActivations(Without(rows, outlying), tokens, without_targets, outlying=outlying)

    def _harvested(self, hookpoint: str, expected_width: int) -> np.ndarray | Shards:
        """All activations at a hook point, in the smallest type that holds them."""
        require_width(self.model, width(self.model, self.tokens, hookpoint), expected_width, hookpoint)
        try:
            return self._harvested_as("float16", hookpoint)
        except BeyondRangeError as error:
            self._progress.say(f"{error}: taken in float32")
        return self._harvested_as("float32", hookpoint)

    def _harvested_as(self, dtype: str, hookpoint: str) -> np.ndarray | Shards:
        with self._progress.stage(f"activations at {hookpoint}", "tokens") as report:
            return harvest(
                self.model, self.tokens, hookpoint, self.rows_at(hookpoint), dtype=dtype, executor=self._executor,
                report=report,
            )  # fmt: skip

    def rows_at(self, hookpoint: str) -> Path:
        """The folder of the activations at a hook point."""
        return self._scratch / hashlib.sha256(hookpoint.encode()).hexdigest()[:16]

    def _outliers(self, rows: np.ndarray | Shards, hookpoint: str) -> np.ndarray:
        """Ascending indices of the rows that are far longer than the median."""
        times = self.evaluation.outliers or np.inf
        with self._progress.stage(f"outliers at {hookpoint}", "tokens") as report:
            outlying = find_outliers(rows, times=times, report=report)
        if len(outlying):
            self._progress.say(
                f"{len(outlying):,} of {len(rows):,} tokens left out at {hookpoint}: their activations are longer than "
                f"{times:g} times the median"
            )
        return outlying


def require_width(model: LanguageModel, model_width: int, d_in: int, hookpoint: str) -> None:
    """Raise ValueError where SAEs that read d_in numbers cannot have been trained on a model's numbers at a hook point."""
    if model_width != d_in:
        raise ValueError(
            f"at {hookpoint} {model.name} has {model_width} numbers per token, the SAEs read {d_in}: they were trained on "
            "another model or hook point"
        )


def keep_evaluation(study: Path, record: Evaluation, tokens: TokenSet | None) -> None:
    """Write the evaluation and its tokens, if there are any, beside the parts of a study that are measured on them."""
    (study / "parts").mkdir(parents=True, exist_ok=True)
    write_whole(study / "parts" / EVALUATION, json.dumps(asdict(record)))
    if tokens is not None:
        save_tokens(tokens, study / "parts")
    write_sums(study / "parts", EVALUATION, *([KEPT] if tokens is not None else []))
