"""The layout that Neuronpedia's importer reads: one source per SAE, features and activations in batches of 1,024.

`MODEL/LAYER-STUDY-ENSEMBLE__seed-N/{release,model,sourceset,source}.jsonl`, `features/batch-I.jsonl.gz`,
`activations/batch-I.jsonl.gz`, and where there are any `explanations/batch-I.jsonl.gz`
(see engine.explanations.exchange.neuronpedia). Of a
feature's line the importer takes the columns it knows; `seedscope` holds what only this project has: stability with its
interval, bucket, worth, and the counterpart in every other seed with its source.

Activations are a_i * ||d_i||, as everywhere in this project. Left out: logits (pos_*, neg_*, logits_hist_*), correlated
neurons and features, neuron alignment, cosine neighbours, decoder_weights_dist, vector, binContains.
freq_hist_data_bar_values are the middles of bins that are spaced by logarithms. createdAt is the importer's. Layer counts of
the model, links and a creator of one's own have to be filled in before anything is published.
"""

import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seedscope.engine.contract.tables.study import Ensemble, Study
from seedscope.engine.explanations.exchange import neuronpedia as exchange
from seedscope.engine.export.explanations import batches
from seedscope.engine.export.features import by_chance, comparison_columns, feature_columns
from seedscope.engine.export.open_study import FeatureBlock, Opened
from seedscope.engine.features.activity import N_INTERVALS
from seedscope.engine.progress import Report

BATCH = 1024  # features per file
N_ROWS = 2**15  # comparisons and contexts in memory at a time, as Python objects: up to 100 MB
_KINDS = ("features", "activations")
CREATOR = "clkht01d40000jv08hvalcvly"  # whom Neuronpedia's own tools name where no creator is given
_JUDGED = (
    "stability", "stability_low", "stability_high", "p_stable", "p_unstable", "n_matched", "n_comparisons", "bucket", "theta",
    "epsilon", "null_rate", "null_p999", "dead", "anchor", "shared_start", "data_order", "worth_ev", "digest", "sae_digest", "seed",
)  # fmt: skip


def write(study: Opened, folder: Path, report: Report) -> dict[str, str]:
    """Write a source per member with activity; raises ValueError where none has: it is all that Neuronpedia shows."""
    shown = [row for row in study.ensembles if "activity" in row.computed]
    if not shown:
        raise ValueError(
            f"no activity was computed for study {study.study.study}, and Neuronpedia shows nothing else; compute it with: "
            f"seedscope analyze {study.study.study} --only activity"
        )
    members = [(row, member) for row in shown for member in study.members[row.ensemble]]
    chance = {row.ensemble: by_chance(study, row) for row in shown}
    n_failed = 0
    for done, (row, member) in enumerate(members):
        with _Source(study.study, folder, row, member.seed) as source:
            for part in study.parts(row, member, n_rows=N_ROWS):
                columns = feature_columns(study, part, chance[row.ensemble])
                source.add(_features(study, part, columns), _activations(study, part, columns))
        n_failed += _explanations(study, folder, row, member.seed)
        report(done + 1, len(members))
    without = [row.ensemble for row in study.ensembles if row not in shown]
    failed = {"explanations that failed": f"{n_failed:,}: Neuronpedia has no place for them"} if n_failed else {}
    return failed | ({", ".join(without): "no activity was computed"} if without else {})


def model_id(study: Study) -> str:
    """The model's name as Neuronpedia writes names: lower case, digits and dashes."""
    return _slug((study.model or "unknown").rsplit("/", 1)[-1])


def source_set(study: Study, ensemble: Ensemble) -> str:
    """The set that holds an ensemble's members."""
    return f"{_slug(study.study)}-{_slug(ensemble.ensemble)}"


def source_id(study: Study, ensemble: Ensemble, seed: int) -> str:
    """The source of one member; its layer is the first number in the hook point, 0 where there is none."""
    layer = re.search(r"\d+", ensemble.hookpoint or "0")
    return f"{layer[0] if layer else 0}-{source_set(study, ensemble)}__seed-{seed}"


