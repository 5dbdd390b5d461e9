"""`seedscope inspect`: what the files of SAEs say, and what would be assumed, before anything is imported."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seedscope.app.cli.options import Stop, app, check_parent, fetch_below, refusals
from seedscope.app.cli.study_options import HookPoint, HookPointOut, Model, whole_path

if TYPE_CHECKING:
    from seedscope.engine.saes.importers.inspect import Inspected


@app.command()
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="An SAE file, a folder of them, its URL, or hf:OWNER/REPO/FOLDER.")
    ],
    format: Annotated[str, typer.Option(help="The library that wrote them; auto recognises it by the files.")] = "auto",
    model: Model = None,
    hookpoint: HookPoint = None,
    hookpoint_out: HookPointOut = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the facts to this file as well.", show_default=False)
    ] = None,
) -> None:
    """List what the numbers of SAEs rest on, each with the file and key that says so; nothing is imported.

    Example: seedscope inspect runs/seed0
    """
    check_parent(json_file)
    fetch_below(None)
    with refusals():
        from seedscope.engine.saes.importers.inspect import inspect as inspect_saes
        from seedscope.engine.saes.importers.registry import named

        members = inspect_saes(
            named(path), format, model=whole_path(model), hookpoint=hookpoint, hookpoint_out=hookpoint_out
        )
    for member in members:
        _print(member)
    if json_file:
        content = {"format": "seedscope.facts", "version": 1, "members": [asdict(member) for member in members]}
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    if refused := [member for member in members if member.refused]:
        raise Stop(f"{len(refused)} of {len(members)} cannot be imported: {refused[0].refused}")


def _print(member: "Inspected") -> None:
    from seedscope.engine.saes.importers.facts import mark

    print(f"{member.path}  ({member.format})")
    if member.refused:
        print(f"  refused: {member.refused}\n")
        return
    widths = [max(map(len, column)) for column in zip(*((n, v) for n, (v, _) in member.facts.items()), strict=True)]
    for name, (value, source) in member.facts.items():
        print(f"  {name:<{widths[0]}}  {value:<{min(widths[1], 40)}}  {mark(source)}".rstrip())
    for remark in member.remarks:
        print(f"  {remark}")
    print(f"  ! assumed, as no file says it: {', '.join(member.assumed) or 'nothing'}\n")
