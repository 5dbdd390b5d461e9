"""Sparse autoencoders with a leading member axis: encode, decode, digest, save, load.

SAELens orientation: `W_enc (members, d_in, d_sae)`, `W_dec (members, d_sae, d_in)`; decoder rows are the features.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.kernels import topk

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


class Codes(NamedTuple):
    """Sparse feature activations of a batch: the k largest pre-activations of every (token, member)."""

    values: Float[Tensor, "tokens members k"]  # non-negative; an entry may be zero when fewer than k are positive
    indices: Int[Tensor, "tokens members k"]  # feature index within its member


class SAE(nn.Module):
    """An ensemble of TopK SAEs that share shape and k; `len(seeds)` members, one is allowed.

    Forward: `f = relu(topk_k((x - b_dec) @ W_enc + b_enc))`, `x_hat = f @ W_dec + b_dec` (Gao et al. 2024, TopK).
    """

    def __init__(
        self,
        W_enc: Float[Tensor, "members d_in d_sae"],
        b_enc: Float[Tensor, "members d_sae"],
        W_dec: Float[Tensor, "members d_sae d_in"],
        b_dec: Float[Tensor, "members d_in"],
        *,
        k: int,
        seeds: tuple[int, ...],
    ) -> None:
        super().__init__()
        # Copies, always: a start may give the decoder's transpose as encoder, and the two must not share memory.
        # Stored feature-major, seen in SAELens orientation: one product then serves all members.
        own = torch.contiguous_format
        self.W_enc = nn.Parameter(W_enc.transpose(1, 2).clone(memory_format=own).transpose(1, 2))
        self.b_enc = nn.Parameter(b_enc.clone())
        self.W_dec = nn.Parameter(W_dec.clone(memory_format=own))
        self.b_dec = nn.Parameter(b_dec.clone())
        self.k = k
        self.seeds = seeds

    @property
    def n_members(self) -> int:
        return self.W_dec.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[2]

    def pre_activations(self, x: Tensor) -> Float[Tensor, "tokens members d_sae"]:
        """`(x - b_dec) @ W_enc + b_enc` for x of shape (tokens, d_in), or (tokens, members, d_in) with its own rows each."""
        bias = self.b_enc - torch.einsum("mi,mis->ms", self.b_dec, self.W_enc)
        if x.ndim == 2:
            flat = self.W_enc.transpose(1, 2).reshape(-1, self.d_in)
            return nn.functional.linear(x, flat, bias.flatten()).view(len(x), self.n_members, self.d_sae)
        return torch.baddbmm(bias[:, None], x.transpose(0, 1), self.W_enc).transpose(0, 1)

    def encode(self, x: Tensor) -> Codes:
        """Sparse codes of x, (tokens, d_in) or (tokens, members, d_in)."""
        return self.activate(self.pre_activations(x))

    def activate(self, pre: Float[Tensor, "tokens members d_sae"]) -> Codes:
        """The activation function: the k largest pre-activations of every token and member, cut at zero."""
        values, indices = topk(pre, self.k)
        return Codes(values.relu(), indices)

    def decode(self, codes: Codes, *, bias: bool = True) -> Float[Tensor, "tokens members d_in"]:
        """Reconstruction; costs k rows per token and member instead of d_sae."""
        n_tokens, n_members, k = codes.indices.shape
        offset = torch.arange(n_members, device=codes.indices.device)[:, None] * self.d_sae
        out = nn.functional.embedding_bag(
            (codes.indices + offset).view(-1, k),
            self.W_dec.reshape(-1, self.d_in),
            per_sample_weights=codes.values.reshape(-1, k),
            mode="sum",
        ).view(n_tokens, n_members, self.d_in)
        return out + self.b_dec if bias else out

    def forward(self, x: Tensor) -> Float[Tensor, "tokens members d_in"]:
        return self.decode(self.encode(x))

    def directions(self) -> Float[Tensor, "members d_sae d_in"]:
        """Unit decoder rows, float32: the feature vectors that are matched."""
        return nn.functional.normalize(self.W_dec.detach().float(), dim=-1)

    def member_tensors(self, member: int) -> dict[str, Tensor]:
        """The four tensors of one member, contiguous."""
        return {name: getattr(self, name).detach()[member].contiguous() for name in TENSORS}

    def convention(self) -> dict[str, str | int]:
        """What a reader must know beside the tensors to compute the same activations."""
        return {"architecture": "topk", "k": self.k, "apply_b_dec_to_input": "true", "normalize_activations": "none"}

    def digest(self, member: int) -> str:
        """16 hex digits over one member's tensors (name, dtype, shape, bytes) and forward convention."""
        sha = hashlib.sha256(json.dumps(self.convention(), sort_keys=True).encode())
        for name, tensor in sorted(self.member_tensors(member).items()):
            sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            sha.update(tensor.cpu().numpy().tobytes())
        return sha.hexdigest()[:16]

    def save(self, folder: Path, *, provenance: dict[str, str] | None = None) -> None:
        """Write one `seed-N.safetensors` per member, each complete or absent; `provenance` joins the metadata."""
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {name: str(value) for name, value in self.convention().items()}
        for member, seed in enumerate(self.seeds):
            target = folder / f"seed-{seed}.safetensors"
            temporary = target.with_suffix(".tmp")
            save_file(self.member_tensors(member), temporary, metadata | (provenance or {}) | {"seed": str(seed)})
            temporary.replace(target)


def read(path: Path) -> tuple[SAE, dict[str, str]]:
    """One member's file as an ensemble of one, and the file's metadata.

    Raises ValueError naming the file where it is missing, is no safetensors file, or does not hold an SAE.
    """
    try:
        with safe_open(path, "pt") as file:
            held, metadata = set(file.keys()), file.metadata() or {}
            if not set(TENSORS) <= held:
                raise ValueError(f"{path} holds the tensors {sorted(held)}, expected {', '.join(TENSORS)}")
            tensors = {name: file.get_tensor(name)[None] for name in TENSORS}
    except FileNotFoundError:
        raise ValueError(f"found no file {path}, expected an SAE such as seed-0.safetensors") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); expected an SAE such as seed-0.safetensors"
        ) from None
    if not metadata.get("k", "").isdigit():
        raise ValueError(f"{path} has k = {metadata.get('k')!r} in its metadata, expected a whole number")
    seed = int(metadata["seed"]) if metadata.get("seed", "").isdigit() else 0
    return SAE(**tensors, k=int(metadata["k"]), seeds=(seed,)), metadata


def load(folder: Path, seeds: tuple[int, ...]) -> SAE:
    """Read the members with these seeds back; raises FileNotFoundError where one is missing."""
    members, ks = [], set()
    for seed in seeds:
        with safe_open(folder / f"seed-{seed}.safetensors", "pt") as file:
            members.append({name: file.get_tensor(name) for name in TENSORS})
            ks.add(int(file.metadata()["k"]))
    if len(ks) != 1:
        raise ValueError(f"members in {folder} have k = {sorted(ks)}, expected one value for the whole ensemble")
    stacked = {name: torch.stack([member[name] for member in members]) for name in TENSORS}
    return SAE(**stacked, k=ks.pop(), seeds=seeds)
