"""Record a transformers model's activations at a hook point: to disk for training, or as a stream for measuring.

The embedded model takes exactly this path, as any user's model does.
"""

import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seedscope.engine.activations import hookpoints, shards
from seedscope.engine.activations.model import LanguageModel, load_model, loaded_again
from seedscope.engine.activations.texts import token_texts
from seedscope.engine.activations.thread_hooks import in_this_thread
from seedscope.engine.activations.tokens import PADDING, TokenSet, load_tokens, save_tokens, tokenize
from seedscope.engine.contract.abandon import stop_if_abandoned
from seedscope.engine.contract.files import whole
from seedscope.engine.executors.local import HERE
from seedscope.engine.executors.unit import Executor, Unit, run_units

__all__ = [
    "PADDING", "Activations", "BeyondRangeError", "LanguageModel", "TokenSet", "harvest", "hook_module", "load_model",
    "stream", "token_texts", "tokenize", "width",
]  # fmt: skip

MOST_WINDOWS, MOST_TOKENS = 64, 16_384  # of a harvest's batch: bounds memory whatever the context length is
PIECES = 64  # most units of a harvest, where one file each is not larger than a shard may be
NOTE_WINDOWS, NOTE_SECONDS = 1024, 20.0  # a killed harvest loses at most this much work


class Activations(NamedTuple):
    """Activations of a batch of windows at the tokens that count."""

    rows: Float[Tensor, "tokens d_in"]
    position: Int[np.ndarray, " tokens"]  # window * n_ctx + offset


class BeyondRangeError(ValueError):
    """An activation is too large for float16."""


class _HookPointPassed(Exception):
    """Ends a forward pass at the hook point: nothing above it needs computing."""


def hook_module(model: LanguageModel, hookpoint: str) -> tuple[nn.Module, bool]:
    """The module behind a hook point, and whether its input (True) or its output (False) is meant; see hookpoints.find."""
    return hookpoints.find(model.pretrained, hookpoint)


def stream(
    model: LanguageModel,
    tokens: TokenSet,
    hookpoint: str,
    *,
    first_window: int = 0,
    windows_per_batch: int = 32,
) -> Generator[Activations, None, None]:
    """Run the model window by window up to the hook point and yield what passes there, in token order, on the CPU.

    Padding stands at the end of a window, where a causal model cannot see it; from encoders it is masked. Raises
    ValueError for a hook point that the model does not have, or where no row per token passes.
    """
    module, wants_input = hook_module(model, hookpoint)
    network = model.pretrained
    base = network.base_model
    run = base if any(module is each for each in base.modules()) else network
    padding_id = 0 if model.causal else getattr(model.tokenizer, "pad_token_id", None) or 0
    captured: list[object] = []

    def capture(_module: nn.Module, inputs: tuple, named: dict, output: object = None) -> None:
        captured.append(output if not wants_input else inputs[0] if inputs else named.get("hidden_states"))
        raise _HookPointPassed

    register = module.register_forward_pre_hook if wants_input else module.register_forward_hook
    handle = register(in_this_thread(capture), with_kwargs=True)
    counted, n_ctx = tokens.counted, tokens.ids.shape[1]
    try:
        for first in range(first_window, len(tokens.ids), windows_per_batch):
            stop_if_abandoned()
            window_ids = torch.from_numpy(tokens.ids[first : first + windows_per_batch]).long()
            ids = window_ids.masked_fill(window_ids == PADDING, padding_id).to(network.device)
            options = {"use_cache": False} if model.causal else {"attention_mask": (window_ids != PADDING).to(ids)}
            with suppress(_HookPointPassed), torch.inference_mode():
                run(ids, **options)
            rows = _rows_per_token(captured.pop() if captured else None, ids, hookpoint)
            keep = counted[first : first + windows_per_batch].reshape(-1)
            yield Activations(rows.float().cpu()[torch.from_numpy(keep)], first * n_ctx + np.flatnonzero(keep))
    finally:
        handle.remove()


def _rows_per_token(value: object, ids: Tensor, hookpoint: str) -> Tensor:
    """(tokens, d_in) from a module's input or output: a tensor, or a tuple or model output that begins with one."""
    if value is None:
        raise ValueError(f"the model's forward pass never reaches {hookpoint!r}, expected a module that it calls")
    value = value if isinstance(value, Tensor) else cast("tuple[object, ...]", value)[0]
    if isinstance(value, Tensor) and value.is_floating_point():
        if value.ndim == 3 and value.shape[:2] == ids.shape:
            return value.flatten(0, 1)
        if value.ndim == 2 and len(value) == ids.numel():  # OPT's MLP and some experts see all tokens in one row
            return value
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(
        f"at {hookpoint!r} passes {shape}, expected one row of numbers per token {tuple(ids.shape)}; name a block, an "
        "attention or an MLP"
    )


