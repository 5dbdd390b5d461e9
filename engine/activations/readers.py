"""Read the documents of one file, text or token ids, by the kind that the file's suffix says."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

Document = tuple[str, str | np.ndarray]  # (name, text or token ids)

PART_BYTES = 2**20  # a longer text file comes in parts, so that memory stays bounded and one file can be split
PART_TOKENS = 2**16
FIELDS = ("text", "input_ids", "tokens")  # looked for in this order where no field is named
MASK = "attention_mask"
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
UNREADABLE = (".zip", ".arrow", ".safetensors", ".pt", ".bin")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
LONGEST_NAME, WORDS = 40, 3  # characters and words of a column's name; what is longer is a text, not a name


class Columns:
    """Which field or column of a source holds its documents: the one named, a usual one, or the only one of strings."""

    def __init__(self, field: str | None = None) -> None:
        self._field = field
        self._former: str | None = None  # of the rows before

    def chosen(self, present: list[str], strings: list[str], place: str) -> str:
        """The column among those present, of which `strings` hold text; raises ValueError where none can be told."""
        column = next((name for name in ([self._field] if self._field else FIELDS) if name in present), None)
        if column is None and not self._field:
            if self._former is None and len(strings) == 1:
                column = strings[0]
            elif self._former in present:
                column = self._former
        if column is None:
            wanted = repr(self._field) if self._field else "any of " + ", ".join(FIELDS)
            raise ValueError(
                f"{place} does not have {wanted}, it has {', '.join(map(str, present)) or 'no field'}; name one with "
                "#field=NAME"
            )
        self._former = column
        return column

    def content(self, entry: dict[str, Any], place: str) -> str | np.ndarray:
        """The text or the token ids of one row; its attention mask, if any, says which of the ids there are."""
        strings = [name for name, value in entry.items() if isinstance(value, str)]
        column = self.chosen(list(entry), strings, place)
        return masked(checked(entry[column], repr(column), place), entry.get(MASK), place)


def read_file(path: Path, field: str | None = None) -> Iterator[Document]:
    """Stream the documents of a file; `field` names the field or column of those kinds that have any."""
    kind = path.suffix.lower()
    if kind in COMPRESSED:
        inner = Path(path.stem).suffix.lower()
        if inner in (".parquet", ".npy", ".npz", *UNREADABLE):
            raise ValueError(f"{path} is {inner}{kind}, which is read from anywhere within; unpack it")
        return _unpacked(path, lambda: _by_kind(path, inner, field))
    return _by_kind(path, kind, field)


def _by_kind(path: Path, kind: str, field: str | None) -> Iterator[Document]:
    match kind:
        case ".jsonl" | ".ndjson":
            return _json_lines(path, field)
        case ".json":
            return _json(path, field)
        case ".csv" | ".tsv":
            return _table(path, kind, field)
        case ".parquet":
            return _parquet(path, field)
        case ".npy":
            return _array(path)
        case ".npz":
            return _archive(path, field)
    if kind in UNREADABLE:
        raise ValueError(f"{path} is {kind}, expected text, .jsonl, .parquet or .npy; unpack or convert it")
    return _text(path)


def _unpacked(path: Path, read: Callable[[], Iterator[Document]]) -> Iterator[Document]:
    try:
        yield from read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); copy or compress it again") from error


def _open(path: Path) -> io.BufferedReader:
    """A file's bytes, unpacked where it is compressed."""
    match path.suffix.lower():
        case ".gz":
            opened: Any = gzip.open(path, "rb")  # noqa: SIM115 - the caller closes it
        case ".bz2":
            opened = bz2.open(path, "rb")  # noqa: SIM115 - the caller closes it
        case ".xz":
            opened = lzma.open(path, "rb")  # noqa: SIM115 - the caller closes it
        case ".zst":
            import pyarrow as pa

            opened = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
        case _:
            return open(path, "rb")
    return io.BufferedReader(opened, 2**16)


def _text(path: Path) -> Iterator[Document]:
    offset, part = 0, 0
    with _open(path) as file:
        while raw := file.read(PART_BYTES):
            is_whole = not part and not file.peek(1)
            raw += file.readline(PART_BYTES)
            for _ in range(3):  # a line longer than a part must not be cut within a character
                following = file.peek(1)[:1]
                raw += file.read(1) if following and 0x80 <= following[0] < 0xC0 else b""
            yield str(path) if is_whole else f"{path}#{part}", decoded(raw, path, offset)
            offset, part = offset + len(raw), part + 1


