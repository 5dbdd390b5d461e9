"""A transformers model, tokens and a hook point -> activations, to disk for training or as a stream for measuring.

The embedded model takes exactly this path, as any user's model does.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

PADDING = -1
# What model families call a block's attention and MLP.
SITE_MODULES = {"attn_out": ("self_attn", "attn", "attention", "self_attention"), "mlp_out": ("mlp", "feed_forward")}
BYTE_TOKEN = re.compile(r"^<0x[0-9A-F]{2}>$")


class LanguageModel(NamedTuple):
    """A causal language model with its tokenizer, in float32 and evaluation mode."""

    network: nn.Module
    tokenizer: object
    name: str
    digest: str  # 16 hex digits over the parameters


class TokenSet(NamedTuple):
    """Documents cut into windows; each window starts with BOS (where the tokenizer has one), the last ones are padded."""

    ids: Int[np.ndarray, "windows n_ctx"]  # PADDING where there is no token
    document: Int[np.ndarray, " windows"]  # index into `names`
    start: Int[np.ndarray, " windows"]  # position in the document of the window's first token after BOS
    names: list[str]
    bos: int | None

    @property
    def counted(self) -> np.ndarray:
        """(windows, n_ctx) bool: tokens that count; BOS and padding do not."""
        counted = self.ids != PADDING
        if self.bos is not None:
            counted[:, 0] = False
        return counted

    @property
    def digest(self) -> str:
        """16 hex digits over ids, shape and document boundaries."""
        sha = hashlib.sha256(str(self.ids.shape).encode())
        for array in (self.ids, self.document, self.start):
            sha.update(np.ascontiguousarray(array, dtype=np.int32).tobytes())
        return sha.hexdigest()[:16]


class Activations(NamedTuple):
    """Activations of a batch of windows at the tokens that count."""

    rows: Float[Tensor, "tokens d_in"]
    position: Int[np.ndarray, " tokens"]  # window * n_ctx + offset


class _Reached(Exception):
    """Ends a forward pass once the hook point is behind it; nothing above it needs computing."""


def load_model(path: str) -> LanguageModel:
    """Load a causal language model and its tokenizer from a folder or a hub id."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds to import, needed only here
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
    except OSError as error:
        raise ValueError(
            f"found no language model at {path!r}, expected a folder written by save_pretrained or a hub id ({error})"
        ) from error
    sha = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
        sha.update(f"{name}:{tuple(parameter.shape)}".encode())
        sha.update(parameter.detach().numpy().tobytes())
    return LanguageModel(network, tokenizer, Path(path).name, sha.hexdigest()[:16])


def hook_module(model: LanguageModel, hookpoint: str) -> tuple[nn.Module, bool]:
    """The module behind a hook point, and whether its input (True) or its output (False) is meant.

    Spellings: `blocks.L.hook_resid_pre`, `hook_resid_post`, `hook_attn_out`, `hook_mlp_out`, or the module path within
    the model (`layers.L`, `h.L`, `model.layers.L`, `layers.L.self_attn`), whose output is meant. Raises
    ValueError naming the hook points there are.
    """
    base = model.network.base_model
    modules = dict(base.named_modules())
    block_lists = [(n, m) for n, m in modules.items() if isinstance(m, nn.ModuleList) and "." not in n]
    name, blocks = block_lists[0] if block_lists else ("", [])
    match = re.fullmatch(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|attn_out|mlp_out)", hookpoint)
    if match and int(match[1]) < len(blocks):
        block, site = blocks[int(match[1])], match[2]
        if site.startswith("resid"):
            return block, site == "resid_pre"
        children = dict(block.named_children())
        inside = next((children[child] for child in SITE_MODULES[site] if child in children), None)
        if inside is not None:
            return inside, False
    path = hookpoint.removeprefix(model.network.base_model_prefix + ".")
    if path and path in modules and not isinstance(modules[path], nn.ModuleList):
        return modules[path], False
    last = len(blocks) - 1
    raise ValueError(
        f"hook point {hookpoint!r} is not in this model, expected blocks.0.hook_resid_pre to "
        f"blocks.{last}.hook_resid_post, {name}.0 to {name}.{last}, or another module path of the model"
    )


