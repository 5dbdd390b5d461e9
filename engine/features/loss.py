"""Next-token loss with a reconstruction in place of the activations at a hook point.

Reconstructions replace the activations of tokens that count; BOS and padding keep the model's own. The loss of a window is
read at the replaced positions whose next token is real. Every such loss comes with the model's own and that with zeros; loss
recovered = (zero - spliced) / (zero - own), 1 for a perfect reconstruction (METHOD of this project).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seedscope.engine.activations import hookpoints
from seedscope.engine.activations.harvest import hook_module, stream
from seedscope.engine.activations.model import LanguageModel
from seedscope.engine.activations.thread_hooks import in_this_thread
from seedscope.engine.activations.tokens import PADDING, TokenSet
from seedscope.engine.contract.abandon import stop_if_abandoned
from seedscope.engine.features.ablation import spread
from seedscope.engine.features.blocks_below import BlocksBelow
from seedscope.engine.saes.sae import SAE, Codes

LOSS_TOKENS = 4096  # that spliced losses are measured on: windows of the evaluation tokens, drawn at random


WINDOWS_AT_ONCE = 8
KEPT_NUMBERS = 2**27  # of the residual stream, that are kept to skip the blocks below a hook point: 512 MiB
LONG = 3e13  # multiply-adds on a CPU beyond which a loss is measured only on request: minutes on two cores


class MaskedLoss(NamedTuple):
    """Next-token loss with one kind of mask of one size: mean and spread over random draws, nats per token."""

    mask: str
    n_masked: int
    loss: float
    loss_sd: float


class Losses(NamedTuple):
    """What one member's reconstruction costs the model, nats per token."""

    own: float  # the model itself
    spliced: float
    zero: float  # zeros in place of the activations
    n_tokens: int  # whose prediction was read
    attributed: Float[np.ndarray, " d_sae"]  # loss that masking each feature alone adds, to first order


def takes_long(model: LanguageModel, n_passes: int, n_tokens: int) -> bool:
    """Whether so many passes over so many tokens take longer than LONG on this CPU; on other devices never."""
    work = n_passes * n_tokens * sum(parameter.numel() for parameter in model.network.parameters())
    return model.pretrained.device.type == "cpu" and work > LONG


