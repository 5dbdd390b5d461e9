"""Read documents, text or token ids, from files of several kinds or from a Hugging Face data set, as a stream."""

import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

Document = tuple[str, str | np.ndarray]  # (name, text or token ids)

PART_BYTES = 2**20  # a longer text file comes in parts, so that memory stays bounded and one file can be split
PART_TOKENS = 2**16
FIELDS = ("text", "input_ids", "tokens")  # looked for in this order where no field is named
HELD_OUT_EVERY = 10
OPTIONS = re.compile(r"^(?P<source>.+?)#(?P<options>(field|config)=[^&#]+(&(field|config)=[^&#]+)*)$")


def documents(source: str | Path | Iterable[str | Path], *, field: str | None = None) -> Iterator[Document]:
    """Stream the documents of a source, or of several one after another, in bounded memory.

    A source is a file or a glob of files (in sorted order), each of the kind its suffix says, or a data set:
    - `.jsonl`, `.ndjson`: one JSON object per line; its field is text or a list of token ids.
    - `.parquet`: a column of text or of lists of token ids; missing values are empty documents.
    - `.npy`: integers; each row of a 2-d array is a document, a 1-d array comes in parts of 65,536 tokens.
    - anything else is UTF-8 text, one document; files beyond 1 MiB come in parts cut at line ends.
    - `hf:NAME[:split]` streams from the Hugging Face hub (split `train` unless given; needs `seedscope[hub]`).

    `#field=NAME` behind the source, or `field`, names the field or column; without it `text`, then `input_ids`, then
    `tokens` is taken. `#config=NAME` names a data set's configuration. Raises ValueError, at once, where
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
    path = Path(source).expanduser()
    if path.is_dir():
        raise ValueError(f"{source} is a folder, expected files; name them with a glob such as {path}/*.txt")
    paths = [str(path)] if path.exists() else glob.glob(str(path), recursive=True)  # a name first, a pattern second
    files = sorted(Path(file) for file in paths if Path(file).is_file())
    if not files:
        raise ValueError(
            f"found no file at {source!r}, expected a file, a glob such as 'corpus/*.txt' or hf:NAME[:split]"
        )
    return chain.from_iterable(_file_documents(file, field) for file in files)


def _file_documents(path: Path, field: str | None) -> Iterator[Document]:
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _json_lines(path, field)
        case ".parquet":
            return _parquet(path, field)
        case ".npy":
            return _array(path)
        case ".gz" | ".zst" | ".zip" | ".bz2" | ".xz" | ".arrow" | ".safetensors" | ".npz" | ".pt" | ".bin":
            raise ValueError(f"{path} is {path.suffix}, expected text, .jsonl, .parquet or .npy; unpack or convert it")
    return _text(path)


def _text(path: Path) -> Iterator[Document]:
    size, offset, part = path.stat().st_size, 0, 0
    with open(path, "rb") as file:
        while raw := file.read(PART_BYTES):
            raw += file.readline(PART_BYTES)
            for _ in range(3):  # a line longer than a part must not be cut within a character
                following = file.peek(1)[:1]
                raw += file.read(1) if following and 0x80 <= following[0] < 0xC0 else b""
            name = str(path) if size <= PART_BYTES else f"{path}#{part}"
            yield name, _decoded(raw, path, offset)
            offset, part = offset + len(raw), part + 1


def _decoded(raw: bytes, path: Path, offset: int) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset + error.start:,} cannot be "
            "decoded; convert the file (iconv -t UTF-8) or drop the bytes"
        ) from None
    return text.removeprefix("\ufeff") if offset == 0 else text


def _json_lines(path: Path, field: str | None) -> Iterator[Document]:
    offset = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            place = f"{path}:{number}"
            line = _decoded(raw, path, offset)
            offset += len(raw)
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{place} is not JSON ({error}), expected one object per line") from None
            if not isinstance(entry, dict):
                raise ValueError(f"{place} holds a {type(entry).__name__}, expected an object with a field of text")
            yield place, _content(entry, field, place)


def _parquet(path: Path, field: str | None) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            column = _chosen(file.schema_arrow.names, field, str(path))
            row = 0
            for batch in file.iter_batches(64, columns=[column]):
                for value in batch.column(0):
                    yield f"{path}:{row}", _checked(value.as_py(), column, f"{path}:{row}")
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}); copy or write it again") from error


def _array(path: Path) -> Iterator[Document]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an array ({error}); write it again with numpy.save") from error
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise ValueError(f"{path} holds {array.dtype} of shape {array.shape}, expected integers in 1 or 2 dimensions")
    if array.ndim == 2:
        for row in range(len(array)):
            yield f"{path}[{row}]", np.array(array[row])
    else:
        for start in range(0, len(array), PART_TOKENS):
            chunk = np.array(array[start : start + PART_TOKENS])
            yield f"{path}[{start}:{start + len(chunk)}]", chunk


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
    try:
        stream = load_dataset(name, config, split=part, streaming=True)
        for row, entry in enumerate(stream):
            place = f"hf:{name}:{part}:{row}"
            yield place, _content(entry, field, place)
    except OSError as error:  # no network, no such data set
        raise ValueError(f"data set {name!r}, split {part!r}, cannot be read: {error}") from error


def _content(entry: dict, field: str | None, place: str) -> str | np.ndarray:
    column = _chosen(list(entry), field, place)
    return _checked(entry[column], column, place)


def _chosen(present: list[str], field: str | None, place: str) -> str:
    column = next((name for name in ([field] if field else FIELDS) if name in present), None)
    if column is None:
        wanted = repr(field) if field else "any of " + ", ".join(FIELDS)
        raise ValueError(
            f"{place} does not have {wanted}, it has {', '.join(map(str, present)) or 'no field'}; name one with #field=NAME"
        )
    return column


def _checked(value: object, column: str, place: str) -> str | np.ndarray:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        ids = np.asarray(value) if len(value) else np.zeros(0, np.int64)
        if ids.ndim == 1 and ids.dtype.kind in "iu":
            return ids
    raise ValueError(f"{place}: {column!r} holds a {type(value).__name__}, expected text or a list of token ids")
