"""How features, ensembles and studies show themselves in a notebook: HTML of their own, pictures inside, nothing fetched."""

from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from seedscope.app.figures.drawing import NULL_NAME
from seedscope.app.figures.svg_strips import seed_strip
from seedscope.app.formats import HIGHLIGHT_STEPS, alpha_step, percent, shown_on_one_line, thousands
from seedscope.app.lens import measure_of
from seedscope.app.settings import TEMPLATES
from seedscope.engine.contract.schema import NO_MATCH
from seedscope.engine.contract.stability import ALONE_SENTENCE, BUCKETS
from seedscope.engine.contract.tables.study import Ensemble as EnsembleRow

N_CONTEXTS = 5  # of the strongest
AROUND = 12  # tokens on either side of the peak
WIDTH, HEIGHT = 280, 48  # of the strip


class HighlightedContext(NamedTuple):
    """Tokens around a context's peak, each with the step of its highlight; 0 is none."""

    document: str
    position: int
    tokens: list[tuple[str, int]]


class BarPart(NamedTuple):
    """A bucket's share of a bar."""

    bucket: str
    x: float
    width: float


class EnsembleCard(NamedTuple):
    """An ensemble in short."""

    name: str
    row: EnsembleRow
    says: str
    parts: list[BarPart]
    chance: dict[str, float]


class PeakedContext(Protocol):
    """What is shown of a context: `seedscope.notebook` has them, and imports this module."""

    @property
    def tokens(self) -> list[str]: ...

    @property
    def activations(self) -> list[float]: ...

    @property
    def document(self) -> str: ...

    @property
    def position(self) -> int: ...


def feature_html(feature: Any) -> str:  # a `seedscope.notebook.Feature`
    """A feature: seed strip, stability with its interval beside chance, bucket, explanation, strongest contexts."""
    cosines = tuple(NO_MATCH if match.cosine is None else match.cosine for match in feature.matches)
    measure = measure_of(feature.rule)
    strongest = [each for each in feature.contexts or [] if each.group == 0][:N_CONTEXTS]
    largest = max((max(each.activations) for each in strongest), default=0.0)
    why = "it never fired on the evaluation tokens" if feature.row.dead else "no contexts: activity was not measured"
    return _render(
        "feature.html",
        feature=feature,
        strip=seed_strip(cosines, feature.theta, feature.bucket, measure, WIDTH, HEIGHT),
        contexts=[_shown(each, largest) for each in strongest],
        no_contexts=why,
    )


def ensembles_html(
    title: str, subtitle: str, ensembles: list[tuple[EnsembleRow, dict[str, int], dict[str, float]]]
) -> str:
    """Ensembles in short: (row, {bucket: features}, {null: share of matches}) of each."""
    return _render(
        "ensemble.html", title=title, subtitle=subtitle, ensembles=[_card(*each) for each in ensembles], width=WIDTH
    )


def _card(row: EnsembleRow, counts: dict[str, int], chance: dict[str, float]) -> EnsembleCard:
    """Shares are of the features in the first three buckets; dead ones are told apart, as on the pages."""
    judged = {bucket: counts.get(bucket, 0) for bucket in BUCKETS[:3]}
    n, x, parts = sum(judged.values()), 0.0, []
    for bucket, count in judged.items():
        parts.append(BarPart(bucket, x, WIDTH * count / max(n, 1)))
        x += parts[-1].width
    shares = ", ".join(f"{percent(count / max(n, 1))} {bucket}" for bucket, count in judged.items())
    dead = "dead" if "activity" in row.computed else "without a direction"
    says = f"{shares} of {thousands(n)} features; {thousands(counts.get('dead', 0))} {dead}"
    return EnsembleCard(row.ensemble, row, says, parts, chance)


def _shown(context: PeakedContext, largest: float) -> HighlightedContext:
    peak = max(range(len(context.activations)), key=context.activations.__getitem__)
    near = slice(max(peak - AROUND, 0), peak + AROUND + 1)
    tokens = [
        (shown_on_one_line(text), alpha_step(activation, largest))
        for text, activation in zip(context.tokens[near], context.activations[near], strict=True)
    ]
    return HighlightedContext(context.document, context.position, tokens)


def _render(template: str, **context: Any) -> str:
    common = {"null_name": NULL_NAME, "alone": ALONE_SENTENCE, "steps": HIGHLIGHT_STEPS}
    return _templates().get_template(f"notebook/{template}").render(**common, **context)


@lru_cache(1)
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "thousands": thousands}
    return environment