def tokenize(documents: list[tuple[str, str]], model: LanguageModel, *, n_ctx: int) -> TokenSet:
    """Cut (name, text) documents into windows of n_ctx tokens, each window begun by BOS where there is one."""
    bos = model.tokenizer.bos_token_id
    room = n_ctx - (bos is not None)
    encoded = model.tokenizer([text for _, text in documents], add_special_tokens=False, verbose=False)["input_ids"]
    windows, document, start = [], [], []
    for index, ids in enumerate(encoded):
        for offset in range(0, len(ids), room):
            chunk = ids[offset : offset + room]
            head = [] if bos is None else [bos]
            windows.append(head + chunk + [PADDING] * (room - len(chunk)))
            document.append(index)
            start.append(offset)
    if not windows:
        raise ValueError(f"found no tokens in {len(documents)} documents, expected at least one")
    as_array = lambda values: np.array(values, dtype=np.int32)  # noqa: E731
    return TokenSet(as_array(windows), as_array(document), as_array(start), [name for name, _ in documents], bos)


def stream(
    model: LanguageModel,
    tokens: TokenSet,
    hookpoint: str,
    *,
    first_window: int = 0,
    windows_per_batch: int = 32,
) -> Iterator[Activations]:
    """Run the model window by window up to the hook point and yield what passes there, in token order.

    Padding stands at the end of a window, where a causal model cannot see it.
    """
    module, wants_input = hook_module(model, hookpoint)
    caught: list[Tensor] = []

    def catch(_module: nn.Module, inputs: tuple, output: object = None) -> None:
        value = inputs[0] if wants_input else output
        caught.append(value[0] if isinstance(value, tuple) else value)
        raise _Reached

    handle = module.register_forward_pre_hook(catch) if wants_input else module.register_forward_hook(catch)
    counted, n_ctx = tokens.counted, tokens.ids.shape[1]
    try:
        for first in range(first_window, len(tokens.ids), windows_per_batch):
            chunk = slice(first, first + windows_per_batch)
            ids = torch.from_numpy(np.maximum(tokens.ids[chunk], 0)).long()
            with suppress(_Reached), torch.inference_mode():
                model.network.base_model(ids, use_cache=False)
            keep = counted[chunk].reshape(-1)
            rows = caught.pop().float().flatten(0, 1)[torch.from_numpy(keep)]
            yield Activations(rows, first * n_ctx + np.flatnonzero(keep))
    finally:
        handle.remove()


def harvest(
    model: LanguageModel,
    tokens: TokenSet,
    hookpoint: str,
    folder: Path,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Write all activations of a token set to `folder` and return them as a read-only memory map (tokens, d_in).

    float16 (relative error 5e-4), bounded memory. A stopped harvest goes on where its last complete batch ended; a
    folder made from other tokens, another model or hook point is begun anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, progress = folder / "activations.f16", folder / "progress.json"
    made_from = {"tokens": tokens.digest, "model": model.digest, "hookpoint": hookpoint}
    state = json.loads(progress.read_text()) if progress.exists() else {}
    if (
        state.get("made_from") != made_from
        or not data.exists()
        or data.stat().st_size < state["rows"] * state["d_in"] * 2
    ):
        state = {"made_from": made_from, "windows": 0, "rows": 0, "d_in": 0}
    total, windows_per_batch = int(tokens.counted.sum()), 64
    with open(data, "r+b" if state["rows"] else "wb") as file:
        file.truncate(state["rows"] * state["d_in"] * 2)
        file.seek(0, os.SEEK_END)
        source = stream(model, tokens, hookpoint, first_window=state["windows"], windows_per_batch=windows_per_batch)
        with closing(source):
            for batch in source:
                file.write(batch.rows.half().numpy().tobytes())
                state["rows"] += len(batch.rows)
                state["windows"] += windows_per_batch
                state["d_in"] = batch.rows.shape[1]
                if state["windows"] % 1024 == 0:
                    file.flush()
                    _replace(progress, state)
                report(state["rows"], total)
    _replace(progress, state)
    return np.memmap(data, np.float16, "r", shape=(state["rows"], state["d_in"]))


def _replace(path: Path, state: dict) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(state))
    temporary.replace(path)


def token_texts(model: LanguageModel) -> list[str]:
    """What each token id looks like: its text, or `<0xE2>` style where it is a fragment of a character."""
    tokenizer = model.tokenizer
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    return [text if "\ufffd" not in text else _byte_text(tokenizer, i) for i, text in enumerate(texts)]


def _byte_text(tokenizer: object, token: int) -> str:
    """A fragment as its bytes: byte-level alphabets map bytes to printable characters, others spell `<0xE2>` themselves."""
    raw = tokenizer.convert_ids_to_tokens(token)
    if BYTE_TOKEN.match(raw):
        return raw
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    to_byte = {char: byte for byte, char in bytes_to_unicode().items()}
    return "".join(f"<0x{to_byte[c]:02X}>" if c in to_byte else c for c in raw)
