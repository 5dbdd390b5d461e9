"""`seedscope import`, `analyze`, `run`, `export` and `doctor`: the user's own studies."""

import json as json_format
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seedscope.app.cli.options import Compute, Device, Quiet, Root, Stop, app, check_parent, refusals, writable
from seedscope.app.settings import default_root

if TYPE_CHECKING:
    from seedscope.app.store.ceiling import Ceiling
    from seedscope.engine.store.catalogue import Ensemble, Study, Tokens


class Format(StrEnum):
    """What an export is written as."""

    parquet = "parquet"
    json = "json"
    neuronpedia = "neuronpedia"
    saelens = "saelens"
    delphi = "delphi"


class Known(StrEnum):
    """Whether something is known to be so."""

    yes = "yes"
    no = "no"
    unknown = "unknown"


class Counting(StrEnum):
    """Whether some tokens count."""

    exclude = "exclude"
    include = "include"


class AllPairsRule(StrEnum):
    """Which matching of all pairs is asked for."""

    argmax = "argmax"
    hungarian = "hungarian"


StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Study name.", show_default=False)]
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
EvalTokens = Annotated[
    int | None, typer.Option(min=1, help="Measure on this many tokens, drawn at random.", show_default="all")
]
Context = Annotated[int | None, typer.Option("--n-ctx", min=2, help="Tokens per window.", show_default="the model's")]
Bos = Annotated[Counting | None, typer.Option(help="Whether activations at BOS count.", show_default="exclude")]
Outliers = Annotated[
    Counting | None,
    typer.Option(help="Whether tokens count whose activations are longer than 10 medians.", show_default="exclude"),
]


@app.command("import")
def import_(
    study: StudyName,
    ensemble: Annotated[str, typer.Argument(metavar="ENSEMBLE", help="Its name; or a folder that `export` wrote.")],
    path: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH...", help="SAE files, folders of them, or hf:OWNER/REPO/FOLDER of a hub."),
    ] = None,
    format: Annotated[str, typer.Option(help="The library that wrote them; auto recognises it by the files.")] = "auto",
    seeds: Annotated[
        str | None, typer.Option(help="Their seeds, in this order, such as 0,1,2.", show_default=False)
    ] = None,
    model: Model = None,
    hookpoint: HookPoint = None,
    tokens: TokenSource = None,
    eval_tokens: EvalTokens = None,
    n_ctx: Context = None,
    bos: Bos = None,
    outliers: Outliers = None,
    shared_start: Annotated[
        Known | None, typer.Option(help="Whether members began with the same weights.", show_default="unknown")
    ] = None,
    replace_: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of an ensemble of this name.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Import what names another model or hook point.")] = False,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Add SAEs of any library to a study, as an ensemble that differs by its seeds; or a study that `export` wrote.

    Example: seedscope import mine topk-16k runs/seed0 runs/seed1 runs/seed2 --model gpt2 --tokens 'corpus/*.txt'
    """
    from seedscope.engine.contract.files import only_writer
    from seedscope.engine.progress import Progress
    from seedscope.engine.store import catalogue

    root = writable(root or default_root())
    progress, cut = Progress(quiet=quiet), cut_as_told(eval_tokens, n_ctx, bos, outliers)
    if not path:
        _restore(study, Path(ensemble), root, progress)
        return
    with refusals():
        catalogue.require_name("study", study)
        with only_writer(root / study):
            from seedscope.engine.studies.import_ensemble import enrol

            with progress.stage("importing", "SAEs") as report:
                found = enrol(
                    root, study, ensemble, path, format=format, seeds=_numbers(seeds), model=whole_place(model),
                    hookpoint=hookpoint, tokens=tokens_as_told(tokens, cut),
                    shared_start=shared_start.value if shared_start else None,
                    force=force, replaced=replace_, report=report,
                )  # fmt: skip
            plan = catalogue.read(root / study)
    _describe(found)
    needed = {"--model DIR_OR_ID": plan.model, "--tokens FILES": plan.tokens, "--hookpoint H": found.hookpoint}
    lacks = [name for name, held in needed.items() if not held]
    command = f"seedscope analyze {study}" + (f" --root {root}" if root != default_root() else "")
    print(f"next: {command}" + (f"   (activity needs {' and '.join(lacks)} as well)" if lacks else ""))


@app.command()
def analyze(
    study: StudyName,
    only: Annotated[
        str | None,
        typer.Option(
            help="Some of match,activity,ablate,explain,loss,subspaces,trajectory, comma-separated; what they need comes too.",
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
    model: Model = None,
    hookpoint: HookPoint = None,
    tokens: TokenSource = None,
    eval_tokens: EvalTokens = None,
    n_ctx: Context = None,
    bos: Bos = None,
    outliers: Outliers = None,
    loss_tokens: Annotated[
        int | None, typer.Option(min=1, help="Measure losses on this many tokens.", show_default="4096")
    ] = None,
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
    with refusals():
        plan = planned(root, study)
        with only_writer(folder):
            from seedscope.engine.studies.analyse import analyse
            from seedscope.engine.studies.publish import publish

            cut = cut_as_told(eval_tokens, n_ctx, bos, outliers)
            catalogue.write(_changed(plan, theta, epsilon, model, hookpoint, tokens, cut), folder)
            try:
                analyse(
                    folder, only=_analyses(only), one_to_one=None if rule is None else rule is AllPairsRule.hungarian,
                    loss_tokens=loss_tokens, device=device.value, progress=progress,
                )  # fmt: skip
            except ValueError:  # settings that cannot be followed are not kept for the next time
                catalogue.write(plan, folder)
                raise
            with progress.stage("publishing", "members") as report:
                publish(folder, report=report)
    summary(root, study)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A study file.", show_default=False)],
    device: Device = Compute.auto,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Everything that a study file asks for: import or train its ensembles, analyse and publish them; resumes.

    Example: seedscope run study.toml --root ~/studies
    """
    from seedscope.engine.progress import Progress

    root = writable(root or default_root())
    with refusals():
        from seedscope.engine.studies.studyfile.read import read_study_file

        plan = read_study_file(file)
        from seedscope.engine.studies.run import run_file

        run_file(plan, root, device=device.value, progress=Progress(quiet=quiet))
    summary(root, plan.name)


