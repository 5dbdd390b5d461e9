"""Files of text as data sets publish them give their documents, or say what they hold and what would help."""

import bz2
import csv
import gzip
import json
import lzma
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedscope.engine.activations.documents import documents
from seedscope.engine.activations.tokens import tokenize
from support.tiny_models import tiny

TEXTS = ["the cat", 'a "mat", and;\na hill', "the dog", ""]
OBJECTS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]


def contents(source) -> list:
    return [content if isinstance(content, str) else content.tolist() for _, content in documents(source)]


def table(name: str, rows: list, delimiter: str = ",") -> bytes:
    with open(name, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    with open(name, "rb") as file:
        return file.read()


def lines(entries: list) -> bytes:
    return "\n".join(map(json.dumps, entries)).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.json", lines(OBJECTS)),
        ("list.json", json.dumps(OBJECTS).encode()),
        ("indented.json", json.dumps(OBJECTS, indent=2).encode()),
        ("strings.json", json.dumps(TEXTS).encode()),
        ("strings.jsonl", lines(TEXTS)),
        ("columns.json", json.dumps({"id": [0, 1, 2, 3], "text": TEXTS}).encode()),
        ("pandas.json", json.dumps({"text": dict(enumerate(TEXTS))}, indent=1).encode()),
        ("other.jsonl", lines([{"id": i, "body": text} for i, text in enumerate(TEXTS)])),
    ],
)
def test_json_gives_its_documents_as_lines_as_a_list_and_as_columns(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert contents(tmp_path / name) == TEXTS
    for suffix, module in ((".gz", gzip), (".bz2", bz2), (".xz", lzma)):
        (tmp_path / f"{name}{suffix}").write_bytes(module.compress(content))
        assert contents(tmp_path / f"{name}{suffix}") == TEXTS


def test_zstandard_is_unpacked_and_what_is_cut_is_refused(tmp_path):
    content = lines(OBJECTS * 1000)
    packed = pa.Codec("zstd").compress(content, asbytes=True)
    (tmp_path / "x.jsonl.zst").write_bytes(packed)
    assert contents(tmp_path / "x.jsonl.zst") == TEXTS * 1000
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(content)[:-20])
    (tmp_path / "plain.txt.gz").write_bytes(content)
    (tmp_path / "x.parquet.gz").write_bytes(content)
    for name, says in (
        ("x.txt.gz", "cannot be unpacked"),
        ("plain.txt.gz", "cannot be unpacked"),
        ("x.parquet.gz", "unpack it"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{says}"):
            contents(tmp_path / name)


@pytest.mark.parametrize("column", ["text", "body"])
@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_tables_give_the_column_of_text_or_the_only_one_of_strings(tmp_path, suffix, delimiter, column):
    path = tmp_path / f"x{suffix}"
    table(path, [["", "id", column], *([i, i, text] for i, text in enumerate(TEXTS))], delimiter)
    assert contents(path) == TEXTS
    assert contents(f"{path}#field=id") == ["0", "1", "2", "3"]


def test_a_table_can_hold_token_ids(tmp_path):
    table(tmp_path / "x.csv", [["input_ids"], ["[5, 6]"], ["[7]"]])
    assert contents(tmp_path / "x.csv") == [[5, 6], [7]]


def test_parquet_without_a_usual_name_gives_its_only_column_of_strings(tmp_path):
    pq.write_table(pa.table({"id": [1, 2], "body": ["a", None]}), tmp_path / "x.parquet")
    assert contents(tmp_path / "x.parquet") == ["a", ""]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.json", b'{"model": "a", "url": "b"}', "x.json holds one object without any of text, .* it has model, url; name"),
        ("x.json", b'[{"a": "x", "b": "y"}]', r"x.json\[0\] does not have any of text, .* it has a, b; name one with #field"),
        ("x.json", b"{\n", "x.json is not JSON .* save it as .jsonl .* or as .txt"),
        ("x.json", b"3", "x.json holds a int, expected a list"),
        ("x.jsonl", b'{"a": "x", "b": "y"}', "x.jsonl:1 does not have any of text"),
        ("x.jsonl", b'{"text": "x"}\n{"b": "y"}', "x.jsonl:2 does not have any of text"),
        ("x.csv", b"a,b\nx,y\n", "x.csv does not have any of text, input_ids, tokens, it has a, b; name one with #field"),
        ("x.csv", b"text\nx,y\n", "x.csv:2 has 2 fields, expected 1 .text.; texts that hold a ',' .* quotation marks"),
        ("x.csv", b"the cat sat on a mat\nthe dog\n", "x.csv begins with 'the cat .* a column's name is expected"),
        ("x.csv", b"0,the cat\n1,the dog\n", "x.csv begins with '0' where a column's name is expected"),
        ("x.csv", b"text,text\na,b\n", "x.csv has two columns named 'text'"),
        ("x.csv", b'text\n"a\n', "x.csv:2 is no row of a table"),
        ("x.csv", b"input_ids\n5 6\n", "x.csv:2: 'input_ids' holds '5 6', expected a list of token ids"),
        ("x.jsonl", b'{"tokens": [5, 6.5]}', "x.jsonl:1: 'tokens' holds a list of float64 .5.0 first., expected integer"),
        ("x.jsonl", b'{"tokens": [[5], [6, 7]]}', "x.jsonl:1: 'tokens' holds a list, expected text or a list of token ids"),
        ("x.txt", "the cat".encode("utf-16"), "x.txt is UTF-16, expected UTF-8: byte 0xff at offset 0 .*iconv -f UTF-16"),
        ("x.txt", "the cat".encode("utf-16-le"), "x.txt holds a NUL byte at offset 1: it is binary or UTF-16"),
        ("x.csv", b"text\na\0b\n", "x.csv holds a NUL byte at offset 6"),
        ("x.md", b"abc\n" * 600_000 + b"\0", "x.md holds a NUL byte at offset 2,400,000"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_as_documents_is_refused_with_its_place_and_the_way_out(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        contents(tmp_path / name)


def test_sources_of_programs_and_markdown_are_text_as_they_are(tmp_path):
    for name in ("a.md", "b.py", "c.html", "d"):
        (tmp_path / name).write_text('{"text": "x"}\n')
        assert contents(tmp_path / name) == ['{"text": "x"}\n']


PADDED = {
    "input_ids": [[5, 6, 1, 1], [1, 1, 1, 7], [1, 1, 1, 1]],
    "attention_mask": [[1, 1, 0, 0], [0, 0, 1, 1], [0] * 4],
}
KEPT = [[5, 6], [1, 7], []]  # a padding token for which the mask is 1 is a token


def padded_rows() -> list[dict]:
    return [dict(zip(PADDED, row, strict=True)) for row in zip(*PADDED.values(), strict=True)]


def padded(folder, kind: str):
    path = folder / f"x{kind}"
    arrays = {name: np.array(values) for name, values in PADDED.items()}
    match kind:
        case ".jsonl":
            path.write_bytes(lines(padded_rows()))
        case ".json":
            path.write_text(json.dumps(PADDED))
        case ".parquet":
            pq.write_table(pa.table(PADDED), path)
        case ".npz":
            np.savez(path, **arrays)
        case ".npy":
            np.save(path, arrays["input_ids"])
            np.save(folder / "x_attention_mask.npy", arrays["attention_mask"].astype(bool))
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".npz", ".npy"])
def test_the_attention_mask_says_which_ids_there_are_on_either_side(tmp_path, kind):
    assert contents(padded(tmp_path, kind)) == KEPT
    assert contents(f"{tmp_path}/*{kind}") == KEPT  # a mask in a file of its own is no document


def test_the_attention_mask_of_a_data_set_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: iter(padded_rows())))
    assert contents("hf:a/b") == KEPT


