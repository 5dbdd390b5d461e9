"""`seedscope synthetic`: a study whose true features are known."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from seedscope.app.cli.options import Quiet, Root, app, refusals, writable
from seedscope.app.cli.summary import summary
from seedscope.app.settings import default_root

NAME = "ground-truth"  # `synthetic` is a page
WIDER = 64  # latents beyond one for each free feature
SPARE = 1  # active latents beyond the true features that are active on average

# The engine's defaults, said here so that --help loads none of it; a test holds them together.
N_FREE, N_LOW, R, D_IN, RATE_FREE, RATE_LOW = 96, 2000, 24, 128, 0.04, 0.0015
SEEDS, SAMPLES = 8, 600_000


@app.command()
def synthetic(
    name: Annotated[str, typer.Option(help="The study's name.")] = NAME,
    n_free: Annotated[int, typer.Option(min=0, help="True features anywhere on the sphere.")] = N_FREE,
    n_low: Annotated[int, typer.Option(min=0, help="True features inside one subspace.")] = N_LOW,
    r: Annotated[int, typer.Option("--r", min=1, help="Dimensions of that subspace.")] = R,
    d_in: Annotated[int, typer.Option(min=1, help="Numbers per sample.")] = D_IN,
    rate_free: Annotated[float, typer.Option(help="Share of samples in which a free feature is active.")] = RATE_FREE,
    rate_low: Annotated[float, typer.Option(help="The same of a low-rank feature.")] = RATE_LOW,
    noise: Annotated[float, typer.Option(min=0, help="Standard deviation of noise on every number.")] = 0.0,
    data_seed: Annotated[int, typer.Option(min=0, help="Of the true features and the samples.")] = 0,
    d_sae: Annotated[int | None, typer.Option(min=1, help="Latents per SAE.", show_default=f"n-free + {WIDER}")] = None,
    k: Annotated[
        int | None, typer.Option(min=1, help="Active latents per sample.", show_default=f"active on average + {SPARE}")
    ] = None,
    seeds: Annotated[int, typer.Option(help="SAEs that are trained.")] = SEEDS,
    samples: Annotated[int, typer.Option(help="Samples that each is trained on.")] = SAMPLES,
    map_: Annotated[bool, typer.Option("--map/--no-map", help="Also where the claim holds and where it fails.")] = True,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Train SAEs on samples whose true features are known, and say which come back: one by one, or only as a span.

    Without options: a regime in which low-rank features are found as a span and not one by one, with the map around it;
    within ten minutes on two cores. Stopped, the same command goes on.

    Example: seedscope synthetic --name narrow --r 8 --no-map
    """
    from seedscope.engine.studies.synthetic.generator import SyntheticConfig
    from seedscope.engine.studies.synthetic.plan import MAP_RECIPE, RECIPE, SyntheticPlan

    try:
        config = SyntheticConfig(d_in, n_free, n_low, r, rate_free, rate_low, noise, data_seed)
        width = n_free + WIDER if d_sae is None else d_sae
        active = min(max(round(config.active_free + config.active_low) + SPARE, 1), width) if k is None else k
        plan = SyntheticPlan(
            samples=config,
            recipe=replace(RECIPE, seeds=tuple(range(seeds)), n_tokens=samples, d_sae=width, k=active),
            map_recipe=replace(MAP_RECIPE, n_tokens=min(samples, MAP_RECIPE.n_tokens), d_sae=width, k=active),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    from seedscope.engine.progress import Progress

    root = writable(root or default_root())
    with refusals():
        from seedscope.engine.studies.run import run_synthetic

        run_synthetic(plan, root, name, with_map=map_, progress=Progress(quiet=quiet))
    _print_recovery(root, name)
    summary(root, name)


def _print_recovery(root: Path, name: str) -> None:
    """What was recovered, as the page says it."""
    from seedscope.app.routes.study.synthetic import sentence
    from seedscope.app.store.studies import Studies

    if (truth := Studies(root).get(name).truth) is not None:
        print(sentence(truth))
