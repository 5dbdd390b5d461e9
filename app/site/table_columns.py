"""Which columns and orders a site's table has, by what was computed: those of the dashboard (templates/ensemble/_rows.html)."""

from typing import NamedTuple


class SiteColumn(NamedTuple):
    """A column of the table."""

    column: str  # its cells in static/site-table.js
    label: str
    key: str  # of its glossary entry
    kind: str  # classes
    sort: str | None = None


# {parameter: (in words, what must have been computed)}
ORDERS: dict[str, tuple[str, str | None]] = {
    "relevance": ("share of firings", "tokens"), "stability": ("stability", None), "density": ("density", "activity"),
    "worth": ("marginal EV", "ablate"), "loss": ("loss", "loss"), "max": ("max", "activity"), "entropy": ("entropy", "tokens"),
    "score": ("score", "scores"), "cofiring": ("fires alike", "function"), "predicted": ("predicted p", "predicted"),
    "feature": ("index", None),
}  # fmt: skip


def columns_of(has: dict[str, bool]) -> list[SiteColumn]:
    """The columns of an ensemble's table, in their order."""
    wide, activity, scores = "num wide broad", has["activity"], has["scores"]
    possible = [
        (True, SiteColumn("feature", "feature", "feature", "num", "feature")),
        (True, SiteColumn("strip", "seed strip", "seed_strip", "")),
        (has["predicted"], SiteColumn("predicted", "predicted p", "predicted_p", "num", "predicted")),
        (not has["predicted"], SiteColumn("stability", "stability", "stability", "num", "stability")),
        (True, SiteColumn("bucket", "bucket", "bucket", "")),
        (activity, SiteColumn("density", "density", "density", "num", "density")),
        (not activity, SiteColumn("cosine", "mean cosine", "mean_cosine", "num wide")),
        (has["ablate"], SiteColumn("worth", "marginal EV", "worth_ev", "num", "worth")),
        (has["loss"], SiteColumn("loss", "loss (mnat)", "worth_loss", wide, "loss")),
        (has["function"], SiteColumn("cofiring", "fires alike", "cofiring", wide, "cofiring")),
        (activity, SiteColumn("max", "max", "max_activation", wide, "max")),
        (has["tokens"], SiteColumn("entropy", "entropy", "entropy", wide, "entropy")),
        (has["tokens"], SiteColumn("trigger", "trigger", "trigger", "wide roomy" if scores else "wide")),
        (has["tokens"], SiteColumn("tops", "top tokens", "top_tokens", "some" if scores else "grow")),
        (not activity, SiteColumn("norm", "decoder norm", "decoder_norm", "num wide")),
        (scores, SiteColumn("explanation", "explanation", "explanation", "grow")),
        (scores, SiteColumn("score", "score", "score", "num", "score")),
    ]
    return [column for is_there, column in possible if is_there]
