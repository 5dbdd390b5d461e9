"""`seedscope`: one front door. Imports lazily: the web process never loads torch, `--help` loads nothing.

Every command stands in the file of its name; `import` is a Python keyword and stands in `import_.py`.
"""

import sys

# Each registers its command.
from seedscope.app.cli import (  # noqa: F401
    analyze,
    anchor,
    bench,
    demo,
    doctor,
    explain,
    export,
    import_,
    inspect,
    match,
    pool,
    public,
    run,
    serve,
    synthetic,
    verify,
)
from seedscope.app.cli.options import DEBUG, Stop, app

__all__ = ["COMMANDS", "app", "main"]

# As `seedscope --help` lists them: to look, to bring in one's own, to compute and make more, to take away, the machine.
COMMANDS = (
    "demo", "serve", "run", "public", "inspect", "import", "analyze", "anchor", "explain", "pool", "synthetic", "match", "export",
    "verify", "bench", "doctor",
)  # fmt: skip
app.registered_commands.sort(
    key=lambda command: COMMANDS.index(command.name or getattr(command.callback, "__name__", ""))
)


def main() -> None:
    """Run the command line; a failed run is one line and exit 1, wrong arguments exit 2."""
    try:
        app([argument for argument in sys.argv[1:] if argument != DEBUG])
    except Stop as stop:
        print(f"seedscope: {stop}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\nseedscope: stopped; the same command goes on behind what was finished", file=sys.stderr)
        raise SystemExit(130) from None
