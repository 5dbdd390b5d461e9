"""Explain features by a language model and score its explanations: one question per explanation, several per score.

The model sees contexts of one half of the documents and is scored on the other half: detection asks which contexts hold the
feature; fuzzing marks the right tokens in active contexts and as many, drawn at random, in silent ones, and asks which marks
are right. Contexts of both kinds come mixed, some per request. A score stands on all of its answers or is a failure with its
reason.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.explanations.answer_log import Answers, Usage
from seedscope.engine.explanations.chat import Asker, Prices, Question, Server
from seedscope.engine.explanations.explanation import ExplanationScore, FeatureExplanation
from seedscope.engine.explanations.prompts import (
    ask_detection,
    ask_explanation,
    ask_fuzzing,
    mark,
    read_detection,
    read_explanation,
    read_fuzzing,
)
from seedscope.engine.explanations.scoring import score
from seedscope.engine.features.examples import HALVES, KINDS, N_CONTEXTS, Examples
from seedscope.engine.progress import Progress, Report

T = TypeVar("T")
SCORES = ("detection", "fuzzing")
CHARACTERS_PER_TOKEN = 4
UNKNOWN = "x" * 80  # stands for an explanation that is not there yet, in estimates
TOLD_PARTS = 10  # lines about what was used so far
NO_CONTEXT = "context in the half of the documents"  # in the reasons that no other run would mend
NOTHING_SHOWN = f"found no active {NO_CONTEXT} that an explainer sees"
STOPPED = "the run was stopped"

Count = Callable[[str], int]  # tokens of a text, as the model's tokenizer counts them


@dataclass(frozen=True, kw_only=True)
class AskPlan:
    """How much is shown and asked of every feature."""

    n_active: int = 20  # contexts shown with marks: spread evenly from the strongest to the weakest drawn
    n_silent: int = 6  # contexts shown without, half of them near misses
    n_scored: int = N_CONTEXTS  # active and as many silent contexts per score, at most
    per_request: int = 10  # contexts that one request asks about
    scores: tuple[str, ...] = SCORES

    def __post_init__(self) -> None:
        if min(self.n_active, self.n_scored, self.per_request) < 1 or self.n_silent < 0:
            raise ValueError(
                f"{self.n_active} active contexts shown, {self.n_silent} silent ones, {self.n_scored} scored, "
                f"{self.per_request} per request; expected at least 1, 0, 1 and 1"
            )
        if unknown := set(self.scores) - set(SCORES):
            raise ValueError(f"found the scores {', '.join(sorted(unknown))}, expected {' or '.join(SCORES)}")


class Estimate(NamedTuple):
    """What is still to be asked, and roughly what it costs; retries and a model's thinking come on top."""

    requests: int
    answered: int  # already, on disk
    prompt_tokens: int
    completion_tokens: int
    counted: str  # how the tokens were counted
    cost: float | None  # in the currency of the prices

    def __str__(self) -> str:
        money = "" if self.cost is None else f", about {self.cost:,.2f} at the prices given"
        return (
            f"{self.requests:,} requests to ask ({self.answered:,} answered before), about {self.prompt_tokens:,} tokens in and "
            f"{self.completion_tokens:,} out ({self.counted}){money}"
        )


