"""Members of one ensemble, read one at a time: in memory as an `SAE`, or on disk in the files that `SAE.save` wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from seedscope.engine.saes.digest import require_digest
from seedscope.engine.saes.sae import read_member, shared_convention


@runtime_checkable
class MemberRows(Protocol):
    """What matching and publishing need of an ensemble: its sizes, and the rows of one member at a time."""

    @property
    def n_members(self) -> int: ...

    @property
    def d_sae(self) -> int: ...

    @property
    def d_in(self) -> int: ...

    @property
    def d_out(self) -> int: ...

    def decoder_rows(self, member: int) -> Float[Tensor, "d_sae d_out"]: ...

    def encoder_rows(self, member: int) -> Float[Tensor, "d_sae d_in"]: ...


class StoredMembers:
    """The members with these seeds in a folder; no tensor stays in memory.

    With `digests`, every file is read once to be compared with its own. Raises FileNotFoundError where one is missing, ValueError
    where their conventions or sizes differ or a file holds no SAE, and DamagedSAEError, a ValueError, where it holds another one.
    """

    def __init__(self, folder: Path, seeds: tuple[int, ...], digests: Sequence[str] | None = None) -> None:
        self.seeds, self._folder = seeds, folder
        conventions, shapes = [], {}
        for index, seed in enumerate(seeds):
            tensors, convention, _ = read_member(self._path(seed))
            if digests is not None:
                require_digest(self._path(seed), digests[index], tensors, convention)
            conventions.append(convention)
            shapes[seed] = (*tensors["W_enc"].shape, tensors["W_dec"].shape[-1])
        self.convention = shared_convention(folder, conventions)
        if len(set(shapes.values())) > 1:
            raise ValueError(
                f"members in {folder} have (d_in, d_sae, d_out) = {sorted(set(shapes.values()))}, expected one size for the "
                "whole ensemble"
            )
        self.d_in, self.d_sae, self.d_out = shapes[seeds[0]]

    @property
    def n_members(self) -> int:
        return len(self.seeds)

    def decoder_rows(self, member: int) -> Float[Tensor, "d_sae d_out"]:
        """One member's decoder rows, mapped from its file."""
        return self._tensor(member, "W_dec")

    def encoder_rows(self, member: int) -> Float[Tensor, "d_sae d_in"]:
        """One member's encoder columns, as contiguous rows: float32 sums depend on the order in memory."""
        return self._tensor(member, "W_enc").T.contiguous()

    def encoder_biases(self, member: int) -> Float[Tensor, " d_sae"]:
        """One member's encoder biases."""
        return self._tensor(member, "b_enc")

    def _tensor(self, member: int, name: str) -> Tensor:
        with safe_open(self._path(self.seeds[member]), "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def _path(self, seed: int) -> Path:
        return self._folder / f"seed-{seed}.safetensors"
