"""`seedscope sources`: where the variance between seeds comes from, on the embedded model."""

from dataclasses import replace
from typing import Annotated

import typer

from seedscope.app.cli.options import Compute, Device, Quiet, Root, app, refusals, writable
from seedscope.app.cli.summary import summary
from seedscope.app.settings import default_root


@app.command()
def sources(
    models: Annotated[
        int,
        typer.Option(
            min=0,
            max=32,
            help="Language models to train with a seed each, one SAE per model; 0: none.",
        ),
    ] = 0,
    model_tokens: Annotated[int, typer.Option(min=1, help="Tokens that each of them is trained on.")] = 1_000_000,
    device: Device = Compute.auto,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Train an ensemble per cause on the embedded model: only the start differs, the data order, the data sample, or all.

    The study `pystdlib-sources` and its page Sources compare them. For your own model write a table `sources` in a study file.

    Example: seedscope sources --models 3
    """
    from seedscope.engine.progress import Progress

    root = writable(root or default_root())
    with refusals():
        from seedscope.engine.demo import stdlib
        from seedscope.engine.studies.run import run_file
        from seedscope.engine.studies.studyfile.read import ModelSeedsPlan, TrainPlan, read_study_file

        file, progress = read_study_file(stdlib.HERE / "sources.toml"), Progress(quiet=quiet)
        if models == 1:
            raise typer.BadParameter(
                "is 1, expected 0, or at least 2: models are compared with each other", param_hint="--models"
            )
        if models:
            from seedscope.engine.studies.model_seeds import trained_models

            folders = trained_models(root / file.name / "models", models, model_tokens, progress)
            config = next(each.config for each in file.ensembles if isinstance(each, TrainPlan))
            plan = ModelSeedsPlan.of("by", file.hookpoint, config, tuple(map(str, folders)))
            file = replace(file, ensembles=(*file.ensembles, plan))
        run_file(file, root, device=device.value, progress=progress)
    summary(root, file.name)
