"""All entries of the glossary by key, in the order of the pages that define them."""

from seedscope.app.glossary import activity, function, geometry, matching, prediction, shared_spans, sources
from seedscope.app.glossary.entry import Entry

GLOSSARY: dict[str, Entry] = {
    entry.key: entry
    for entry in (
        *matching.ENTRIES,
        *activity.ENTRIES,
        *geometry.ENTRIES,
        *shared_spans.ENTRIES,
        *function.ENTRIES,
        *prediction.ENTRIES,
        *sources.ENTRIES,
    )
}

# The sections of /methods: anchor -> title.
SECTIONS: dict[str, str] = {
    "words": "Words",
    "matching": "Matching",
    "stability": "Stability",
    "nulls": "Chance",
    "activity": "Activity",
    "worth": "Ablation: effect of removing features",
    "buckets": "Buckets compared",
    "spans": "Subspaces of unstable features",
    "shared-spans": "Shared spans",
    "function": "Function: what counterparts do",
    "predicted": "Stability predicted from one SAE",
    "trajectory": "Training",
    "map": "The map of directions",
    "explanations": "Explanations and scores",
    "variants": "Variants and sweeps",
    "pool": "The feature pool",
    "starts": "Starts",
    "sources": "Sources of variance",
    "truth": "Known true features",
    "training": "Training jobs",
    "data": "Data and model",
    "links": "Links and digests",
}