def estimate(
    server: Server,
    examples: Examples,
    tokens: TokenSet,
    texts: Sequence[str],
    features: Sequence[int],
    *,
    digest: str,
    cache: Answers,
    plan: AskPlan | None = None,
    prices: Prices | None = None,
    count: Count | None = None,
) -> Estimate:
    """What `explain_with` would ask of a server; asks nothing. Without `count`, four characters are taken for a token."""
    how = "counted by the tokenizer given" if count else f"{CHARACTERS_PER_TOKEN} characters taken for a token"
    count = count or (lambda text: -(-len(text) // CHARACTERS_PER_TOKEN))
    requests = answered = n_in = n_out = 0
    for feature in features:
        subject = _Subject(examples, tokens, texts, feature, digest=digest, plan=plan or AskPlan())
        if not subject.active:
            continue
        first = subject.explain()
        answer = cache.find(first.key(server))
        text = UNKNOWN
        with suppress(ValueError):
            text = UNKNOWN if answer is None else first.read(answer)
        for question, n_answers in [(first, 0), *((b.question(text), len(b.rows)) for b in subject.batches())]:
            if cache.find(question.key(server)) is not None:
                answered += 1
                continue
            requests += 1
            n_in += sum(count(message["content"]) for message in question.messages)
            n_out += count('{"active": []}') + (2 * n_answers or count(UNKNOWN))  # a digit and a comma per context
    return Estimate(requests, answered, n_in, n_out, how, prices and prices.cost(n_in, n_out))


def explain_with(
    server: Server,
    examples: Examples,
    tokens: TokenSet,
    texts: Sequence[str],
    features: Sequence[int],
    *,
    digest: str,
    cache: Answers,
    progress: Progress,
    plan: AskPlan | None = None,
    prices: Prices | None = None,
    count: Count | None = None,
    asking: bool = True,
    stage: str = "Ask the model",
) -> list[FeatureExplanation]:
    """Explain one member's features and score what was said; one explanation per feature, in their order.

    `digest` is the SAE's, `texts` the tokens'. Answers are kept in `cache` as they come and never asked for again; what
    failed says why and is asked again the next time. Without `asking` all comes from `cache`. Ctrl-C waits for answers under
    way, at most server.drain_s, a second one does not. Raises llm.Refused where the server takes no question at all,
    ValueError without the openai library, OSError where an answer cannot be written.
    """
    plan = plan or AskPlan()
    asker = Asker(server, cache)
    if not asking:
        asker.stop(STOPPED)
    else:
        ahead = estimate(
            server, examples, tokens, texts, features, digest=digest, cache=cache, plan=plan, prices=prices, count=count
        )
        progress.say(f"{server.explainer}: {ahead}")
    if cache.n_damaged:
        progress.say(f"{cache.path}: {cache.n_damaged} lines that a stop cut short are left out")
    subjects = (_Subject(examples, tokens, texts, feature, digest=digest, plan=plan) for feature in features)
    total = sum(_n_questions(examples, feature, plan) for feature in features)
    try:
        with progress.stage(stage, "requests") as report:
            tally = _Tally(report, progress, asker, total)
            return _run(_explain_all(server, asker, subjects, len(features), tally))
    finally:
        progress.say(f"{server.explainer}: {_usage_summary(asker.usage, asker.n_reused, prices)}")


class _Subject:
    """One feature, as it is shown and asked about."""

    def __init__(
        self, examples: Examples, tokens: TokenSet, texts: Sequence[str], feature: int, *, digest: str, plan: AskPlan
    ) -> None:
        self.feature = int(feature)
        self._plan, self._texts, self._ids = plan, texts, tokens.ids.reshape(-1)
        self._rows = Examples(*(column[_rows_of(examples, feature)] for column in examples))
        shown, self.scored = (np.flatnonzero(self._rows.half == HALVES.index(half)) for half in HALVES)
        active = self._of_kind(shown, "active")
        strongest_first = active[np.argsort(-self._rows.peak[active], kind="stable")]
        active = strongest_first[_evenly_spaced(len(active), plan.n_active)]
        silent = np.concatenate(self._silent(shown, plan.n_silent))
        self.active = [self._context_text(row, self._marks(row)) for row in active]
        self._silent_texts = [self._context_text(row) for row in silent]
        sha = hashlib.sha256(f"{digest} {self.feature}".encode())
        for row in (*active, *silent):
            sha.update(self._tokens(row).astype(np.int64).tobytes() + self._marks(row).tobytes())
        self.about = sha.hexdigest()[:32]

    def explain(self) -> Question:
        """What is asked first."""
        messages = ask_explanation(self.active, self._silent_texts)
        return Question("explain", self.feature, self.about, messages, read_explanation)

    def batches(self) -> "Iterator[_Batch]":
        """Contexts to be scored, of both kinds mixed; none where one of the kinds is missing."""
        rows = self._scored_rows()
        for kind in self._plan.scores if len(rows) else ():
            rng = np.random.default_rng([int(self.about[:16], 16), SCORES.index(kind)])
            mixed = rng.permutation(rows)
            marked: Sequence[np.ndarray | None] = [None] * len(mixed)
            if kind == "fuzzing":
                marked = self._fuzzed_marks(mixed, rng)
            shown = [self._context_text(row, marks) for row, marks in zip(mixed, marked, strict=True)]
            for start in range(0, len(mixed), self._plan.per_request):
                part = slice(start, start + self._plan.per_request)
                yield _Batch(self, kind, mixed[part], shown[part])

    def scores(self, said: dict[str, np.ndarray], failures: dict[str, list[str]]) -> tuple[ExplanationScore, ...]:
        """The scores of what was said, {kind: per row of this feature, -1 without an answer}."""
        is_active = self._rows.kind[self.scored] == KINDS.index("active")
        if is_active.all() or not is_active.any():
            why = f"found no {'silent' if is_active.any() else 'active'} {NO_CONTEXT} to score on"
            none = np.full(len(is_active), -1, np.int8)
            return tuple(ExplanationScore(kind, None, None, None, 0, 0, none, why) for kind in self._plan.scores)
        scores = []
        for kind in self._plan.scores:
            one = score(kind, is_active, said[kind][self.scored], seed=int(self.about[:8], 16))
            if reasons := failures.get(kind):
                kinds = ", ".join(dict.fromkeys(reasons))
                one = one._replace(
                    shuffled_p95=None,
                    value=None,
                    shuffled=None,
                    failure=f"{len(reasons)} requests without an answer: {kinds}",
                )
            scores.append(one)
        return tuple(scores)

    def nothing_said(self) -> dict[str, np.ndarray]:
        """What is known before anything is asked."""
        return {kind: np.full(len(self._rows.feature), -1, np.int8) for kind in self._plan.scores}

    def _of_kind(self, rows: np.ndarray, kind: str) -> np.ndarray:
        return rows[self._rows.kind[rows] == KINDS.index(kind)]

    def _silent(self, rows: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Near misses and other silent contexts, half of n each; where one kind is short the other fills up."""
        near, far = self._of_kind(rows, "near miss"), self._of_kind(rows, "silent")
        n_near = min(len(near), max(n - n // 2, n - len(far)))
        return near[:n_near], far[: n - n_near]

    def _scored_rows(self) -> np.ndarray:
        """Rows that scores ask about."""
        active = self._of_kind(self.scored, "active")[: self._plan.n_scored]
        silent = np.concatenate(self._silent(self.scored, self._plan.n_scored))
        return np.concatenate([active, silent]) if len(active) and len(silent) else np.empty(0, np.int64)

    def _fuzzed_marks(self, rows: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """The right marks of active rows; on silent ones as many as some active row has, at random."""
        right = [self._marks(row) for row in rows]
        n_marks = [int(marks.sum()) for marks in right if marks.any()]
        guessed = []
        for marks in right:
            if not marks.any():
                n = min(int(rng.choice(n_marks)), len(marks))
                marks = np.isin(np.arange(len(marks)), rng.choice(len(marks), n, replace=False))
            guessed.append(marks)
        return guessed

    def _tokens(self, row: np.integer) -> np.ndarray:
        start = int(self._rows.start[row])
        return self._ids[start : start + int(self._rows.length[row])]

    def _marks(self, row: np.integer) -> np.ndarray:
        return (int(self._rows.mask[row]) >> np.arange(int(self._rows.length[row])) & 1).astype(bool)

    def _context_text(self, row: np.integer, marks: np.ndarray | None = None) -> str:
        ids = self._tokens(row)
        if (ids < 0).any():
            raise ValueError(f"a context of feature {self.feature} runs into padding, expected tokens alone")
        pieces = [self._texts[token] for token in ids]
        return mark(pieces, [False] * len(pieces) if marks is None else marks.tolist())


class _Batch(NamedTuple):
    """Contexts that one request asks about."""

    subject: _Subject
    kind: str
    rows: np.ndarray  # of the subject
    shown: list[str]

    def question(self, explanation: str) -> Question:
        """What is asked of them."""
        ask, read = (ask_detection, read_detection) if self.kind == "detection" else (ask_fuzzing, read_fuzzing)
        messages = ask(explanation, self.shown)
        return Question(self.kind, self.subject.feature, self.subject.about, messages, partial(read, n=len(self.rows)))


class _Tally:
    """Counts questions that are over, and says now and then what was used so far."""

    def __init__(self, report: Report, progress: Progress, asker: Asker, total: int) -> None:
        self._report, self._progress, self._asker, self._total = report, progress, asker, total
        self._done = 0
        self._said = 0

    def add(self, n: int) -> None:
        """So many more are over."""
        self._done += n
        self._report(self._done, self._total)
        part = self._done * TOLD_PARTS // max(self._total, 1)
        if part > self._said and self._asker.usage.answers and self._done < self._total:
            self._said = part
            self._progress.say(f"{self._done:,} of {self._total:,} requests; so far {self._asker.usage}")


def _run(work: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, in a thread of its own where this one runs a loop already, as notebooks do."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _explain_all(
    server: Server, asker: Asker, subjects: Iterator[_Subject], n: int, tally: _Tally
) -> list[FeatureExplanation]:
    """A few features at a time, so that a stop leaves whole features behind rather than questions of all."""
    explanations: dict[int, FeatureExplanation] = {}
    numbered = enumerate(subjects)

    async def work() -> None:
        for i, subject in numbered:
            explanations[i] = await _explain(server, asker, subject, tally)

    async with asker:
        workers = [asyncio.create_task(work()) for _ in range(min(server.concurrency, n))]
        try:
            if workers:
                done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
        except BaseException:
            asker.stop(STOPPED)
            try:
                await asyncio.wait_for(asker.drained(), server.drain_s)  # they are paid for
            except TimeoutError:
                pass
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
            raise
    return [explanations[i] for i in range(n)]


async def _explain(server: Server, asker: Asker, subject: _Subject, tally: _Tally) -> FeatureExplanation:
    if not subject.active:
        return FeatureExplanation(subject.feature, server.explainer, None, (), NOTHING_SHOWN)
    batches = list(subject.batches())
    explained = await asker.ask(subject.explain())
    if explained.failure is not None:
        tally.add(1 + len(batches))
        return FeatureExplanation(subject.feature, server.explainer, None, (), explained.failure)
    tally.add(1)
    said = subject.nothing_said()
    failures: dict[str, list[str]] = {}

    async def ask(batch: _Batch) -> None:
        answer = await asker.ask(batch.question(explained.value))
        tally.add(1)
        if answer.failure is None:
            said[batch.kind][batch.rows] = answer.value
        else:
            failures.setdefault(batch.kind, []).append(answer.failure)

    await asyncio.gather(*map(ask, batches))  # unlike a task group it lets the others finish: they are paid for
    return FeatureExplanation(subject.feature, server.explainer, explained.value, subject.scores(said, failures))


def _rows_of(examples: Examples, feature: int) -> slice:
    low, high = np.searchsorted(examples.feature, [feature, feature + 1])
    return slice(int(low), int(high))


def _evenly_spaced(n: int, most: int) -> np.ndarray:
    """At most `most` of n ranks, evenly from the first to the last."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(int)


def _n_questions(examples: Examples, feature: int, plan: AskPlan) -> int:
    rows = _rows_of(examples, feature)
    is_active = examples.kind[rows] == KINDS.index("active")
    shown = examples.half[rows] == HALVES.index("shown")
    if not (is_active & shown).any():
        return 0
    n_active, n_silent = (int(min((mask & ~shown).sum(), plan.n_scored)) for mask in (is_active, ~is_active))
    n_batches = -(-(n_active + n_silent) // plan.per_request) if n_active and n_silent else 0
    return 1 + n_batches * len(plan.scores)


def _usage_summary(usage: Usage, n_reused: int, prices: Prices | None) -> str:
    spent = (
        "" if prices is None else f", {prices.cost(usage.prompt_tokens, usage.completion_tokens):,.2f} at the prices"
    )
    return f"{usage}{spent}; {n_reused:,} answered before"
