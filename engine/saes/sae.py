"""Sparse autoencoders of every convention as one class with a leading member axis: encode, decode, digest, save, load.

SAELens orientation: `W_enc (members, d_in, d_sae)`, `W_dec (members, d_sae, d_out)`; decoder rows are the features. A
`Convention`, which all members share, says how the tensors are used. d_out is d_in, except in transcoders: these read
activations at one hook point and predict those at another, so their decoder rows are directions of their output.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from seedscope.engine.saes.convention import MORE_TENSORS, SKIP, TENSORS, Convention
from seedscope.engine.saes.digest import digest_of, require_digest
from seedscope.engine.saes.topk import topk

# Pre-activations in memory at once while encoding: 128 MiB, and up to 2 GiB with what is computed from them.
DENSE = 2**25
LAYER_NORM_EPS = 1e-5
# {type of a convention's field: (what its text in a file's metadata should be, text -> value)}.
_RESTORED: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bool: ("true or false", {"true": True, "false": False}.__getitem__),
    int: ("a whole number", int),
    float: ("a number", float),
    str: ("a word", str),
}
# Names of these fields in files written before there were conventions.
_FORMERLY = {"subtract_b_dec": "apply_b_dec_to_input", "normalize": "normalize_activations"}


class Codes(NamedTuple):
    """Sparse feature activations of a batch. An entry of value 0 is padding, whatever its index.

    The width is k for topk and groupmax, else the largest number of active features of any (token, member), at least 1.
    """

    values: Float[Tensor, "tokens members width"]  # non-negative, in the SAE's own units
    indices: Int[Tensor, "tokens members width"]  # feature index within its member
    # The reconstruction is multiplied by scale, then shift is added, to give it the units of x. None: it has them already.
    scale: Float[Tensor, "tokens members"] | None = None
    shift: Float[Tensor, "tokens members"] | None = None
    # What a transcoder's skip connection adds to its output. None: it has none.
    skip: Float[Tensor, "tokens members d_out"] | None = None

    def cpu(self) -> "Codes":
        """The same codes in main memory."""
        more = (None if tensor is None else tensor.cpu() for tensor in self[2:])
        return Codes(self.values.cpu(), self.indices.cpu(), *more)


class SAE(nn.Module):
    """An ensemble of SAEs, or of transcoders, that share shape and convention; `len(seeds)` members, one is allowed.

    `k` alone stands for the convention of a plain TopK SAE. `more` holds the further tensors of the architecture, each
    (members, d_sae), and a transcoder's W_skip (members, d_in, d_out). Tensors are copied. Raises ValueError where tensors and
    convention do not fit.
    """

    threshold: nn.Parameter  # jumprelu: (members, d_sae)
    r_mag: nn.Parameter  # gated: (members, d_sae), logarithm of the gain of the magnitudes
    b_mag: nn.Parameter  # gated: (members, d_sae)
    W_skip: nn.Parameter  # transcoders with a skip connection: (members, d_in, d_out)

    def __init__(
        self,
        W_enc: Float[Tensor, "members d_in d_sae"],
        b_enc: Float[Tensor, "members d_sae"],
        W_dec: Float[Tensor, "members d_sae d_out"],
        b_dec: Float[Tensor, "members d_out"],
        *,
        seeds: tuple[int, ...],
        convention: Convention | None = None,
        k: int | None = None,
        more: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if convention is None and k is not None:
            convention = Convention("topk", k=k)
        elif convention is None or k is not None:
            raise ValueError(f"convention is {convention} and k is {k}, expected exactly one of them")
        self.convention = convention
        self.seeds = seeds
        more = more or {}
        _check(self.convention, W_enc, W_dec, more)
        # Always copies: at the start of training the encoder may be a view of the decoder, and they must not share memory.
        # The encoder is stored as (members, d_sae, d_in), so that one product serves all members.
        own = torch.contiguous_format
        self.W_enc = nn.Parameter(W_enc.transpose(1, 2).clone(memory_format=own).transpose(1, 2))
        self.b_enc = nn.Parameter(b_enc.clone())
        self.W_dec = nn.Parameter(W_dec.clone(memory_format=own))
        self.b_dec = nn.Parameter(b_dec.clone())
        for name, tensor in more.items():
            setattr(self, name, nn.Parameter(tensor.clone()))

    @property
    def n_members(self) -> int:
        return self.W_dec.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_in(self) -> int:
        """Numbers per token that are read."""
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Numbers per token of the output, and of decoder rows; d_in except in transcoders."""
        return self.W_dec.shape[2]

    @property
    def k(self) -> int:
        """The convention's k; 0 where the architecture has none."""
        return self.convention.k

    def encode(self, x: Tensor) -> Codes:
        """Sparse codes of x, (tokens, d_in) or (tokens, members, d_in) with its own rows for every member.

        Cost: 2 d_in d_sae FLOPs per token and member. Memory: the codes, 12 bytes per (token, member, width) in float32
        and twice that while they are joined, and 1 to 2 GiB (half or all features active) of work on DENSE pre-activations,
        or on those of one token, if these are more. Pass fewer tokens to SAEs with wide codes.
        """
        skip = self._skipped(x) if self.convention.skip else None
        x, scale, shift = self._normalize(x)
        at_once = max(DENSE // (self.n_members * self.d_sae), 1)
        return _joined([self.activate(self._linear(part)) for part in torch.split(x, at_once)])._replace(
            scale=scale, shift=shift, skip=skip
        )

    def pre_activations(self, x: Tensor) -> Float[Tensor, "tokens members d_sae"]:
        """Input of the activation function for x, (tokens, d_in) or (tokens, members, d_in); dense."""
        return self._linear(self._normalize(x)[0])

    def _skipped(self, x: Tensor) -> Float[Tensor, "tokens members d_out"]:
        """What the skip connection makes of x as it is, before any normalisation."""
        return torch.einsum("ti,mio->tmo" if x.ndim == 2 else "tmi,mio->tmo", x, self.W_skip)

    def _normalize(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The SAE's own inputs, and the scale and shift (tokens, members) that lead back to the units of x.

        Both are None for transcoders, whose output is in the units of what they predict.
        """
        c = self.convention
        scale: Tensor | None
        shift: Tensor | None
        x = x * c.input_scale if c.input_scale != 1 else x
        if c.normalize == "layer_norm":
            shift = x.mean(-1, keepdim=True)
            x = x - shift
            scale = x.std(-1, keepdim=True)
            x = x / (scale + LAYER_NORM_EPS)
            scale = scale + LAYER_NORM_EPS if c.layer_norm_eps_out else scale
        elif c.normalize == "constant_norm_rescale":
            shift, scale = None, x.norm(dim=-1, keepdim=True) / self.d_in**0.5
            x = x / scale.clamp_min(torch.finfo(x.dtype).tiny)  # a row of zeros stays one, in the reconstruction too
        else:
            shift = x.mean(-1, keepdim=True) if c.normalize == "centre" else None
            x = x if shift is None else x - shift
            scale = None if c.input_scale == 1 else x.new_ones(*x.shape[:-1], 1)
        if c.transcoder:
            return x, None, None
        scale, shift = (
            None if t is None else (t[..., 0] / c.input_scale).view(len(x), -1).expand(-1, self.n_members)
            for t in (scale, shift)
        )
        return x, scale, shift

    def _linear(self, x: Tensor) -> Float[Tensor, "tokens members d_sae"]:
        """`(x - b_dec) @ W_enc + b_enc`, or without b_dec; the biases are folded, so that members share one product."""
        bias: Tensor = self.b_enc
        if self.convention.subtract_b_dec:
            bias = bias - torch.einsum("mi,mis->ms", self.b_dec, self.W_enc)
        if x.ndim == 2:
            flat = self.W_enc.transpose(1, 2).reshape(-1, self.d_in)
            return nn.functional.linear(x, flat, bias.flatten()).view(len(x), self.n_members, self.d_sae)
        return torch.baddbmm(bias[:, None], x.transpose(0, 1), self.W_enc).transpose(0, 1)

    def activate(self, pre: Float[Tensor, "tokens members d_sae"]) -> Codes:
        """The activation function of the architecture; the codes are in the SAE's own units, without scale and shift."""
        c = self.convention
        if c.architecture == "topk":
            values, indices = topk(pre * self.W_dec.norm(dim=-1) if c.rescale_by_decoder_norm else pre, c.k)
            return Codes(values.relu(), indices)
        if c.architecture == "groupmax":
            values, indices = torch.unflatten(pre, -1, (c.k, -1)).max(-1)
            first = torch.arange(c.k, device=pre.device) * (self.d_sae // c.k)
            return Codes(values.relu(), indices + first)
        if c.architecture == "relu":
            return _packed(pre.relu())
        if c.architecture == "jumprelu":
            passed = pre >= self.threshold if c.inclusive else pre > self.threshold
            return _packed(pre.relu() * passed)
        # gated: the magnitudes are the same product with other gains and biases.
        gain = self.r_mag.exp()
        magnitude = torch.addcmul(self.b_mag - self.b_enc * gain, pre, gain)
        return _packed(magnitude.relu() * (pre > 0))

    def coefficients(self, codes: Codes) -> Float[Tensor, "tokens members width"]:
        """Coefficients of decoder rows in the features' part of the reconstruction, in the units of the output."""
        values = codes.values
        if self.convention.rescale_by_decoder_norm:
            norms = self.W_dec.norm(dim=-1)
            inverse = torch.where(norms > 0, 1 / norms, 0)
            values = values * inverse.flatten()[self._flat_indices(codes)]
        return values if codes.scale is None else values * codes.scale[..., None]

    def decode(self, codes: Codes, *, bias: bool = True) -> Float[Tensor, "tokens members d_out"]:
        """Reconstruction, in the units of x; reads `width` decoder rows per token and member instead of d_sae.

        Of transcoders the prediction, in the units of what is predicted. Without `bias` the features' part of it alone: no
        decoder bias, no shift, no skip connection.
        """
        n_tokens, n_members, width = codes.indices.shape
        out = nn.functional.embedding_bag(
            self._flat_indices(codes).view(-1, width),
            self.W_dec.reshape(-1, self.d_out),
            per_sample_weights=self.coefficients(codes).reshape(-1, width),
            mode="sum",
        ).view(n_tokens, n_members, self.d_out)
        if bias:
            out = out + (self.b_dec if codes.scale is None else codes.scale[..., None] * self.b_dec)
            out = out if codes.shift is None else out + codes.shift[..., None]
            out = out if codes.skip is None else out + codes.skip
        return out

    def _flat_indices(self, codes: Codes) -> Tensor:
        """Indices into the features of all members, concatenated."""
        return codes.indices + torch.arange(self.n_members, device=codes.indices.device)[:, None] * self.d_sae

    def forward(self, x: Tensor) -> Float[Tensor, "tokens members d_out"]:
        return self.decode(self.encode(x))

    def directions(self) -> Float[Tensor, "members d_sae d_out"]:
        """Unit decoder rows, float32: the feature vectors that are matched."""
        return nn.functional.normalize(self.W_dec.detach().float(), dim=-1)

    def decoder_rows(self, member: int) -> Float[Tensor, "d_sae d_out"]:
        """One member's decoder rows, as they are held."""
        return self.W_dec.detach()[member]

    def encoder_rows(self, member: int) -> Float[Tensor, "d_sae d_in"]:
        """One member's encoder columns, as rows."""
        return self.W_enc.detach()[member].T

    def unit_norms(self) -> Float[Tensor, "members d_sae"]:
        """Norm that one unit of activation adds before unnormalising: the decoder row's, or 1 where it is divided out."""
        norms: Tensor = self.W_dec.detach().norm(dim=-1)
        return (norms > 0).to(norms.dtype) if self.convention.rescale_by_decoder_norm else norms

    def only(self, member: int) -> "SAE":
        """One member as an SAE of its own, without gradients; copies its tensors."""
        tensors = {name: tensor[None] for name, tensor in self.member_tensors(member).items()}
        return assemble(tensors, self.convention, (self.seeds[member],)).requires_grad_(False)

    def member_tensors(self, member: int) -> dict[str, Tensor]:
        """All tensors of one member by name, contiguous."""
        return {name: getattr(self, name).detach()[member].contiguous() for name in self.convention.tensors}

    def digest(self, member: int) -> str:
        """16 hex digits over one member's tensors (name, dtype, shape, bytes) and the convention."""
        return digest_of(self.member_tensors(member), self.convention)

    def save(self, folder: Path, *, provenance: dict[str, str] | None = None) -> None:
        """Write one `seed-N.safetensors` per member, each in one step.

        The metadata hold every field of the convention, the seed, and `provenance`, which cannot override the others.
        """
        folder.mkdir(parents=True, exist_ok=True)
        plain = self.convention.as_json().items()
        convention = {name: value if isinstance(value, str) else json.dumps(value) for name, value in plain}
        for member, seed in enumerate(self.seeds):
            target = folder / f"seed-{seed}.safetensors"
            temporary = target.with_suffix(".tmp")
            metadata = (provenance or {}) | convention | {"seed": str(seed)}
            save_file(self.member_tensors(member), temporary, metadata)
            temporary.replace(target)


def directed(rows: Tensor) -> Tensor:
    """Which of the rows (..., d_in) have a direction: neither zero nor anywhere not finite."""
    norms: Tensor = rows.norm(dim=-1)
    return torch.isfinite(norms) & (norms > 0)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows (.., d_in) divided by their L2 norm; entries that are not finite count as 0, and a row of zeros stays one."""
    return nn.functional.normalize(torch.nan_to_num(rows, 0.0, 0.0, 0.0), dim=-1)


def _check(convention: Convention, W_enc: Tensor, W_dec: Tensor, more: dict[str, Tensor]) -> None:
    """Raise ValueError where tensors and convention do not fit."""
    n_members, d_sae, d_out = W_dec.shape
    architecture, k, d_in = convention.architecture, convention.k, W_enc.shape[1]
    wanted = MORE_TENSORS.get(architecture, ()) + (SKIP,) * convention.skip
    if set(more) != set(wanted):
        raise ValueError(f"further tensors are {sorted(more)}, expected {sorted(wanted)} for {architecture}")
    for name, tensor in more.items():
        shape: tuple[int, ...] = (n_members, d_sae)
        axes = "(members, d_sae)"
        if name == SKIP:
            shape, axes = (n_members, d_in, d_out), "(members, d_in, d_out)"
        if tensor.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, expected {shape}: {axes}")
    if d_in != d_out and not convention.transcoder:
        raise ValueError(f"it reads {d_in} numbers and gives {d_out}, expected the same: only a transcoder's differ")
    if architecture in ("topk", "groupmax") and k > d_sae:
        raise ValueError(f"k is {k}, expected 1 to d_sae ({d_sae})")
    if architecture == "groupmax" and d_sae % k:
        raise ValueError(f"k is {k}, expected a divisor of d_sae ({d_sae}): groupmax takes groups of d_sae / k")
    if convention.rescale_by_decoder_norm and architecture != "topk":
        raise ValueError(f"rescale_by_decoder_norm is defined for topk, found it with {architecture}")


def _packed(dense: Float[Tensor, "tokens members d_sae"]) -> Codes:
    """The positive entries of dense activations, by ascending index, padded with value 0 at index 0."""
    n_tokens, n_members, d_sae = dense.shape
    rows = dense.reshape(-1, d_sae)
    row, feature = (rows > 0).nonzero(as_tuple=True)
    counts = row.bincount(minlength=len(rows))
    width = max(int(counts.max()) if len(counts) else 0, 1)
    slot = torch.arange(len(row), device=row.device).sub_((counts.cumsum(0) - counts)[row])
    values = rows.new_zeros(len(rows), width).index_put_((row, slot), rows[row, feature])
    indices = feature.new_zeros(len(rows), width).index_put_((row, slot), feature)
    return Codes(values.view(n_tokens, n_members, width), indices.view(n_tokens, n_members, width))


def _joined(parts: list[Codes]) -> Codes:
    """Codes of consecutive tokens as one, padded to the width of the widest."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.values.shape[-1] for part in parts)
    columns = zip(*(part[:2] for part in parts), strict=True)
    return Codes(*(torch.cat([nn.functional.pad(t, (0, width - t.shape[-1])) for t in column]) for column in columns))


def read(path: Path) -> tuple[SAE, dict[str, str]]:
    """One member's file as an ensemble of one, and the file's metadata.

    Raises ValueError naming the file where it is missing, is no safetensors file, or does not hold an SAE.
    """
    try:
        tensors, convention, metadata = read_member(path)
    except FileNotFoundError:
        raise ValueError(f"found no file {path}, expected an SAE such as seed-0.safetensors") from None
    seed = int(metadata["seed"]) if metadata.get("seed", "").isdigit() else 0
    try:
        return _stacked([tensors], convention, (seed,)), metadata
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def load(folder: Path, seeds: tuple[int, ...], digests: Sequence[str] | None = None) -> SAE:
    """Read the members with these seeds from a folder that `SAE.save` wrote, and check them against their digests where given.

    Raises FileNotFoundError where one is missing, ValueError where their conventions differ or a file holds no SAE, and
    DamagedSAEError, a ValueError, where it holds another one.
    """
    members = [read_member(folder / f"seed-{seed}.safetensors") for seed in seeds]
    for seed, digest, (tensors, convention, _) in zip(seeds, digests or (), members, strict=False):
        require_digest(folder / f"seed-{seed}.safetensors", digest, tensors, convention)
    convention = shared_convention(folder, [convention for _, convention, _ in members])
    return _stacked([tensors for tensors, _, _ in members], convention, seeds)


def shared_convention(folder: Path, conventions: list[Convention]) -> Convention:
    """The convention of all members in a folder; raises ValueError where they differ."""
    for name in (field.name for field in fields(Convention)):
        values = {getattr(convention, name) for convention in conventions}
        if len(values) > 1:
            raise ValueError(
                f"members in {folder} have {name} = {sorted(values)}, expected one value for the whole ensemble"
            )
    return conventions[0]


def _stacked(members: list[dict[str, Tensor]], convention: Convention, seeds: tuple[int, ...]) -> SAE:
    return assemble({n: torch.stack([member[n] for member in members]) for n in convention.tensors}, convention, seeds)


def assemble(tensors: dict[str, Tensor], convention: Convention, seeds: tuple[int, ...]) -> SAE:
    """An SAE from the convention's tensors by name, each with a leading member axis; they are copied."""
    more = {name: tensors[name] for name in convention.tensors if name not in TENSORS}
    W_enc, b_enc, W_dec, b_dec = (tensors[name] for name in TENSORS)
    return SAE(W_enc, b_enc, W_dec, b_dec, more=more, convention=convention, seeds=seeds)


def read_member(path: Path) -> tuple[dict[str, Tensor], Convention, dict[str, str]]:
    """Tensors, convention and metadata of one file; raises ValueError naming the file and what it lacks.

    The tensors are mapped from the file: their pages are read when they are first used.
    """
    try:
        return _read_member(path)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); expected an SAE such as seed-0.safetensors"
        ) from None


def _read_member(path: Path) -> tuple[dict[str, Tensor], Convention, dict[str, str]]:
    with safe_open(path, "pt") as file:
        names, metadata = set(file.keys()), file.metadata() or {}
        if not set(TENSORS) <= names:
            raise ValueError(f"{path} holds the tensors {sorted(names)}, expected {', '.join(TENSORS)}")
        convention = _convention(path, metadata)
        if not set(convention.tensors) <= names:
            raise ValueError(f"{path} holds the tensors {sorted(names)}, expected {', '.join(convention.tensors)}")
        return {name: file.get_tensor(name) for name in convention.tensors}, convention, metadata


def _convention(path: Path, metadata: dict[str, str]) -> Convention:
    """The convention in a file's metadata; fields that are not there have their defaults."""
    settings: dict[str, Any] = {}
    for field in fields(Convention):
        text = metadata.get(field.name, metadata.get(_FORMERLY.get(field.name, "")))
        if text is None and not (field.name == "k" and metadata.get("architecture", "topk") in ("topk", "groupmax")):
            continue
        wanted, restore = _RESTORED[type(field.default)]
        try:
            settings[field.name] = restore(text)
        except (KeyError, ValueError, TypeError):
            raise ValueError(f"{path} has {field.name} = {text!r} in its metadata, expected {wanted}") from None
    try:
        return Convention(**settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
