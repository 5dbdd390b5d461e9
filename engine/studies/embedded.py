"""The embedded studies, built by `python -m seedscope.engine.studies.embedded ROOT`, which `seedscope demo` runs as a process."""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from seedscope.engine.contract.parent import wait_for_end_of_parent
from seedscope.engine.demo import stdlib
from seedscope.engine.progress import Progress
from seedscope.engine.studies.pools.settings import PoolSettings
from seedscope.engine.studies.run import CORE, FIRST, pool_study, run_file, run_study, run_synthetic
from seedscope.engine.studies.studyfile.read import read_study_file
from seedscope.engine.studies.synthetic.plan import NAME as GROUND_TRUTH
from seedscope.engine.studies.synthetic.plan import SyntheticPlan

POOL_TOKENS = 250_000  # that pools are trained on for: twice as many at the end of their curve
STOP_S = 3.0  # that a study has to end in once its parent is gone
FILES = ("variants.toml", "starts.toml", "sources.toml")  # beside the model, in the order in which they are built


def build(
    root: Path, corpus: stdlib.Corpus, *, n_tokens: int, only: tuple[str, ...] | None, control: bool, progress: Progress
) -> None:
    """The embedded study, with the analyses named in `only`; with all of them where it is None."""
    config = replace(stdlib.STUDY, train=replace(stdlib.STUDY.train, n_tokens=n_tokens))
    made_from = stdlib.built_from(corpus) if config == stdlib.STUDY else f"{n_tokens} tokens"
    with progress.timed(root / config.name):
        run_study(config, corpus, root, built_from=made_from, only=only, control=control, progress=progress)


def build_all(root: Path, corpus: stdlib.Corpus, progress: Progress) -> None:
    """Every study that the embedded model can show, one after the other; what is there already is kept."""
    name = stdlib.STUDY.name
    steps: dict[str, Callable[[], object]] = {
        f"{name} with its control": lambda: build(
            root, corpus, n_tokens=stdlib.STUDY.train.n_tokens, only=None, control=True, progress=progress
        ),
        f"the feature pool of {name}": lambda: pool_study(
            root / name, stdlib.STUDY.ensemble, PoolSettings(tokens=POOL_TOKENS), progress=progress
        ),
    }
    for file in FILES:
        study_file = read_study_file(stdlib.HERE / file)
        steps[study_file.name] = partial(run_file, study_file, root, progress=progress)
    steps[GROUND_TRUTH] = lambda: run_synthetic(SyntheticPlan(), root, GROUND_TRUTH, progress=progress)
    for done, (what, run) in enumerate(steps.items()):
        progress.say(f"{done + 1} of {len(steps)}: {what}")
        begin = time.monotonic()
        run()
        progress.say(f"{what}: {(time.monotonic() - begin) / 60:.1f} min")


def _end_with_parent() -> None:
    """Whoever started this is gone, however that happened: stop as at Ctrl-C, and without fail."""
    wait_for_end_of_parent()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(STOP_S)
    os._exit(130)


def main() -> None:
    """Build the embedded study: `python -m seedscope.engine.studies.embedded ROOT [--quiet] [--tokens N] [--control] [--full]`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--tokens", type=int, default=stdlib.STUDY.train.n_tokens, help="training tokens per member")
    parser.add_argument("--first", action="store_true", help="only what pages need to answer; the rest can follow")
    parser.add_argument("--control", action="store_true", help="the same on the model with random weights as well")
    parser.add_argument("--full", action="store_true", help="the variants, starts, synthetic and pool studies as well")
    parser.add_argument("--with-parent", action="store_true", help="end when the standard input does")
    args = parser.parse_args()
    if args.with_parent:
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    progress = Progress(quiet=args.quiet)
    try:
        corpus = stdlib.load_corpus()
        if not args.quiet:
            print(f"corpus: {corpus.remark}", file=sys.stderr)
        if args.full:
            build_all(args.root, corpus, progress)
        else:
            only = None if args.control else FIRST if args.first else CORE
            build(args.root, corpus, n_tokens=args.tokens, only=only, control=args.control, progress=progress)
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"seedscope: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The thread that waits for the parent outlives this, and libraries that are taken apart under it print what it still holds.
    os._exit(0)
