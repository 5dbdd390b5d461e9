"""The text of every token of a tokenizer, with the space in front of a word as a part of it.

Decoders of SentencePiece kind drop the space of the first token they are given, and decoders of WordPiece kind write one
between tokens: a token that is decoded by itself loses its space, and `▁the` and `the` would become one string. A token is
therefore decoded between two others, so that texts put together are the text as the tokenizer writes it.
"""

import json
import re
from typing import TYPE_CHECKING, Any

from seedscope.engine.activations.model import LanguageModel

if TYPE_CHECKING:
    import transformers

    Tokenizer = transformers.PreTrainedTokenizerBase

BYTE_TOKEN = re.compile(r"^<0x[0-9A-F]{2}>$")
UNDECODABLE = "\ufffd"


def token_texts(model: LanguageModel) -> list[str]:
    """The text of every token id; `<0xE2>` style where it is a fragment of a character, `<17>` where there is no text.

    Tokens that begin a word begin with a space, also where the decoder would drop it; WordPiece's `##ing` is `ing`.
    Special tokens are shown as they are written.
    """
    tokenizer = model.tokenizer
    texts: list[str] = []
    if tokenizer is not None and len(tokenizer):
        parts = _parts(tokenizer)
        texts = _byte_level_texts(tokenizer) if "ByteLevel" in parts else _texts_in_context(tokenizer, parts)
    return texts + [f"<{i}>" for i in range(len(texts), model.vocabulary)]


def _parts(tokenizer: "Tokenizer") -> dict[str, dict[str, Any]]:
    """{type: settings} of the pre-tokenizers and decoders of a fast tokenizer; empty for slow tokenizers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    described = json.loads(backend.to_str())
    pre_tokenizer, decoder = described["pre_tokenizer"] or {}, described["decoder"] or {}
    parts = [*pre_tokenizer.get("pretokenizers", [pre_tokenizer]), *decoder.get("decoders", [decoder])]
    return {each["type"]: each for each in parts if each}


def _byte_level_texts(tokenizer: "Tokenizer") -> list[str]:
    """Byte-level tokens hold their spaces themselves and decode one by one."""
    decoded = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    return [text if UNDECODABLE not in text else _byte_text(tokenizer, i) for i, text in enumerate(decoded)]


def _byte_text(tokenizer: "Tokenizer", token: int) -> str:
    """A fragment as its bytes: byte-level alphabets map bytes to printable characters."""
    raw = tokenizer.convert_ids_to_tokens([token])[0]
    if BYTE_TOKEN.match(raw):
        return raw
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    to_byte = {char: byte for byte, char in bytes_to_unicode().items()}
    return "".join(f"<0x{to_byte[c]:02X}>" if c in to_byte else c for c in raw)


def _texts_in_context(tokenizer: "Tokenizer", parts: dict[str, dict[str, Any]]) -> list[str]:
    raw = [token or "" for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    if "WordPiece" in parts:  # from the pieces themselves: its decoder may also drop the space before punctuation
        prefix = parts["WordPiece"]["prefix"]
        pieces = [token.removeprefix(prefix) if token.startswith(prefix) else f" {token}" for token in raw]
        return [raw[i] if i in special or i in added else piece for i, piece in enumerate(pieces)]
    texts = []
    for i, text in enumerate(_decoded_between(tokenizer, raw, special)):
        if i in special:
            text = raw[i]
        elif BYTE_TOKEN.match(raw[i]):
            text = chr(byte) if (byte := int(raw[i][3:5], 16)) < 0x80 else raw[i]  # else it is part of a character
        elif UNDECODABLE in text and UNDECODABLE not in raw[i]:
            text = _byte_text(tokenizer, i)
        texts.append(text)
    return texts


def _decoded_between(tokenizer: "Tokenizer", raw: list[str], special: set[int]) -> list[str]:
    """What each token adds to the text of a word that stands on both sides of it; by itself where that cannot be told."""

    def decode(ids: list[list[int]]) -> list[str]:
        return tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)

    alone = decode([[i] for i in range(len(raw))])
    word = next((i for i, token in enumerate(raw) if i not in special and token.isascii() and token.isalpha()), None)
    if word is None:
        return alone
    before, twice = decode([[word], [word, word]])
    behind = twice.removeprefix(before)
    between = decode([[word, i, word] for i in range(len(raw))])
    return [
        text[len(before) : len(text) - len(behind)]
        if len(text) >= len(before + behind) and text.startswith(before) and text.endswith(behind)
        else own
        for text, own in zip(between, alone, strict=True)
    ]
