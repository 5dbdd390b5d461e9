"""Activations and codes from a device to main memory, against the bare model and the encoder's product on it."""

import copy
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from seedscope.engine.activations.harvest import stream
from seedscope.engine.activations.model import LanguageModel
from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.bench.gpu_sizes import GpuSizes
from seedscope.engine.bench.gpu_training import made_rows
from seedscope.engine.bench.gpu_work import GpuSlot, Limit, Result, Work, WrongResultError, double, within, within_norm
from seedscope.engine.saes.encode import encoded
from seedscope.engine.saes.sae import SAE

ACTIVATION = 1e-4  # allowed error of an activation row in float32, as a share of its norm
CHECKED_WINDOWS, CHECKED_ROWS = 2, 256
AT_ONCE = 32  # windows of a forward pass, as `stream` takes them


def harvest(sizes: GpuSizes, slot: GpuSlot) -> Iterator[Work]:
    """The model up to its hook point, and the codes of one SAE."""
    device = slot.device
    yield _activations(sizes, device)
    yield _codes(sizes, device)


def _activations(sizes: GpuSizes, device: torch.device) -> Work:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=sizes.layers,
        n_embd=sizes.d_in,
        n_head=sizes.heads,
        vocab_size=sizes.vocabulary,
        n_positions=sizes.n_ctx,
        bos_token_id=0,
        eos_token_id=0,
    )
    network = GPT2LMHeadModel(config).eval()
    right = copy.deepcopy(network).double()  # on the CPU
    model = LanguageModel(network.to(device), None, "gpt2", "0" * 16, True)
    ids = np.random.default_rng(0).integers(0, sizes.vocabulary, (sizes.windows, sizes.n_ctx)).astype(np.int32)
    windows = np.arange(len(ids), dtype=np.int32)
    tokens = TokenSet(ids, windows, np.zeros_like(windows), [str(i) for i in windows], None)
    hook = f"blocks.{sizes.layers - 1}.hook_resid_pre"

    def rows() -> Result:
        return {"rows": torch.cat([batch.rows for batch in stream(model, tokens, hook, windows_per_batch=AT_ONCE)])}

    def check(found: Result) -> float:
        at = [0, len(ids) - 1][:CHECKED_WINDOWS]
        with torch.no_grad():
            expected = right.transformer(torch.from_numpy(ids[at]).long(), output_hidden_states=True)
        if found["rows"].shape != (ids.size, sizes.d_in):
            raise WrongResultError(
                f"rows have the shape {tuple(found['rows'].shape)}, expected {(ids.size, sizes.d_in)}"
            )
        own = torch.as_tensor(found["rows"]).view(len(ids), sizes.n_ctx, sizes.d_in)[at]
        return within_norm("rows", own, expected.hidden_states[sizes.layers - 1], ACTIVATION)

    bare = copy.deepcopy(network.transformer)
    bare.h, bare.ln_f = bare.h[: sizes.layers - 1], nn.Identity()
    resident = torch.from_numpy(ids).long().to(device)
    limit = "the bare model up to the hook point, everything on the device"
    return Work(
        name=f"activations of {ids.size:,} tokens, {sizes.layers - 1} blocks of width {sizes.d_in}, to main memory",
        ours=rows,
        check=check,
        limit=limit,
        limits={limit: Limit(partial(_forward, bare, resident))},
        goal="within 1.5 x of the limit",
    )


@torch.inference_mode()
def _forward(network: nn.Module, ids: torch.Tensor) -> None:
    for part in ids.split(AT_ONCE):
        network(part, use_cache=False)


def _codes(sizes: GpuSizes, device: torch.device) -> Work:
    n = min(sizes.windows * sizes.n_ctx, 16 * sizes.batch)
    rows = made_rows(n, sizes.d_in)
    generator = torch.Generator().manual_seed(1)
    decoder = nn.functional.normalize(torch.randn(1, sizes.d_sae, sizes.d_in, generator=generator), dim=-1)
    sae = SAE(
        decoder.transpose(1, 2).contiguous(), 0.01 * torch.randn(1, sizes.d_sae, generator=generator), decoder,
        rows.mean(0)[None], k=sizes.k, seeds=(0,),
    ).requires_grad_(False)  # fmt: skip
    array = rows.numpy()

    def codes() -> Result:
        parts = [each for _, _, each in encoded(sae, array, device)]
        return {
            "values": torch.cat([each.values for each in parts]),
            "indices": torch.cat([each.indices for each in parts]),
        }

    def check(found: Result) -> float:
        """Some rows by NumPy: their values, and that nothing larger was left out."""
        some = np.linspace(0, n - 1, min(CHECKED_ROWS, n)).astype(int)
        encoder, bias, center = double(sae.W_enc[0]), double(sae.b_enc[0]), double(sae.b_dec[0])
        pre = (double(rows[some]) - center) @ encoder + bias
        values, indices = (np.asarray(found[name])[some, 0] for name in ("values", "indices"))
        if indices.min() < 0 or indices.max() >= sizes.d_sae:
            raise WrongResultError("indices name features that do not exist")
        allowed = 1e-5 * float(np.abs(pre).max())
        largest = np.sort(pre, 1)[:, : -sizes.k - 1 : -1].clip(0)
        own = np.take_along_axis(pre, indices, 1).clip(0)
        return max(
            within("values", -np.sort(-values, 1), largest, allowed),
            within("pre-activations at indices", own, values, allowed),
        )

    encoder, resident = sae.W_enc[0].T.contiguous().to(device), rows.to(device)
    limit = "the encoder's product, everything on the device"
    return Work(
        name=f"codes of {n:,} rows by 1 x {sizes.d_sae:,} TopK, d_in {sizes.d_in}, k {sizes.k}, from and to main memory",
        ours=codes,
        check=check,
        limit=limit,
        limits={limit: Limit(lambda: [nn.functional.linear(part, encoder) for part in resident.split(2048)])},
        flops=2.0 * n * encoder.numel(),
    )