class Splice:
    """A model over some windows, whose activations at one hook point can be replaced.

    Where the hook point is a module's input, that input is replaced. `hook_resid_mid` is replaced in the residual stream, not
    only in front of the MLP's norm. `reads` is where what replaces them is computed from: the same place, or the input hook
    point of transcoders, which the model has to pass first. Raises ValueError for models without a next-token loss, and where
    the hook point does not pass one row per token or what passes there cannot be replaced.
    """

    def __init__(self, model: LanguageModel, tokens: TokenSet, hookpoint: str, *, reads: str | None = None) -> None:
        if not model.causal:
            raise ValueError(
                f"{model.name} sees all tokens at once, so it has no next-token loss; expected a causal model"
            )
        self._model, self._tokens = model, tokens
        self._module, self._is_input = hook_module(model, hookpoint)
        self._hookpoint, self._reads = hookpoint, None if reads == hookpoint else reads
        self._source = hook_module(model, self._reads) if self._reads else None
        self._in_place = hookpoints.lies_on_stream(model.pretrained, hookpoint)
        self._counted = torch.from_numpy(tokens.counted)
        self._ids = torch.from_numpy(tokens.ids).long()
        following = torch.zeros_like(self._counted)
        following[:, :-1] = self._ids[:, 1:] != PADDING
        self._read = self._counted & following
        self.n_tokens = int(self._read.sum())
        self.device = model.pretrained.device
        self._below: BlocksBelow | None = None

    def keep_below(self) -> None:
        """Skip the blocks below the hook point in all further passes, for many passes over the same tokens.

        Nothing is skipped where there is no such block, where what they give would take more than KEPT_NUMBERS, and where the
        model's own loss changes if they are, as in a model whose later blocks read more of earlier ones than the residual
        stream. Costs the model's own pass twice.
        """
        modules = [self._module] + ([self._source[0]] if self._source else [])
        below = BlocksBelow(self._model.pretrained, modules)
        width = getattr(self._model.pretrained.config.get_text_config(), "hidden_size", 0)
        if not len(below) or not 0 < self._ids.numel() * width <= KEPT_NUMBERS:
            return
        with below.kept():
            whole = self.own()
        self._below = below
        if not torch.allclose(self.own(), whole, rtol=1e-5, atol=1e-6):
            self._below = None

    @property
    def skips_blocks(self) -> bool:
        """Whether passes skip the blocks below the hook point."""
        return self._below is not None

    def own(self) -> Float[Tensor, " tokens"]:
        """The model's own loss at every position that is read."""
        return torch.cat([loss.detach().cpu() for _, _, loss in self._run(None)])

    def spliced(self, member: SAE) -> float:
        """Mean loss with the reconstruction of an ensemble of one in place, nats per token."""
        with torch.no_grad():
            return float(self.losses(lambda rows: member(rows)[:, 0]).double().mean())

    def losses(self, replaced: Callable[[Tensor], Tensor]) -> Float[Tensor, " tokens"]:
        """The loss at every position that is read with `replaced(rows)` spliced in; rows are (tokens, d_in)."""
        return torch.cat([loss.detach().cpu() for _, _, loss in self._run(replaced)])

    def zeroed(self) -> Float[Tensor, " tokens"]:
        """The loss at every position that is read with zeros spliced in."""
        return self.losses(lambda rows: rows.new_zeros(1, 1))

    def gradients(self, replaced: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows, d loss / d replaced) of consecutive batches, of the loss summed over all positions that are read."""
        for rows, spliced, loss in self._run(replaced, gradient=True):
            (gradient,) = torch.autograd.grad(loss, spliced, torch.ones_like(loss))
            yield rows, gradient

    def _run(
        self, replaced: Callable[[Tensor], Tensor] | None, *, gradient: bool = False
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(rows that are read, what was spliced in, losses) batch by batch."""
        device = self._model.pretrained.device
        for batch, first in enumerate(range(0, len(self._ids), WINDOWS_AT_ONCE)):
            stop_if_abandoned()
            below = self._below.skipped(batch) if self._below else nullcontext()
            window = slice(first, first + WINDOWS_AT_ONCE)
            ids, keep, read = (tensor[window].to(device) for tensor in (self._ids, self._counted, self._read))
            captured: dict[str, Tensor] = {}

            def read_rows(value: Tensor, keep: Tensor = keep, captured: dict[str, Tensor] = captured) -> None:
                captured["rows"] = value.detach()[self._rows_that_count(value, keep)]

            def exchange(value: Tensor, keep: Tensor = keep, captured: dict[str, Tensor] = captured) -> Tensor:
                if self._source is None:
                    read_rows(value)
                elif "rows" not in captured:
                    raise ValueError(
                        f"the model passes {self._hookpoint!r} before it passes {self._reads!r}, so it cannot be computed from it"
                    )
                keep = self._rows_that_count(value, keep)
                if replaced is None:
                    return value
                with torch.no_grad():
                    new = replaced(captured["rows"].float())
                captured["spliced"] = new.detach().requires_grad_(gradient)
                out = value.detach().clone()
                out[keep] = captured["spliced"].to(out.dtype)
                return out

            with torch.set_grad_enabled(gradient), below, self._captured(read_rows), self._exchanged(exchange):
                logits = self._model.network(ids.clamp_min(0), use_cache=False).logits.float()
                at, to = read[:, :-1], ids[:, 1:]
                loss = torch.nn.functional.cross_entropy(logits[:, :-1][at], to[at], reduction="none")
            yield captured["rows"].float(), captured.get("spliced", captured["rows"]), loss

    def _rows_that_count(self, value: Tensor, keep: Tensor) -> Tensor:
        """`keep` (windows, n_ctx) in the shape of the rows that pass: OPT's MLP has all tokens of a batch in one axis."""
        if value.ndim == 3 and value.shape[:2] == keep.shape:
            return keep
        if value.ndim == 2 and len(value) == keep.numel():
            return keep.reshape(-1)
        raise ValueError(
            f"at {self._hookpoint!r} passes {tuple(value.shape)}, expected one row of numbers per token {tuple(keep.shape)}: "
            "activations there cannot be replaced"
        )

    @contextmanager
    def _captured(self, read_rows: Callable[[Tensor], None]) -> Iterator[None]:
        """The model with `read_rows` called on what passes where transcoders read; nothing for SAEs."""
        if self._source is None:
            yield
            return
        module, is_input = self._source

        def on_input(_module: object, inputs: tuple, named: dict) -> None:
            if not inputs and "hidden_states" not in named:
                raise ValueError(
                    f"the module at {self._reads!r} is called with {', '.join(named) or 'nothing'}, expected hidden_states: what "
                    "enters it cannot be read"
                )
            read_rows(inputs[0] if inputs else named["hidden_states"])

        def on_output(_module: object, _inputs: tuple, output: Tensor | tuple) -> None:
            read_rows(output if isinstance(output, Tensor) else output[0])

        if is_input:
            handle = module.register_forward_pre_hook(in_this_thread(on_input), with_kwargs=True)
        else:
            handle = module.register_forward_hook(in_this_thread(on_output))
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _exchanged(self, exchange: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """The model with `exchange` between what passes at the hook point and what comes behind it."""

        def first_of(value: Tensor | tuple) -> Tensor | tuple:
            return exchange(value) if isinstance(value, Tensor) else (exchange(value[0]), *value[1:])

        def on_input(_module: object, inputs: tuple, named: dict) -> tuple[tuple, dict]:
            if not inputs and "hidden_states" not in named:
                raise ValueError(
                    f"the module at {self._hookpoint!r} is called with {', '.join(named) or 'nothing'}, expected "
                    "hidden_states: what enters it cannot be replaced"
                )
            value: Tensor = inputs[0] if inputs else named["hidden_states"]
            new = exchange(value)
            if self._in_place and new is not value:
                new = value.copy_(new)  # the residual stream is this very tensor
            return ((new, *inputs[1:]), named) if inputs else (inputs, named | {"hidden_states": new})

        def on_output(_module: object, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
            return first_of(output)

        if self._is_input:
            handle = self._module.register_forward_pre_hook(in_this_thread(on_input), with_kwargs=True)
        else:
            handle = self._module.register_forward_hook(in_this_thread(on_output))
        try:
            yield
        finally:
            handle.remove()


def attributed_loss(splice: Splice, member: SAE) -> Float[np.ndarray, " d_sae"]:
    """Next-token loss in nats per token when each feature alone is masked, to first order: -sum_t w_i d_i . dL/dx_hat.

    `member` is one SAE (n_members 1); w_i is what multiplies its decoder row (SAE.coefficients). One forward and one
    backward pass for all features together.
    """
    total = torch.zeros(member.d_sae, dtype=torch.float64)
    decoder = member.W_dec.detach()[0]
    for rows, gradient in splice.gradients(lambda rows: member(rows)[:, 0]):
        codes = member.encode(rows)
        weights, index = member.coefficients(codes)[:, 0], codes.indices[:, 0]
        along = torch.bmm(decoder[index], gradient[:, :, None])[..., 0]
        total.index_add_(0, index.flatten().cpu(), -(weights * along).double().flatten().cpu())
    return (total / splice.n_tokens).numpy()


class ExactLoss(NamedTuple):
    """What masking one feature adds to the loss, window by window."""

    added: Float[np.ndarray, " windows"]  # nats, summed over the tokens that are read; 0 where the feature is silent
    read: Int[np.ndarray, " windows"]  # tokens whose prediction is read
    active: Int[np.ndarray, " windows"]  # tokens on which the feature is active
    replaced: (
        Float[np.ndarray, " windows"] | None
    )  # as `added`, with the stand-in in the feature's place; None without one


class StandIn(NamedTuple):
    """A feature of another SAE that takes a feature's place, with its own activations and decoder row."""

    member: SAE  # an ensemble of one
    feature: int

    def part(self, rows: Tensor) -> Float[Tensor, "tokens d_out"]:
        """What it adds to a reconstruction of these rows."""
        codes = self.member.encode(rows)
        own = (codes.indices == self.feature).to(codes.values.dtype)
        return self.member.decode(Codes(codes.values * own, *codes[1:]), bias=False)[:, 0]


def exact_loss(
    model: LanguageModel,
    tokens: TokenSet,
    hookpoint: str,
    member: SAE,
    feature: int,
    *,
    hookpoint_out: str | None = None,
    stand_in: StandIn | None = None,
) -> ExactLoss:
    """The next-token loss with one feature masked against the whole reconstruction, both spliced in.

    And with a stand-in in its place. Activations are read at `hookpoint`; transcoders are spliced in at `hookpoint_out`.

    Cost: the model up to the hook point on all windows, and two or three whole passes over those in which the feature or its
    stand-in is active.
    """
    counted, n_windows = tokens.counted, len(tokens.ids)
    window = np.repeat(np.arange(n_windows), counted.sum(1))
    at = 0
    active, changed = np.zeros((2, n_windows), np.int32)
    for batch in stream(model, tokens, hookpoint, windows_per_batch=WINDOWS_AT_ONCE):
        codes = member.encode(batch.rows.to(member.W_dec.device))
        fires = ((codes.indices == feature) & (codes.values > 0)).flatten(1).any(1).cpu().numpy()
        active += np.bincount(window[at : at + len(fires)][fires], minlength=n_windows).astype(np.int32)
        if stand_in:
            fires |= stand_in.part(batch.rows.to(member.W_dec.device)).any(1).cpu().numpy()
        changed += np.bincount(window[at : at + len(fires)][fires], minlength=n_windows).astype(np.int32)
        at += len(fires)
    read, added = counted.copy(), np.zeros(n_windows)
    replaced = np.zeros(n_windows) if stand_in else None
    read[:, :-1] &= tokens.ids[:, 1:] != PADDING
    read[:, -1] = False
    where = np.flatnonzero(changed)
    if len(where):
        splice = Splice(model, tokens.only(where), hookpoint_out or hookpoint, reads=hookpoint)
        whole, without = (splice.losses(masked(member, np.array(sets, np.int64))).double() for sets in ([], [feature]))
        owner = np.repeat(np.arange(len(where)), read[where].sum(1))
        added[where] = np.bincount(owner, weights=(without - whole).numpy(), minlength=len(where))
        if stand_in and replaced is not None:
            lacking = masked(member, np.array([feature]))
            exchanged = splice.losses(lambda rows: lacking(rows) + stand_in.part(rows)).double()
            replaced[where] = np.bincount(owner, weights=(exchanged - whole).numpy(), minlength=len(where))
    return ExactLoss(added, read.sum(1).astype(np.int32), active, replaced)


def losses_under(
    splice: Splice, member: SAE, masks: dict[str, list[np.ndarray]], *, report: Callable[[], None] = lambda: None
) -> list[MaskedLoss]:
    """The loss under chosen masks, one result per name and size; one forward pass per different set of features.

    The tokens are encoded once for all of them.
    """
    results = []
    kept: list[Codes] = []
    for name, sets in masks.items():
        by_size: dict[int, list[float]] = {}
        for chosen in sets:
            loss = splice.losses(masked(member, chosen, kept)).double().mean()
            by_size.setdefault(len(chosen), []).append(float(loss))
            report()
        results += [MaskedLoss(name, n, float(np.mean(v)), spread(v)) for n, v in sorted(by_size.items())]
    return results


def masked(member: SAE, features: np.ndarray, kept: list[Codes] | None = None) -> Callable[[Tensor], Tensor]:
    """The reconstruction of one SAE with these features set to zero after the activation function.

    `kept`, empty at first, holds the codes of every batch from the first pass on; batches come in the same order in every pass,
    and what is returned serves for one.
    """
    batches = count()
    is_masked = torch.zeros(member.d_sae, dtype=torch.bool)
    is_masked[torch.from_numpy(np.asarray(features, np.int64))] = True

    def reconstruct(rows: Tensor) -> Tensor:
        batch = next(batches)
        codes = kept[batch] if kept is not None and batch < len(kept) else member.encode(rows)
        if kept is not None and batch == len(kept):
            kept.append(codes)
        values = codes.values.masked_fill(is_masked.to(codes.indices.device)[codes.indices], 0)
        return member.decode(Codes(values, *codes[1:]))[:, 0]

    return reconstruct
