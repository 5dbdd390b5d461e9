"""`seedscope import`: SAEs of any library become an ensemble of a study; or an export becomes a study again."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seedscope.app.cli.options import Quiet, Root, Stop, app, fetch_below, refusals, writable
from seedscope.app.cli.study_options import (
    ActivationSource,
    HookPointOut,
    Replace,
    StudyName,
    TextOptions,
    planned,
    recorded_activations,
    token_source,
    with_text_options,
)
from seedscope.app.cli.summary import summary
from seedscope.app.settings import default_root
from seedscope.engine.contract.urls import on_this_machine, url_in

if TYPE_CHECKING:
    from seedscope.engine.progress import Progress
    from seedscope.engine.store.catalogue import EnsemblePlan, StudyPlan


class Known(StrEnum):
    """Whether something is known to be so."""

    yes = "yes"
    no = "no"
    unknown = "unknown"


@app.command("import")
@with_text_options
def import_(
    study: StudyName,
    ensemble: Annotated[
        str, typer.Argument(metavar="ENSEMBLE", help="Its name; or a folder or URL that `export` wrote.")
    ],
    path: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...",
            help="SAE files, folders of them, URLs such as s3://BUCKET/FOLDER, hf:OWNER/REPO/FOLDER of a hub, "
            "public:NAME/FOLDER, or RELEASE/SAE_ID of SAELens' registry.",
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="The library that wrote them; auto recognises it by the files.")] = "auto",
    seeds: Annotated[
        str | None, typer.Option(help="Their seeds, in this order, such as 0,1,2.", show_default=False)
    ] = None,
    *,
    text: TextOptions,
    hookpoint_out: HookPointOut = None,
    activations: ActivationSource = None,
    shared_start: Annotated[
        Known | None, typer.Option(help="Whether members began with the same weights.", show_default="unknown")
    ] = None,
    neuronpedia: Annotated[
        list[str] | None,
        typer.Option(
            help="MODEL/SOURCE of their pages on Neuronpedia, such as gpt2-small/7-res-jb, one for each in this order.",
            show_default=False,
        ),
    ] = None,
    replace_: Replace = False,
    check: Annotated[
        bool,
        typer.Option(help="Look at EV and L0 on a few thousand tokens, where model, tokens and hook point are known."),
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Import what names another model, hook point or setting.")
    ] = False,
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
    progress = Progress(quiet=quiet)
    fetch_below(root, quiet=quiet)
    if not path:
        _restore(study, ensemble, root, progress)
        return
    with refusals():
        catalogue.require_name("study", study)
        for each in path:
            url_in(each)  # refuses what may not be kept, before any work
        with only_writer(root / study):
            from seedscope.engine.saes.importers.ensemble import at_hand
            from seedscope.engine.saes.importers.public import resolved
            from seedscope.engine.saes.importers.registry import named
            from seedscope.engine.studies.import_ensemble import enrol

            recorded = recorded_activations(activations, text, progress)
            tokens = None if recorded else token_source(text.tokens, text.cut)
            saes = at_hand([named(one) for each in path for one in resolved(each)])
            with progress.stage("importing", "SAEs") as report:
                entry = enrol(
                    root, study, ensemble, saes,
                    format=format, seeds=_numbers(seeds), model=text.whole_model,
                    hookpoint=text.hookpoint, hookpoint_out=hookpoint_out,
                    tokens=tokens, activations=recorded,
                    shared_start=shared_start.value if shared_start else None,
                    neuronpedia=neuronpedia or (), force=force, replaced=replace_, report=report,
                )  # fmt: skip
            plan = planned(root, study)
            if check and (plan.activations or (plan.model and plan.tokens and entry.hookpoint)):
                entry = _checked(root / study, plan, entry, progress)
    _describe(entry, recorded=plan.activations is not None)
    needed = {"--model DIR_OR_ID": plan.model, "--tokens FILES": plan.tokens, "--hookpoint H": entry.hookpoint}
    lacks = [] if plan.activations else [name for name, value in needed.items() if not value]
    command = f"seedscope analyze {study}" + (f" --root {root}" if root != default_root() else "")
    print(f"next: {command}" + (f"   (activity needs {' and '.join(lacks)} as well)" if lacks else ""))


def _restore(study: str, folder: str, root: Path, progress: "Progress") -> None:
    with refusals():
        url = url_in(folder)
    if not url and not (Path(on_this_machine(folder)) / "manifest.json").is_file():
        raise Stop(
            f"found no manifest.json in {folder}: expected ENSEMBLE PATH.., or one folder that `seedscope export` wrote; "
            "see seedscope import --help"
        )
    with refusals():
        from seedscope.engine.export.by_url import fetched_export
        from seedscope.engine.export.restore import restore

        if url:
            fetched_export(url)
        with progress.stage(f"importing {study}", "steps") as report:
            restore(folder, root, study, report=report)
    summary(root, study)


def _checked(study: Path, plan: "StudyPlan", entry: "EnsemblePlan", progress: "Progress") -> "EnsemblePlan":
    """The ensemble with what a first look says against it as remarks, kept in the catalogue; what prevents the look is printed."""
    from seedscope.engine.store import catalogue
    from seedscope.engine.studies.self_check import look_at, with_remarks

    try:
        looks = look_at(study, plan, entry, "auto", progress)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"self-check left out: {error}")
        return entry
    looked_at = with_remarks(entry, looks)
    if looked_at != entry:
        catalogue.write(plan.with_ensemble(looked_at), study)
    evs, l0s = [look.ev for look in looks if look.ev is not None], [look.l0 for look in looks]
    ev, unit = _range(evs, ".3f") if evs else "undefined", "rows" if plan.activations else "tokens"
    print(f"self-check on {looks[0].n_tokens:,} {unit}: EV {ev}, L0 {_range(l0s, '.1f')}")
    return looked_at


def _range(values: list[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(each) for each in text.split(",")]
    except ValueError:
        raise Stop(f"--seeds is {text!r}, expected whole numbers such as 0,1,2") from None


def _describe(ensemble: "EnsemblePlan", *, recorded: bool) -> None:
    """What was imported, member by member; `recorded`: to be measured on recorded activations."""
    from seedscope.engine.contract.directions import NO_OUTPUT, NOT_RECORDED, SENTENCE, WAY_OUT

    to = f" to {ensemble.hookpoint_out or 'unknown'}" if ensemble.transcoder else ""
    print(f"ensemble {ensemble.name}: {len(ensemble.members)} members, {ensemble.variant}, "
          f"hook point {ensemble.hookpoint or 'unknown'}{to}, shared start {ensemble.shared_start}")  # fmt: skip
    if ensemble.transcoder:
        print(f"  {SENTENCE}")
    if ensemble.transcoder and recorded:
        print(f"  reconstruction, ablation, loss, direct logits: undefined: {NOT_RECORDED}")
    elif ensemble.transcoder and not ensemble.hookpoint_out:
        print(f"  reconstruction, ablation, loss, direct logits: {NO_OUTPUT}; give it with {WAY_OUT}")
    for member in ensemble.members:
        print(f"  seed {member.seed}  {member.digest}  {member.library or 'library unknown'}  {member.source}")
        for remark in member.remarks:
            print(f"    {remark}")
    from seedscope.engine.saes.importers.facts import in_short

    for line in in_short({member.seed: member.facts for member in ensemble.members}):
        print(f"  {line}")
    for remark in ensemble.remarks:
        print(f"  {remark}")
