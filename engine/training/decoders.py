"""Parametrisations of decoder rows: free unit vectors, or convex combinations of points of the data (archetypes)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seedscope.engine.saes.sae import SAE
from seedscope.engine.training.gradients import gradient
from seedscope.engine.training.starts import Hull


class FreeRows:
    """Unit rows: the parallel part of their gradient is removed before a step, their norm after it.

    They begin where they are, or along the rows of `start`; a row of zeros leaves its place as it is.
    """

    def __init__(self, sae: SAE, start: Hull | None = None) -> None:
        self._sae = sae
        if start is not None:
            rows = start.rows.expand_as(sae.W_dec)
            norms = rows.norm(dim=-1, keepdim=True)
            with torch.no_grad():
                sae.W_dec.copy_(torch.where(norms > 0, rows / norms, sae.W_dec))

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is optimised instead of the SAE's decoder rows, by name."""
        return {"W_dec": self._sae.W_dec}

    def before_step(self) -> None:
        """Turn the gradient of the rows into one of the parameters."""
        W_dec = self._sae.W_dec
        of_rows = gradient(W_dec)
        parallel = (of_rows * W_dec).sum(-1, keepdim=True)
        of_rows -= parallel * W_dec

    def after_step(self) -> None:
        """Bring the parameters back to where they may be, and the rows with them."""
        self._sae.W_dec.div_(self._sae.W_dec.norm(dim=-1, keepdim=True))


class Archetypes:
    """Rows D = W C: `weights` W is row-stochastic, `points` C are fixed centroids (Fel et al. 2025, equation 4).

    With `delta` relaxed: D = (W C + L) s with ||L_i|| <= delta and one learned scale s > 0 per member. W begins as `start`
    says, L as zero, s as one. With one set of points for all and W the identity, all members begin at the same rows.
    Memory and cost: d_sae^2 numbers and 2 d_sae^2 d_in FLOPs per member and step, twice that backwards.
    """

    def __init__(self, sae: SAE, start: Hull, delta: float | None) -> None:
        points = start.points
        self._sae, self._points, self._delta = sae, points.expand(sae.n_members, -1, -1), delta
        eye = torch.eye(sae.d_sae, dtype=points.dtype, device=points.device)
        self.weights = nn.Parameter(eye.repeat(sae.n_members, 1, 1) if start.weights is None else start.weights.clone())
        self.relaxation = nn.Parameter(torch.zeros_like(sae.W_dec))
        self.log_scale = nn.Parameter(points.new_zeros(sae.n_members, 1, 1))
        with torch.no_grad():
            sae.W_dec.copy_(self._rows())

    def parameters(self) -> dict[str, nn.Parameter]:
        relaxed = {} if self._delta is None else {"relaxation": self.relaxation, "log_scale": self.log_scale}
        return {"weights": self.weights} | relaxed

    def _rows(self) -> Float[Tensor, "members d_sae d_in"]:
        rows = torch.bmm(self.weights, self._points)
        return rows if self._delta is None else (rows + self.relaxation) * self.log_scale.exp()

    def before_step(self) -> None:
        with torch.enable_grad():
            self._rows().backward(self._sae.W_dec.grad)
        self._sae.W_dec.grad = None

    def after_step(self) -> None:
        self.weights.relu_()
        total = self.weights.sum(-1, keepdim=True)
        # A row that lost all its weight becomes the mean of the points: it has to be a combination of them.
        self.weights.copy_(torch.where(total > 0, self.weights / total, 1 / self.weights.shape[-1]))
        if self._delta is not None:
            norms = self.relaxation.norm(dim=-1, keepdim=True)
            self.relaxation.mul_((self._delta / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1))
        self._sae.W_dec.copy_(self._rows())