def test_masks_that_do_not_fit_their_ids_are_refused(tmp_path):
    np.save(tmp_path / "input_ids.npy", np.zeros((2, 3), int))
    np.save(tmp_path / "attention_mask.npy", np.zeros((2, 4), int))
    with pytest.raises(
        ValueError, match=r"input_ids.npy holds ids of shape \(2, 3\) and the attention_mask beside it \(2, 4\)"
    ):
        contents(tmp_path / "input_ids.npy")
    with pytest.raises(ValueError, match="is an attention_mask by its name, expected token ids"):
        contents(tmp_path / "attention_mask.npy")
    misfit = "does not hold 0 or 1 for each of the 3 token ids"
    for mask, says in (([1, 1], misfit), ([1, 2, 0], misfit), ([1, 0, 1], "is 0 at position 1 between tokens")):
        (tmp_path / "x.jsonl").write_bytes(lines([{"input_ids": [5, 6, 7], "attention_mask": mask}]))
        with pytest.raises(ValueError, match=f"x.jsonl:1: attention_mask {says}"):
            contents(tmp_path / "x.jsonl")


def test_the_model_reads_padded_ids_as_it_reads_them_without_padding(tmp_path):
    model = tiny("llama")
    (tmp_path / "x.jsonl").write_bytes(
        lines(
            [
                {"input_ids": [1, 1, 0, 5, 6], "attention_mask": [0, 0, 1, 1, 1]},  # left, in front of a BOS
                {"input_ids": [7, 8, 9, 1, 1], "attention_mask": [1, 1, 1, 0, 0]},
            ]
        )
    )
    tokens = tokenize(documents(tmp_path / "x.jsonl"), model, n_ctx=8)
    bare = tokenize([("a", np.array([0, 5, 6])), ("b", np.array([7, 8, 9]))], model, n_ctx=8)
    assert tokens.digest == bare.digest
    assert tokens.policy == bare.policy == "BOS and padding excluded"


def test_padding_without_a_mask_gets_a_remark():
    model = tiny("llama")
    stream = [("a", np.array([1, 1, 5, 1, 6])), ("b", np.array([5, 1])), ("c", np.array([5])), ("d", "w5 <pad>")]
    assert tokenize(stream, model, n_ctx=8).policy == (
        "BOS and padding excluded; 3 tokens at the ends of 2 documents are the padding token 1 and were read as text, as no "
        "attention_mask is given beside the ids"
    )
    model.tokenizer.eos_token = "<pad>"  # then a run of it may be ends of texts
    assert tokenize(stream, model, n_ctx=8).policy == "BOS and padding excluded"


def test_negative_ids_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"x: token id -100 at position 1 .* negative numbers mark padding or labels"):
        tokenize([("x", np.array([5, -100]))], tiny("llama"))
