"""`seedscope verify`: whether everything that studies have on disk is as it was written."""

from typing import Annotated

import typer

from seedscope.app.cli.options import Quiet, Root, Stop, app, refusals
from seedscope.app.settings import default_root


@app.command()
def verify(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="One study; all of the root by default.")
    ] = None,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Check every file of a study by its digest: store, index, SAEs, parts, pools; a damaged index is made again.

    Example: seedscope verify mine
    """
    from seedscope.engine.contract.names import name_problem
    from seedscope.engine.studies.verify import studies
    from seedscope.engine.studies.verify import verify as verify_study

    root = root or default_root()
    if study is not None and name_problem(study, exists=True):
        raise Stop(
            f"study name is {study!r:.80}, expected one of {', '.join(studies(root)) or 'none: there is no study'}"
        )
    names = studies(root) if study is None else [study]
    n_wrong = n_checked = 0
    with refusals():
        for name in names:
            for each in verify_study(root / name):
                n_checked += 1
                if each.wrong is None:
                    if not quiet:
                        print(f"{name}: {each.what}: whole")
                    continue
                n_wrong += not each.mended
                print(f"{name}: {each.what}: {each.wrong}; {each.mends or 'build the study again'}")
    if n_wrong:
        raise Stop(f"{n_wrong} of {n_checked} are damaged; what mends each stands above")
    print(f"{n_checked} checked in {len(names)} {'study' if len(names) == 1 else 'studies'}: all whole")
