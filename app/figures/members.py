"""The seed x seed matrix of shared features, and the histogram of one pair's cosines."""

from seedscope.app.figures.drawing import SEQUENTIAL, CellLinks, Figure, Heading, layout
from seedscope.app.formats import percent
from seedscope.app.lens import RULE_NAMES, measure_of


def seed_matrix(
    seeds: list[int],
    shared: dict[tuple[int, int], float],
    links: CellLinks,
    theta: float,
    rule: str,
) -> Figure:
    """Share of each anchor's features that match in each comparison; a click opens the pair."""
    cells = [[None if a == b else round(shared[a, b], 4) for b in seeds] for a in seeds]
    few = len(seeds) <= 16
    names = [str(seed) for seed in seeds]
    mean = sum(shared.values()) / len(shared)
    low, high = min(shared.values()), max(shared.values())
    span = f" ({percent(low, 0)} to {percent(high, 0)})" if high > low else ""
    return Figure(
        "matrix",
        f"Two seeds share {percent(mean, 0)} of their features{span}",
        f"Share of the row seed's features that match in the column seed at θ = {theta:.2f} "
        f"(match rule: {RULE_NAMES[rule]}). Click a cell for its pair.",
        {
            "data": [
                {
                    "type": "heatmap", "x": names, "y": names, "z": cells, "zmin": low if high > low else 0,
                    "zmax": max(high, 0.01), "xgap": 1, "ygap": 1, "textfont": {"color": "@ink"},
                    "colorscale": SEQUENTIAL, "showscale": True, "hoverongaps": False,
                    "meta": links.meta(),
                    "text": [["" if v is None else f"{100 * v:.0f}" for v in row] for row in cells] if few else None,
                    "texttemplate": "%{text}" if few else None, "colorbar": {"tickformat": ".0%", "thickness": 12},
                    "hovertemplate": "%{z:.1%} of seed %{y}’s features match in seed %{x}<extra></extra>",
                }
            ],
            "layout": layout(
                "comparison seed", "anchor seed", xaxis={"type": "category", "showgrid": False, "constrain": "domain"},
                yaxis={"type": "category", "autorange": "reversed", "showgrid": False, "scaleanchor": "x", "constrain": "domain"},
            ),
        },
        (Heading("anchor", "anchor"), *(Heading(name, "shared") for name in names)) if few else (),
        tuple((a, *("–" if v is None else percent(v) for v in row)) for a, row in zip(names, cells, strict=True)) if few else (),
    )  # fmt: skip


def pair_histogram(counts: list[int], n_unpaired: int, theta: float, a: int, b: int, rule: str) -> Figure:
    """Anchor features by the cosine to their partner, under `active` by the correlation; bins of width 0.02 from -1."""
    measure = measure_of(rule)
    width = 2 / len(counts)
    edges = [-1 + i * width for i in range(len(counts))]
    bars = [(edge, n) for edge, n in zip(edges, counts, strict=True) if n]
    total = sum(counts) + n_unpaired
    line = {"type": "line", "x0": theta, "x1": theta, "y0": 0, "y1": 1, "yref": "paper"}
    unpaired = f" {n_unpaired:,} have no counterpart under this rule." if n_unpaired else ""
    return Figure(
        "pair",
        f"How near are seed {a}’s features to those of seed {b}?",
        f"Number of n = {total:,} features by the {measure} with their counterpart (match rule: {RULE_NAMES[rule]}); "
        f"the line is θ = {theta:.2f}.{unpaired}",
        {
            "data": [
                {
                    "type": "bar", "x": [edge + width / 2 for edge, _ in bars], "y": [n for _, n in bars],
                    "width": [width * 0.9] * len(bars), "marker": {"color": "@accent"},
                    "hovertemplate": f"{measure} about %{{x:.2f}}: %{{y:,}} features<extra></extra>",
                }
            ],
            "layout": layout(
                f"{measure} with the counterpart", "features", yaxis={"rangemode": "tozero"},
                xaxis={"range": [min([edge for edge, _ in bars] + [0]) - width, 1.01]},
                shapes=[line | {"line": {"color": "@soft", "width": 1, "dash": "dash"}}],
            ),
        },
        (Heading(f"{measure} from", "cosine_bin"), Heading("to", "cosine_bin"), Heading("features", "n_features")),
        tuple((f"{edge:.2f}", f"{edge + width:.2f}", n) for edge, n in bars),
    )  # fmt: skip