@app.command()
def export(
    study: StudyName,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)],
    format: Annotated[
        Format, typer.Option(help="parquet holds everything, and `import` reads it back.")
    ] = Format.parquet,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Write everything that was computed on a study to files.

    Example: seedscope export mine out --format neuronpedia
    """
    from seedscope.engine.progress import Progress

    root = root or default_root()
    with refusals(), Progress(quiet=quiet).stage(f"exporting {study}", "steps") as report:
        from seedscope.engine.export.formats import export as export_study

        files = export_study(root, study, folder, format=format.value, report=report)
    print(f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB: {folder}")


@app.command()
def doctor(
    device: Device = Compute.auto,
    json: Annotated[
        Path | None, typer.Option(help="Write the findings to this file as well.", show_default=False)
    ] = None,
    root: Root = None,
) -> None:
    """Say what this machine has, which kernels are taken and why, and which studies are found.

    Example: seedscope doctor --root ~/studies
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from seedscope.engine.contract.files import write_whole
    from seedscope.engine.doctor import as_json, examine

    check_parent(json)
    findings = examine(root or default_root(), device.value)
    table = Table(box=None, show_header=False, pad_edge=False)
    section = None
    for finding in findings:
        if finding.section != section:
            section = finding.section
            table.add_row(("\n" if table.row_count else "") + f"[bold]{escape(section)}[/]")
        mark = "  " if finding.fine else "[bold red]![/] "
        table.add_row(mark + escape(finding.name), escape(finding.value), f"[dim]{escape(finding.remark)}[/]")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if json is not None:
        write_whole(json, json_format.dumps(as_json(findings), indent=1))


def planned(root: Path, study: str) -> "Study":
    """A study's catalogue; Stop where there is none."""
    from seedscope.engine.store import catalogue

    plan = catalogue.read(root / study)
    if plan is None:
        known = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{catalogue.FILE}"))) or "none"
        raise Stop(
            f"found no study {study} under {root}, it holds {known}; bring SAEs with: seedscope import {study} .."
        )
    return plan


def _restore(study: str, folder: Path, root: Path, progress) -> None:
    if not (folder / "manifest.json").is_file():
        raise Stop(
            f"found no manifest.json in {folder}: expected ENSEMBLE PATH.., or one folder that `seedscope export` wrote; "
            "see seedscope import --help"
        )
    with refusals(), progress.stage(f"importing {study}", "steps") as report:
        from seedscope.engine.export.restore import restore

        restore(folder, root, study, report=report)
    summary(root, study)


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(each) for each in text.split(",")]
    except ValueError:
        raise Stop(f"--seeds is {text!r}, expected whole numbers such as 0,1,2") from None


def _analyses(only: str | None) -> tuple[str, ...] | None:
    from seedscope.engine.contract.schema import ANALYSES

    if only is None:
        return None
    names = {"match" if name == "stability" else name for name in only.replace(" ", "").split(",")}
    if unknown := names - set(ANALYSES):
        raise Stop(f"--only names {', '.join(sorted(unknown))}, this version computes {', '.join(ANALYSES)}, stability")
    return tuple(name for name in ANALYSES if name in names)


