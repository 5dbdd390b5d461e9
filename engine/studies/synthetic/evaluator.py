"""The evaluator of a synthetic study: samples of known true features in place of a model and tokens."""

from pathlib import Path

import numpy as np
import torch

from seedscope.engine.activations.harvest import LanguageModel
from seedscope.engine.progress import Progress
from seedscope.engine.store import catalogue
from seedscope.engine.store.evaluation import Evaluation
from seedscope.engine.studies.evaluator import Evaluator, HookActivations, HookPoint, keep_evaluation
from seedscope.engine.studies.synthetic import plan as synthetic
from seedscope.engine.studies.synthetic.samples import Labelled, label


class SampleEvaluator(Evaluator):
    """Evaluation samples of known true features: each stands for a token that names its strongest one."""

    def __init__(self, samples: synthetic.SyntheticConfig, labelled: Labelled) -> None:
        # No model made them: what stands in its place computes nothing and predicts no token.
        model = LanguageModel(torch.nn.Identity(), None, "a generator of samples", samples.digest, causal=False)
        evaluation = Evaluation(
            model=None,
            model_digest=model.digest,
            control_digest=None,
            causal=False,
            n_ctx=labelled.tokens.ids.shape[1],
            policy="every sample counts; a sample is shown as the name of its strongest true feature",
            token_digest=labelled.tokens.digest,
            n_tokens=int(labelled.tokens.counted.sum()),
            remark="samples of known true features that training did not see",
            texts=tuple(labelled.texts),
            documents=tuple(labelled.tokens.names),
        )
        self.model, self.tokens, self.evaluation, self.control = model, labelled.tokens, evaluation, None
        self.texts, self._rows = labelled.texts, labelled.rows

    def activations(self, hookpoint: str, d_in: int, output: HookPoint | None = None) -> HookActivations:
        """The samples themselves, whatever the hook point is called; raises ValueError for SAEs of another width.

        And for transcoders: nothing but the samples is known here that they could predict.
        """
        if output:
            raise ValueError(
                f"transcoders predict activations at {output.name}, and samples are of one place; import them elsewhere"
            )
        if self._rows.shape[1] != d_in:
            raise ValueError(
                f"samples have {self._rows.shape[1]} numbers, the SAEs at {hookpoint} read {d_in}: they were trained on "
                "something else; import them into a study of their own"
            )
        return HookActivations(self._rows, self.tokens)

    def sample(self, hookpoint: str, n: int, left_out: np.ndarray) -> np.ndarray:
        """Some of the samples themselves."""
        window = np.flatnonzero(self.tokens.counted) // self.tokens.ids.shape[1]
        return self._rows[np.isin(window, self.tokens.draw(n))]


def open_samples(
    study: Path, made: synthetic.SyntheticPlan, plan: catalogue.StudyPlan, progress: Progress
) -> SampleEvaluator:
    """The evaluation samples of a synthetic study; raises ValueError where its catalogue names a model or text."""
    if plan.model or plan.tokens or plan.activations:
        what = "a model" if plan.model else "text" if plan.tokens else "activations"
        raise ValueError(
            f"{plan.name} is a synthetic study, measured on samples of its own, and was given "
            f"{what}; leave out --model, --tokens, --activations and what belongs to them"
        )
    with progress.stage("evaluation samples", "samples") as report:
        labelled = label(made.samples, made.n_evaluated)
        report(len(labelled.rows), len(labelled.rows))
    evaluator = SampleEvaluator(made.samples, labelled)
    keep_evaluation(study, evaluator.evaluation, labelled.tokens)
    return evaluator
