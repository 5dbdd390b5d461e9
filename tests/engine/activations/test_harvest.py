"""What is read where: hook points against transformers' own hidden states, tokens that count, harvests that resume."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seedscope.engine import machine
from seedscope.engine.activations import model_files, shards
from seedscope.engine.activations.harvest import PADDING, harvest, load_model, stream, token_texts, tokenize
from seedscope.engine.activations.shards import Shards
from seedscope.engine.machine import available_memory
from support.tiny_models import VOCABULARY, WIDTH, save, tiny

DOCUMENTS = [("a.py", "import os\n\ndef main():\n    print(os.getcwd())\n" * 3), ("b.py", "x = 'é ☃'\n"), ("c.py", "")]
HOOKPOINT = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def tokens(language_model):
    return tokenize(DOCUMENTS, language_model, n_ctx=16)


def read(model, tokens, hookpoint: str, **options) -> torch.Tensor:
    return torch.cat([batch.rows for batch in stream(model, tokens, hookpoint, **options)])


@torch.no_grad()
def hidden_states(model, ids: np.ndarray, layer: int) -> torch.Tensor:
    """transformers' own: entry L is what enters block L."""
    return model.network(torch.from_numpy(ids).long()[None], output_hidden_states=True).hidden_states[layer][0]


@pytest.mark.parametrize("spelling", [HOOKPOINT, "layers.2", "model.layers.2", "blocks.3.hook_resid_pre"])
def test_every_spelling_reads_the_hidden_state_between_two_blocks(language_model, tokens, spelling):
    rows = read(language_model, tokens, spelling)
    expected = torch.cat([hidden_states(language_model, ids[ids != PADDING], 3)[1:] for ids in tokens.ids])
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 2])
def test_attention_and_mlp_outputs_add_up_to_what_a_block_adds(language_model, tokens, layer):
    """The residual stream of a pre-norm transformer: post = pre + attention + MLP."""
    pre, attention, mlp, post = (
        read(language_model, tokens, f"blocks.{layer}.hook_{site}")
        for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")
    )
    torch.testing.assert_close(pre + attention + mlp, post, rtol=1e-4, atol=1e-4)


def test_the_first_block_receives_the_embeddings(language_model, tokens):
    embeddings = language_model.network.get_input_embeddings().weight.detach()
    expected = embeddings[torch.from_numpy(tokens.ids[tokens.counted]).long()]
    torch.testing.assert_close(read(language_model, tokens, "blocks.0.hook_resid_pre"), expected)


def test_the_batch_size_changes_nothing(language_model, tokens):
    one, many = (read(language_model, tokens, HOOKPOINT, windows_per_batch=n) for n in (1, 32))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)


def test_bos_and_padding_are_never_read(language_model, tokens):
    positions = np.concatenate([batch.position for batch in stream(language_model, tokens, HOOKPOINT)])
    read_ids = tokens.ids.reshape(-1)[positions]
    assert len(positions) == sum(len(language_model.tokenizer(text)["input_ids"]) for _, text in DOCUMENTS)
    assert not np.isin(read_ids, [PADDING, tokens.bos]).any()
    assert (np.diff(positions) > 0).all()


def test_windows_put_together_are_the_documents(language_model, tokens):
    assert tokens.names == ["a.py", "b.py", "c.py"]
    assert (tokens.ids[:, 0] == tokens.bos).all()
    for index, (_, text) in enumerate(DOCUMENTS):
        ids = language_model.tokenizer(text, add_special_tokens=False)["input_ids"]
        put_together = []
        for window in np.flatnonzero(tokens.document == index):
            assert tokens.start[window] == len(put_together)
            put_together += [int(i) for i in tokens.ids[window, 1:] if i != PADDING]
        assert put_together == ids


def test_without_a_bos_token_windows_begin_with_text_and_every_token_counts(language_model):
    tokenizer = copy.deepcopy(language_model.tokenizer)
    tokenizer.bos_token = None
    tokens = tokenize(DOCUMENTS, language_model._replace(tokenizer=tokenizer), n_ctx=16)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in DOCUMENTS]
    assert tokens.ids[tokens.counted].tolist() == [i for document in ids for i in document]
    assert tokens.start.tolist() == [start for document in ids for start in range(0, len(document), 16)]


def test_documents_without_any_token_are_refused(language_model):
    with pytest.raises(ValueError, match="found no tokens in 1 documents"):
        tokenize([("empty.py", "")], language_model, n_ctx=16)


