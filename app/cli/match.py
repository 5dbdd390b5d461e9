"""`seedscope match`: two SAEs matched without a study."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from seedscope.app.cli.options import Quiet, app, check_parent, fetch_below, refusals


class Rule(StrEnum):
    """How a partner is matching."""

    argmax = "argmax"
    mutual = "mutual"
    hungarian = "hungarian"
    both = "both"


@app.command()
def match(
    sae_a: Annotated[str, typer.Argument(help="An SAE: a file, folder or URL of any library that `import` reads.")],
    sae_b: Annotated[str, typer.Argument(help="Another one, of the same model and hook point.")],
    rule: Annotated[Rule, typer.Option(help="How a partner is matching.")] = Rule.argmax,
    theta: Annotated[float, typer.Option(min=-1, max=1, help="A cosine of at least theta is a match.")] = 0.7,
    absolute: Annotated[bool, typer.Option("--absolute", help="Compare absolute cosines.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Match SAEs of different models or hook points.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the complete matching to this file.")] = None,
    quiet: Quiet = False,
) -> None:
    """Match two SAEs without a study: shared features, MCC with a proven gap, and every partner.

    Example: seedscope match a/seed-0.safetensors a/seed-1.safetensors --rule hungarian --json pair.json
    """
    from seedscope.engine.matching import pair
    from seedscope.engine.progress import Progress
    from seedscope.engine.saes.importers.ensemble import at_hand

    check_parent(json)
    fetch_below(None, quiet=quiet)
    with refusals():
        saes = at_hand([sae_a, sae_b])
        with Progress(quiet=quiet).stage("matching", "pairs") as report:
            matching = pair.compare(*saes, rule=rule.value, theta=theta, absolute=absolute, force=force)
            report(1, 1)
    for name, one in (("A", matching.a), ("B", matching.b)):
        print(f"{name}: {one}")
        for remark in one.remarks:
            print(f"{name}: {remark}")
    for name, one, way in (("A in B", matching.a, matching.a_to_b), ("B in A", matching.b, matching.b_to_a)):
        excluded = f", {one.n_undirected} rows without a direction left out" if one.n_undirected else ""
        print(
            f"{name}: {way.n_matched} of {len(way.feature)} features match ({way.shared:.1%}), MMCS {way.mmcs:.4f}{excluded}"
        )
    if matching.pw_mcc is None or matching.gap is None:
        print("one-to-one: not computed at this size by default; ask for it with --rule hungarian")
    else:
        print(f"one-to-one: MCC {matching.pw_mcc:.4f}, Hungarian distance {matching.hungarian_distance:.4f}, "
              f"proven within {max(matching.gap, 0):.1e} of the best")  # fmt: skip
    for difference in matching.forced:
        print(f"forced: {difference}")
    for remark in matching.remarks:
        print(f"remark: {remark}")
    if json is not None:
        pair.write(matching, json)
        print(f"complete matching: {json}")
