"""Shared by both layouts: the seed of a source, and one record per scored context, as delphi writes them.

A record tells whether a context is active (`activating`, in older files `ground_truth`) and what was predicted (a truth
value, null where the answer could not be read). Scores are computed from records as everywhere in this project; what others
computed from them is not comparable. Contexts of others are not this study's: imported scores hold counts, and no `said`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.explanations.explanation import ExplanationScore, FeatureExplanation
from seedscope.engine.explanations.scoring import score
from seedscope.engine.features.examples import HALVES, KINDS, Examples

Explanations = dict[tuple[int, int], list[FeatureExplanation]]  # {(seed, feature): in the order of the files}
Seeds = Mapping[str, int] | int  # {source or hook point: seed}, or the seed of the only one


class SeedsInNames(Mapping[str, int]):
    """Seeds of sources by name: those that are named, else the number behind `seed` in the name, where there is such a member."""

    def __init__(self, members: Sequence[int], named: Mapping[str, int] | None = None) -> None:
        self._members, self._named = members, dict(named or {})

    def __getitem__(self, source: str) -> int:
        if source in self._named:
            return self._named[source]
        numbers = re.findall(r"seed[-_ =]?([0-9]{1,9})(?![0-9])", source.lower())
        if len(numbers) == 1 and int(numbers[0]) in self._members:
            return int(numbers[0])
        raise KeyError(source)

    def __iter__(self) -> Iterator[str]:
        return iter([*self._named, *(f"..seed-{seed}" for seed in self._members)])

    def __len__(self) -> int:
        return len(self._named) + len(self._members)


class ScoredExamples(NamedTuple):
    """What one member's scores were taken on."""

    examples: Examples
    tokens: TokenSet
    texts: Sequence[str]

    def records(self, feature: int, scored: ExplanationScore) -> list[dict[str, Any]]:
        """One record per scored context, none where the score holds no answers; activations say whether, not how strongly.

        Records of a failed score hold no prediction, so that nobody computes a score from them.
        """
        first, last = np.searchsorted(self.examples.feature, [feature, feature + 1])
        rows = first + np.flatnonzero(self.examples.half[first:last] == HALVES.index("scored"))
        if not len(scored.said):
            return []
        if len(rows) != len(scored.said):
            raise ValueError(
                f"feature {feature} has {len(rows)} scored contexts and {len(scored.said)} answers, expected as many; "
                "these scores were taken on other contexts"
            )
        ids, records = self.tokens.ids.reshape(-1), []
        for row, said in zip(rows.tolist(), scored.said.tolist(), strict=True):
            start, length = int(self.examples.start[row]), int(self.examples.length[row])
            active = int(self.examples.kind[row]) == KINDS.index("active")
            is_answered = said >= 0 and scored.value is not None
            marks = int(self.examples.mask[row]) >> np.arange(length) & 1
            records.append(
                {
                    "str_tokens": [self.texts[token] for token in ids[start : start + length].tolist()],
                    "activations": marks.astype(float).tolist(),
                    "distance": None,
                    "activating": active,
                    "prediction": said == 1 if is_answered else None,
                    "probability": None,
                    "correct": (said == 1) == active if is_answered else None,
                }
            )
        return records


def read_records(kind: str, records: Any, where: str) -> ExplanationScore:
    """The score that records make; raises ValueError naming `where` they stand and which of them is none."""
    if not isinstance(records, list) or not records:
        content = "an empty list" if records == [] else f"a JSON {type(records).__name__}"
        raise ValueError(f"{where}: found {content}, expected a list of one record per context")
    labels, said = np.zeros(len(records), bool), np.full(len(records), -1, np.int8)
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise ValueError(f"{where}, record {i + 1}: found a JSON {type(record).__name__}, expected an object")
        label = record.get("activating", record.get("ground_truth"))
        if label not in (True, False) or "prediction" not in record:
            raise ValueError(
                f"{where}, record {i + 1}: found the fields {', '.join(sorted(record)) or 'none'}, expected `activating` or "
                "`ground_truth` (true or false) and `prediction`"
            )
        predicted = record["prediction"]
        if predicted is not None and predicted not in (True, False):
            raise ValueError(
                f"{where}, record {i + 1}: found the prediction {predicted!r}, expected true, false or null"
            )
        labels[i], said[i] = bool(label), -1 if predicted is None else int(predicted)
    if (said < 0).all():
        return ExplanationScore(kind, None, None, None, 0, 0, np.empty(0, np.int8), "no answer could be read")
    return score(kind, labels, said)._replace(said=np.empty(0, np.int8))


def seed_of(source: str, seeds: Seeds, sources: set[str], where: str) -> int:
    """The seed of a source; `sources` are those met so far. Raises ValueError for one that nobody named."""
    sources.add(source)
    if isinstance(seeds, int):
        if len(sources) > 1:
            raise ValueError(
                f"{where}: found the sources {' and '.join(sorted(sources))}, expected one for seed {seeds}; name the "
                "seed of each: --source NAME=SEED"
            )
        return seeds
    if source not in seeds:
        raise ValueError(
            f"{where}: found the source {source!r}, expected {' or '.join(map(repr, sorted(seeds))) or 'none'}; name its "
            f"seed: --source '{source}'=SEED, or --seed SEED for files of one member"
        )
    return seeds[source]


def check_feature(feature: int, d_sae: int, where: str) -> int:
    """A feature's number; raises ValueError where the SAE has no such feature."""
    if not 0 <= feature < d_sae:
        raise ValueError(f"{where}: found feature {feature:,}, expected 0 to {d_sae - 1:,}; these explain another SAE")
    return feature
