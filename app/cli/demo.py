"""`seedscope demo`: the embedded study, built once and served."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from seedscope.app.cli.options import Root, Stop, app, writable
from seedscope.app.cli.serve import Open, Port, on_a_desktop, serve_until_stopped
from seedscope.app.settings import DEFAULT_PORT, Settings, default_root


@app.command()
def demo(
    port: Port = DEFAULT_PORT,
    root: Root = None,
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve it once it is built.")] = True,
    open_browser: Open = None,
    control: Annotated[
        bool, typer.Option("--control", help="Train it on the model with random weights as well, to compare.")
    ] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="The variants, starts, synthetic and pool studies as well: half an hour."),
    ] = False,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
) -> None:
    """Build the embedded study if it is not there, then serve it.

    Pages answer once features are matched and measured; explanations, subspaces, the map and losses follow as jobs.
    With --no-serve the command ends when explanations, subspaces and the map are there too.

    With --full everything else that its model can show is built first, one study after the other: variants at equal L0 with
    sweeps, starts, a feature pool, known true features, the control. Stopped, the same command goes on.

    Example: seedscope demo --port 9000
    """
    from seedscope.engine.demo import stdlib as embedded  # standard library only

    root = writable(root or default_root())
    if full or control or not _is_current(root / embedded.STUDY.name, embedded.built_from()):
        chosen = {"quiet": quiet, "control": control, "full": full, "first": serve and not control and not full}
        flags = [f"--{name}" for name, given in chosen.items() if given]
        module = "seedscope.engine.studies.embedded"
        command = [sys.executable, "-W", "ignore", "-m", module, str(root), "--with-parent", *flags]
        # Nothing is written to the pipe: it ends when this process does, and the builder with it.
        with subprocess.Popen(command, stdin=subprocess.PIPE) as builder:
            code = builder.wait()
        if code:
            raise Stop(f"the study could not be built (exit {code}); nothing was published")
    if serve:
        open_browser = on_a_desktop() if open_browser is None else open_browser
        serve_until_stopped(Settings(root, port=port), open_browser, follow_up=embedded.STUDY.name)
    else:
        print(f"study {embedded.STUDY.name} is published under {root}; look at it with: seedscope serve --root {root}")


def _is_current(study: Path, built_from: str) -> bool:
    """Whether the published store of a study's folder was built from this."""
    from seedscope.engine.contract.published import published

    store = published(study)
    return store is not None and store.built_from == built_from
