"""train_ensemble: all members in lockstep on one stream of activations.

Recipe (dictionary_learning's, as Song et al. use it): inputs scaled to unit mean square norm, unit decoder rows
with the parallel part of their gradient removed, AuxK for silent features, Adam, warm-up, decay over the last fifth.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from engine.config import TrainConfig
from engine.initialization import geometric_median, random_start
from engine.sae import SAE

SAMPLE_ROWS = 16_384  # enough for the scale and the centre of the data to three digits


def batches(activations: np.ndarray, config: TrainConfig, *, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield (batch, d_in) rows, or (batch, members, d_in) when every member shuffles for itself; epochs as needed."""
    shared = config.data_order == "shared"
    generators = [torch.Generator().manual_seed(s) for s in ((0,) if shared else config.seeds)]
    n_rows, n_batches = len(activations), config.n_tokens // config.batch
    per_epoch = n_rows // config.batch
    if not per_epoch:
        raise ValueError(f"found {n_rows} activations, expected at least one batch ({config.batch}); add tokens")
    for step in range(n_batches):
        if step % per_epoch == 0:
            orders = torch.stack([torch.randperm(n_rows, generator=g) for g in generators], 1)
        start = step % per_epoch * config.batch
        rows = orders[start : start + config.batch].numpy()
        batch = torch.from_numpy(activations[rows]).to(dtype)
        yield batch[:, 0] if shared else batch


def learning_rate_factor(step: int, n_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, plateau, linear decay to zero at the end; in (0, 1]."""
    warmup = max(config.warmup_frac * n_steps, 1)
    decay = max(config.decay_frac * n_steps, 1)
    return min((step + 1) / warmup, 1.0, (n_steps - step) / decay)


def train_ensemble(
    activations: np.ndarray,
    config: TrainConfig,
    *,
    dtype: torch.dtype = torch.float32,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> SAE:
    """Train one TopK SAE per seed on `activations` (rows, d_in), all members in each step.

    Members never exchange anything: training them one by one gives the same weights up to rounding. The returned SAE
    takes raw activations; the training scale is folded into its biases, exactly, because TopK is homogeneous.
    Cost per member and token: 4 d_in d_sae FLOPs for the encoder, k d_in for the rest. Raises ValueError for too few rows.
    """
    stride = max(len(activations) // SAMPLE_ROWS, 1)
    sample = torch.from_numpy(np.array(activations[::stride][:SAMPLE_ROWS])).to(dtype)
    scale = sample.pow(2).sum(1).mean().sqrt()
    sae = random_start(
        config.seeds, activations.shape[1], config.d_sae, k=config.k, center=geometric_median(sample / scale)
    )
    optimizer = torch.optim.Adam(sae.parameters(), lr=config.lr, betas=(0.9, 0.999), fused=True)
    silent_tokens = torch.zeros(sae.n_members, sae.d_sae, dtype=torch.long)
    n_steps = config.n_tokens // config.batch
    for step, rows in enumerate(batches(activations, config, dtype=dtype)):
        optimizer.param_groups[0]["lr"] = config.lr * learning_rate_factor(step, n_steps, config)
        loss = _loss(sae, rows / scale, silent_tokens, config)
        loss.backward()
        with torch.no_grad():
            parallel = (sae.W_dec.grad * sae.W_dec).sum(-1, keepdim=True)
            sae.W_dec.grad -= parallel * sae.W_dec
            optimizer.step()
            optimizer.zero_grad()
            sae.W_dec /= sae.W_dec.norm(dim=-1, keepdim=True)
        report((step + 1) * config.batch, n_steps * config.batch)
    with torch.no_grad():
        sae.b_enc *= scale
        sae.b_dec *= scale
    return sae


def _loss(sae: SAE, rows: Tensor, silent_tokens: Tensor, config: TrainConfig) -> Tensor:
    """Squared error per token summed over members, plus AuxK; counts in place for how long each feature is silent."""
    pre = sae.pre_activations(rows)
    codes = sae.activate(pre)
    target = rows[:, None] if rows.ndim == 2 else rows
    residual = target - sae.decode(codes)
    loss = residual.pow(2).sum(-1).mean(0).sum()
    fired = torch.zeros_like(silent_tokens, dtype=torch.bool)
    active = codes.indices + torch.arange(sae.n_members)[:, None] * sae.d_sae
    fired.view(-1)[active[codes.values > 0]] = True
    silent_tokens += len(rows)
    silent_tokens[fired] = 0
    silent = silent_tokens >= config.silent_after
    if silent.any():
        loss = loss + config.aux_coefficient * _aux_loss(sae, pre, silent, residual.detach(), config.aux_k)
    return loss


def _aux_loss(sae: SAE, pre: Tensor, silent: Tensor, residual: Tensor, aux_k: int) -> Tensor:
    """AuxK (Gao et al. 2024, appendix A.2): the share of the residual that the top aux_k silent features leave unexplained.

    Silent features are few, so their columns are gathered per member and multiplied densely: over all features it cost
    as much as the rest of the step.
    """
    loss = pre.new_zeros(())
    for member, which in enumerate(silent):
        columns = which.nonzero()[:, 0]
        if not len(columns):
            continue
        acts = pre[:, member].index_select(1, columns)
        if len(columns) > aux_k:
            least = acts.topk(aux_k, dim=1).values[:, -1:]
            acts = acts.masked_fill(acts < least, 0.0)
        left = residual[:, member]
        error = (left - acts.relu() @ sae.W_dec[member].index_select(0, columns)).pow(2).sum()
        loss = loss + error / (left - left.mean(0)).pow(2).sum()
    return loss
