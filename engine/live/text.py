"""Features that are active on a text: the study's model reads it, and members encode its activations at the hook point.

The text is cut as the evaluation tokens were: BOS in front, at most one window. Activations are a_i * ||d_i||, as in
engine.features.activity, so that they compare with what the pages say of the evaluation tokens.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from seedscope.engine.activations.harvest import (
    MOST_TOKENS,
    PADDING,
    LanguageModel,
    TokenSet,
    load_model,
    stream,
    token_texts,
    tokenize,
)
from seedscope.engine.contract.abandon import stop_if_abandoned
from seedscope.engine.contract.queries import MAX_ACTIVE, MAX_TEXT, LiveAnswer, LiveQuery
from seedscope.engine.live.active import ActiveFeatures, active_features
from seedscope.engine.live.text_spans import SpanStrengths, TextSpan
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue


class TextHook(NamedTuple):
    """Where a study says that its texts are read."""

    model: str  # folder or hub id
    hookpoint: str
    tokens: catalogue.Tokens  # the settings of the evaluation tokens
    hookpoint_out: str | None = None  # what transcoders predict, where it is known
    transcoder: bool = False


class TextReader(NamedTuple):
    """A language model, and what each of its tokens looks like."""

    model: LanguageModel
    texts: list[str]


class Window(NamedTuple):
    """A text as far as the model reads it."""

    ids: Int[np.ndarray, " tokens"]  # with what stands in front of it
    shown: int  # index of the first token that is shown: BOS is not, unless it counts
    counts: Bool[np.ndarray, " tokens"]  # of those shown
    n_read: int  # tokens of the text
    n_all: int

    @property
    def rows(self) -> int:
        """Tokens that are shown."""
        return len(self.counts)


def find_place(study: Path, query: LiveQuery) -> TextHook:
    """Model, hook point and token settings of a query's ensemble; raises ValueError where the study names none."""
    plan = catalogue.read(study)
    analyse = f"seedscope analyze {query.study}"
    if plan is None:
        raise ValueError(f"found no {catalogue.FILE} in study {query.study}, which says where its model lies")
    if plan.model is None:
        raise ValueError(
            f"study {query.study} has no model to read a text; give one: {analyse} --model DIR_OR_ID --tokens FILE"
        )
    ensemble = plan.ensemble(query.ensemble)
    if ensemble.folder != query.folder:
        raise ValueError(f"ensemble {ensemble.name} was replaced after these pages were published; run {analyse}")
    if ensemble.hookpoint is None:
        raise ValueError(
            f"the hook point of ensemble {ensemble.name} is not known; give it: {analyse} --hookpoint NAME"
        )
    return TextHook(
        plan.model,
        ensemble.hookpoint,
        plan.tokens or catalogue.Tokens(()),
        ensemble.hookpoint_out,
        ensemble.transcoder,
    )


def load_reader(path: str, *, digest: str, device: torch.device) -> TextReader:
    """The model at a path; raises ValueError as `load_model` does, and where it is another one than `digest` says."""
    model = load_model(path)
    if digest and model.digest != digest:
        raise ValueError(
            f"the model at {path!r} has the digest {model.digest}, the study was measured with {digest}; put that model "
            "back, or measure again with: seedscope analyze"
        )
    if model.tokenizer is None:
        raise ValueError(
            f"the model at {path!r} has no tokenizer to read a text with; copy its tokenizer's files there"
        )
    try:
        model.network.to(device)
    except torch.OutOfMemoryError:
        raise ValueError(f"the model at {path!r} does not fit on the device; start with --device cpu") from None
    return TextReader(model, token_texts(model))


