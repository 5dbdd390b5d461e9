"""`seedscope`: one front door. Imports lazily: the web process never loads torch, `--help` loads nothing.

Every command stands in the file of its name; `import` is a Python keyword and stands in `import_.py`.
"""

import sys

# Each registers its command.
from seedscope.app.cli import (  # noqa: F401
    analyze,
    anchor,
    annotate,
    bench,
    demo,
    diff,
    doctor,
    engine,
    explain,
    export,
    import_,
    inspect,
    lookup,
    match,
    mcp,
    plan,
    pool,
    predict,
    public,
    run,
    serve,
    sources,
    synthetic,
    verify,
)
from seedscope.app.cli.options import DEBUG, Stop, app, in_one_line, shown

__all__ = ["COMMANDS", "app", "main"]

# As `seedscope --help` lists them: to look, to bring in one's own, to compute and make more, to take away, the machine.
COMMANDS = (
    "demo", "serve", "engine", "run", "plan", "public", "inspect", "import", "analyze", "anchor", "predict", "explain",
    "pool", "synthetic", "sources", "match", "diff", "lookup", "annotate", "export", "mcp", "verify", "bench", "doctor",
)  # fmt: skip
app.registered_commands.sort(
    key=lambda command: COMMANDS.index(command.name or getattr(command.callback, "__name__", ""))
)


def main() -> None:
    """Run the command line; a failed run is one line and exit 1, wrong arguments exit 2.

    The last door: whatever a command raises ends here as one line, without what could move a terminal. With --debug the traceback
    stays.
    """
    try:
        app([argument for argument in sys.argv[1:] if argument != DEBUG])
    except Stop as stop:
        _fail(str(stop))
    except KeyboardInterrupt:
        print("\nseedscope: stopped; the same command goes on behind what was finished", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if DEBUG in sys.argv:
            raise
        _fail(in_one_line(error))


def _fail(text: str) -> None:
    print(f"seedscope: {shown(text)}", file=sys.stderr)
    raise SystemExit(1) from None