def _explanations(study: Opened, folder: Path, row: Ensemble, seed: int) -> int:
    """Write one member's explanations; returns how many are left out because they failed."""
    model, sources = model_id(study.study), {seed: source_id(study.study, row, seed)}
    n_failed = 0
    for batch in batches(study, row, seed):
        explanations = {(seed, feature): of_feature for feature, of_feature in batch.explanations.items()}
        scored = {seed: batch.scored} if batch.scored else None
        n_failed += exchange.write(folder, explanations, model_id=model, sources=sources, scored=scored)
    return n_failed


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class _Source:
    """The files of one member, a new batch every BATCH features."""

    def __init__(self, study: Study, folder: Path, row: Ensemble, seed: int) -> None:
        name = source_id(study, row, seed)
        self._folder = folder / model_id(study) / name
        for kind in _KINDS:
            (self._folder / kind).mkdir(parents=True)
        for kind, content in _about(study, row, name).items():
            (self._folder / f"{kind}.jsonl").write_text(json.dumps(content) + "\n")
        self._files: dict[str, io.TextIOWrapper] = {}
        self._batch = -1

    def __enter__(self) -> "_Source":
        return self

    def __exit__(self, *raised: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, features: Iterator[dict[str, Any]], activations: dict[int, list[dict[str, Any]]]) -> None:
        """Write features, ascending, and the activations of each."""
        for line in features:
            index = int(line["index"])
            if index // BATCH != self._batch:
                self._next(index // BATCH)
            for kind, lines in zip(_KINDS, ([line], activations.get(index, [])), strict=True):
                for each in lines:
                    self._files[kind].write(json.dumps(each, allow_nan=False) + "\n")

    def _next(self, batch: int) -> None:
        self.__exit__()
        self._batch = batch
        for kind in _KINDS:
            path = self._folder / kind / f"batch-{batch}.jsonl.gz"
            self._files[kind] = io.TextIOWrapper(
                gzip.GzipFile(path, "wb", 5, mtime=0)
            )  # no time in it: the same bytes always


def _about(study: Study, row: Ensemble, source: str) -> dict[str, dict[str, Any]]:
    """The one-line files of a source: what the importer must find in front of its features."""
    model, whole, by = model_id(study), source_set(study, row), {"creatorId": CREATOR}
    description = (
        f"{row.n_members} SAEs that differ in their seed, {row.hookpoint or 'unknown hook point'}, matched by SeedScope"
    )
    if row.directions:
        kind = f"{row.n_members} transcoders that differ in their seed, {row.place}"
        description = f"{kind}, matched by their {row.directions} by SeedScope"
    return {
        "release": by | {"name": whole, "description": description, "urls": [], "creatorName": "SeedScope"},
        "model": by | {"id": model, "displayName": study.model, "displayNameShort": model, "owner": "", "layers": 0,
                       "neuronsPerLayer": 0},
        "sourceset": by | {"modelId": model, "name": whole, "description": description, "creatorName": "SeedScope", "urls": [],
                           "releaseName": whole},
        "source": by | {"id": source, "modelId": model, "setName": whole, "dataset": study.corpus_remark},
    }  # fmt: skip


def _features(study: Opened, part: FeatureBlock, columns: dict[str, pa.Array]) -> Iterator[dict[str, Any]]:
    row, about = part.ensemble, study.study
    here = {"modelId": model_id(about), "layer": source_id(about, row, part.member.seed)}
    edges = np.array(part.member.histogram_edges)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    sources = {int(seed): source_id(about, row, int(seed)) for seed in part.others}
    matches = pa.table({name: comparison_columns(part)[name] for name in ("partner", "cosine", "matched")}).to_pylist()
    n = len(part.others)
    for i, feature in enumerate(pa.table(columns).to_pylist()):
        counterparts = [
            {"seed": seed, "layer": source, "index": None if m["partner"] is None else str(m["partner"]),
             "cosine": m["cosine"], "matched": m["matched"]}
            for (seed, source), m in zip(sources.items(), matches[i * n : (i + 1) * n], strict=True)
        ]  # fmt: skip
        yield here | {
            "index": str(feature["feature"]),
            "sourceSetName": source_set(about, row),
            "creatorId": CREATOR,
            "maxActApprox": feature["max_activation"],
            "frac_nonzero": feature["density"],
            "freq_hist_data_bar_heights": feature["histogram"],
            "freq_hist_data_bar_values": middles,
            "hookName": row.hookpoint,
            "hasVector": False,
            "seedscope": {name: feature[name] for name in _JUDGED} | {"matches": counterparts},
        }


def _activations(study: Opened, part: FeatureBlock, columns: dict[str, pa.Array]) -> dict[int, list[dict[str, Any]]]:
    """{feature: its contexts as activations}; group 0 is the top, the others are fifths of (0, max], the strongest first."""
    about = study.study
    activations: dict[int, list[dict[str, Any]]] = {}
    layer = source_id(about, part.ensemble, part.member.seed)
    largest = dict(zip(part.numbers, columns["max_activation"].to_pylist(), strict=True))
    for row in study.contexts(part).to_pylist():
        feature, group, values = row["feature"], row["group"], row["activations"]
        low, high = _interval(group, largest[feature])
        activations.setdefault(feature, []).append(
            {
                # Unique among all sources of a database, and the same in every export.
                "id": f"{part.member.sae_digest}-{about.eval_token_digest}-{feature}-{group}-{row['rank']}",
                "modelId": model_id(about),
                "layer": layer,
                "index": str(feature),
                "creatorId": CREATOR,
                "tokens": study.texts.take(pa.array(row["token_ids"], pa.int32())).to_pylist(),
                "values": values,
                "maxValue": max(values),
                "maxValueTokenIndex": int(np.argmax(values)),
                "minValue": min(values),
                "qualifyingTokenIndex": row["peak"],
                "binMin": low,
                "binMax": high,
                "binContains": -1 if group == 0 else None,
                "dataSource": study.documents[row["document"]],
            }
        )
    return activations


def _interval(group: int, largest: float) -> tuple[float, float]:
    """Between which activations a group was drawn; (-1, the largest) means the top, (0, 0) where it is not active."""
    if group == 0:
        return -1.0, largest
    low, high = (max(N_INTERVALS - group + i, 0) * largest / N_INTERVALS for i in (0, 1))
    return low, high
