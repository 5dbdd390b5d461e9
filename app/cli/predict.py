"""`seedscope predict`: the stability of one SAE's features, predicted from an ensemble whose stability was measured."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seedscope.app.cli.options import Compute, Device, Quiet, Root, Stop, app, fetch_below, refusals, writable
from seedscope.app.cli.study_options import TextOptions, planned, token_source, with_text_options
from seedscope.app.cli.summary import summary
from seedscope.app.settings import default_root
from seedscope.engine.contract.urls import url_in

if TYPE_CHECKING:
    from seedscope.engine.progress import Progress
    from seedscope.engine.studies.predict import PredictionReport


@app.command()
@with_text_options
def predict(
    sae: Annotated[
        str | None,
        typer.Argument(
            metavar="SAE",
            help="A file, a folder, its URL or hf:OWNER/REPO/FOLDER; or STUDY/ENSEMBLE of one SAE that was imported.",
            show_default=False,
        ),
    ] = None,
    trained_on: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STUDY/ENSEMBLE",
            help="The ensemble that the predictor is trained on.",
            show_default=False,
        ),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="STUDY/ENSEMBLE",
            help="Where the SAE goes.",
            show_default="STUDY-predicted, and the name of its file",
        ),
    ] = None,
    *,
    text: TextOptions,
    format: Annotated[
        str, typer.Option(help="The library that wrote the SAE; auto recognises it by its files.")
    ] = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Predict an SAE that is too unlike those of the ensemble.")
    ] = False,
    carry: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY",
            help="Instead: predict every ensemble of a study from its other ensembles, and say how well.",
            show_default=False,
        ),
    ] = None,
    device: Device = Compute.auto,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Predict which features of one SAE would come back with another seed, from what one SAE and its text say.

    The predictor is trained on an ensemble whose stability was measured. What it says is shown as predicted, never as stable.

    Example: seedscope predict hf:OWNER/REPO/FOLDER --from mine/topk-16k
    """
    from seedscope.engine.progress import Progress

    root, progress = writable(root or default_root()), Progress(quiet=quiet)
    fetch_below(root, quiet=quiet)
    if carry is not None:
        if sae or trained_on:
            raise Stop("--carry takes no SAE and no --from: it tests the ensembles of one study on each other")
        _carry(root, carry, progress)
        return
    if sae is None or trained_on is None:
        raise Stop("expected an SAE and --from STUDY/ENSEMBLE, or --carry STUDY; see seedscope predict --help")
    source = _pair("--from", trained_on)
    with refusals():
        url_in(sae)  # refuses what may not be kept, before any work
        source_plan = planned(root, source[0])
        source_plan.ensemble(source[1])
        target = _imported(root, sae)
        if target is not None and (into or text.tokens or text.model or text.hookpoint or text.cut):
            raise Stop(f"{sae} is imported already; change its model and text with: seedscope analyze {target[0]}")
        from seedscope.engine.contract.files import only_writer
        from seedscope.engine.store import catalogue
        from seedscope.engine.studies.analyse import analyse
        from seedscope.engine.studies.predict import predict_one
        from seedscope.engine.studies.publish import publish

        study, ensemble = target or (_pair("--as", into) if into else (f"{source[0]}-predicted", _name_of(sae)))
        catalogue.require_name("study", study)
        with only_writer(root / study):
            if target is None:
                _import(root, study, ensemble, sae, source, text, format, progress, force=force)
            analyse(root / study, only=("match", "activity", "ablate"), device=device.value, progress=progress)
            found = predict_one(root, study, ensemble, source, progress, force=force)
            with progress.stage("publishing", "seeds") as report:
                publish(root / study, report=report)
    _say(f"{study}/{ensemble}", found)
    summary(root, study)


def _pair(option: str, text: str) -> tuple[str, str]:
    """STUDY/ENSEMBLE in its two parts."""
    parts = text.split("/")
    if len(parts) != 2 or not all(parts):
        raise Stop(f"{option} is {text!r}, expected STUDY/ENSEMBLE")
    return parts[0], parts[1]


def _imported(root: Path, sae: str) -> tuple[str, str] | None:
    """Study and ensemble of an SAE that was imported; None for a path."""
    from seedscope.engine.store import catalogue

    study, _, ensemble = sae.partition("/")
    if Path(sae).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", sae):
        return None
    plan = catalogue.read(root / study)
    if plan is None:
        return None
    return study, plan.ensemble(ensemble).name


