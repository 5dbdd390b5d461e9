"""`seedscope pool`: the unique features of an ensemble's seeds as one SAE."""

import sys
from collections.abc import Sequence
from pathlib import Path
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
from seedscope.app.cli.study_options import EnsembleName, StudyName, planned
from seedscope.app.settings import default_root

if TYPE_CHECKING:
    from seedscope.engine.studies.pools.record import PoolRecord

KINDS = {
    "pool": "pool of all seeds",
    "halves": "two pools, disjoint halves of the seeds",
    "members": "control: one member of each half",
    "fresh": "control: two fresh seeds",
    "subset": "control: random features of each half",
}


@app.command()
def pool(
    study: StudyName,
    ensemble: EnsembleName,
    out: Annotated[Path | None, typer.Option(help="A new folder.", show_default="pool/ENSEMBLE in the study's")] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of post-training; 0 for none.", show_default="2,000,000, or as many as its members saw"
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to train on: a file or glob of text, .jsonl, .parquet or .npy ids, hf:NAME, or a URL; repeatable.",
            show_default="the study's training text",
        ),
    ] = None,
    theta: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="From which cosine on features are one.", show_default="the study's"),
    ] = None,
    loss_tokens: Annotated[
        int | None, typer.Option(min=0, help="Measure losses on this many tokens; 0: not.", show_default="4096")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of a pool of other members or settings.")
    ] = False,
    executor: ExecutorName = None,
    executor_option: ExecutorOption = None,
    device: Device = Compute.auto,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Pool the unique features of an ensemble's seeds into one SAE that SAELens loads, and say what training it on does.

    Pools of two disjoint halves of the seeds show its stability, controls trained on the same tokens what it is worth.
    Without --out the study keeps it and its page shows it; what is there already is not made again.

    Example: seedscope pool pystdlib topk-512 --out pooled
    """
    from seedscope.engine.contract.files import only_writer
    from seedscope.engine.progress import Progress

    root = root or default_root()
    with refusals():
        theta_of_study = planned(root, study).theta
        if out is not None and not out.absolute().parent.is_dir():
            raise Stop(f"found no folder {out.absolute().parent} to make {out.name} in; create it first")
        from seedscope.engine.studies.pools.build import pool_ensemble
        from seedscope.engine.studies.pools.settings import PoolSettings
        from seedscope.engine.studies.run import pool_study

        settings = PoolSettings(tokens, tuple(text or ()), theta, loss_tokens, device.value, replace)
        progress = Progress(quiet=quiet)
        fetch_below(root, quiet=quiet)
        with executor_of(executor, executor_option, root) as units_run_on:
            if out is None:
                folder = (root / study / "pool" / ensemble).absolute()
                record = pool_study(root / study, ensemble, settings, progress=progress, executor=units_run_on)
            else:
                folder = out.absolute()
                with only_writer(root / study):
                    record = pool_ensemble(
                        root / study, ensemble, folder, settings, progress=progress, executor=units_run_on
                    )
    _print_record(record)
    if out is None and record.theta != theta_of_study:
        print(f"θ is not the study's {theta_of_study:g}: its pages do not show this pool")
    print(f"{folder / 'sae'}: load it with SAELens, or add it to a study with: seedscope import")


def _print_record(record: "PoolRecord") -> None:
    """How many features are unique and held by whom, and the curves as a table."""
    from rich.console import Console
    from rich.table import Table

    by_holders = record.unique_by_holders
    print(
        f"{record.study}/{record.ensemble}: {sum(by_holders):,} unique features at θ {record.theta:g} of "
        f"{len(record.members)} seeds, {by_holders[-1]:,} held by all, {by_holders[0]:,} by one; {record.d_sae:,} pooled"
    )
    if record.curves:
        table = Table(
            "", "more tokens", "EV", "L0", "dead", "next-token loss", "shared", "MMCS", box=None, pad_edge=False
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for kind, label in KINDS.items():
            for n, point in enumerate(each for each in record.curves if each.kind == kind):
                table.add_row(label if not n else "", f"{point.tokens:,}", _mean(point.ev, ".4f"), _mean(point.l0, ".1f"),
                              _mean(point.dead, ".1%"), _mean(point.loss, ".4f"), _one(point.shared, ".1%"),
                              _one(point.mmcs, ".3f"))  # fmt: skip
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    for remark in record.remarks:
        print(remark)


def _mean(values: Sequence[float] | None, form: str) -> str:
    return "" if values is None else format(sum(values) / len(values), form)


def _one(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
