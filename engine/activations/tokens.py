"""Cut documents into windows of token ids that a model reads, and say which of those tokens are evaluated."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Int

from seedscope.engine.activations.documents import Document
from seedscope.engine.activations.model import LanguageModel
from seedscope.engine.contract.files import whole

PADDING = -1
KEPT = "tokens.npz"
BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 2**22
LONGEST_UNASKED = 2048  # models that allow 128k tokens would make every short document a window of that length


class TokenSet(NamedTuple):
    """Documents cut into windows; each window starts with BOS (where the tokenizer has one), the last ones are padded."""

    ids: Int[np.ndarray, "windows n_ctx"]  # PADDING where there is no token
    document: Int[np.ndarray, " windows"]  # index into `names`
    start: Int[np.ndarray, " windows"]  # position in the document of the window's first token after BOS
    names: list[str]
    bos: int | None
    bos_counts: bool = False
    choice: str = "all windows"  # which of the source's windows these are
    left_out: Int[np.ndarray, " some"] = np.zeros(0, np.int64)  # flat indices of further tokens that do not count
    remark: str = ""  # what may be wrong with the source

    @property
    def counted(self) -> np.ndarray:
        """(windows, n_ctx) bool: tokens that count.

        Padding and what is left out do not, BOS (wherever it stands) only with bos="include".
        """
        counted = self.ids != PADDING
        if self.bos is not None and not self.bos_counts:
            counted &= self.ids != self.bos
        counted.reshape(-1)[self.left_out] = False
        return counted

    def only(self, windows: Int[np.ndarray, " some"]) -> "TokenSet":
        """Some of the windows, by index."""
        left_out = np.zeros(self.ids.shape, bool)
        left_out.reshape(-1)[self.left_out] = True
        return self._replace(
            ids=self.ids[windows], document=self.document[windows], start=self.start[windows],
            left_out=np.flatnonzero(left_out[windows]),
        )  # fmt: skip

    def sample(self, n: int, *, seed: int = 0) -> "TokenSet":
        """Windows, drawn at random, that hold about n tokens that count."""
        return self.only(self.draw(n, seed=seed))

    def draw(self, n: int, *, seed: int = 0) -> Int[np.ndarray, " some"]:
        """The windows that `sample` takes, by index."""
        order = np.random.default_rng(seed).permutation(len(self.ids))
        n_counted = np.cumsum(self.counted[order].sum(1))
        return np.sort(order[: int(np.searchsorted(n_counted, n)) + 1])

    @property
    def policy(self) -> str:
        """For the page: what does not count, which windows were chosen, and what may be wrong with them."""
        bos = "padding excluded, no BOS" if self.bos is None else "BOS and padding excluded"
        bos = "padding excluded, BOS counted" if self.bos_counts else bos
        return "; ".join([bos, *([] if self.choice == "all windows" else [self.choice]), *filter(None, [self.remark])])

    @property
    def digest(self) -> str:
        """16 hex digits over ids, shape, document boundaries and what counts."""
        sha = hashlib.sha256(str(self.ids.shape).encode())
        for array in (self.ids, self.document, self.start):
            sha.update(np.ascontiguousarray(array, dtype=np.int32).tobytes())
        if self.bos is None or self.bos_counts:  # else BOS begins every window, and the ids say all
            sha.update(f"bos {self.bos} counts {self.bos_counts}".encode())
        if len(self.left_out):
            sha.update(b"without" + self.left_out.astype(np.int64).tobytes())
        return sha.hexdigest()[:16]


def save_tokens(tokens: TokenSet, folder: Path) -> None:
    """Write a token set to `folder`; document names and the choice are not kept."""
    bos = [] if tokens.bos is None else [tokens.bos]
    with whole(folder / KEPT) as file:
        np.savez(
            file, ids=tokens.ids, document=tokens.document, start=tokens.start, left_out=tokens.left_out,
            bos=np.array(bos, np.int64), bos_counts=tokens.bos_counts,
        )  # fmt: skip


def load_tokens(folder: Path) -> TokenSet | None:
    """The token set that was kept in a folder; None where there is none. Raises ValueError for a damaged file."""
    try:
        with np.load(folder / KEPT, allow_pickle=False) as arrays:
            bos = arrays["bos"].tolist()
            return TokenSet(
                arrays["ids"], arrays["document"], arrays["start"], [], bos[0] if bos else None, bool(arrays["bos_counts"]),
                left_out=arrays["left_out"],
            )  # fmt: skip
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"{folder / KEPT} is damaged ({type(error).__name__}: {str(error)[:100]}); analyse the study again"
        ) from None


def longest_context(model: LanguageModel) -> int | None:
    """The longest window the model takes, None where it has no limit (recurrent models, ALiBi)."""
    config = model.pretrained.config.get_text_config()
    embeddings = getattr(model.pretrained.base_model, "embeddings", None)
    # RoBERTa's positions begin behind the padding id, so its table is longer than its context.
    unused = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    positions = (getattr(config, "max_position_embeddings", None) or 0) - (0 if unused is None else unused + 1)
    limits = [positions, getattr(model.tokenizer, "model_max_length", None)]
    # Tokenizers write 10^30 for no limit.
    return min((int(limit) for limit in limits if limit and 0 < limit < 10**9), default=None)


def tokenize(
    documents: Iterable[Document],
    model: LanguageModel,
    *,
    n_ctx: int | None = None,
    bos: str = "exclude",
    n_tokens: int | None = None,
    take: str = "random",
    seed: int = 0,
) -> TokenSet:
    """Cut (name, text or ids) documents into windows of n_ctx tokens, each window begun by BOS where there is one.

    n_ctx is the model's longest context unless given, at most 2,048. `bos` says whether activations at BOS count;
    encoders begin with their CLS token instead; models with neither, and models without a tokenizer, have none. Documents
    of ids that begin with BOS do not get a second one.

    With `n_tokens`, windows are taken until they hold that many tokens that count: `random` shuffles all windows of the
    source by `seed` (read whole, memory of twice the choice), `first` stops reading. Both keep the source's order.
    Memory 4 bytes per token kept. Raises ValueError for ids outside the vocabulary, text without a tokenizer, a context
    beyond the model's, and a source without tokens.
    """
    if bos not in ("exclude", "include") or take not in ("random", "first"):
        raise ValueError(f"bos is {bos!r}, take {take!r}; expected 'exclude' or 'include', and 'random' or 'first'")
    if n_tokens is not None and n_tokens < 1:
        raise ValueError(f"n_tokens is {n_tokens}, expected at least 1, or None for all")
    head = _head(model)
    n_ctx = _context(model, n_ctx, head)
    chosen = _ChosenWindows(n_ctx, head if bos == "exclude" else None, n_tokens, take, np.random.default_rng(seed))
    names: list[str] = []
    padding = _PaddingCount(model, head)
    for name, ids in _encoded(map(padding.read, documents), model, head):
        chosen.add(_windows(ids, n_ctx, head), document=len(names), room=n_ctx - (head is not None))
        names.append(name)
        if chosen.enough:
            break
    windows, document, start = chosen.finish()
    if not len(windows):
        raise ValueError(
            f"found no tokens in {len(names)} documents, expected at least one; a held-out part of few documents can be "
            "empty: then name a source of its own for it"
        )
    choice = "all windows"
    if n_tokens and (len(windows) < chosen.seen or chosen.enough):
        used, document = np.unique(document, return_inverse=True)
        names = [names[i] for i in used]
        seen = f"{len(windows):,} of {chosen.seen:,} windows, shuffled with seed {seed}"
        choice = seen if take == "random" else f"the first {len(windows):,} windows"
    return TokenSet(
        windows, document.astype(np.int32), start, names, head, bos == "include", choice, remark=padding.remark
    )


class _PaddingCount:
    """How much of documents of ids is a run of the padding token at either end, which an attention mask would leave out."""

    def __init__(self, model: LanguageModel, head: int | None) -> None:
        pad = getattr(model.tokenizer, "pad_token_id", None)
        self._pad = None if pad in (head, getattr(model.tokenizer, "eos_token_id", None)) else pad
        self._n_tokens = self._n_documents = 0

    def read(self, document: Document) -> Document:
        """The same document, counted."""
        _, ids = document
        if self._pad is not None and isinstance(ids, np.ndarray) and len(ids):
            text = np.flatnonzero(ids != self._pad)
            n = len(ids) - (int(text[-1] - text[0]) + 1 if len(text) else 0)
            self._n_tokens += n
            self._n_documents += n > 0
        return document

    @property
    def remark(self) -> str:
        """What the page says of it; empty where there is none."""
        if not self._n_tokens:
            return ""
        return (
            f"{self._n_tokens:,} tokens at the ends of {self._n_documents:,} documents are the padding token {self._pad} and "
            "were read as text, as no attention_mask is given beside the ids"
        )


def _head(model: LanguageModel) -> int | None:
    head = getattr(model.tokenizer, "bos_token_id", None)
    return getattr(model.tokenizer, "cls_token_id", None) if head is None and not model.causal else head


def _context(model: LanguageModel, n_ctx: int | None, head: int | None) -> int:
    longest = longest_context(model)
    n_ctx = min(longest or LONGEST_UNASKED, LONGEST_UNASKED) if n_ctx is None else n_ctx
    least = 1 + (head is not None)
    if n_ctx < least or (longest and n_ctx > longest):
        raise ValueError(f"n_ctx is {n_ctx}, expected {least} to {longest or 'any number'} for this model")
    return n_ctx


def _encoded(documents: Iterable[Document], model: LanguageModel, head: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """(name, checked ids) of each document, tokenized by the batch."""
    for batch in _batches(iter(documents)):
        texts = [content for _, content in batch if isinstance(content, str)]
        if any(texts) and model.tokenizer is None:
            raise ValueError(f"{model.name} has no tokenizer, expected documents of token ids instead of text")
        encoded: Iterator[list[int]] = iter([])
        if model.tokenizer is not None and texts:
            encoded = iter(model.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        for name, content in batch:
            if isinstance(content, str):
                ids, has_head = np.array(next(encoded, []), dtype=np.int64), False
            else:
                ids, has_head = content, bool(len(content)) and content[0] == head
            _require_known_ids(ids, name, model.vocabulary)
            yield name, ids[1:] if has_head else ids


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Lists of documents, short enough for memory and long enough for the tokenizer's threads."""
    while batch := list(islice(documents, 1)):
        size = len(batch[0][1])
        while len(batch) < BATCH_DOCUMENTS and size < BATCH_CHARACTERS and (following := list(islice(documents, 1))):
            batch += following
            size += len(following[0][1])
        yield batch


