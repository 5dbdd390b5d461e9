"""A folder that `datasets.load_dataset(folder)` reads, and that can be pushed to a hub as it is: Parquet and a card.

`data/ENSEMBLE/features/seed-N.parquet` has a row per feature and `data/ENSEMBLE/matches/seed-N.parquet` one per comparison, with
the columns of `--format parquet`. `README.md` names them as configurations ENSEMBLE and ENSEMBLE.matches, a split per seed each.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from seedscope.engine.contract.stability import ALONE_SENTENCE
from seedscope.engine.contract.tables.study import Ensemble
from seedscope.engine.export.features import ByChance, by_chance, comparison_columns, comparison_keys, feature_columns
from seedscope.engine.export.manifest import matching
from seedscope.engine.export.open_study import Opened
from seedscope.engine.export.parquet import N_ROWS
from seedscope.engine.progress import Report

CARD = "README.md"
KINDS = ("features", "matches")
# {a hub's class of size: its upper end, in features}; the last has none.
_SIZES = {
    "n<1K": 10**3, "1K<n<10K": 10**4, "10K<n<100K": 10**5, "100K<n<1M": 10**6, "1M<n<10M": 10**7, "10M<n<100M": 10**8,
    "100M<n<1B": 10**9,
}  # fmt: skip


class DataConfig(NamedTuple):
    """One table of an ensemble that `load_dataset` is asked for by name."""

    name: str
    files: dict[str, str]  # {split: path in the folder}


def write(study: Opened, folder: Path, report: Report) -> dict[str, str]:
    """Write all files but the manifest. Memory: N_ROWS comparisons. Matches of one SAE alone are left out: it has none."""
    chance = {row.ensemble: by_chance(study, row) for row in study.ensembles}
    done = 0
    for row in study.ensembles:
        for member in study.members[row.ensemble]:
            writers: dict[str, pq.ParquetWriter] = {}
            try:
                for part in study.parts(row, member, n_rows=N_ROWS):
                    tables = {"features": pa.table(feature_columns(study, part, chance[row.ensemble]))}
                    if row.n_comparisons:
                        tables["matches"] = pa.table(comparison_keys(part) | comparison_columns(part))
                    for kind, table in tables.items():
                        if kind not in writers:
                            path = folder / _file(row, kind, member.seed)
                            path.parent.mkdir(parents=True, exist_ok=True)
                            writers[kind] = pq.ParquetWriter(path, table.schema, compression="zstd")
                        writers[kind].write_table(table)
            finally:
                for writer in writers.values():
                    writer.close()
            done += 1
            report(done, study.n_members)
    configs = list(_configs(study))
    (folder / CARD).write_text(_card(study, configs, chance), encoding="utf-8")
    return {
        "contexts": "windows of text belong to their authors; --format parquet holds them",
        "everything else": "a row per feature and per comparison is what a dataset is read for; --format parquet holds all",
    }


def _file(row: Ensemble, kind: str, seed: int) -> str:
    return f"data/{row.ensemble}/{kind}/seed-{seed}.parquet"


def _configs(study: Opened) -> Iterator[DataConfig]:
    """Features and matches of every ensemble, under names that differ also where an ensemble is called like another's matches."""
    taken = {row.ensemble for row in study.ensembles}
    for row in study.ensembles:
        for kind in KINDS if row.n_comparisons else KINDS[:1]:
            name = row.ensemble
            while kind == "matches" and name in taken:
                name += ".matches"
            taken.add(name)
            files = {f"seed_{m.seed}": _file(row, kind, m.seed) for m in study.members[row.ensemble]}
            yield DataConfig(name, files)


def _card(study: Opened, configs: list[DataConfig], chance: dict[str, ByChance]) -> str:
    """The dataset's card: YAML that `load_dataset` follows, and what a reader should know. JSON texts are YAML texts."""
    name = study.folder.name
    n_rows = sum(row.d_sae * row.n_members for row in study.ensembles)
    lines = ["---", f"pretty_name: {json.dumps(f'Seed stability of SAE features: {name}')}"]
    lines += ["tags:", "- sparse-autoencoder", "- interpretability", "- seed-stability"]
    lines += [
        "size_categories:",
        f"- {next((size for size, end in _SIZES.items() if n_rows < end), '1B<n<10B')}",
        "configs:",
    ]
    for number, config in enumerate(configs):
        lines.append(f"- config_name: {json.dumps(config.name)}")
        lines += ["  default: true"] if not number else []
        lines.append("  data_files:")
        for split, file in config.files.items():
            lines += [f"  - split: {split}", f"    path: {json.dumps(file)}"]
    first, some_split = configs[0], next(iter(configs[0].files))
    lines += [
        "---", "", f"# Seed stability: {name}", "",
        "Which features of sparse autoencoders come back with another seed, measured with SeedScope. A row is a feature; "
        "`stability` is the share of the other seeds in which some feature has a decoder row of cosine `theta` or more, "
        "`stability_low` and `stability_high` its 95 % interval, `null_rate` the share by chance. In the configurations whose name "
        "ends in `.matches` a row is a feature and one other seed. Null means not computed, never zero.",
        "", "```python", "from datasets import load_dataset", "",
        f"features = load_dataset(FOLDER, {json.dumps(first.name)}, split={json.dumps(some_split)})", "```", "",
        f"- model: {_code(study.study.model)}", f"- store: {_code(study.store_name)}, built from {_code(study.built_from)}",
        "- `manifest.json` holds every digest, recipe and the matching in full", "",
        "| ensemble | SAEs | features each | hook point | rule | θ | ε | start shared | by chance | digest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    lines += [_line(row, chance[row.ensemble]) for row in study.ensembles]
    if any(not row.n_comparisons for row in study.ensembles):
        lines += ["", ALONE_SENTENCE]
    return "\n".join([*lines, ""])


def _line(row: Ensemble, chance: ByChance) -> str:
    matched = matching(row)
    rates = ", ".join(f"{kind.replace('_', ' ')} {rate:.2%}" for kind, rate in chance.rate.items()) or "not measured"
    cells: list[Any] = [
        _code(row.ensemble), row.n_members, f"{row.d_sae:,}", _code(row.place), matched["rule"], row.theta, row.epsilon,
        row.shared_start, rates, _code(row.digest),
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _code(text: str | None) -> str:
    """A text of a file as code on one line of Markdown, which can end neither the code nor a table's cell."""
    if text is None:
        return "not known"
    plain = "".join(each for each in " ".join(text.split()) if each.isprintable())
    return f"`{plain.replace('`', chr(39)).replace('|', '/')}`"
