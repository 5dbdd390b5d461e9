"""What the commands on a user's own study share: its options, its catalogue, and the text it is measured on."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seedscope.app.cli.options import Stop

if TYPE_CHECKING:
    from seedscope.engine.store.catalogue import StudyPlan, Tokens


class Counting(StrEnum):
    """Whether some tokens count."""

    exclude = "exclude"
    include = "include"


StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Study name.", show_default=False)]
EnsembleName = Annotated[str, typer.Argument(metavar="ENSEMBLE", help="Its name.", show_default=False)]
Replace = Annotated[bool, typer.Option("--replace", help="Put it in the place of an ensemble of this name.")]
Model = Annotated[str | None, typer.Option(help="Folder or hub id of the transformers model.", show_default=False)]
TokenSource = Annotated[
    list[str] | None,
    typer.Option(
        "--tokens",
        help="Text to measure on: a file or glob of text, .jsonl, .parquet or .npy ids, or hf:NAME; repeatable.",
        show_default=False,
    ),
]
HookPoint = Annotated[
    str | None,
    typer.Option(help="Where activations are read, e.g. blocks.6.hook_resid_post or layers.6.", show_default=False),
]
HookPointOut = Annotated[
    str | None,
    typer.Option(
        "--hookpoint-out",
        help="What transcoders predict, e.g. blocks.6.hook_mlp_out, where their files do not say it.",
        show_default=False,
    ),
]
EvalTokens = Annotated[
    int | None, typer.Option(min=1, help="Measure on this many tokens, drawn at random.", show_default="all")
]
Context = Annotated[int | None, typer.Option("--n-ctx", min=2, help="Tokens per window.", show_default="the model's")]
Bos = Annotated[Counting | None, typer.Option(help="Whether activations at BOS count.", show_default="exclude")]
Outliers = Annotated[
    Counting | None,
    typer.Option(help="Whether tokens count whose activations are longer than 10 medians.", show_default="exclude"),
]


def planned(root: Path, study: str) -> "StudyPlan":
    """A study's catalogue; Stop where there is none."""
    from seedscope.engine.store import catalogue

    plan = catalogue.read(root / study)
    if plan is None:
        known = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{catalogue.FILE}"))) or "none"
        raise Stop(
            f"found no study {study} under {root}, it holds {known}; bring SAEs with: seedscope import {study} .."
        )
    return plan


def token_settings(
    n_eval: int | None, n_ctx: int | None, bos: "Counting | None", outliers: "Counting | None"
) -> dict[str, Any]:
    """How evaluation tokens are cut and counted, as far as the options say it."""
    settings = {"n_eval": n_eval, "n_ctx": n_ctx, "bos": bos and bos.value, "outliers": outliers and outliers.value}
    return {name: value for name, value in settings.items() if value is not None}


def token_source(source: list[str] | None, cut: dict[str, Any]) -> "Tokens | None":
    """The evaluation tokens as the catalogue keeps them: files by their whole path, named for the page as they were given."""
    from seedscope.engine.store.catalogue import Tokens

    if not source:
        if cut:
            options = " and ".join(f"--{name}".replace("n_eval", "eval-tokens").replace("_", "-") for name in cut)
            raise Stop(f"{options} given without --tokens, expected the text that they are taken from")
        return None
    paths = tuple(each if each.startswith(("hf:", "/", "~")) else str(Path.cwd() / each) for each in source)
    return Tokens(paths, **cut, remark=", ".join("/".join(Path(each).parts[-2:]) for each in source))


def whole_path(model: str | None) -> str | None:
    """A model's folder by its whole path, to be found from anywhere; a hub id as it is."""
    folder = Path(model or "").expanduser()
    return str(folder.absolute()) if model and folder.is_dir() else model
