"""Read documents, text or token ids, from files of several kinds or from a Hugging Face data set, as a stream."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from seedscope.engine.activations.readers import MASK, Columns, Document, mask_beside, read_file
from seedscope.engine.contract.patterns import matches
from seedscope.engine.contract.urls import on_this_machine, url_in
from seedscope.engine.urls.cache import fetch_matching, with_urls

__all__ = ["OPTIONS", "Document", "documents", "is_held_out", "split"]

HELD_OUT_EVERY = 10
OPTIONS = re.compile(r"^(?P<source>.+?)#(?P<options>(field|config)=[^&#]+(&(field|config)=[^&#]+)*)$")


def documents(source: str | Path | Iterable[str | Path], *, field: str | None = None) -> Iterator[Document]:
    """Stream the documents of a source, or of several one after another, in bounded memory.

    A source is a file or a glob of files (in sorted order), each of the kind its suffix says, or a data set:
    - `.jsonl`, `.ndjson`: one JSON object per line; its field is text or a list of token ids. A line may also be a string.
    - `.json`: the same, or a list of such entries, read whole.
    - `.csv`, `.tsv`: a table with a line of names and a column of text.
    - `.parquet`: a column of text or of lists of token ids; missing values are empty documents.
    - `.npy`: integers; each row of a 2-d array is a document, a 1-d array comes in parts of 65,536 tokens.
    - `.npz`: the same under `input_ids` or `tokens`, with an `attention_mask` where there is one; for `x.npy` it stands in
      `x_attention_mask.npy`.
    - anything else is UTF-8 text, one document; files beyond 1 MiB come in parts cut at line ends.
    - `.gz`, `.zst`, `.bz2` or `.xz` behind any of these but `.parquet` and `.npy`.
    - `hf:NAME[:split]` streams from the Hugging Face hub (split `train` unless given; needs `seedscope[hub]`).
    - `s3://BUCKET/..` or another URL of a file or pattern: the files are fetched (engine.urls), and then read as above.

    `#field=NAME` behind the source, or `field`, names the field or column; without it `text`, then `input_ids`, then
    `tokens` is taken, then the only one of strings. Of ids with an `attention_mask` beside them only those are read for which
    it is 1. `#config=NAME` names a data set's configuration. Raises ValueError, at once, where
    a source matches no file; while streaming, with file and place, where something cannot be read; at the end where
    there was no document.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    if not sources:
        raise ValueError("no token source was given, expected at least one file, glob or hf:NAME")
    return _require_documents(chain.from_iterable([_source_documents(str(each), field) for each in sources]), sources)


def split(stream: Iterable[Document], part: str, *, every: int = HELD_OUT_EVERY) -> Iterator[Document]:
    """Only the documents of one part: `held-out` (about one in `every`) or `train` (all others).

    The content alone decides, by SHA-256: the same on every machine, in every order, under every name, and copies of a
    document are always on the same side, so that the two parts share none.
    """
    if part not in ("train", "held-out"):
        raise ValueError(f"part is {part!r}, expected 'train' or 'held-out'")
    for name, content in stream:
        if is_held_out(content, every=every) == (part == "held-out"):
            yield name, content


def is_held_out(content: str | np.ndarray, *, every: int = HELD_OUT_EVERY) -> bool:
    """Assign a document to the held-out part by its content alone."""
    raw = content.encode() if isinstance(content, str) else np.asarray(content, dtype="<i8").tobytes()
    return int.from_bytes(hashlib.sha256(raw).digest(), "big") % every == 0


def _require_documents(stream: Iterator[Document], sources: list[str | Path]) -> Iterator[Document]:
    """The stream; raises ValueError at its end where it was empty."""
    is_empty = True
    for document in stream:
        is_empty = False
        yield document
    if is_empty:
        raise ValueError(f"found no document in {', '.join(map(str, sources))}, expected at least one")


def _source_documents(source: str, field: str | None) -> Iterator[Document]:
    """The documents of one source, options behind `#` included."""
    options = OPTIONS.match(source)
    config = None
    if options:
        values = dict(option.split("=", 1) for option in options["options"].split("&"))
        source, field, config = options["source"], values.get("field", field), values.get("config")
    if source.startswith("hf:"):
        return _data_set(source, field, config)
    if url := url_in(source):
        return _fetched_documents(fetch_matching(url, beside_suffix=".npy", is_wanted=_is_mask), field)
    path = Path(on_this_machine(source)).expanduser()
    if path.is_dir():
        raise ValueError(f"{source} is a folder, expected files; name them with a glob such as {path}/*.txt")
    files = sorted(Path(file) for file in matches(path) if Path(file).is_file())
    if not files:
        raise ValueError(
            f"found no file at {source!r}, expected a file, a glob such as 'corpus/*.txt' or hf:NAME[:split]"
        )
    return _documents_in(files, field)


def _documents_in(files: list[Path], field: str | None) -> Iterator[Document]:
    masks = {mask_beside(file) for file in files if file.suffix.lower() == ".npy"}
    return chain.from_iterable(read_file(file, field) for file in files if file not in masks)


def _is_mask(name: str) -> bool:
    """Whether a file may be the attention mask of token ids beside it."""
    return name.endswith(".npy") and MASK in name


def _fetched_documents(files: list[Path], field: str | None) -> Iterator[Document]:
    """Documents of fetched files, by their URLs."""
    try:
        for name, content in _documents_in(files, field):
            yield with_urls(name), content
    except ValueError as error:
        raise ValueError(with_urls(str(error))) from None


def _data_set(source: str, field: str | None, config: str | None) -> Iterator[Document]:
    name, _, part = source.removeprefix("hf:").partition(":")
    if not name:
        raise ValueError(f"{source!r} names no data set, expected hf:NAME or hf:NAME:split")
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{source!r} needs the datasets library; install it with: pip install 'seedscope[hub]'"
        ) from None
    return _data_set_rows(datasets.load_dataset, name, part or "train", field, config)


def _data_set_rows(
    load_dataset: Callable[..., Iterable[dict]], name: str, part: str, field: str | None, config: str | None
) -> Iterator[Document]:
    columns = Columns(field)
    try:
        stream = load_dataset(name, config, split=part, streaming=True)
        for row, entry in enumerate(stream):
            place = f"hf:{name}:{part}:{row}"
            yield place, columns.content(entry, place)
    except OSError as error:  # no network, no such data set
        raise ValueError(f"data set {name!r}, split {part!r}, cannot be read: {error}") from error