def test_byte_fragments_are_shown_as_bytes_and_all_else_as_text(language_model):
    texts = token_texts(language_model)
    tokenizer = language_model.tokenizer
    assert len(texts) == len(tokenizer)
    assert not any("\ufffd" in text for text in texts)
    assert "".join(texts[i] for i in tokenizer("☃", add_special_tokens=False)["input_ids"]) == "<0xE2><0x98><0x83>"
    assert "".join(texts[i] for i in tokenizer("def main():", add_special_tokens=False)["input_ids"]) == "def main():"


# -- harvest -----------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def many(language_model):
    """More windows than stand between two notes of how far a harvest has come (1,024)."""
    return tokenize([("long.py", "value = other[key] + 1\n" * 900)], language_model, n_ctx=6)


def test_a_harvest_is_the_stream_in_half_precision(language_model, tokens, tmp_path):
    rows = harvest(language_model, tokens, HOOKPOINT, tmp_path)
    np.testing.assert_array_equal(rows, read(language_model, tokens, HOOKPOINT).half().numpy())


def test_an_interrupted_harvest_goes_on_where_it_was_and_ends_in_the_same_bytes(language_model, many, tmp_path):
    hookpoint = "blocks.0.hook_resid_pre"
    assert len(many.ids) > 1100
    whole = harvest(language_model, many, hookpoint, tmp_path / "whole")
    seen: list[int] = []

    def stop_late(done: int, total: int) -> None:
        assert total == len(whole)
        if done > 0.95 * total:
            raise Interrupted

    with pytest.raises(Interrupted):
        harvest(language_model, many, hookpoint, tmp_path / "stopped", report=stop_late)
    resumed = harvest(language_model, many, hookpoint, tmp_path / "stopped", report=lambda done, _: seen.append(done))
    assert seen[0] > 1024 * 5
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    np.testing.assert_array_equal(resumed, whole)


def test_a_harvest_can_be_repeated_while_its_interruption_is_being_handled(language_model, tokens, tmp_path):
    """The interrupted pass must leave no hook in the model, even as long as its traceback lives."""
    model = language_model._replace(network=copy.deepcopy(language_model.network))

    def stop(done: int, total: int) -> None:
        raise Interrupted

    try:
        harvest(model, tokens, HOOKPOINT, tmp_path, report=stop)
    except Interrupted:
        assert len(harvest(model, tokens, HOOKPOINT, tmp_path)) == tokens.counted.sum()


