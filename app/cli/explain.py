"""`seedscope explain`: explanations of features with scores, by token rules or a language model, or taken from others."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seedscope.app.cli.options import Compute, Device, Quiet, Root, Stop, app, refusals
from seedscope.app.cli.study_options import StudyName, planned
from seedscope.app.cli.summary import summary
from seedscope.app.settings import default_root

if TYPE_CHECKING:
    from seedscope.engine.explanations.chat import Prices, Server
    from seedscope.engine.explanations.of_study import Outcome
    from seedscope.engine.progress import Progress

N_REASONS = 3  # of failures that are told


class Explainer(StrEnum):
    """Who explains."""

    tokens = "tokens"
    openai = "openai"


class Foreign(StrEnum):
    """In which layout others write explanations."""

    auto = "auto"
    neuronpedia = "neuronpedia"
    delphi = "delphi"


@app.command()
def explain(
    study: StudyName,
    explainer: Annotated[
        Explainer, typer.Option(help="tokens: rules about tokens, offline; openai: any OpenAI-compatible server.")
    ] = Explainer.tokens,
    base_url: Annotated[
        str | None, typer.Option(help="The server, up to /v1.", show_default="$SEEDSCOPE_LLM_URL")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The language model, as the server calls it.", show_default="$SEEDSCOPE_LLM_MODEL"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Features of each ensemble, in turn from every bucket.", show_default="all living"),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests under way at once.", show_default="8")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds that an answer may take.", show_default="120")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, help="After timeouts, lost connections and busy servers.", show_default="5")
    ] = None,
    prompt_price: Annotated[
        float | None, typer.Option(min=0, help="Money per million tokens in, for the estimate.", show_default=False)
    ] = None,
    completion_price: Annotated[
        float | None, typer.Option(min=0, help="Money per million tokens out.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask the server without asking you.")] = False,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take explanations of others from this file or folder.", show_default=False),
    ] = None,
    ensemble: Annotated[str | None, typer.Option(help="Whose features they explain.", show_default=False)] = None,
    format: Annotated[Foreign | None, typer.Option(help="Their layout.", show_default="auto")] = None,
    seed: Annotated[int | None, typer.Option(help="The member that they explain.", show_default=False)] = None,
    named: Annotated[
        list[str] | None,
        typer.Option("--source", help="NAME=SEED of a source or hook point in them; repeatable.", show_default=False),
    ] = None,
    device: Device = Compute.auto,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Explain features in words and score that on text the explainer did not see; or take explanations of others.

    Example: seedscope explain mine --explainer openai --base-url http://localhost:11434/v1 --model llama3.1 --limit 100
    """
    from seedscope.engine.contract.files import only_writer
    from seedscope.engine.progress import Progress

    _require_belonging(
        explainer,
        source,
        asking={"--base-url": base_url, "--model": model, "--limit": limit, "--concurrency": concurrency,
                "--timeout": timeout, "--retries": retries, "--prompt-price": prompt_price,
                "--completion-price": completion_price},
        taking={"--ensemble": ensemble, "--format": format, "--seed": seed, "--source": named},
    )  # fmt: skip
    root = root or default_root()
    folder, progress = root / study, Progress(quiet=quiet)
    with refusals():
        planned(root, study)
        with only_writer(folder):
            if source is not None and ensemble is not None:  # the latter was required above
                _take(folder, ensemble, source, format or Foreign.auto, seed, _sources(named))
                _publish(folder, progress)
            elif explainer is Explainer.tokens:
                from seedscope.engine.studies.analyse import analyse

                analyse(folder, only=("explain",), device=device.value, progress=progress)
                _publish(folder, progress)
            else:
                patience = {"concurrency": concurrency, "timeout_s": timeout, "retries": retries}
                server = _server(base_url, model, patience)
                _ask(folder, server, limit, _prices(prompt_price, completion_price), yes, progress)
    summary(root, study)


def _require_belonging(
    explainer: Explainer, source: Path | None, *, asking: dict[str, Any], taking: dict[str, Any]
) -> None:
    """Wrong arguments where options are given that would change nothing."""
    for needs, met, options in (
        ("--explainer openai", explainer is Explainer.openai and source is None, asking),
        ("--from PATH", source is not None, taking),
    ):
        if given := [name for name, value in options.items() if value is not None and not met]:
            raise typer.BadParameter(f"{given[0]} was given without {needs}, which it belongs to")
    if source is not None and explainer is Explainer.openai:
        raise typer.BadParameter(
            "--from takes explanations that are there, --explainer openai asks for new ones; give one"
        )
    if source is not None and taking["--ensemble"] is None:
        raise typer.BadParameter("--from was given without --ensemble E, whose features the explanations are of")
    if (asking["--prompt-price"] is None) != (asking["--completion-price"] is None):
        raise typer.BadParameter("one price was given, expected both --prompt-price and --completion-price, or none")


