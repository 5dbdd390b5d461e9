"""Token texts keep the space in front of a word, whatever the tokenizer's decoder does with it."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from seedscope.engine.activations.texts import token_texts
from support.tiny_models import tiny

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁the", "▁cat", "▁sat", "the", "▁", "▁▁", "\ufffd", "a", "e", "h", "t"]
SPECIAL = {"bos_token": "<s>", "unk_token": "<unk>"}


def shown(tokenizer: Tokenizer, **special) -> tuple[PreTrainedTokenizerFast, dict[str, str]]:
    """The tokenizer as transformers has it, and {piece: its text}."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    texts = token_texts(tiny("llama")._replace(tokenizer=fast))
    return fast, dict(zip(fast.convert_ids_to_tokens(list(range(len(fast)))), texts, strict=False))


def joined(fast: PreTrainedTokenizerFast, texts: dict[str, str], text: str) -> str:
    return "".join(texts[piece] for piece in fast.tokenize(text))


def llama() -> Tokenizer:
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "<s>", *BYTES, *WORDS, "th", "▁t", "▁th"])}
    merges = [("t", "h"), ("th", "e"), ("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def unigram(decoder=None) -> Tokenizer:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), *((piece, -9.0) for piece in BYTES), *((word, -2.0) for word in WORDS)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoder or decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always"), decoders.Fuse()]
    )
    return made


@pytest.mark.parametrize("make", [llama, unigram, lambda: unigram(decoders.Metaspace(prepend_scheme="always"))])
def test_sentencepiece_tokens_keep_the_space_in_front_and_bytes_show_their_character(make):
    _, texts = shown(make(), **SPECIAL)
    expected = {
        "▁the": " the", "the": "the", "▁": " ", "▁▁": "  ", "a": "a", "<s>": "<s>", "<unk>": "<unk>",
        "<0x0A>": "\n", "<0x41>": "A", "<0xE2>": "<0xE2>", "\ufffd": "\ufffd",
    }  # fmt: skip
    assert {piece: texts[piece] for piece in expected} == expected


def test_sentencepiece_tokens_put_together_are_the_text():
    fast, texts = shown(unigram(), **SPECIAL)
    assert joined(fast, texts, "the cat sat\nthe  thea☃") == " the cat sat\nthe  thea<0xE2><0x98><0x83>"
    assert joined(*shown(llama(), **SPECIAL), "the the") == " the the"


@pytest.mark.parametrize("cleanup", [True, False])
def test_word_pieces_join_their_word_and_words_begin_with_a_space(cleanup):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "play", "##ing", "ing", ".", "##."]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=cleanup)
    special = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    fast, texts = shown(made, **special)
    assert joined(fast, texts, "the cat playing.") == " the cat playing ."
    assert list(texts.values()) == [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", " the", " cat", " play", "ing", " ing", " .", ".",
    ]  # fmt: skip


def test_pieces_that_end_a_word_end_with_a_space():
    pieces = ["<unk>", "a", "the", "the</w>", "cat</w>"]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], end_of_word_suffix="</w>"))
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    _, texts = shown(made, unk_token="<unk>")
    assert texts == {"<unk>": "<unk>", "a": "a", "the": "the", "the</w>": "the ", "cat</w>": "cat "}


def test_words_without_a_decoder_begin_with_a_space():
    made = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast, texts = shown(made, unk_token="<unk>")
    assert joined(fast, texts, "the cat") == " the cat"


@pytest.mark.parametrize("decoder", [decoders.ByteLevel(), None])
def test_byte_level_tokens_are_decoded_one_by_one(decoder):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<s>", *alphabet, "Ġt"]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("Ġ", "t")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if decoder:
        made.decoder = decoder
    fast, texts = shown(made, bos_token="<s>")
    for i, piece in enumerate(pieces):
        alone = fast.decode([i], clean_up_tokenization_spaces=False)
        assert "\ufffd" in alone or texts[piece] == alone
    if decoder:
        assert joined(fast, texts, "a the\n☃") == "a the\n<0xE2><0x98><0x83>"