def _require_known_ids(ids: np.ndarray, name: str, vocabulary: int) -> None:
    wrong = np.flatnonzero((ids < 0) | (ids >= vocabulary))
    if len(wrong):
        why = "these ids come from another tokenizer"
        if ids[wrong[0]] < 0:
            why = "negative numbers mark padding or labels: leave them out, or give an attention_mask beside the ids"
        raise ValueError(
            f"{name}: token id {ids[wrong[0]]} at position {wrong[0]:,} is outside the model's vocabulary of "
            f"{vocabulary:,} ids (0 to {vocabulary - 1:,}); {why}"
        )


def _windows(ids: np.ndarray, n_ctx: int, head: int | None) -> np.ndarray:
    """(windows, n_ctx) of one document."""
    room = n_ctx - (head is not None)
    windows = np.full((-(-len(ids) // room), n_ctx), PADDING, dtype=np.int32)
    body = np.full(len(windows) * room, PADDING, dtype=np.int32)
    body[: len(ids)] = ids
    windows[:, n_ctx - room :] = body.reshape(-1, room)
    if head is not None:
        windows[:, 0] = head
    return windows


class _ChosenWindows:
    """Windows chosen so far: all, or those that come first in a random (or the source's own) order."""

    def __init__(
        self, n_ctx: int, uncounted: int | None, n_tokens: int | None, take: str, rng: np.random.Generator
    ) -> None:
        self._uncounted, self._n_tokens, self._take, self._rng = uncounted, n_tokens, take, rng
        self._parts: list[tuple[np.ndarray, ...]] = [
            (np.zeros((0, n_ctx), np.int32), *(np.zeros(0, t) for t in (np.int32, np.int32, np.float64, np.int64)))
        ]
        self.seen = 0  # windows of the source
        self._n_counted = 0  # tokens that count among those chosen

    @property
    def enough(self) -> bool:
        """Whether no later window can be chosen."""
        return self._n_tokens is not None and self._take == "first" and self._n_counted >= self._n_tokens

    def add(self, windows: np.ndarray, *, document: int, room: int) -> None:
        """Consider one document's windows."""
        order = np.arange(self.seen, self.seen + len(windows), dtype=np.float64)
        key = order if self._take == "first" else self._rng.random(len(windows))
        size = ((windows != PADDING) & (windows != self._uncounted)).sum(1)
        start = np.arange(len(windows), dtype=np.int32) * room
        self._parts.append((windows, np.full(len(windows), document, np.int32), start, key, size))
        self.seen += len(windows)
        self._n_counted += int(size.sum())
        if self._n_tokens and self._n_counted >= 2 * self._n_tokens + 2**16:
            self._prune(self._n_tokens)

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(windows, document, start) in the source's order."""
        if self._n_tokens:
            self._prune(self._n_tokens)
        windows, document, start, _, _ = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        return windows, document, start

    def _prune(self, n_tokens: int) -> None:
        arrays = [np.concatenate(parts) for parts in zip(*self._parts, strict=True)]
        order = np.argsort(arrays[3], kind="stable")
        n_needed = int(np.searchsorted(np.cumsum(arrays[4][order]), n_tokens)) + 1
        chosen = np.sort(order[:n_needed])
        self._parts = [tuple(array[chosen] for array in arrays)]
        self._n_counted = int(arrays[4][chosen].sum())
