"""What is read where: hook points against transformers' own hidden states, tokens that count, harvests that resume."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.activations import PADDING, harvest, hook_module, stream, token_texts, tokenize

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


@pytest.mark.parametrize("hookpoint", ["blocks.99.hook_resid_post", "blocks.2.hook_z", "h.3", "layers", ""])
def test_an_unknown_hook_point_is_refused_with_those_there_are(language_model, hookpoint):
    last = language_model.network.config.num_hidden_layers - 1
    with pytest.raises(
        ValueError, match=rf"blocks\.0\.hook_resid_pre to blocks\.{last}\.hook_resid_post, layers\.0 to "
    ):
        hook_module(language_model, hookpoint)


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
    assert (tmp_path / "stopped/activations.f16").read_bytes() == (tmp_path / "whole/activations.f16").read_bytes()
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
    with open(tmp_path / "activations.f16", "r+b") as file:
        file.truncate(whole.nbytes // 2)
    np.testing.assert_array_equal(harvest(language_model, tokens, HOOKPOINT, tmp_path), whole)


def test_a_complete_harvest_is_not_read_again(language_model, tokens, tmp_path):
    first = np.array(harvest(language_model, tokens, HOOKPOINT, tmp_path))
    calls: list[int] = []
    again = harvest(language_model, tokens, HOOKPOINT, tmp_path, report=lambda done, _: calls.append(done))
    np.testing.assert_array_equal(again, first)
    assert not calls


@pytest.mark.parametrize("other", ["tokens", "hookpoint"])
def test_a_folder_harvested_from_something_else_is_begun_anew(language_model, tokens, tmp_path, other):
    harvest(language_model, tokens, HOOKPOINT, tmp_path / "used")
    changed = tokenize(DOCUMENTS[:1], language_model, n_ctx=16) if other == "tokens" else tokens
    hookpoint = "blocks.1.hook_resid_post" if other == "hookpoint" else HOOKPOINT
    harvest(language_model, changed, hookpoint, tmp_path / "used")
    harvest(language_model, changed, hookpoint, tmp_path / "fresh")
    used, fresh = (Path(tmp_path / name / "activations.f16").read_bytes() for name in ("used", "fresh"))
    assert used == fresh