def harvest(
    model: LanguageModel,
    tokens: TokenSet,
    hookpoint: str,
    folder: Path,
    *,
    dtype: str = "float16",
    shard_bytes: int = shards.SHARD_BYTES,
    executor: Executor = HERE,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray | shards.Shards:
    """Write all activations of a token set to `folder` and return them, read-only: (tokens, d_in).

    float16 (relative error 5e-4) unless `dtype` says float32; files of at most about `shard_bytes`; one batch in memory.
    Returns a memory map where it is one file, else `Shards`. `report` gets (rows on disk, all rows) after each batch. A
    stopped harvest goes on where its last complete batch ended, a killed one at
    most 1,024 windows or 20 seconds before; the bytes are the same. A folder made from other tokens, another model, hook
    point or dtype is begun anew. Raises ValueError, before it begins, where the disk is too small or the hook point
    unknown, and where an activation is not finite in `dtype`.

    Where units run elsewhere and the model can be loaded there, each shard is one, up to PIECES of them; the rows are the same.
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype is {dtype!r}, expected 'float16' or 'float32'")
    folder.mkdir(parents=True, exist_ok=True)
    n_ctx, per_batch = tokens.ids.shape[1], _per_batch(tokens)
    d_in = width(model, tokens, hookpoint)
    per_shard = max(1, shard_bytes // (n_ctx * d_in * np.dtype(dtype).itemsize) // per_batch) * per_batch
    in_units = not executor.is_here and model.source is not None
    if in_units:
        per_shard = min(per_shard, max(-(-len(tokens.ids) // PIECES // per_batch), 1) * per_batch)
    made_from = {"model": model.digest, "hookpoint": hookpoint, "tokens": tokens.digest, "dtype": dtype}
    writer = shards.ShardWriter(folder, made_from, tokens.counted.sum(1), d_in, per_shard)
    if in_units:
        _harvest_in_units(writer, model, tokens, hookpoint, dtype, executor, report)
        return writer.read()
    writer.open()
    source = stream(model, tokens, hookpoint, first_window=writer.windows, windows_per_batch=per_batch)
    noted, noted_at = writer.windows, time.monotonic()
    try:
        with closing(source):
            for batch in source:
                rows = _narrowed(batch, dtype)
                _require_finite(rows, batch, tokens, hookpoint)
                writer.append(rows, per_batch)
                if writer.windows - noted >= NOTE_WINDOWS or time.monotonic() - noted_at >= NOTE_SECONDS:
                    writer.note()
                    noted, noted_at = writer.windows, time.monotonic()
                report(writer.rows, writer.total)
    finally:
        writer.note()
    return writer.read()


class HarvestTask(NamedTuple):
    """What is recorded, in plain values that another process can read."""

    model: tuple[str, bool, str]
    """Source, whether its weights are random, digest."""
    tokens: str
    """Folder of the token set."""
    hookpoint: str
    dtype: str
    device: str
    per_batch: int


def _harvest_in_units(
    writer: shards.ShardWriter,
    model: LanguageModel,
    tokens: TokenSet,
    hookpoint: str,
    dtype: str,
    executor: Executor,
    report: Callable[[int, int], None],
) -> None:
    """Every shard as a unit; those that are there are not made again."""
    if writer.windows == writer.n_windows:
        return
    writer.open_for_units()
    save_tokens(tokens, writer.folder)
    folder = str(writer.folder.absolute())
    device = executor.device or str(model.pretrained.device)
    task = HarvestTask(
        (model.source or "", model.is_random, model.digest), folder, hookpoint, dtype, device, _per_batch(tokens)
    )
    units = []
    for shard in range(writer.n_shards):
        path = writer.path(shard).absolute()
        units.append(Unit(harvest_shard, (task, *writer.windows_of(shard), str(path)), path, writer.rows_of(shard)))
    run_units(executor, units, report=report)
    writer.finish()


def harvest_shard(task: HarvestTask, first: int, last: int, path: str) -> str:
    """Record the windows from `first` to before `last` and write their rows to a file; a unit of work."""
    tokens = load_tokens(Path(task.tokens))
    if tokens is None:
        raise ValueError(f"found no tokens in {task.tokens}, which were there when this unit was asked for")
    tokens = tokens._replace(names=[f"number {i}" for i in range(int(tokens.document.max()) + 1)])
    model = loaded_again(*task.model, task.device)
    up_to = tokens._replace(
        ids=tokens.ids[:last], document=tokens.document[:last], start=tokens.start[:last],
        left_out=tokens.left_out[tokens.left_out < last * tokens.ids.shape[1]],
    )  # fmt: skip
    source = stream(model, up_to, task.hookpoint, first_window=first, windows_per_batch=task.per_batch)
    with whole(Path(path)) as file, closing(source):
        for batch in source:
            rows = _narrowed(batch, task.dtype)
            _require_finite(rows, batch, tokens, task.hookpoint)
            file.write(np.ascontiguousarray(rows).data)
    return path


def _per_batch(tokens: TokenSet) -> int:
    """Windows that pass the model together."""
    return max(1, min(MOST_WINDOWS, MOST_TOKENS // tokens.ids.shape[1]))


def _narrowed(batch: Activations, dtype: str) -> np.ndarray:
    return batch.rows.numpy().astype(dtype) if dtype == "float32" else batch.rows.half().numpy()


def width(model: LanguageModel, tokens: TokenSet, hookpoint: str) -> int:
    """Numbers per token at a hook point, from one window: known before the work begins."""
    one = TokenSet(tokens.ids[:1], tokens.document[:1], tokens.start[:1], tokens.names, None)
    with closing(stream(model, one, hookpoint)) as source:
        return next(source).rows.shape[1]


def _require_finite(rows: np.ndarray, batch: Activations, tokens: TokenSet, hookpoint: str) -> None:
    finite = np.isfinite(rows).all(1)
    if finite.all():
        return
    first = int(np.argmin(finite))
    window = batch.position[first] // tokens.ids.shape[1]
    value = batch.rows[first].abs().max().item()
    representable = np.isfinite(value)
    remedy = "dtype='float32' holds it" if representable else "the model itself is broken there"
    raise (BeyondRangeError if representable else ValueError)(
        f"an activation at {hookpoint!r} in document {tokens.names[tokens.document[window]]!r} is {value:.3g}, beyond the "
        f"range of {rows.dtype}; {remedy}"
    )
