"""`seedscope anchor`: one public SAE, with comparisons trained for it."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    writable,
)
from seedscope.app.cli.study_options import (
    EnsembleName,
    Replace,
    StudyName,
    TextOptions,
    token_source,
    with_text_options,
)
from seedscope.app.cli.summary import summary
from seedscope.app.settings import default_root
from seedscope.engine.contract.urls import url_in, whole_source

if TYPE_CHECKING:
    from seedscope.engine.store.catalogue import EnsemblePlan


class DataOrder(StrEnum):
    """How the comparisons see their tokens."""

    shared = "shared"
    independent = "independent"


@app.command()
@with_text_options
def anchor(
    study: StudyName,
    ensemble: EnsembleName,
    sae: Annotated[
        str,
        typer.Argument(metavar="SAE", help="A file, a folder, its URL or hf:OWNER/REPO/FOLDER.", show_default=False),
    ],
    comparisons: Annotated[int, typer.Option(min=2, max=1000, help="How many SAEs to train for it.")] = 7,
    train_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="For each of them.", show_default="2,000,000, or as many as the text holds"),
    ] = None,
    train_text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to train on, named as --tokens is; repeatable.",
            show_default="nine tenths of the documents of --tokens, which then measures on the others",
        ),
    ] = None,
    data_order: Annotated[
        DataOrder, typer.Option(help="Whether all see their tokens in one order.")
    ] = DataOrder.shared,
    batch: Annotated[int | None, typer.Option(min=1, help="Tokens per step.", show_default="1024")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default="0.003")] = None,
    format: Annotated[
        str, typer.Option(help="The library that wrote the SAE; auto recognises it by its files.")
    ] = "auto",
    *,
    text: TextOptions,
    replace_: Replace = False,
    force: Annotated[
        bool, typer.Option("--force", help="Take an SAE that names another hook point, or explains nothing there.")
    ] = False,
    executor: ExecutorName = None,
    executor_option: ExecutorOption = None,
    device: Device = Compute.auto,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """One public SAE and no other seeds: train comparisons of its width and sparsity on your activations, analyse, publish.

    Its features get a stability, with the remark that the recipe differs; a stopped training goes on.

    Example: seedscope anchor mine public hf:OWNER/REPO/FOLDER --model gpt2 --tokens 'corpus/*.txt' --eval-tokens 200000
    """
    from seedscope.engine.progress import Progress

    root = writable(root or default_root())
    fetch_below(root, quiet=quiet)
    with refusals():
        url_in(sae)  # refuses what may not be kept, before any work
        from seedscope.engine.saes.importers.ensemble import FORMATS
        from seedscope.engine.store import catalogue
        from seedscope.engine.studies.studyfile.read import AnchorPlan, StudyFile

        catalogue.require_name("study", study)
        catalogue.require_name("ensemble", ensemble)
        if format not in FORMATS:
            raise Stop(f"--format is {format!r}, expected one of {', '.join(FORMATS)}")
        plan = catalogue.read(root / study) or catalogue.StudyPlan(study)
        if not replace_ and any(each.name == ensemble and not _goes_on(each, sae) for each in plan.ensembles):
            raise Stop(
                f"study {study} has an ensemble {ensemble} already; choose another name, or give --replace to put the new one in "
                "its place"
            )
        name = text.whole_model or plan.model
        if name is None:
            raise Stop("no model is known to take activations from, expected --model DIR_OR_ID")
        measured = token_source(text.tokens, text.cut) or plan.tokens
        if measured is None:
            raise Stop("no text is known to measure and train on, expected --tokens FILES")
        source = tuple(whole_source(each, Path.cwd()) for each in train_text or ())
        if not source:
            if not text.tokens and measured.part == "all":
                raise Stop(
                    f"study {study} measures on all of its text ({', '.join(measured.source)}), so none is left to train on; "
                    "name some with --train-text FILES"
                )
            source = measured.source
            measured = replace(measured, part="held-out", remark=measured.remark or ", ".join(measured.source))
        recipe: dict[str, Any] = {"n_tokens": train_tokens, "batch": batch, "lr": lr, "data_order": data_order.value}
        settings = {key: value for key, value in recipe.items() if value is not None}
        settings["seeds"] = tuple(range(1, comparisons + 1))
        anchor_plan = AnchorPlan(ensemble, text.hookpoint, Path(sae), settings, format, force)
        from seedscope.engine.studies.run import run_file

        study_file = StudyFile(study, plan.theta, plan.epsilon, name, None, measured, source, (anchor_plan,))
        with executor_of(executor, executor_option, root) as units_run_on:
            run_file(study_file, root, device=device.value, progress=Progress(quiet=quiet), executor=units_run_on)
    summary(root, study)


def _goes_on(ensemble: "EnsemblePlan", sae: str) -> bool:
    """Whether an ensemble has this SAE as its anchor already."""
    sources = [member.source for member in ensemble.members if member.seed == ensemble.anchor and member.source]
    return any(Path(source).is_relative_to(Path(sae).expanduser()) for source in sources)