def cut_as_told(
    n_eval: int | None, n_ctx: int | None, bos: "Counting | None", outliers: "Counting | None"
) -> dict[str, Any]:
    """What was said of how the evaluation tokens are cut and counted."""
    said = {"n_eval": n_eval, "n_ctx": n_ctx, "bos": bos and bos.value, "outliers": outliers and outliers.value}
    return {name: value for name, value in said.items() if value is not None}


def tokens_as_told(source: list[str] | None, cut: dict[str, Any]) -> "Tokens | None":
    """The evaluation tokens as the catalogue keeps them: files by their whole path, named for the page as they were given."""
    from seedscope.engine.store.catalogue import Tokens

    if not source:
        if cut:
            given = " and ".join(f"--{name}".replace("n_eval", "eval-tokens").replace("_", "-") for name in cut)
            raise Stop(f"{given} given without --tokens, expected the text that they are taken from")
        return None
    whole = tuple(each if each.startswith(("hf:", "/", "~")) else str(Path.cwd() / each) for each in source)
    return Tokens(whole, **cut, remark=", ".join("/".join(Path(each).parts[-2:]) for each in source))


def whole_place(model: str | None) -> str | None:
    """A model's folder by its whole path, to be found from anywhere; a hub id as it is."""
    folder = Path(model or "").expanduser()
    return str(folder.absolute()) if model and folder.is_dir() else model


def _changed(plan, theta, epsilon, model, hookpoint, tokens, cut):
    """The catalogue with what the command line says; without a word everything stays."""
    if hookpoint and plan.ensembles and not any(each.hookpoint in (None, hookpoint) for each in plan.ensembles):
        known = ", ".join(f"{each.name} {each.hookpoint}" for each in plan.ensembles)
        raise Stop(
            f"--hookpoint {hookpoint} was given, but every ensemble has its own ({known}); to change it, import the ensemble "
            "again with --replace"
        )
    before = plan.tokens
    if tokens and before:  # another text, cut as before
        cut = {name: getattr(before, name) for name in ("n_eval", "n_ctx", "bos", "outliers")} | cut
    found = tokens_as_told(tokens, cut) if tokens or not before else replace(before, **cut)
    return replace(
        plan,
        theta=plan.theta if theta is None else theta,
        epsilon=plan.epsilon if epsilon is None else epsilon,
        model=whole_place(model) or plan.model,
        tokens=found,
        ensembles=tuple(replace(each, hookpoint=each.hookpoint or hookpoint) for each in plan.ensembles),
    )


def _describe(found: "Ensemble") -> None:
    """What was imported, member by member."""
    print(f"ensemble {found.name}: {len(found.members)} members, {found.variant}, "
          f"hook point {found.hookpoint or 'unknown'}, shared start {found.shared_start}")  # fmt: skip
    for member in found.members:
        print(f"  seed {member.seed}  {member.digest}  {member.library or 'library unknown'}  {member.source}")
        for remark in member.remarks:
            print(f"    {remark}")
    for remark in found.remarks:
        print(f"  {remark}")


def summary(root: Path, study: str) -> None:
    """One line per ensemble, and how to look at it."""
    from seedscope.app.store.ceiling import ceiling
    from seedscope.app.store.studies import Studies
    from seedscope.app.store.table import FeatureQuery

    store = Studies(root).get(study)
    for name, row in store.ensembles.items():
        shares: dict[str, int] = {}
        for _, bucket, _, n in store.features(FeatureQuery(name, row.theta, row.epsilon)).matched_counts():
            shares[bucket] = shares.get(bucket, 0) + n
        judged = sum(n for bucket, n in shares.items() if bucket != "dead") or 1
        parts = [f"{bucket} {shares.get(bucket, 0) / judged:.1%}" for bucket in ("stable", "middle", "unstable")]
        if "dead" in shares:
            parts.append(f"{shares['dead']:,} dead")
        if beside := ceiling(store, FeatureQuery(name, row.theta, row.epsilon)):
            print(f"{study}/{name}: {_beside(beside)}")
        print(
            f"{study}/{name}: {row.n_members} × {row.d_sae:,} features, {', '.join(parts)}; computed: {', '.join(row.computed)}"
        )
    print(f"look at it with: seedscope serve --root {root}")


def _beside(found: "Ceiling") -> str:
    """An anchor's stability beside what its comparisons reach among themselves, on one line."""
    parts = [
        f"{name} mean p {level.mean:.3f}, stable {level.stable:.1%}, unstable {level.unstable:.1%} of {level.n_features:,}"
        for name, level in (("the anchor", found.of_anchor), ("comparisons among themselves", found.of_comparisons))
    ]
    return f"recipe differs, seed {found.anchor} is a public SAE: {'; '.join(parts)} (over {found.n_comparisons} comparisons)"
