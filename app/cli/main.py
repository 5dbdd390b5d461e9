"""`seedscope`: one front door. Imports lazily: the web process never loads torch, `--help` loads nothing."""

import sys

# Each registers the command of its name.
from seedscope.app.cli import (  # noqa: F401
    analyze,
    anchor,
    bench,
    demo,
    doctor,
    explain,
    export,
    import_,
    match,
    pool,
    run,
    serve,
    synthetic,
)
from seedscope.app.cli.options import DEBUG, Stop, app

__all__ = ["app", "main"]


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
