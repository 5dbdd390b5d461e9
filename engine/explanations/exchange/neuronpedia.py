"""Neuronpedia's explanations: `MODEL/SOURCE/explanations/batch-I.jsonl[.gz]`, a JSON object per line.

Read are modelId, layer (the source), index, description, typeName, explanationModelName, and scores where an API's answer was
kept with them; what else a line holds is left out. An explainer is named `MODEL (TYPE)`; TYPE `seedscope` is this project's
own, whose explainers keep their names. Of scores, those that come with records are read: eleuther_recall as detection,
eleuther_fuzz as fuzzing. Failures cannot be said in this layout.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seedscope.engine.explanations.exchange.records import (
    Explanations,
    ScoredExamples,
    Seeds,
    check_feature,
    read_records,
    seed_of,
)
from seedscope.engine.explanations.explanation import ExplanationScore, FeatureExplanation

BATCH = 1024  # features per file
OWN_TYPE = "seedscope"
SCORE_TYPES = {"eleuther_recall": "detection", "eleuther_fuzz": "fuzzing"}
_NAMED = re.compile(r"(.*) \(([^()]*)\)")


def read(path: Path, seeds: Seeds, *, d_sae: int) -> Explanations:
    """Explanations of a file, or of a folder of batches; reads all or nothing.

    Raises ValueError naming file, line, what was found and what was expected.
    """
    by_feature: Explanations = {}
    sources: set[str] = set()
    for file in _files(path):
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            entry = _object(line, where)
            seed = seed_of(_text(entry, "layer", where), seeds, sources, where)
            feature = check_feature(_index(entry, where), d_sae, where)
            explanation = FeatureExplanation(
                feature, _explainer(entry, where), _text(entry, "description", where), _scores(entry, where)
            )
            by_feature.setdefault((seed, feature), []).append(explanation)
    if not by_feature:
        raise ValueError(f"{path}: found no explanation, expected a JSON object per line")
    return by_feature


def write(
    folder: Path,
    explanations: Explanations,
    *,
    model_id: str,
    sources: Mapping[int, str],
    scored: Mapping[int, ScoredExamples] | None = None,
) -> int:
    """Write a folder of batches per seed; returns how many explanations were left out because they failed.

    `sources` names each seed's source, `scored` what its scores were taken on; without it, or for scores that were
    imported, a score is its value alone.
    """
    n_failed = 0
    batches: dict[Path, list[str]] = {}
    for seed, feature in sorted(explanations):
        path = folder / model_id / sources[seed] / "explanations" / f"batch-{feature // BATCH}.jsonl.gz"
        for explanation in explanations[seed, feature]:
            if explanation.text is None:
                n_failed += 1
                continue
            line = _line(explanation, model_id, sources[seed], (scored or {}).get(seed))
            batches.setdefault(path, []).append(json.dumps(line, allow_nan=False))
    for path, lines in batches.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        content = "".join(line + "\n" for line in lines).encode()
        path.write_bytes(gzip.compress(content, 5, mtime=0))  # no time in it: the same bytes always
    return n_failed


def _line(explanation: FeatureExplanation, model_id: str, source: str, scored: ScoredExamples | None) -> dict[str, Any]:
    named = _NAMED.fullmatch(explanation.explainer)
    model, kind = named.groups() if named else (explanation.explainer, OWN_TYPE)
    identity = [model_id, source, explanation.feature, explanation.explainer, explanation.text]
    types = {own: name for name, own in SCORE_TYPES.items()}
    return {
        "id": hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24],  # the same in every export
        "modelId": model_id,
        "layer": source,
        "index": str(explanation.feature),
        "description": explanation.text,
        "typeName": kind,
        "explanationModelName": model,
        "scores": [
            {
                "value": score.value,
                "explanationScoreTypeName": types[score.kind],
                "explanationScoreModelName": model,
                "jsonDetails": json.dumps(scored.records(explanation.feature, score) if scored else []),
            }
            for score in explanation.scores
            if score.value is not None
        ],
    }


def _files(path: Path) -> list[Path]:
    """The files to read, batches in the order of their numbers."""
    if path.is_file():
        return [path]
    files = [
        file for file in path.rglob("*") if re.search(r"\.jsonl(\.gz)?$", file.name) and _holds_explanations(path, file)
    ]
    if not files:
        raise ValueError(
            f"found no explanations in {path}, expected batch-*.jsonl or batch-*.jsonl.gz, there or in a folder `explanations`"
        )
    return sorted(
        files, key=lambda file: (str(file.parent), *(int(n) for n in re.findall(r"\d+", file.name)), file.name)
    )


def _holds_explanations(path: Path, file: Path) -> bool:
    """Not the features and activations that lie beside explanations."""
    folders = [path.name, *file.relative_to(path).parts[:-1]]
    return any(name.startswith("explanations") for name in folders) or (
        file.parent == path and file.name.startswith("batch-") and path.name not in ("features", "activations")
    )


def _lines(file: Path) -> Iterator[str]:
    number = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as opened:
            for line in opened:
                number += 1
                yield line.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{file}, line {number}: found bytes that are no UTF-8, expected text") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise ValueError(
            f"{file}, after line {number}: found the end of a damaged gzip file, expected a whole one; download it again"
        ) from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: found {line[:40]!r}, expected a JSON object") from None
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: found a JSON {type(entry).__name__}, expected an object")
    return entry


def _text(entry: dict[str, Any], name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        value_found = f"no {name}" if name not in entry else f"{name} {json.dumps(value)[:40]}"
        raise ValueError(f"{where}: found {value_found}, expected text")
    return value.strip()


def _index(entry: dict[str, Any], where: str) -> int:
    value = entry.get("index")
    if type(value) is int or (isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value)):
        return int(value)
    raise ValueError(f"{where}: found the index {value!r}, expected a feature's number")


def _explainer(entry: dict[str, Any], where: str) -> str:
    names = {}
    for name in ("explanationModelName", "typeName"):
        value = entry.get(name)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{where}: found {name} {json.dumps(value)[:40]}, expected text or none")
        names[name] = value or "unknown"
    model, kind = names.values()
    return model if kind == OWN_TYPE else f"{model} ({kind})"


def _scores(entry: dict[str, Any], where: str) -> tuple[ExplanationScore, ...]:
    listed = entry.get("scores") or []
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ValueError(f"{where}: found scores {json.dumps(listed)[:40]}, expected a list of objects")
    scores = []
    for one in listed:
        kind, details = SCORE_TYPES.get(str(one.get("explanationScoreTypeName"))), one.get("jsonDetails")
        if isinstance(details, str):
            try:
                details = json.loads(details)
            except (ValueError, RecursionError):
                raise ValueError(f"{where}: found jsonDetails {details[:40]!r}, expected JSON") from None
        if kind and details:
            scores.append(read_records(kind, details, f"{where}, scores"))
    return tuple(scores)