def decoded(raw: bytes, path: Path, offset: int) -> str:
    """Bytes of a text file that stand at an offset; raises ValueError for anything but UTF-8 and for binary files."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        is_utf_16 = offset == 0 and raw.startswith(UTF_16)
        kind = "is UTF-16, expected UTF-8" if is_utf_16 else "is not UTF-8"
        raise ValueError(
            f"{path} {kind}: byte 0x{error.object[error.start]:02x} at offset {offset + error.start:,} cannot be "
            f"decoded; convert the file (iconv {'-f UTF-16 ' if is_utf_16 else ''}-t UTF-8) or drop the bytes"
        ) from None
    if (place := raw.find(b"\0")) >= 0:
        raise ValueError(
            f"{path} holds a NUL byte at offset {offset + place:,}: it is binary or UTF-16, expected text in UTF-8; convert "
            "it (iconv -f UTF-16 -t UTF-8) or leave it out"
        )
    return text.removeprefix("\ufeff") if offset == 0 else text


def _lines(path: Path) -> Iterator[str]:
    offset = 0
    with _open(path) as file:
        for raw in file:
            yield decoded(raw, path, offset)
            offset += len(raw)


def _json_lines(path: Path, field: str | None) -> Iterator[Document]:
    columns = Columns(field)
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place} is not JSON ({error}), expected one object per line") from None
        yield place, _entry_content(entry, columns, place)


def _entry_content(entry: Any, columns: Columns, place: str) -> str | np.ndarray:
    """The document of an object, a string or a list of token ids."""
    if isinstance(entry, dict):
        return columns.content(entry, place)
    if isinstance(entry, str) or (isinstance(entry, list) and entry and _all_integers(entry)):
        return checked(entry, "it", place)
    raise ValueError(f"{place} holds a {type(entry).__name__}, expected an object with a field of text")


def _json(path: Path, field: str | None) -> Iterator[Document]:
    """JSON Lines, or one JSON value that is read whole: a list of documents, or an object that holds them in a field."""
    lines = (line for line in _lines(path) if line.strip())
    first, second = next(lines, None), next(lines, None)
    if first is None:
        return
    try:
        json.loads(first)
        is_lines = second is not None
    except json.JSONDecodeError:
        is_lines = False
    if is_lines:
        lines.close()
        yield from _json_lines(path, field)
        return
    text = "".join(chain([first, second or ""], lines))
    way_out = f"save it as .jsonl with one object per line, or as .txt to have it read with its syntax, {path.stem}.txt"
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}), expected a list or one object per line; {way_out}") from None
    if isinstance(value, dict):
        column = next((name for name in ([field] if field else FIELDS) if name in value), None)
        if column is None:
            wanted = repr(field) if field else "any of " + ", ".join(FIELDS)
            raise ValueError(
                f"{path} holds one object without {wanted}, it has {', '.join(value) or 'no field'}; name one with "
                f"#field=NAME, or {way_out}"
            )
        masks, value = value.get(MASK), value[column]
        if isinstance(value, str) or (isinstance(value, list) and value and _all_integers(value)):
            yield str(path), masked(checked(value, repr(column), str(path)), masks, str(path))
            return
        value, masks = _column_values(value), _column_values(masks)
        if isinstance(value, list) and masks is not None:
            if not isinstance(masks, list) or len(masks) != len(value):
                raise ValueError(
                    f"{path} does not hold one {MASK} for each of its {len(value):,} entries of {column!r}"
                )
            value = [{column: ids, MASK: mask} for ids, mask in zip(value, masks, strict=True)]
            field = column
    if not isinstance(value, list):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a list of documents; {way_out}")
    columns = Columns(field)
    for i, entry in enumerate([value] if value and _all_integers(value) else value):
        yield f"{path}[{i}]", _entry_content(entry, columns, f"{path}[{i}]")


def _column_values(column: Any) -> Any:
    """A column as a list; pandas writes {row: value}."""
    return list(column.values()) if isinstance(column, dict) else column


def _all_integers(values: list[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def _table(path: Path, kind: str, field: str | None) -> Iterator[Document]:
    """Rows of a table with a line of names; the only column of strings is taken where none has a usual name."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = _lines(path)
    header = next(lines, "")
    delimiter = "\t" if kind == ".tsv" else next((c for c in ",;\t" if c in header), ",")
    rows = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    try:
        names = next(rows, [])
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{path} has two columns named {twice!r}, expected each name once")
        columns: Columns | None = None
        for row in rows:
            place = f"{path}:{rows.line_num}"
            if not row:
                continue
            if len(row) != len(names):
                raise ValueError(
                    f"{place} has {len(row)} fields, expected {len(names)} ({', '.join(names)}); texts that hold a "
                    f"{delimiter!r} or a line break stand in quotation marks"
                )
            entry = dict(zip(names, row, strict=True))
            if columns is None:
                columns = Columns(field or _table_column(entry, str(path)))
            column = columns.chosen(names, [], str(path))
            yield place, _cell(entry[column], column, place)
    except csv.Error as error:
        raise ValueError(
            f"{path}:{rows.line_num} is no row of a table ({error}); write it again with a csv writer"
        ) from None


def _table_column(first: dict[str, str], place: str) -> str | None:
    """The only column of strings; None where a column has a usual name, or there are several."""
    if any(name in first for name in FIELDS):
        return None
    unnamed = [name for name in first if len(name) > LONGEST_NAME or len(name.split()) > WORDS or _is_number(name)]
    if unnamed:
        raise ValueError(
            f"{place} begins with {unnamed[0][:LONGEST_NAME]!r} where a column's name is expected; write a line of names, such "
            "as text, in front"
        )
    strings = [name for name, value in first.items() if not _is_number(value)]
    return strings[0] if len(strings) == 1 else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cell(value: str, column: str, place: str) -> str | np.ndarray:
    """Text, or token ids that stand in a cell as a list."""
    if column not in FIELDS[1:]:
        return value
    try:
        ids = json.loads(value)
    except json.JSONDecodeError:
        ids = value
    if isinstance(ids, str | int):
        raise ValueError(f"{place}: {column!r} holds {value[:20]!r}, expected a list of token ids such as [5, 6]")
    return checked(ids, repr(column), place)


