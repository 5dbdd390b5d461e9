"""`seedscope doctor`: what this machine has, and which kernels and studies are found."""

import json as json_format
import sys
from pathlib import Path
from typing import Annotated

import typer

from seedscope.app.cli.options import Compute, Device, Root, app, check_parent
from seedscope.app.settings import default_root


@app.command()
def doctor(
    device: Device = Compute.auto,
    json: Annotated[
        Path | None, typer.Option(help="Write the findings to this file as well.", show_default=False)
    ] = None,
    root: Root = None,
) -> None:
    """Say what this machine has, which kernels are taken and why, and which studies are found.

    Example: seedscope doctor --root ~/studies
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from seedscope.engine.contract.files import write_whole
    from seedscope.engine.doctor import as_json, examine

    check_parent(json)
    findings = examine(root or default_root(), device.value)
    table = Table(box=None, show_header=False, pad_edge=False)
    section = None
    for finding in findings:
        if finding.section != section:
            section = finding.section
            table.add_row(("\n" if table.row_count else "") + f"[bold]{escape(section)}[/]")
        mark = "  " if finding.fine else "[bold red]![/] "
        table.add_row(mark + escape(finding.name), escape(finding.value), f"[dim]{escape(finding.remark)}[/]")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if json is not None:
        write_whole(json, json_format.dumps(as_json(findings), indent=1))
