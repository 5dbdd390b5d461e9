"""Preprocess and scale activations for training, and fold this exactly into trained members."""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from seedscope.engine.contract.recipe import Preprocessing
from seedscope.engine.saes.sae import SAE
from seedscope.engine.training.snapshots import SPACE

_BIASES = ("b_enc", "threshold", "b_mag")  # that are measured in units of activations, whatever direction they are for


class Space(NamedTuple):
    """z = (x - mean) / (std * scale): of unit mean square norm."""

    mean: Float[Tensor, " d_in"]  # zero unless centred or standardised
    std: Float[Tensor, " d_in"]  # one unless standardised
    scale: Float[Tensor, ""]

    def enter(self, rows: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_in"]:
        """Raw activations in the units of training."""
        return (rows - self.mean) / (self.std * self.scale)

    def to(self, device: torch.device) -> "Space":
        return Space(*(each.to(device) for each in self))

    @torch.no_grad()
    def leave(self, sae: SAE) -> SAE:
        """Turn members of this space, in place, into members for raw activations.

        Every variant is homogeneous, so activations may be `scale` times as large: then mean and std fold into encoder,
        decoder and biases, and what is encoded and decoded is the same. Decoder rows keep unit length where std is one.
        """
        for name in _BIASES:
            if hasattr(sae, name):
                getattr(sae, name).mul_(self.scale)
        sae.b_dec.mul_(self.std * self.scale).add_(self.mean)
        sae.W_enc.div_(self.std[:, None])
        sae.W_dec.mul_(self.std)
        return sae

    @torch.no_grad()
    def come_back(self, sae: SAE) -> SAE:
        """Undo `leave`, in place."""
        for name in _BIASES:
            if hasattr(sae, name):
                getattr(sae, name).div_(self.scale)
        sae.b_dec.sub_(self.mean).div_(self.std * self.scale)
        sae.W_enc.mul_(self.std[:, None])
        sae.W_dec.div_(self.std)
        return sae

    def save(self, folder: Path) -> None:
        """Write each dimension's std (d_in,), unless all are one: `engine.training.snapshots.units` reads it."""
        if not bool((self.std == 1).all()):
            folder.mkdir(parents=True, exist_ok=True)
            temporary = (folder / SPACE).with_suffix(".tmp")
            save_file({"std": self.std.contiguous()}, temporary)
            temporary.replace(folder / SPACE)


def space_of(sample: Float[Tensor, "n d_in"], preprocessing: Preprocessing) -> Space:
    """The space that activations are trained in, from a sample of them; a constant dimension has the std one."""
    mean, std = sample.new_zeros(sample.shape[1]), sample.new_ones(sample.shape[1])
    if preprocessing != "raw":
        mean = sample.double().mean(0).to(sample.dtype)
    if preprocessing == "standardised":
        std = sample.double().std(0, correction=0).to(sample.dtype)
        std = torch.where(std > 0, std, 1)
    scale = ((sample - mean) / std).pow(2).sum(1).mean().sqrt()
    return Space(mean, std, scale)