def _parquet(path: Path, field: str | None) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            schema = file.schema_arrow
            strings = [
                each.name for each in schema if pa.types.is_string(each.type) or pa.types.is_large_string(each.type)
            ]
            column = Columns(field).chosen(schema.names, strings, str(path))
            row = 0
            wanted = [column, MASK] if MASK in schema.names and column != MASK else [column]
            for batch in file.iter_batches(64, columns=wanted):
                for entry in batch.select(wanted).to_pylist():
                    place = f"{path}:{row}"
                    yield place, masked(checked(entry[column], repr(column), place), entry.get(MASK), place)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}); copy or write it again") from error


def _array(path: Path) -> Iterator[Document]:
    if MASK in path.stem:
        raise ValueError(
            f"{path} is an {MASK} by its name, expected token ids; name their file, it is read beside them"
        )
    ids, beside = _integers(path), mask_beside(path)
    yield from _rows(ids, None if beside is None else np.load(beside, mmap_mode="r", allow_pickle=False), path)


def mask_beside(path: Path) -> Path | None:
    """The attention mask of a file of token ids: `x_attention_mask.npy` for `x.npy`, or with it in place of `input_ids`."""
    names = [f"{path.stem}{mark}{MASK}.npy" for mark in "_-."]
    if "input_ids" in path.stem:
        names.append(f"{path.stem.replace('input_ids', MASK)}.npy")
    elif path.stem in FIELDS:
        names.append(f"{MASK}.npy")
    return next((mask for name in names if (mask := path.with_name(name)).is_file()), None)


def _archive(path: Path, field: str | None) -> Iterator[Document]:
    """Arrays of token ids, and their attention mask where there is one, in one file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            column = Columns(field).chosen(arrays.files, [], str(path))
            ids, mask = arrays[column], arrays[MASK] if MASK in arrays.files else None
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as arrays ({error}); write it again with numpy.savez") from error
    yield from _rows(_require_integers(ids, path), mask, path)


def _rows(ids: np.ndarray, mask: np.ndarray | None, path: Path) -> Iterator[Document]:
    """Documents of a table of token ids, a row each, or of a long row, in parts."""
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"{path} holds ids of shape {ids.shape} and the {MASK} beside it {mask.shape}, expected the same"
        )
    long = ids.ndim == 1
    for start in range(0, len(ids), PART_TOKENS if long else 1):
        at = slice(start, min(start + PART_TOKENS, len(ids))) if long else start
        name = f"{path}[{start}:{at.stop}]" if isinstance(at, slice) else f"{path}[{start}]"
        yield name, masked(np.array(ids[at]), None if mask is None else mask[at], name)


def _integers(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an array ({error}); write it again with numpy.save") from error
    return _require_integers(array, path)


def _require_integers(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        way_out = (
            "; recorded activations are given with --activations" if array.dtype.kind == "f" and array.ndim > 1 else ""
        )
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected integers in 1 or 2 dimensions{way_out}"
        )
    return array


def checked(value: object, column: str, place: str) -> str | np.ndarray:
    """A document's text or token ids; nothing is an empty document; raises ValueError for anything else."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        try:
            ids = np.asarray(value) if len(value) else np.zeros(0, np.int64)
        except (ValueError, OverflowError):  # lists of several lengths
            ids = np.zeros((0, 0))
        if ids.ndim == 1 and ids.dtype.kind in "iu":
            return ids
        if ids.ndim == 1 and ids.dtype.kind == "f":
            raise ValueError(
                f"{place}: {column} holds a list of {ids.dtype} ({ids[0]} first), expected integer token ids"
            )
    raise ValueError(f"{place}: {column} holds a {type(value).__name__}, expected text or a list of token ids")


def masked(content: str | np.ndarray, mask: object, place: str) -> str | np.ndarray:
    """The ids for which the attention mask holds 1, which stand together; text is left as it is."""
    if mask is None or isinstance(content, str):
        return content
    try:
        flags = np.asarray(mask).astype(np.float64)
    except (ValueError, TypeError):
        flags = np.zeros((0, 0))
    if flags.shape != content.shape or not np.isin(flags, (0, 1)).all():
        raise ValueError(f"{place}: {MASK} does not hold 0 or 1 for each of the {len(content):,} token ids beside it")
    ones = np.flatnonzero(flags)
    if len(ones) and len(ones) != ones[-1] - ones[0] + 1:
        hole = ones[np.flatnonzero(np.diff(ones) > 1)[0]] + 1
        raise ValueError(
            f"{place}: {MASK} is 0 at position {hole:,} between tokens, expected padding in front or behind; split the "
            "document there"
        )
    return content[ones]
