"""An entry of the glossary, and the sources that definitions are from."""

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from seedscope.app.glossary.mathml import mathml

OWN = "SeedScope"  # the papers leave it open
# Source -> (title, address); what has no address is a book or a paper outside arXiv.
SOURCES: dict[str, tuple[str, str | None]] = {
    "A": ("Unstable Features, Reproducible Subspaces (2026)", "https://arxiv.org/abs/2606.12138"),
    "B": ("Ablating Archetypes (2026)", "https://arxiv.org/abs/2606.02061"),
    OWN: ("SeedScope’s own", None),
    "common": ("as everywhere in the field", None),
    "Song": ("Song et al. 2025", None),
    "Paulo": ("Paulo and Belrose 2025", None),
    "Clopper": ("Clopper and Pearson 1934", None),
    "Roy": ("Roy and Vetterli 2007", None),
    "Pati": ("Pati et al. 1993", None),
    "Wachter": ("Wachter 1980", None),
    "Cuturi": ("Cuturi 2013", "https://arxiv.org/abs/1306.0895"),
}


@dataclass(frozen=True)
class Entry:
    """What a column or a statistic means."""

    key: str
    term: str
    meaning: str  # one sentence
    formula: str | None  # as app.glossary.mathml reads it
    n: str | None  # what the number is counted or averaged over
    source: str  # a key of SOURCES
    section: str  # of /methods

    @property
    def address(self) -> str:
        """Where its definition stands in full."""
        return f"/methods#{self.section}"

    @property
    def drawn(self) -> Markup | None:
        """The formula as MathML."""
        return mathml(self.formula) if self.formula else None

    @property
    def source_title(self) -> str:
        """The source in words."""
        return SOURCES[self.source][0]

    @property
    def source_address(self) -> str | None:
        """Where the source can be read; None where it has no address."""
        return SOURCES[self.source][1]


def section(name: str, *lines: tuple[str, str, str, str | None, str | None, str]) -> Iterator[Entry]:
    """Entries of one section of /methods, from (key, term, meaning, formula, n, source)."""
    return (Entry(*line, name) for line in lines)
