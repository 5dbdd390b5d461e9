"""The files of an index: one folder per store, in it one folder per ensemble.

Why files beside DuckDB. A list page of 3.1 million features needs one byte per feature for the bucket and one per filter. From
DuckDB's tables that took seven scans and 240 ms; NumPy over mapped arrays takes 20 ms in one thread. DuckDB stays the store:
an index is derived from it, named by its digest, and replaced when another layout is read.

Rows. Row r of an ensemble is feature r % d_sae of the member r // d_sae, members in ascending order of seeds: the order of the
store's sort keys. Every array has one entry per row unless it says otherwise.

| file | content |
| --- | --- |
| `sums.json` | size and SHA-256 of every file, of all ensembles; in the index's own folder |
| `about.json` | layout version, seeds, d_sae, comparisons, rules, null kinds |
| `COLUMN.npy` | a scalar column of Feature; NaN stands for None; None of whole numbers is -1 |
| `status.npy` | 0 living, 1 dead, 2 not known |
| `trigger_code.npy`, `trigger_class.npy` | index into schema.TRIGGERS, 255 for none; the second, of features that fire alone |
| `counts-RULE.npy` | (101, rows): comparisons whose cosine reaches theta = 0.00, 0.01 .. 1.00 |
| `cosines-RULE.npy`, `mask-RULE.npy` | (members, tiles, comparisons, TILE); a bit each where all are argmax's or NO_MATCH |
| `cells-RULE.bin`, `cells-offsets-RULE.npy`, `cells-same-RULE.bin` | cosines by cell of theta's grid: `cells` |
| `order-COLUMN-DIRECTION.npy` | rows sorted by a column, None last, then by row |
| `texts.arrow` | per member one record batch: explanation, explainer, trigger's text, top tokens and their firings |
| `token-offsets.npy`, `token-rows.npy`, `token-firings.npy` | rows that have a token among their top tokens, token by token |
| `words.json`, `word-offsets.npy`, `word-rows.npy` | rows whose explanations hold a word, word by word in sorted order |
| `context-first.npy`, `context-counts.npy` | row id in the Context table of a feature's first context, and how many follow |
| `order-random.npy` | all rows in a fixed random order, whose first rows stand for all |
| `null-counts.npy`, `null-cosines-KIND.npy` | (kinds, 101, comparisons + 1) chance features by X; (comparisons, chance features) |
"""

from pathlib import Path

from seedscope.engine.contract.schema import Column, columns
from seedscope.engine.contract.tables.features import Feature

LAYOUT_VERSION = 3
ABOUT = "about.json"
# Features whose cosines lie together, comparison by comparison: the 95 cosines of one feature lie on 24 pages, and those of a
# member are still compared with theta at the rate of memory. Features that fill the last tile up have cosine NaN.
TILE = 256
TEXTS = "texts.arrow"
WORDS = "words.json"
TEXT_COLUMNS = ("explanation", "explainer", "trigger_what", "top_token_ids", "top_token_counts")
# Columns that lists are sorted by, beside X and the index.
SORTED = ("n_active", "worth_ev", "worth_loss", "max_activation", "token_entropy", "score", "cofiring")
DIRECTIONS = ("down", "up")
DEAD, UNKNOWN = 1, 2  # a living feature is 0
NO_TRIGGER = 255
_KEYS = ("ensemble", "seed", "feature")


def scalar_columns() -> dict[str, Column]:
    """{column: its type} of Feature's numbers that are kept as arrays."""
    return {
        name: column
        for name, column in columns(Feature).items()
        if not column.is_list and column.kind in (int, float) and name not in _KEYS
    }


def n_tiles(d_sae: int) -> int:
    """Tiles of a member."""
    return -(-d_sae // TILE)


def index_folder(store: Path) -> Path:
    """The folder of a store's index, beside the store's file. Versions of this product that read other layouts have their own."""
    return store.with_suffix(f".index{LAYOUT_VERSION}")


def ensemble_folder(index: Path, ensemble: str) -> Path:
    """The folder of one ensemble's files."""
    return index / f"ensemble-{ensemble}"
