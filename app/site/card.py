"""The README of a site's folder: what a model hub shows of it, with the settings by which the hub serves the folder.

The front matter is YAML in its JSON form, value by value. `sdk: static` and `app_file` are what a static space of the Hugging Face
Hub reads; in a model's or data set's repository they mean nothing.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from seedscope.app.formats import optional_percent, thousands

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LONGEST = 60  # characters of a short description on the hub

_HEAD = (
    "| ensemble | hook point | SAEs | features here | stable | middle | unstable | by chance | data |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


@dataclass(frozen=True)
class CardRow:
    """One ensemble in the table of results; a share is None for one SAE alone."""

    ensemble: str
    hookpoint: str | None
    architecture: str
    d_sae: int
    n_members: int
    n_listed: int  # features that the site holds
    theta: float
    shares: dict[str, float | None]  # of living features: stable, middle, unstable
    null_rate: float | None  # chance matches with this SAE's second moment
    digest: str


def card(study: str, model: str | None, rows: list[CardRow], *, filter: str, version: str) -> str:
    """The README as Markdown behind its front matter; nothing that is not known stands in it."""
    n_saes = sum(row.n_members for row in rows)
    front: dict[str, Any] = {
        "title": f"{study}: stability of SAE features across seeds"[:_LONGEST],
        "short_description": f"Which features of {n_saes} SAEs come back"[:_LONGEST],
        "emoji": "\N{SEEDLING}", "colorFrom": "blue", "colorTo": "yellow",
        "sdk": "static", "app_file": "index.html", "pinned": False, "library_name": "seedscope",
        "tags": ["sparse-autoencoder", "interpretability", "feature-stability", "seedscope"],
    }  # fmt: skip
    if model and _HUB_NAME.fullmatch(model):
        front["base_model"] = model
    of_model = f", model `{model}`" if model else ""
    matter = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in front.items()]
    paragraphs = [
        f"# {study}",
        f"Stability of SAE features across seeds{of_model}. **Open [index.html](index.html)**: the study's numbers, tables and "
        "features as plain files, without a server.",
        f"The pages list the features that `{filter}` finds; shares below are of all living features."
        if filter
        else "",
        "\n".join([*_HEAD, *map(_line, rows)]),
        "p is the share of other seeds in which some feature points the same way (cosine of decoder rows of θ or more). "
        "Stable: p ≥ 1 − ε, unstable: p ≤ ε, of features that fire. By chance: matches of random directions with the SAE's own "
        "spread. "
        "[What the numbers mean](methods.html).",
        f"Made by SeedScope {version}: `seedscope site {study} DIR`. Pages open from this folder and from any file server.",
    ]
    return "\n".join(["---", *matter, "---", ""]) + "\n" + "\n\n".join([text for text in paragraphs if text]) + "\n"


def _line(row: CardRow) -> str:
    chance = (
        "–" if row.null_rate is None else f"{optional_percent(row.null_rate)} of comparisons at θ = {row.theta:.2f}"
    )
    cells = [
        f"[{row.ensemble}](s/{row.ensemble}/index.html)",
        f"`{row.hookpoint}`" if row.hookpoint else "unknown",
        f"{row.n_members} × {row.architecture}, {thousands(row.d_sae)} wide",
        f"[{thousands(row.n_listed)}](s/{row.ensemble}/features.html)",
        *(optional_percent(row.shares[name]) for name in ("stable", "middle", "unstable")),
        chance,
        f"`{row.digest}`",
    ]
    return f"| {' | '.join(cell.replace('|', '∣') for cell in cells)} |"