def _name_of(sae: str) -> str:
    """A name for an ensemble, from the last part of an SAE's path."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(sae.rstrip("/")).stem).strip("-._")
    return name or "sae"


def _import(
    root: Path,
    study: str,
    ensemble: str,
    sae: str,
    source: tuple[str, str],
    text: TextOptions,
    format: str,
    progress: "Progress",
    *,
    force: bool,
) -> None:
    """Bring the SAE in as an ensemble of one, with the model, text and hook point of the training ensemble where none are given."""
    from seedscope.engine.saes.importers.ensemble import read
    from seedscope.engine.store import catalogue
    from seedscope.engine.studies.import_ensemble import enrol

    theirs, former = planned(root, source[0]), catalogue.read(root / study)
    read_once = read(sae, format)
    named = read_once.source.get("hookpoint")
    settings: dict[str, Any] = {}
    if former is None or not (former.model and former.tokens):
        settings = {"model": theirs.model, "tokens": theirs.tokens}
    if text.model:
        settings["model"] = text.whole_model
    if text.tokens:
        settings["tokens"] = token_source(text.tokens, text.cut)
    elif text.cut:
        raise Stop("--eval-tokens, --n-ctx, --bos and --outliers say how --tokens are cut, expected --tokens as well")
    hookpoint = text.hookpoint or (None if named else theirs.ensemble(source[1]).hookpoint)
    if hookpoint and not (text.hookpoint or named):
        progress.say(f"the SAE names no hook point: {hookpoint}, that of {'/'.join(source)}, is taken")
    with progress.stage("importing", "SAEs") as report:
        enrol(
            root, study, ensemble, [sae], format=format, seeds=None if read_once.seed is not None else [0],
            hookpoint=hookpoint, force=force, replaced=True, report=report, **settings,
        )  # fmt: skip


def _say(name: str, found: "PredictionReport") -> None:
    row, scores = found.predictor, {each["setting"]: each for each in found.scores}
    main = scores["clusters"]
    p = found.p
    print(
        f"predicted {name}: {len(p):,} of {found.d_sae:,} features, mean p {p.mean():.3f}; p at least 0.95: "
        f"{(p >= 0.95).mean():.1%}, at most 0.05: {(p <= 0.05).mean():.1%}"
    )
    of = f"{row['n_features']:,} features of {row['n_train_members']} seeds, {row['kind']}, θ {row['theta']:g}"
    auroc = f"AUROC {main['auroc']:.3f} ({main['auroc_low']:.3f} to {main['auroc_high']:.3f})"
    error = f"calibration error {main['calibration_error']:.3f} ({main['error_low']:.3f} to {main['error_high']:.3f})"
    print(f"predictor trained on {row['trained_on']} ({of}), on held-out clusters: {auroc}, {error}")
    nulls = [f"{says} {scores[each]['auroc']:.3f}" for each, says in (
        ("density", "by density alone"), ("shuffled", "shuffled within equal density"), ("rotated", "rotated dictionaries"),
    ) if each in scores]  # fmt: skip
    print(f"  AUROC beside it: {', '.join(nulls)}" if nulls else "  no control could be computed")
    for left_out in row["left_out"]:
        print(f"  without {left_out}")
    for warning in row["warnings"]:
        print(f"  outside the training distribution: {warning}")
    n = row["n_outside"]
    print(
        f"  {n:,} of {len(p):,} features have an input beyond the training features'"
        if n
        else "  all within the training range"
    )


def _carry(root: Path, study: str, progress: "Progress") -> None:
    with refusals():
        planned(root, study)
        from seedscope.engine.contract.files import only_writer
        from seedscope.engine.studies.carry import measure_carry
        from seedscope.engine.studies.publish import publish

        with only_writer(root / study):
            rows = measure_carry(root, study, progress)
            with progress.stage("publishing", "seeds") as report:
                publish(root / study, report=report)
    print(f"{'left out':<24} {'AUROC':>6} {'(own)':>7}  {'error':>6} {'(own)':>7}  {'mean p':>6} {'predicted':>9}")
    for row in rows:
        print(
            f"{row['ensemble']:<24} {row['auroc']:>6.3f} {row['own_auroc']:>7.3f}  {row['calibration_error']:>6.3f} "
            f"{row['own_calibration_error']:>7.3f}  {row['base_rate']:>6.3f} {row['mean_predicted']:>9.3f}"
        )
    print(
        "each predicted from all the others, by models that saw no feature that matches it; own: from its own other clusters"
    )