def test_a_harvest_that_lost_its_end_is_never_filled_up_with_zeros(language_model, tokens, tmp_path):
    whole = np.array(harvest(language_model, tokens, HOOKPOINT, tmp_path))
    with open(tmp_path / "shard-00000.f16", "r+b") as file:
        file.truncate(whole.nbytes // 2)
    np.testing.assert_array_equal(harvest(language_model, tokens, HOOKPOINT, tmp_path), whole)


def test_a_complete_harvest_is_not_read_again(language_model, tokens, tmp_path):
    first = np.array(harvest(language_model, tokens, HOOKPOINT, tmp_path))
    calls: list[int] = []
    again = harvest(language_model, tokens, HOOKPOINT, tmp_path, report=lambda done, _: calls.append(done))
    np.testing.assert_array_equal(again, first)
    assert not calls


@pytest.mark.parametrize("other", ["tokens", "hookpoint", "model", "dtype"])
def test_a_folder_harvested_from_something_else_is_begun_anew(language_model, tokens, tmp_path, other):
    harvest(language_model, tokens, HOOKPOINT, tmp_path / "used", shard_bytes=4096)
    model = language_model._replace(digest="another") if other == "model" else language_model
    options = {"dtype": "float32"} if other == "dtype" else {}
    changed = tokenize(DOCUMENTS[:1], language_model, n_ctx=16) if other == "tokens" else tokens
    hookpoint = "blocks.1.hook_resid_post" if other == "hookpoint" else HOOKPOINT
    harvest(model, changed, hookpoint, tmp_path / "used", **options)
    harvest(model, changed, hookpoint, tmp_path / "fresh", **options)
    assert contents(tmp_path / "used") == contents(tmp_path / "fresh")


def test_a_harvest_in_many_files_is_the_harvest_in_one(language_model, many, tmp_path):
    one = harvest(language_model, many, "blocks.0.hook_resid_pre", tmp_path / "one")
    shard_bytes = 64 * 3 * many.ids.shape[1] * one.shape[1] * 2
    parts = harvest(language_model, many, "blocks.0.hook_resid_pre", tmp_path / "many", shard_bytes=shard_bytes)
    files = sorted((tmp_path / "many").glob("shard-*.f16"))
    assert isinstance(one, np.memmap)
    assert isinstance(parts, Shards)
    assert len(files) == -(-len(many.ids) // 192)
    assert max(file.stat().st_size for file in files) <= shard_bytes
    np.testing.assert_array_equal(np.asarray(parts), one)

    files[3].write_bytes(files[3].read_bytes()[:100])  # only this one and what follows is read again
    done: list[int] = []
    again = harvest(
        language_model, many, "blocks.0.hook_resid_pre", tmp_path / "many", shard_bytes=shard_bytes,
        report=lambda n, _: done.append(n),
    )  # fmt: skip
    assert done[0] == many.counted[: 3 * 192 + 64].sum()
    np.testing.assert_array_equal(np.asarray(again), one)


@given(st.data())
@settings(deadline=None)
def test_shards_are_indexed_like_the_array_they_make_up(data):
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    whole = np.arange(sum(lengths) * 2, dtype=np.float16).reshape(-1, 2)
    parts = Shards(np.split(whole, np.cumsum(lengths)[:-1]))
    n = len(whole)
    index = st.integers(-n, n - 1)
    key = data.draw(
        st.one_of(index, st.slices(n), st.lists(index).map(lambda i: np.array(i, int)), st.just(np.arange(n)[:, None]))
    )
    np.testing.assert_array_equal(parts[key], whole[key])
    assert (len(parts), parts.shape, parts.dtype) == (n, whole.shape, whole.dtype)
    with pytest.raises(IndexError, match="is not among"):
        parts[[n]]


def test_a_harvest_killed_outright_loses_little_and_ends_in_the_same_bytes(language_model, many, tmp_path):
    script = (
        "import sys, os, signal\nfrom pathlib import Path\nfrom seedscope.engine.demo import stdlib\n"
        "from seedscope.engine.activations.harvest import harvest, load_model, tokenize\n"
        "model = load_model(str(stdlib.MODEL_DIR))\n"
        "tokens = tokenize([('long.py', 'value = other[key] + 1\\n' * 900)], model, n_ctx=6)\n"
        "def kill(done, total):\n    if done > 0.97 * total: os.kill(os.getpid(), signal.SIGKILL)\n"
        "harvest(model, tokens, 'blocks.0.hook_resid_pre', Path(sys.argv[1]), report=kill)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "killed"], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    seen: list[int] = []
    harvest(language_model, many, "blocks.0.hook_resid_pre", tmp_path / "whole")
    harvest(language_model, many, "blocks.0.hook_resid_pre", tmp_path / "killed", report=lambda n, _: seen.append(n))
    assert seen[0] > 1024 * 5
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_disk_that_is_too_small_is_refused_before_the_work(language_model, tokens, tmp_path, monkeypatch):
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: free)
    n = int(tokens.counted.sum())
    with pytest.raises(
        ValueError, match=rf"need 0\.00 GiB more in .*\({n} tokens of 128 float16 numbers\), 0\.00 GiB are"
    ):
        harvest(language_model, tokens, HOOKPOINT, tmp_path, report=lambda *_: pytest.fail("it began"))
    free.free = n * 128 * 2
    assert len(harvest(language_model, tokens, HOOKPOINT, tmp_path)) == n
    free.free = 0  # nothing more is needed
    assert len(harvest(language_model, tokens, HOOKPOINT, tmp_path)) == n


def test_activations_beyond_half_precision_are_refused_and_held_in_single(tmp_path):
    model = tiny("llama")
    with torch.no_grad():
        model.network.model.embed_tokens.weight[7] = 1e5
    tokens = tokenize([("fine", "w2"), ("large", "w3 w7")], model, n_ctx=8)
    with pytest.raises(
        ValueError, match=r"in document 'large' is 1e\+05, beyond the range of float16; dtype='float32'"
    ):
        harvest(model, tokens, "blocks.0.hook_resid_pre", tmp_path)
    rows = harvest(model, tokens, "blocks.0.hook_resid_pre", tmp_path, dtype="float32")
    np.testing.assert_array_equal(rows, read(model, tokens, "blocks.0.hook_resid_pre").numpy())
    with torch.no_grad():
        model.network.model.embed_tokens.weight[3] = np.nan
    with pytest.raises(ValueError, match="is nan, beyond the range of float32; the model itself is broken there"):
        harvest(model._replace(digest="broken"), tokens, "blocks.0.hook_resid_pre", tmp_path, dtype="float32")
    with pytest.raises(ValueError, match="dtype is 'float8'"):
        harvest(model, tokens, "layers.0", tmp_path, dtype="float8")


def test_the_harvest_of_an_encoder_does_not_depend_on_its_neighbours(tmp_path):
    model = tiny("bert")
    documents = [("a", "w2 w3 w4"), ("b", "w9 " * 20)]
    both = harvest(model, tokenize(documents, model, n_ctx=16), "encoder.layer.2", tmp_path / "both", dtype="float32")
    alone = harvest(
        model, tokenize(documents[:1], model, n_ctx=4), "encoder.layer.2", tmp_path / "one", dtype="float32"
    )
    np.testing.assert_allclose(both[:3], alone, atol=1e-5)


# -- loading -----------------------------------------------------------------------------------------------------


def test_a_saved_model_is_loaded_whole_and_its_digest_sees_every_weight(tmp_path):
    network = save(tmp_path / "a", "gpt2")
    model = load_model(str(tmp_path / "a"))
    assert (model.name, model.causal, model.vocabulary) == ("a", True, VOCABULARY)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(model.network.get_parameter(name), parameter, rtol=0, atol=0)
    assert load_model(str(tmp_path / "a")).digest == model.digest
    save(tmp_path / "b", "gpt2", seed=1)
    assert load_model(str(tmp_path / "b")).digest != model.digest
    half = load_model(str(tmp_path / "a"), dtype=torch.bfloat16)
    tokens = tokenize([("x", "w2 w3")], half)
    torch.testing.assert_close(read(half, tokens, "h.1"), read(model, tokens, "h.1"), rtol=0.1, atol=0.1)


def test_encoders_load_without_random_parts_and_say_that_they_are_not_causal(tmp_path):
    save(tmp_path, "bert")
    model = load_model(str(tmp_path))
    assert not model.causal
    assert load_model(str(tmp_path)).digest == model.digest
    tokens = tokenize([("x", "w2 w3")], model)
    assert read(model, tokens, "encoder.layer.1").shape == (2, WIDTH)


def test_a_folder_without_tokenizer_gives_a_model_for_ids(tmp_path):
    save(tmp_path, "opt", tokenizer_too=False)
    model = load_model(str(tmp_path))
    assert model.tokenizer is None
    assert token_texts(model) == [f"<{i}>" for i in range(VOCABULARY)]
    assert read(model, tokenize([("x", np.array([4, 5, 6]))], model), "layers.1").shape == (3, WIDTH)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_way_a_folder_can_be_wrong_is_one_clear_refusal(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    save(folder, "llama")
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole, settings_ = weights.read_bytes(), config.read_text()

    def refused(says: str, path: Path = folder) -> None:
        with pytest.raises(ValueError, match=says):
            load_model(str(path))
        weights.write_bytes(whole)
        config.write_text(settings_)

    refused("found no model folder at", tmp_path / "nowhere")
    refused("found no config.json in", tmp_path)
    edit(config, model_type="nonsense")
    refused(r"transformers [\d.]+ does not know the model type of .*upgrade transformers")
    edit(config, model_type="t5")
    refused(r"is an encoder-decoder \(t5\)")
    config.write_text("{")
    refused("found no language model at")
    for cut in (0, 5, 100):
        weights.write_bytes(whole[:cut])
        refused(rf"is no safetensors file or is cut off within its header \({cut} bytes\)")
    weights.write_bytes(whole[:-9])
    refused(rf"has {len(whole) - 9:,} bytes, its header promises {len(whole):,}: it is truncated; copy it again")
    weights.unlink()
    refused("found no weights in")
    edit(config, num_hidden_layers=4)
    refused("lacks 9 weights of a LlamaForCausalLM")
    edit(config, intermediate_size=25)
    refused("do not fit its config.json")
    (folder / "tokenizer.json").write_text("{")
    refused("the tokenizer of .* cannot be read")
    parameters = sum(p.numel() for p in tiny("llama").network.parameters())
    monkeypatch.setattr(machine, "available_memory", lambda: parameters * 4 - 1)
    refused(rf"needs 0\.0 GiB of memory \({parameters:,} parameters in 32 bits\), 0\.0 GiB are available")


def test_a_shard_of_a_large_model_that_is_missing_is_named(tmp_path):
    tiny("llama").network.save_pretrained(tmp_path, max_shard_size="10KB")
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert model_files.n_parameters(model_files.weight_files(tmp_path)) == sum(
        p.numel() for p in load_model(str(tmp_path)).network.parameters()
    )
    files[1].unlink()
    with pytest.raises(ValueError, match=rf"lacks 1 of its {len(files)} weight files \({files[1].name}\)"):
        load_model(str(tmp_path))


def test_available_memory_is_positive_and_no_more_than_the_machine_has(monkeypatch):
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory() <= physical
    monkeypatch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
    assert available_memory() == physical
