"""Entries on where the variance between seeds comes from."""

from seedscope.app.glossary.entry import OWN, Entry, section

ENTRIES: tuple[Entry, ...] = (
    *section(
        "sources",
        ("cause", "what differs", "The only thing in which members of the ensemble differ; all else is that of seed 0.", None, None,
         OWN),
        ("mean_p_all", "of all features", "Mean p over all features, dead ones counted in: what can be said where activity is "
         "unknown.", r"\frac{X}{N}", "features and comparisons", OWN),
        ("lost_to", "lost to", "Causes under which fewer than half of the comparisons hold a match for the feature.",
         r"X_{\text{cause}} < \frac{N_{\text{cause}}}{2}", "comparisons of the cause", OWN),
        ("lost_share", "share", "Share of the shared SAE’s features that are lost to exactly these causes.", None,
         "judged features of the shared SAE", OWN),
    ),
)  # fmt: skip
