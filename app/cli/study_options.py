"""What the commands on a user's own study share: its options, its catalogue, and the text it is measured on."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from seedscope.app.cli.options import Stop
from seedscope.engine.contract.urls import on_this_machine, url_in, whole_source

if TYPE_CHECKING:
    from seedscope.engine.progress import Progress
    from seedscope.engine.store.catalogue import RecordedActivations, StudyPlan, Tokens


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
        help="Text to measure on: a file or glob of text, .jsonl, .json, .csv, .tsv, .parquet, .npy or .npz ids, any of the "
        "first also compressed (.gz, .zst, .bz2, .xz), hf:NAME, or s3://BUCKET/*.txt; repeatable.",
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


ActivationSource = Annotated[
    str | None,
    typer.Option(
        "--activations",
        help="Recorded activations in place of --model and --tokens: a .npy or .safetensors file, or a folder of them, or its URL.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class TextOptions:
    """The model, the place in it and the text that a study is measured on, as the command line gives them."""

    model: Model = None
    hookpoint: HookPoint = None
    tokens: TokenSource = None
    eval_tokens: EvalTokens = None
    n_ctx: Context = None
    bos: Bos = None
    outliers: Outliers = None

    @property
    def cut(self) -> dict[str, Any]:
        """How evaluation tokens are cut and counted, as far as the options say it."""
        settings = {
            "n_eval": self.eval_tokens, "n_ctx": self.n_ctx, "bos": self.bos and self.bos.value,
            "outliers": self.outliers and self.outliers.value,
        }  # fmt: skip
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def whole_model(self) -> str | None:
        """The model, a folder by its whole path."""
        return whole_path(self.model)


def with_text_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of TextOptions, one by one, in the place of its parameter `text`."""

    @wraps(command)
    def run(**options: Any) -> None:
        text = TextOptions(**{field.name: options.pop(field.name) for field in fields(TextOptions)})
        command(text=text, **options)

    hints = get_type_hints(TextOptions, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name != "text":
            parameters.append(parameter)
            continue
        parameters += [
            inspect.Parameter(field.name, parameter.kind, default=field.default, annotation=hints[field.name])
            for field in fields(TextOptions)
        ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


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


def token_source(source: list[str] | None, cut: dict[str, Any]) -> "Tokens | None":
    """The evaluation tokens as the catalogue keeps them: files by their whole path, named for the page as they were given."""
    from seedscope.engine.store.catalogue import Tokens

    if not source:
        if cut:
            options = " and ".join(f"--{name}".replace("n_eval", "eval-tokens").replace("_", "-") for name in cut)
            raise Stop(f"{options} given without --tokens, expected the text that they are taken from")
        return None
    paths = tuple(whole_source(each, Path.cwd()) for each in source)
    return Tokens(paths, **cut, remark=", ".join(url_in(each) or "/".join(Path(each).parts[-2:]) for each in source))


def recorded_activations(source: str | None, text: TextOptions, progress: "Progress") -> "RecordedActivations | None":
    """The recorded activations as the catalogue keeps them, after every row was read once; None without any.

    Stop where other options contradict them; ValueError where they cannot be read.
    """
    if source is None:
        return None
    for option, value in (
        ("--model", text.model),
        ("--tokens", text.tokens),
        ("--n-ctx", text.n_ctx),
        ("--bos", text.bos),
    ):
        if value is not None:
            raise Stop(
                f"{option} given with --activations, which stand in place of a model and tokens; leave one of the two out"
            )
    from seedscope.engine.studies.recorded import describe

    given = url_in(source) or str(Path(on_this_machine(source)).expanduser().absolute())
    settings = {name: value for name, value in text.cut.items() if name in ("n_eval", "outliers")}
    return describe(given, text.hookpoint, progress, **settings)


def whole_path(model: str | None) -> str | None:
    """A model's folder by its whole path, to be found from anywhere; a hub id as it is."""
    folder = Path(model or "").expanduser()
    return str(folder.absolute()) if model and folder.is_dir() else model
