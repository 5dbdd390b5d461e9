"""`seedscope diff`: what became of every feature of an SAE in its next version."""

from itertools import accumulate
from math import log1p
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from seedscope.app.cli.match import Rule
from seedscope.app.cli.options import Quiet, app, check_parent, fetch_below, refusals

if TYPE_CHECKING:
    from seedscope.engine.matching.diff import DiffReport

BELOW = 3  # exit code where fewer features were kept than --fail-below asks for
LONGEST_LIST = 20  # features of one kind that the page lists


@app.command()
def diff(
    old: Annotated[str, typer.Argument(help="An SAE: a file, folder, URL or hub name that `import` reads.")],
    new: Annotated[str, typer.Argument(help="Its next version, of the same model and hook point.")],
    rule: Annotated[Rule, typer.Option(help="How a partner is matching.")] = Rule.argmax,
    theta: Annotated[float, typer.Option(min=0, max=0.95, help="A cosine of at least theta is a match.")] = 0.7,
    fail_below: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit 3 where a smaller share of the old features survived or moved."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare SAEs of different models or hook points.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write counts and the fate of every feature to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file; it needs no other file.")] = None,
    quiet: Quiet = False,
) -> None:
    """Compare two versions of an SAE: which features survived, moved, split, merged or were lost, and which are new.

    Example: seedscope diff release-1/sae release-2/sae --fail-below 0.8 --html changes.html
    """
    check_parent(json)
    check_parent(html)
    fetch_below(None, quiet=quiet)
    with refusals():
        from seedscope.engine.matching.diff import diff as compare_versions
        from seedscope.engine.matching.diff import write
        from seedscope.engine.progress import Progress
        from seedscope.engine.saes.importers.ensemble import at_hand
        from seedscope.engine.saes.importers.registry import named

        saes = at_hand([named(old), named(new)])
        with Progress(quiet=quiet).stage("comparing", "pairs") as report:
            versions = compare_versions(*saes, rule=rule.value, theta=theta, force=force)
            report(1, 1)
    fails = fail_below is not None and versions.kept < fail_below
    for line in _lines(versions):
        print(line)
    if json is not None:
        write(versions, json)
        print(f"every feature: {json}")
    if html is not None:
        _write_page(versions, html, fail_below)
        print(f"page: {html}")
    if fails:
        print(f"fails: {versions.kept:.1%} of the old features survived or moved, asked for {fail_below:.1%}")
        raise typer.Exit(BELOW)


def meanings(versions: "DiffReport") -> dict[str, str]:
    """What every fate of an old feature and every origin of a new one means, in one line each."""
    theta, same = f"{versions.theta:g}", f"{versions.same:g}"
    return {
        "survived": f"its partner has a cosine of {same} or more with it",
        "moved": f"its partner has {theta} or more",
        "split": f"two or more new features take its place: it is the nearest old one to each, at {theta} or more, or it lies "
        "in the plane of two of them",
        "merged": "it shares its place with another old feature: both are nearest to one new feature, or that one lies in "
        "their plane",
        "lost": "none of these",
        "new": f"no old feature reaches {theta} with it",
        "beside": f"an old feature that has another partner reaches {theta} with it",
    }


def _lines(versions: "DiffReport") -> list[str]:
    """What the terminal says."""
    lines = []
    for name, side in (("OLD", versions.old), ("NEW", versions.new)):
        excluded = f", {side.n_undirected:,} rows without a direction left out" if side.n_undirected else ""
        lines += [f"{name}: {side}{excluded}", *(f"{name}: {remark}" for remark in side.remarks)]
    says = meanings(versions)
    for fate, n in versions.counts.items():
        lines.append(f"{fate:<9}{n:>9,} {n / versions.n_old:>7.1%}  {says[fate]}")
    for origin in ("new", "beside"):
        n = versions.origins[origin]
        lines.append(f"{origin:<9}{n:>9,} {n / versions.n_new:>7.1%}  of the new features: {says[origin]}")
    low, high = versions.kept_interval
    chance = ", ".join(f"{kind.replace('_', ' ')} {share:.2%}" for kind, share in versions.by_chance.items())
    lines.append(
        f"survived or moved: {versions.kept:.1%} of {versions.n_old:,} (95 % interval {low:.1%} to {high:.1%})"
    )
    lines.append(f"by chance, old features that reach {versions.theta:g} in random dictionaries: {chance}")
    if versions.gap is not None:
        lines.append(f"one-to-one matching proven within {max(versions.gap, 0):.1e} of the best")
    lines += [f"forced: {each}" for each in versions.forced]
    lines += [f"remark: {each}" for each in versions.remarks]
    return lines


class ChangedFeature(NamedTuple):
    """A row of a list on the page."""

    feature: int
    cosine: float  # with the nearest of `others`
    others: list[int]  # features of the other side, nearest first


class FateShare(NamedTuple):
    """A part of the bar of shares."""

    fate: str
    n: int
    share: float
    start: float  # 0 to 1


def _write_page(versions: "DiffReport", path: Path, fail_below: float | None) -> None:
    """Write the page, in one step."""
    from markupsafe import Markup

    from seedscope.app.render import templates
    from seedscope.app.settings import STATIC
    from seedscope.engine.contract.files import write_whole

    shares = [n / versions.n_old for n in versions.counts.values()]
    starts = accumulate(shares, initial=0.0)
    tallest = log1p(max(versions.histogram))
    context: dict[str, Any] = {
        "report": versions,
        "fail_below": fail_below,
        "style": Markup((STATIC / "app.css").read_text()),
        "segments": [
            FateShare(*part) for part in zip(versions.counts, versions.counts.values(), shares, starts, strict=False)
        ],
        "says": meanings(versions),
        "bars": [log1p(n) / tallest for n in versions.histogram],
        "lists": _lists(versions),
    }
    write_whole(path, templates.get_template("report/diff.html").render(context))


def _lists(versions: "DiffReport") -> dict[str, list[ChangedFeature]]:
    """{fate, or `new`: the features that changed most}, at most LONGEST_LIST of each."""
    old, new = versions.old_features, versions.new_features
    lists: dict[str, list[ChangedFeature]] = {}
    partner_of = dict(zip(old.feature, zip(old.partner, old.cosine, strict=True), strict=True))
    nearest_of = dict(zip(old.feature, zip(old.nearest, old.nearest_cosine, strict=True), strict=True))
    for fate in ("moved", "split", "merged", "lost"):
        found = []
        for feature in (f for f, its_fate in zip(old.feature, old.fate, strict=True) if its_fate == fate):
            nearest, cosine = nearest_of[feature]
            if fate == "split":
                found.append(ChangedFeature(feature, cosine, versions.parts[feature]))
                continue
            partner, matched = partner_of[feature]
            if fate == "moved" and partner is not None and matched is not None:
                nearest, cosine = partner, matched
            found.append(ChangedFeature(feature, cosine, [nearest]))
        lists[fate] = sorted(found, key=lambda row: row.cosine)[:LONGEST_LIST]
    added = [
        ChangedFeature(feature, cosine, [nearest])
        for feature, origin, nearest, cosine in zip(
            new.feature, new.origin, new.nearest, new.nearest_cosine, strict=True
        )
        if origin == "new"
    ]
    lists["new"] = sorted(added, key=lambda row: row.cosine)[:LONGEST_LIST]
    return lists
