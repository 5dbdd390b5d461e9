"""`seedscope annotate`: the stability of an attribution graph's features."""

import json
from pathlib import Path
from typing import Annotated

import typer

from seedscope.app.cli.options import Quiet, Root, app, check_parent, refusals
from seedscope.app.settings import default_root


@app.command()
def annotate(
    graph: Annotated[
        Path,
        typer.Argument(
            metavar="GRAPH.json",
            exists=True,
            dir_okay=False,
            show_default=False,
            help="An attribution graph, as circuit-tracer and Neuronpedia write them.",
        ),
    ],
    study: Annotated[str, typer.Option(help="The study of the graph's SAEs or transcoders.", show_default=False)],
    ensemble: Annotated[
        list[str] | None,
        typer.Option(help="Of this ensemble; may be repeated, one per layer. Default: all of the study."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The member that the graph was traced with (default: the anchor).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write (default: beside the graph).")] = None,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Add stability, bucket and span to every feature node of an attribution graph, and say how much attribution rests on which.

    Example: seedscope annotate dallas.json --study gemma-transcoders
    """
    from seedscope.engine.progress import Progress

    out = out or graph.with_name(f"{graph.stem}-stability.json")
    check_parent(out)
    with refusals(), Progress(quiet=quiet).stage(f"annotating {graph.name}", "layers") as report:
        from seedscope.engine.contract.files import write_whole
        from seedscope.engine.export.attribution_graph import annotate as annotate_graph

        found = annotate_graph(root or default_root(), study, graph, ensembles=ensemble or (), seed=seed, report=report)
        write_whole(out, json.dumps(found.graph, ensure_ascii=False))
    print(f"{found.n_mapped} of {found.n_features} feature nodes are known to {study}: {_counts(found.nodes)}")
    for reason, n in found.unmapped.items():
        print(f"not mapped: {n} nodes, {reason}")
    if found.flow:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in found.flow.items())
        print(f"share of the attribution to the logits that passes at least one such node: {shares}")
    print(f"annotated graph: {out}")


def _counts(nodes: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in nodes.items()) or "none"
