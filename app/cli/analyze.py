"""`seedscope analyze`: compute what a study lacks, and publish it."""

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from seedscope.app.cli.options import (
    Compute,
    Device,
    ExecutorName,
    ExecutorOption,
    Quiet,
    Root,
    Stop,
    app,
    executor_of,
    fetch_below,
    refusals,
)
from seedscope.app.cli.study_options import (
    ActivationSource,
    HookPointOut,
    StudyName,
    TextOptions,
    planned,
    recorded_activations,
    token_source,
    with_text_options,
)
from seedscope.app.cli.summary import summary
from seedscope.app.settings import default_root
from seedscope.engine.contract.places import same_place

if TYPE_CHECKING:
    from seedscope.engine.store.catalogue import RecordedActivations, StudyPlan


class AllPairsRule(StrEnum):
    """Which matching of all pairs is asked for."""

    argmax = "argmax"
    hungarian = "hungarian"


@app.command()
@with_text_options
def analyze(
    study: StudyName,
    only: Annotated[
        str | None,
        typer.Option(
            help="Some of match,activity,ablate,explain,loss,subspaces,trajectory,predictor,function,shared_spans, "
            "comma-separated; what they need comes too.",
            show_default="all",
        ),
    ] = None,
    rule: Annotated[
        AllPairsRule | None,
        typer.Option(
            help="Match all pairs one to one as well, however long it takes.", show_default="where it is cheap"
        ),
    ] = None,
    theta: Annotated[float | None, typer.Option(min=-1, max=1, help="The study's θ.", show_default="0.7")] = None,
    epsilon: Annotated[float | None, typer.Option(min=0, max=0.499, help="The study's ε.", show_default="0.05")] = None,
    *,
    text: TextOptions,
    hookpoint_out: HookPointOut = None,
    activations: ActivationSource = None,
    loss_tokens: Annotated[
        int | None, typer.Option(min=1, help="Measure losses on this many tokens.", show_default="4096")
    ] = None,
    executor: ExecutorName = None,
    executor_option: ExecutorOption = None,
    device: Device = Compute.auto,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Compute what is missing of a study (matching, activity, worth, explanations) and publish it.

    Example: seedscope analyze mine --model gpt2 --tokens 'corpus/*.txt' --eval-tokens 2000000
    """
    from seedscope.engine.contract.files import only_writer
    from seedscope.engine.progress import Progress
    from seedscope.engine.store import catalogue

    root = root or default_root()
    folder, progress = root / study, Progress(quiet=quiet)
    fetch_below(root, quiet=quiet)
    with refusals():
        plan = planned(root, study)
        with only_writer(folder), executor_of(executor, executor_option, root) as units_run_on:
            from seedscope.engine.studies.analyse import analyse
            from seedscope.engine.studies.publish import publish

            recorded = recorded_activations(activations, text, progress)
            catalogue.write(_changed(_with_output(plan, hookpoint_out), theta, epsilon, text, recorded), folder)
            try:
                analyse(
                    folder, only=_analyses(only), one_to_one=None if rule is None else rule is AllPairsRule.hungarian,
                    loss_tokens=loss_tokens, device=device.value, progress=progress, executor=units_run_on,
                )  # fmt: skip
            except ValueError:  # settings that cannot be followed are not kept for the next time
                catalogue.write(plan, folder)
                raise
            with progress.stage("publishing", "seeds") as report:
                publish(folder, report=report)
    summary(root, study)


def _analyses(only: str | None) -> tuple[str, ...] | None:
    from seedscope.engine.contract.schema import ANALYSES

    if only is None:
        return None
    names = {"match" if name == "stability" else name for name in only.replace(" ", "").split(",")}
    if unknown := names - set(ANALYSES):
        raise Stop(f"--only names {', '.join(sorted(unknown))}, this version computes {', '.join(ANALYSES)}, stability")
    return tuple(name for name in ANALYSES if name in names)


def _with_output(plan: "StudyPlan", hookpoint_out: str | None) -> "StudyPlan":
    """The catalogue with the output hook point of transcoders whose files do not say it."""
    if not hookpoint_out:
        return plan
    lacking = [each for each in plan.ensembles if each.transcoder and not each.hookpoint_out]
    if not lacking and not any(
        each.hookpoint_out and same_place(each.hookpoint_out, hookpoint_out) for each in plan.ensembles
    ):
        known = ", ".join(f"{each.name} {each.hookpoint_out or 'an SAE'}" for each in plan.ensembles)
        raise Stop(
            f"--hookpoint-out {hookpoint_out} was given, but no ensemble of transcoders lacks one ({known}); to change it, import "
            "the ensemble again with --replace"
        )
    return replace(
        plan,
        ensembles=tuple(
            replace(each, hookpoint_out=hookpoint_out) if each in lacking else each for each in plan.ensembles
        ),
    )


def _changed(
    plan: "StudyPlan",
    theta: float | None,
    epsilon: float | None,
    text: TextOptions,
    recorded: "RecordedActivations | None",
) -> "StudyPlan":
    """The catalogue with what the command line says; without a word everything stays."""
    from seedscope.engine.studies.open_evaluator import reads_own_models

    hookpoint = text.hookpoint
    if (
        hookpoint
        and plan.ensembles
        and not any(each.hookpoint is None or same_place(each.hookpoint, hookpoint) for each in plan.ensembles)
    ):
        known = ", ".join(f"{each.name} {each.hookpoint}" for each in plan.ensembles)
        raise Stop(
            f"--hookpoint {hookpoint} was given, but every ensemble has its own ({known}); to change it, import the ensemble "
            "again with --replace"
        )
    plan = replace(
        plan,
        theta=plan.theta if theta is None else theta,
        epsilon=plan.epsilon if epsilon is None else epsilon,
        model=text.whole_model or plan.model,
        ensembles=tuple(
            each if reads_own_models(each) else replace(each, hookpoint=each.hookpoint or hookpoint)
            for each in plan.ensembles
        ),
    )
    if recorded:
        return replace(plan, tokens=None, activations=recorded)
    if plan.activations and not text.tokens:
        return replace(plan, activations=_cut_anew(plan.activations, text))
    before, cut = plan.tokens, text.cut
    if text.tokens and before:  # another text, cut as before
        cut = {name: getattr(before, name) for name in ("n_eval", "n_ctx", "bos", "outliers")} | cut
    source = token_source(text.tokens, cut) if text.tokens or not before else replace(before, **cut)
    return replace(plan, tokens=source, activations=None)


def _cut_anew(recorded: "RecordedActivations", text: TextOptions) -> "RecordedActivations":
    """A study's recorded activations with the settings that the command line gives; Stop for those that tokens alone have."""
    for option, value in (("--model", text.model), ("--n-ctx", text.n_ctx), ("--bos", text.bos)):
        if value is not None:
            raise Stop(
                f"{option} given, but the study is measured on recorded activations; give --tokens as well to leave them"
            )
    return replace(recorded, hookpoint=text.hookpoint or recorded.hookpoint, **text.cut)