def _server(base_url: str | None, model: str | None, patience: dict[str, Any]) -> "Server":
    from seedscope.engine.contract.environment import MODEL, URL
    from seedscope.engine.explanations.chat import Server

    def require(value: str | None, what: str, option: str, variable: str) -> str:
        if text := value or os.environ.get(variable):
            return text
        raise Stop(f"found no {what} to ask: name it with {option}, or in the environment as {variable}")

    base_url = require(base_url, "server", "--base-url", URL)
    model = require(model, "model", "--model", MODEL)
    return Server(
        base_url=base_url, model=model, **{name: value for name, value in patience.items() if value is not None}
    )


def _prices(prompt: float | None, completion: float | None) -> "Prices | None":
    from seedscope.engine.explanations.chat import Prices

    return None if prompt is None or completion is None else Prices(prompt, completion)


def _ask(
    folder: Path, server: "Server", limit: int | None, prices: "Prices | None", yes: bool, progress: "Progress"
) -> None:
    """Ask a language model, publish what it said and tell what it did not."""
    from seedscope.engine.explanations.chat import Refused
    from seedscope.engine.explanations.of_study import Interpretation

    run = Interpretation(folder, server, limit=limit, prices=prices)
    estimate = run.estimate()
    plan = f"{run.n_features:,} features to explain by {server.model} at {server.base_url}: {estimate}"
    if estimate.requests and not yes and sys.stdin.isatty():
        print(plan)
        if not typer.confirm("Ask?"):
            raise Stop("nothing was asked")
    else:
        progress.say(plan)
    try:
        outcome = run.run(progress)
    except (KeyboardInterrupt, Refused) as stop:
        if isinstance(stop, KeyboardInterrupt):
            print(
                "\nstopping: publishing what was answered; the same command goes on behind it",
                file=sys.stderr,
                flush=True,
            )
        _publish(folder, progress)
        raise
    _publish(folder, progress)
    _print_outcome(outcome)


def _print_outcome(outcome: "Outcome") -> None:
    """How many features were explained, and why others were not; raises Stop where none was."""
    counts = f"{outcome.n_explained:,} of {outcome.n_features:,} features explained and scored"
    print(counts + (f", {outcome.n_bare:,} have too few contexts for that" if outcome.n_bare else ""))
    if not outcome.n_failed:
        return
    reasons = [f"{reason} ({n:,} times)" for reason, n in outcome.failures.most_common(N_REASONS)]
    if len(outcome.failures) > N_REASONS:
        reasons.append(f"{len(outcome.failures) - N_REASONS:,} other reasons")
    failed = (
        f"{outcome.n_failed:,} of {outcome.n_features:,} features failed: {'; '.join(reasons)}. Run the same command again to "
        "retry these; answers that are there are not asked for again"
    )
    if not outcome.n_explained:
        raise Stop(failed)
    print(failed)


def _sources(named: list[str] | None) -> dict[str, int]:
    """{source or hook point: seed} from NAME=SEED."""
    seeds = {}
    for assignment in named or ():
        name, _, seed = assignment.rpartition("=")
        if not name or not seed.isascii() or not seed.isdigit():
            raise typer.BadParameter(f"--source is {assignment!r}, expected NAME=SEED such as 6-res-seed1=1")
        seeds[name] = int(seed)
    return seeds


def _take(folder: Path, ensemble: str, path: Path, format: Foreign, seed: int | None, sources: dict[str, int]) -> None:
    from seedscope.engine.explanations.imported import take_explanations

    taken = take_explanations(folder, ensemble, path, format=format.value, seed=seed, sources=sources)
    print(f"{taken.explainers.total():,} explanations of {taken.n_features:,} features from {path} ({taken.format}):")
    for name, n in taken.explainers.most_common():
        print(f"  {n:,} by {name}")
    for line in taken.left_out:
        print(f"  left out: {line}")


def _publish(folder: Path, progress: "Progress") -> None:
    from seedscope.engine.studies.publish import publish

    with progress.stage("publishing", "seeds") as report:
        publish(folder, report=report)
