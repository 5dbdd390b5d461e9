"""Sources that stream and say where they are broken; windows that are the documents; seeded choices; disjoint splits."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedscope.engine.activations import readers
from seedscope.engine.activations.documents import documents, split
from seedscope.engine.activations.tokens import PADDING, longest_context, tokenize
from support.tiny_models import CONTEXT, VOCABULARY, tiny

TEXTS = ["w2 w3 w4", "", "w5", "w6 " * 40]


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


def same(found, expected) -> None:
    found = list(found)
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, one), (_, other) in zip(found, expected, strict=True):
        assert isinstance(one, type(other))
        np.testing.assert_array_equal(one, other)


# -- sources -----------------------------------------------------------------------------------------------------


def test_text_files_by_glob_come_in_sorted_order_whole_and_unchanged(tmp_path):
    for name, text in (("b.txt", "zwei\r\nw3\n"), ("a.txt", "\ufeffé ☃"), ("c.md", "no")):
        (tmp_path / name).write_bytes(text.encode())
    same(
        documents(f"{tmp_path}/*.txt"),
        [(f"{tmp_path}/a.txt", "é ☃"), (f"{tmp_path}/b.txt", "zwei\r\nw3\n")],
    )
    same(
        documents([tmp_path / "c.md", f"{tmp_path}/a.txt"]), [(f"{tmp_path}/c.md", "no"), (f"{tmp_path}/a.txt", "é ☃")]
    )


@given(st.text(alphabet="a☃é\n😀", max_size=60), st.integers(1, 7))
@settings(deadline=None, max_examples=40)
def test_the_parts_of_a_long_text_put_together_are_the_text(tmp_path_factory, text, part_bytes):
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PART_BYTES", part_bytes)
        parts = list(documents(path)) if text else []
    assert "".join(content for _, content in parts) == text
    assert len({name for name, _ in parts}) == len(parts)
    assert all(len(content.encode()) <= 2 * part_bytes + 3 for _, content in parts)


def test_bytes_that_are_not_utf8_are_refused_with_file_and_offset(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"abc\n" * 600_000 + b"d\xff")
    with pytest.raises(ValueError, match=r"bad\.txt is not UTF-8: byte 0xff at offset 2,400,001 "):
        list(documents(tmp_path / "bad.txt"))
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl is not UTF-8: byte 0xe9 at offset 24 "):
        list(documents(tmp_path / "bad.jsonl"))


def test_json_lines_and_parquet_give_text_or_ids_of_the_field_named(tmp_path):
    rows = [{"text": text, "other": text.upper(), "tokens": [i, 2]} for i, text in enumerate(TEXTS)]
    lines = tmp_path / "x.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    table = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    for path, first in ((lines, 1), (table, 0)):
        names = [f"{path}:{i + first}" for i in range(4)]
        same(documents(path), list(zip(names, TEXTS, strict=True)))
        for asked in (documents(f"{path}#field=other"), documents(path, field="other")):
            same(asked, [(name, text.upper()) for name, text in zip(names, TEXTS, strict=True)])
        same(documents(f"{path}#field=tokens"), [(name, np.array([i, 2])) for i, name in enumerate(names)])
        with pytest.raises(ValueError, match="does not have 'nope', it has text, other, tokens; name one with #field="):
            list(documents(f"{path}#field=nope"))


def test_missing_values_are_empty_documents(tmp_path):
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "x.parquet")
    assert [content for _, content in documents(tmp_path / "x.parquet")] == ["a", ""]


def test_arrays_give_their_rows_or_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PART_TOKENS", 4)
    flat, table = np.arange(10, dtype=np.uint16), np.arange(6, dtype=np.int64).reshape(2, 3)
    np.save(tmp_path / "flat.npy", flat)
    np.save(tmp_path / "table.npy", table)
    path = tmp_path / "flat.npy"
    same(documents(path), [(f"{path}[{a}:{b}]", flat[a:b]) for a, b in ((0, 4), (4, 8), (8, 10))])
    same(documents(tmp_path / "table.npy"), [(f"{tmp_path}/table.npy[{i}]", table[i]) for i in range(2)])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", b'{"text": 1}', "x.jsonl:1: 'text' holds a int"),
        ("x.jsonl", b'{"text": "a"}\n{"text', "x.jsonl:2 is not JSON"),
        ("x.jsonl", b'["a"]', "x.jsonl:1 holds a list"),
        ("x.jsonl", b'{"tokens": [1.5]}', "'tokens' holds a list"),
        ("x.parquet", b"PAR1", "cannot be read as Parquet"),
        ("x.npy", b"\x93NUMPY", "cannot be read as an array"),
        ("x.safetensors", b"", "expected text, .jsonl, .parquet or .npy"),
        ("x.txt", b"", "found no document in "),
    ],
)
def test_broken_sources_are_refused_with_their_place(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        list(documents(tmp_path / name))


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((1, 2, 3), int), np.array([True])])
def test_arrays_of_anything_but_token_ids_are_refused(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match="expected integers in 1 or 2 dimensions"):
        list(documents(tmp_path / "x.npy"))


def test_sources_that_are_not_there_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source, says in (
        (f"{tmp_path}/*.txt", "found no file at"),
        (tmp_path, "is a folder, expected files; name them with a glob"),
        ([], "no token source"),
        ("hf:", "names no data set"),
        ("hf:someone/some:train", r"needs the datasets library; install it with: pip install 'seedscope\[hub\]'"),
    ):
        with pytest.raises(ValueError, match=says):
            documents(source)


def test_data_sets_are_streamed_from_the_split_and_field_named(monkeypatch):
    asked = []

    def load_dataset(name, config, *, split, streaming):
        asked.append((name, config, split, streaming))
        if name == "gone":
            raise ConnectionError("no network")
        return iter([{"text": "w2", "body": "w3"}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    same(documents("hf:a/b"), [("hf:a/b:train:0", "w2")])
    same(documents("hf:a/b:test#field=body&config=raw"), [("hf:a/b:test:0", "w3")])
    assert asked == [("a/b", None, "train", True), ("a/b", "raw", "test", True)]
    with pytest.raises(ValueError, match="data set 'gone', split 'train', cannot be read: no network"):
        list(documents("hf:gone"))


# -- the split ---------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=3), max_size=40), st.integers(2, 5))
def test_the_two_parts_of_a_split_share_no_document_and_lose_none(texts, every):
    stream = [(f"d{i}", text) for i, text in enumerate(texts)]
    train, held_out = (list(split(stream, part, every=every)) for part in ("train", "held-out"))
    assert sorted(train + held_out) == sorted(stream)
    assert not {text for _, text in train} & {text for _, text in held_out}
    renamed = split([(f"other{name}", text) for name, text in reversed(stream)], "held-out", every=every)
    assert sorted(text for _, text in renamed) == sorted(text for _, text in held_out)


def test_about_one_document_in_ten_is_held_out_and_ids_split_whatever_their_type():
    stream = [(str(i), np.array([i, 7], dtype=np.uint16)) for i in range(2000)]
    held_out = [name for name, _ in split(stream, "held-out")]
    assert 140 < len(held_out) < 260
    assert held_out == [name for name, _ in split([(n, ids.astype(np.int64)) for n, ids in stream], "held-out")]
    with pytest.raises(ValueError, match="expected 'train' or 'held-out'"):
        list(split(stream, "test"))


# -- windows -----------------------------------------------------------------------------------------------------


def put_together(tokens) -> dict[str, list[int]]:
    """The documents again, from windows in any order."""
    room = slice(0 if tokens.bos is None else 1, None)
    found: dict[str, list[int]] = {}
    for ids, document, start in zip(tokens.ids, tokens.document, tokens.start, strict=True):
        body = found.setdefault(tokens.names[document], [])
        assert start == len(body)
        body += ids[room][ids[room] != PADDING].tolist()
    return found


@given(st.lists(st.lists(st.integers(1, VOCABULARY - 1), max_size=20), min_size=1, max_size=8), st.integers(2, 9))
@settings(deadline=None)
def test_windows_of_ids_put_together_are_the_documents_with_or_without_their_own_bos(contents, n_ctx):
    model = tiny_llama()
    stream = [(f"d{i}", np.array(ids, dtype=np.int32)) for i, ids in enumerate(contents)]
    if not any(contents):
        with pytest.raises(ValueError, match="found no tokens"):
            tokenize(stream, model, n_ctx=n_ctx)
        return
    tokens = tokenize(stream, model, n_ctx=n_ctx)
    assert put_together(tokens) == {f"d{i}": ids for i, ids in enumerate(contents) if ids}
    with_bos = tokenize([(name, np.concatenate([[0], ids]).astype(int)) for name, ids in stream], model, n_ctx=n_ctx)
    assert with_bos.digest == tokens.digest
    text = [(name, " ".join(f"w{i}" if i > 1 else "<pad>" for i in ids)) for name, ids in stream]
    assert tokenize(text, model, n_ctx=n_ctx).digest == tokens.digest


def tiny_llama(made=[]):  # noqa: B006
    """Hypothesis cannot take a fixture of this scope without a warning."""
    return made[0] if made else made.append(tiny("llama")) or made[0]


def test_what_counts_follows_the_policy_and_the_digest_knows_it(model):
    stream = [("a", np.array([5, 0, 6]))]  # a BOS in the middle too
    exclude, include = (tokenize(stream, model, n_ctx=8, bos=bos) for bos in ("exclude", "include"))
    none = tokenize(stream, tiny("llama", bos=False), n_ctx=8)
    assert [int(t.counted.sum()) for t in (exclude, include, none)] == [2, 4, 3]
    assert [t.policy for t in (exclude, include, none)] == [
        "BOS and padding excluded", "padding excluded, BOS counted", "padding excluded, no BOS",
    ]  # fmt: skip
    assert len({t.digest for t in (exclude, include, none)}) == 3
    with pytest.raises(ValueError, match="bos is 'maybe'"):
        tokenize(stream, model, bos="maybe")


@pytest.mark.parametrize(("wrong", "place"), [(VOCABULARY, 3), (-1, 0), (2**31, 3)])
def test_ids_outside_the_vocabulary_are_refused_with_their_place(model, wrong, place):
    ids = np.array([4, 4, 4, 4, 4])
    ids[place] = wrong
    says = rf"x\.npy\[3\]: token id {wrong} at position {place} is outside the model's vocabulary of {VOCABULARY} ids"
    with pytest.raises(ValueError, match=says):
        tokenize([("fine", np.array([1])), ("x.npy[3]", ids)], model)


def test_ids_need_no_tokenizer_and_text_does(model):
    bare = model._replace(tokenizer=None)
    assert tokenize([("a", np.array([5, 6]))], bare, n_ctx=4).ids.tolist() == [[5, 6, PADDING, PADDING]]
    with pytest.raises(ValueError, match="llama has no tokenizer, expected documents of token ids"):
        tokenize([("a", "w2")], bare)


def test_the_context_is_the_models_own_unless_given_and_never_longer(model):
    assert longest_context(model) == CONTEXT
    assert tokenize([("a", "w2")], model).ids.shape == (1, CONTEXT)
    assert longest_context(tiny("roberta")) == CONTEXT - 2  # positions begin behind the padding id, which is 1
    assert longest_context(tiny("bloom")) is None
    for n_ctx in (CONTEXT + 1, 1, 0):
        with pytest.raises(ValueError, match=f"n_ctx is {n_ctx}, expected 2 to {CONTEXT} for this model"):
            tokenize([("a", "w2")], model, n_ctx=n_ctx)


@given(st.integers(1, 260), st.integers(0, 3), st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_a_limited_choice_is_the_head_of_the_seeded_shuffle_in_the_sources_order(n_tokens, seed, n_documents):
    model = tiny_llama()
    stream = [(f"d{i}", np.arange(2, 2 + 7 * i)) for i in range(1, n_documents + 1)]
    everything = tokenize(stream, model, n_ctx=6)
    chosen = tokenize(stream, model, n_ctx=6, n_tokens=n_tokens, seed=seed)
    sizes = everything.counted.sum(1)
    order = np.argsort(np.random.default_rng(seed).random(len(sizes)), kind="stable")
    needed = next((n for n in range(1, len(sizes)) if sizes[order[:n]].sum() >= n_tokens), len(sizes))
    expected = np.sort(order[:needed])
    np.testing.assert_array_equal(chosen.ids, everything.ids[expected])
    np.testing.assert_array_equal(chosen.start, everything.start[expected])
    assert [chosen.names[i] for i in chosen.document] == [everything.names[i] for i in everything.document[expected]]
    if needed < len(sizes):
        assert chosen.policy.endswith(f"{needed} of {len(sizes)} windows, shuffled with seed {seed}")
    else:
        assert chosen.digest == everything.digest


def test_the_choice_of_a_long_stream_is_pruned_and_still_the_same(model, monkeypatch):
    stream = [(str(i), np.arange(2, 62)) for i in range(3000)]
    chosen = tokenize(iter(stream), model, n_ctx=7, n_tokens=500, seed=1)
    order = np.argsort(np.random.default_rng(1).random(30_000))[:84]
    np.testing.assert_array_equal(
        [int(chosen.names[d]) * 10 + s // 6 for d, s in zip(chosen.document, chosen.start, strict=True)], np.sort(order)
    )


def test_the_first_tokens_are_taken_without_reading_on(model):
    def endless():
        i = 0
        while True:
            yield f"d{i}", "w2 w3 w4 w5 w6 w7 w8"
            i += 1

    tokens = tokenize(endless(), model, n_ctx=6, n_tokens=17, take="first")
    assert tokens.names == ["d0", "d1", "d2"]
    assert tokens.counted.sum(1).tolist() == [5, 2, 5, 2, 5]
    assert tokens.policy == "BOS and padding excluded; the first 5 windows"
    with pytest.raises(ValueError, match="n_tokens is 0"):
        tokenize(endless(), model, n_tokens=0)


def test_encoders_begin_with_their_cls_token():
    encoder = tiny("bert", bos=False)
    encoder.tokenizer.cls_token = "<s>"
    assert tokenize([("a", "w2")], encoder, n_ctx=3).ids.tolist() == [[0, 2, PADDING]]
