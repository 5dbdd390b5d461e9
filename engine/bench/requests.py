"""Addresses that a load generator asks for: every page of a generated study, with parameters that do not repeat.

A repeated address could be answered from a cache of the server, so every address is drawn once. Same seed, same addresses.
"""

from collections.abc import Callable
from urllib.parse import urlencode

import numpy as np

from seedscope.engine.bench.generated_shared_spans import n_spans, span_ids
from seedscope.engine.bench.generated_study import ENSEMBLE, STUDY, StudySize
from seedscope.engine.bench.generated_texts import TokenVocabulary, zipf
from seedscope.engine.contract.schema import TRIGGERS

BASE = f"/s/{STUDY}/{ENSEMBLE}"
RULES = ("argmax", "live", "mutual")  # that are computed in a generated study
BUCKETS = ("stable", "middle", "unstable", "dead")
SORTS = ("stability", "density", "worth", "loss", "max", "entropy", "score", "feature")
GRID, OFF_GRID = 100, 10_000  # steps of theta from 0 to 1: hundredths are on the grid that is counted ahead
LOWEST, HIGHEST = 0.3, 0.95  # thetas
Parameters = dict[str, object]


class Requests:
    """Draws addresses; `draw` never gives one twice."""

    def __init__(self, size: StudySize, vocabulary: TokenVocabulary, *, seed: int = 0) -> None:
        self._size, self._vocabulary = size, vocabulary
        self._rng = np.random.default_rng(seed)
        self._drawn: set[str] = set()
        self._spans = span_ids(ENSEMBLE, n_spans(size.n_members, size.d_sae))
        self._judgements: dict[str, list[Parameters]] = {}  # {page: those not drawn yet}
        self.kinds: dict[str, Callable[[], str]] = {
            "table": lambda: self._page("/features", self._theta(GRID) | self._filter() | self._order()),
            "table, deep": lambda: self._page("/features", self._order() | {"at": self._feature()}),
            "word search": lambda: self._page("/features", {"q": self._word()} | self._maybe(self._filter)),
            "token search": lambda: self._page("/features", {"q": self._token()} | self._maybe(self._filter)),
            "feature": lambda: self._page(f"/{self._feature()}", self._theta(GRID)),
            "feature in a filter": lambda: self._page(
                f"/{self._feature()}", self._theta(GRID) | self._filter() | self._order()
            ),
            "overview": lambda: self._page("", self._judgement("overview")),
            "buckets": lambda: self._page("/buckets", self._judgement("buckets")),
            "explanations": lambda: self._page("/explanations", self._judgement("explanations")),
            "subspaces": lambda: self._page("/subspaces", self._judgement("subspaces") | {"rank": self._int(1, 768)}),
            "seed x seed": lambda: self._page("/members", self._judgement("seed x seed")),
            "map": lambda: self._page("/subspaces/map", self._judgement("map") | self._filter()),
            "shared spans": lambda: self._page("/spans", self._theta(OFF_GRID) | self._maybe(self._of_spans)),
            "shared spans, .json": lambda: self._page(
                "/spans.json", {"rank_max": self._int(17, 10**6)} | self._maybe(self._of_spans)
            ),
            "shared span": lambda: self._page(f"/spans/{self._span()}", self._theta(OFF_GRID)),
            "shared span, .json": lambda: self._page(
                f"/spans/{self._span()}.json", {"v": f"{self._int(0, 2**32):08x}"}
            ),
            "table, theta off the grid": lambda: self._page(
                "/features", self._theta(OFF_GRID) | self._maybe(self._filter) | self._order()
            ),
            "overview, theta off the grid": lambda: self._page("", self._theta(OFF_GRID) | {"rule": self._one(RULES)}),
            "feature, theta off the grid": lambda: self._page(f"/{self._feature()}", self._theta(OFF_GRID)),
        }

    def draw(self, kind: str, n: int) -> list[str]:
        """At most n new addresses of a kind; fewer where there are no more, as in a study of a few features."""
        paths: list[str] = []
        for _ in range(20 * n):
            path = self.kinds[kind]()
            if path not in self._drawn:
                self._drawn.add(path)
                paths.append(path)
            if len(paths) == n:
                break
        return paths

    def _page(self, path: str, parameters: Parameters) -> str:
        return f"{BASE}{path}?{urlencode(parameters)}" if parameters else BASE + path

    def _int(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high))

    def _one(self, values: tuple[str, ...]) -> str:
        return values[self._int(0, len(values))]

    def _theta(self, steps: int) -> Parameters:
        """From LOWEST to HIGHEST; off the grid never a whole hundredth."""
        step = self._int(round(steps * LOWEST), round(steps * HIGHEST))
        if steps > GRID and step % (steps // GRID) == 0:
            step += 1
        return {"theta": f"{step / steps:g}"}

    def _judgement(self, kind: str) -> Parameters:
        """Theta of the grid and rule: a page gets every combination once before any comes again, for servers may keep counts."""
        if not self._judgements.get(kind):
            steps = range(round(GRID * LOWEST), round(GRID * HIGHEST) + 1)
            combined: list[Parameters] = [
                {"theta": f"{step / GRID:g}", "rule": rule} for step in steps for rule in RULES
            ]
            self._judgements[kind] = [combined[which] for which in self._rng.permutation(len(combined))]
        return self._judgements[kind].pop() | {"epsilon": f"{self._int(10, 150) / 1000:g}"}

    def _feature(self) -> str:
        return f"{self._int(0, self._size.n_members)}/{self._int(0, self._size.d_sae)}"

    def _maybe(self, draw: Callable[[], Parameters]) -> Parameters:
        return draw() if self._rng.random() < 0.5 else {}

    def _filter(self) -> Parameters:
        """One or two conditions that people set."""
        choices: list[Callable[[], Parameters]] = [
            lambda: {"seed": self._int(0, self._size.n_members)},
            lambda: {"bucket": self._one(BUCKETS)},
            lambda: {"trigger": self._one(TRIGGERS)},
            lambda: {"density_min": f"{10 ** self._rng.uniform(-5, -2):.3g}"},
            lambda: {"density_max": f"{10 ** self._rng.uniform(-4, -1):.3g}"},
            lambda: {"stability_min": f"{self._rng.uniform(0, 0.9):.2f}"},
            lambda: {"score_min": f"{self._rng.uniform(0.5, 0.95):.2f}"},
        ]
        chosen = self._rng.permutation(len(choices))[: self._int(1, 3)]
        return {name: value for which in chosen for name, value in choices[which]().items()}

    def _of_spans(self) -> Parameters:
        """What the list of shared spans is filtered and sorted by."""
        sorts = ("rank", "energy", "share", "stability")
        return {"sort": self._one(sorts), "rank_min": self._int(3, 9), "q": self._one(("", "", self._word()[:3]))}

    def _span(self) -> str:
        return self._one(self._spans)

    def _order(self) -> Parameters:
        return {"sort": self._one(SORTS), "dir": self._one(("asc", "desc"))}

    def _word(self) -> str:
        """A word of explanations or its beginning, sometimes two."""
        words = self._vocabulary.words
        first = words[self._int(0, len(words))]
        text = first[: self._int(2, 6)] if self._rng.random() < 0.3 else first
        return f"{self._one(('token', 'after', 'string', 'brackets'))} {text}" if self._rng.random() < 0.3 else text

    def _token(self) -> str:
        """A token in quotes, frequent ones more often, or a part of one."""
        texts = self._vocabulary.texts
        text = texts[int(zipf(self._rng, (1,), len(texts))[0])]
        part = text.strip()[:4]
        return part if part and self._rng.random() < 0.4 else f'"{text}"'