@torch.no_grad()
def answer(
    queries: Sequence[LiveQuery],
    reader: TextReader,
    place: TextHook,
    member: Callable[[int], SAE],
    spans: Sequence[TextSpan] = (),
    *,
    most: int = MAX_ACTIVE,
) -> list[LiveAnswer]:
    """What is active on the text of every query, which share all else; `member` gives the SAE of a seed.

    `spans` are the ensemble's kept spans where a query asks for any. The model reads all texts together. A text is cut after
    as many tokens as have `most` active features, at least one.
    What is wrong with a text stands in its own answer; raises ValueError for what is wrong with model or SAEs.
    """
    read_or_refused: list[Window | LiveAnswer] = []
    on_spans: list[SpanStrengths] = []
    for query in queries:
        try:
            window = read(reader.model, query.text, place.tokens)
            on_spans.append(SpanStrengths(spans, query.span))
            read_or_refused.append(window)
        except ValueError as error:
            read_or_refused.append(LiveAnswer(error=str(error), cause="query"))
    windows = [window for window in read_or_refused if isinstance(window, Window)]
    rows = _rows(reader.model, windows, place.hookpoint) if windows else []
    active: list[list[ActiveFeatures]] = [[] for _ in windows]
    for seed in queries[0].seeds:
        stop_if_abandoned()
        sae = member(seed)
        for i, window in enumerate(windows):
            _require_width(rows[i], sae, place, reader.model)
            codes = sae.encode(rows[i].to(sae.W_dec))
            active[i].append(active_features(sae, codes, window.counts[: len(rows[i])]))
            on_spans[i].add(seed, sae, rows[i], codes, active[i][-1])
            total = np.cumsum(sum(each.n_active for each in active[i]))
            fits = max(int(np.searchsorted(total, most, side="right")), 1)
            rows[i], active[i] = rows[i][:fits], [each.first(fits) for each in active[i]]
    answers = iter(_answer(reader, *each) for each in zip(windows, active, on_spans, strict=True))
    return [each if isinstance(each, LiveAnswer) else next(answers) for each in read_or_refused]


def read(model: LanguageModel, text: str, settings: catalogue.Tokens) -> Window:
    """Tokenize a text as the evaluation tokens were; raises ValueError for one that is too long or has no token."""
    if not 1 <= len(text) <= MAX_TEXT:
        raise ValueError(f"the text has {len(text):,} characters, expected 1 to {MAX_TEXT:,}")
    text = text.encode(errors="replace").decode()  # a lone surrogate is no character
    if model.tokenizer is None:
        raise ValueError(
            f"{model.name} has no tokenizer, so no text can be read; copy the tokenizer's files into its folder"
        )
    if not model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
        raise ValueError(f"the tokenizer of {model.name} makes no token of this text; try other characters")
    tokens = tokenize([("the text", text)], model, n_ctx=settings.n_ctx, bos=settings.bos)
    ids = tokens.ids[0][tokens.ids[0] != PADDING]
    in_front = int(tokens.bos is not None)
    shown = 0 if tokens.bos_counts else in_front
    n_all = int((tokens.ids != PADDING).sum()) - in_front * len(tokens.ids)
    return Window(ids, shown, tokens.counted[0][: len(ids)][shown:], len(ids) - in_front, n_all)


def _rows(model: LanguageModel, windows: list[Window], hookpoint: str) -> list[Tensor]:
    """(tokens shown, d_in) of every window, on the CPU."""
    longest = max(len(window.ids) for window in windows)
    ids = np.full((len(windows), longest), PADDING, np.int32)
    for row, window in zip(ids, windows, strict=True):
        row[: len(window.ids)] = window.ids
    places = np.arange(len(windows), dtype=np.int32)
    everything = TokenSet(ids, places, np.zeros_like(places), [], None)
    source = stream(model, everything, hookpoint, windows_per_batch=max(MOST_TOKENS // longest, 1))
    with closing(source):
        rows = torch.cat([batch.rows for batch in source])
    parts = rows.split([len(window.ids) for window in windows])
    return [part[window.shown :] for part, window in zip(parts, windows, strict=True)]


def _require_width(rows: Tensor, sae: SAE, place: TextHook, model: LanguageModel) -> None:
    if rows.shape[1] != sae.d_in:
        raise ValueError(
            f"at {place.hookpoint} {model.name} has {rows.shape[1]} numbers per token, the SAEs read {sae.d_in}: they were "
            "trained on another model or hook point"
        )


def _answer(reader: TextReader, window: Window, active: list[ActiveFeatures], on_spans: SpanStrengths) -> LiveAnswer:
    n_shown = len(active[0].n_active)
    ids = window.ids[window.shown :][:n_shown]
    arrays = {
        "id": ids.astype(np.int32),
        "counts": window.counts[:n_shown],
        "extent": np.array([window.n_read - (window.rows - n_shown), window.n_all], np.int32),
        "count": np.stack([each.n_active for each in active]),
        "feature": np.concatenate([each.feature for each in active]),
        "activation": np.concatenate([each.activation for each in active]),
    } | on_spans.arrays(n_shown)
    return LiveAnswer(arrays, texts=[reader.texts[i] for i in ids])
