"""delphi's results: `explanations/HOOKPOINT_latentI.txt`, a JSON string each, and `scores/SCORER/` with a list of records each.

Scorers `detection` and `fuzz` are read, others measure something else. Slashes in hook points are written `--`. Older files
are named `_featureI`. The explainer is `delphi:` and the model that run_config.json names. delphi writes
COULD_NOT as the text of explanations that failed: they are read and written as failures.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from seedscope.engine.explanations.exchange.records import (
    Explanations,
    ScoredExamples,
    Seeds,
    check_feature,
    read_records,
    seed_of,
)
from seedscope.engine.explanations.explanation import ExplanationScore, FeatureExplanation

COULD_NOT = "Explanation could not be parsed."
SCORERS = {"detection": "detection", "fuzz": "fuzzing"}
RUN = "run_config.json"
PREFIX = "delphi:"  # of explainers
_NAME = re.compile(r"(.+)_(?:latent|feature)(\d{1,9})\.txt")


class _Named(NamedTuple):
    hookpoint: str
    feature: int


def read(folder: Path, seeds: Seeds, *, d_sae: int, explainer: str | None = None) -> Explanations:
    """Explanations with their scores, of a results folder; reads all or nothing.

    Raises ValueError naming the file, what was found and what was expected.
    """
    explainer = explainer or _explainer(folder)
    texts = {_named(path): path for path in _files(folder / "explanations")}
    if not texts:
        raise ValueError(
            f"found no explanations in {folder / 'explanations'}, expected files such as layers.6.mlp_latent12.txt"
        )
    scores: dict[_Named, list[ExplanationScore]] = {name: [] for name in texts}
    for scorer, kind in SCORERS.items():
        for path in _files(folder / "scores" / scorer):
            name = _named(path)
            if name not in texts:
                raise ValueError(
                    f"{path}: found scores of latent {name.feature}, expected its explanation in {folder / 'explanations'}"
                )
            scores[name].append(read_records(kind, _json(path), str(path)))
    by_feature: Explanations = {}
    sources: set[str] = set()
    for name, path in sorted(texts.items()):
        seed = seed_of(name.hookpoint, seeds, sources, str(path))
        feature = check_feature(name.feature, d_sae, str(path))
        text = _json(path)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{path}: found {json.dumps(text)[:40]}, expected an explanation as a JSON string")
        failed = text.strip() == COULD_NOT
        explanation = FeatureExplanation(
            feature, explainer, None if failed else text.strip(), tuple(scores[name]), COULD_NOT if failed else None
        )
        by_feature.setdefault((seed, feature), []).append(explanation)
    return by_feature


def write(
    folder: Path, explanations: list[FeatureExplanation], *, hookpoint: str, scored: ScoredExamples | None = None
) -> None:
    """Write one member's explanations, of one explainer; raises ValueError where there are several per feature.

    Scores are written as records of the contexts they were taken on, and left out without `scored` or where they were
    imported. Failures are written as delphi does: a score without predictions, COULD_NOT as an explanation.
    """
    explainers = sorted({explanation.explainer for explanation in explanations})
    features = [explanation.feature for explanation in explanations]
    if len(explainers) > 1 or len(set(features)) < len(features):
        raise ValueError(
            f"found {len(features)} explanations of {len(set(features))} features by {', '.join(explainers)}; expected one "
            "explainer and one explanation per feature: write each explainer to a folder of its own"
        )
    for kind in ("explanations", *(f"scores/{scorer}" for scorer in SCORERS)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    (folder / RUN).write_text(
        json.dumps({"explainer_model": explainers[0].removeprefix(PREFIX) if explainers else None}) + "\n"
    )
    scorers = {kind: scorer for scorer, kind in SCORERS.items()}
    for explanation in explanations:
        name = f"{hookpoint.replace('/', '--')}_latent{explanation.feature}.txt"
        (folder / "explanations" / name).write_text(json.dumps(explanation.text or COULD_NOT))
        for score in explanation.scores:
            if scored and (records := scored.records(explanation.feature, score)):
                (folder / "scores" / scorers[score.kind] / name).write_text(json.dumps(records))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.txt")) if folder.is_dir() else []


def _named(path: Path) -> _Named:
    match = _NAME.fullmatch(path.name)
    if not match:
        raise ValueError(f"{path}: found this name, expected one such as layers.6.mlp_latent12.txt")
    return _Named(match[1], int(match[2]))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise ValueError(f"{path}, line {line}: found something that is no JSON, expected what delphi writes") from None


def _explainer(folder: Path) -> str:
    if not (folder / RUN).is_file():
        return "delphi"
    config = _json(folder / RUN)
    model = config.get("explainer_model") if isinstance(config, dict) else None
    return f"{PREFIX}{model}" if isinstance(model, str) and model else "delphi"
