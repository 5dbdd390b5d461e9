"""The state of members that are trained together (weights, optimizer, silent features) and one step of all of them."""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from seedscope.engine.contract.recipe import Centroids, TrainConfig
from seedscope.engine.saes.sae import SAE
from seedscope.engine.training.auxk import add_aux, count
from seedscope.engine.training.checkpoints import State
from seedscope.engine.training.decoders import Archetypes, FreeRows
from seedscope.engine.training.gradients import gradient
from seedscope.engine.training.preprocessing import Space
from seedscope.engine.training.starts import geometric_median, hull, random_start
from seedscope.engine.training.variants import RECIPES, Step, TrainingMoment

SAMPLE_ROWS = 16_384  # enough for the scale and the centre of the data to three digits
CLIPPED = 1.0  # dictionary_learning's; a settled member's gradient is a tenth of it
EXPLODED = 1e4  # squared error per token, in units of the batch's mean square norm; a reconstruction of zeros has 1
STARTS: dict[str, Centroids] = {
    "kmeans-shared": "shared",
    "kmeans-independent": "independent",
    "mixtures": "random",
}  # by start


class DivergedError(ValueError):
    """Training went to infinity, or far on the way there; the message says at which step and why, most likely."""


class Training:
    """Members in training: weights, optimizer, silent features. Rows and weights are in the units of training."""

    def __init__(
        self, config: TrainConfig, sample: Float[Tensor, "n d_in"], device: torch.device, start: SAE | None = None
    ) -> None:
        self.config, self.recipe, self.step = config, RECIPES[config.variant], 0
        is_random, fixed = start is None, self.recipe.fixed
        if config.decoder_bias == "none":
            fixed = (*fixed, "b_dec")
        start = start or random_start(
            config.seeds,
            sample.shape[1],
            config.d_sae,
            center=_center(sample, config),
            convention=self.recipe.convention(config),
            more=self.recipe.more,
            shared=config.start == "random-shared",
            encoder_scale=float(config.encoder_scale),  # study files may hold whole numbers
        )
        self.sae = start.to(device)
        for name in fixed:
            getattr(self.sae, name).requires_grad_(False)
        # Encoders begin at the seed's own random directions wherever decoders do: members that share centroids still differ.
        centroids = centroids_of(config) if is_random else None
        rows = hull(sample.to(device), config.d_sae, config.seeds, centroids) if centroids else None
        self.decoder: FreeRows | Archetypes
        if not self.recipe.archetypal:
            self.decoder = FreeRows(self.sae, rows)
        elif rows is not None:
            self.decoder = Archetypes(self.sae, rows, config.delta if config.variant == "relaxed-archetypal" else None)
        else:
            raise ValueError(
                f"variant is {config.variant}, expected one with free decoder rows to begin with given weights"
            )
        named = {name: p for name, p in self.sae.named_parameters() if p.requires_grad and name != "W_dec"}
        self._optimised = named | self.decoder.parameters()
        self._optimizer = torch.optim.Adam(self._optimised.values(), lr=config.lr, betas=(0.9, 0.999), fused=True)
        self.silent_tokens = torch.zeros(self.sae.n_members, self.sae.d_sae, dtype=torch.long, device=device)
        self._worst = torch.zeros(self.sae.n_members, device=device)
        self._rate = 0.0

    def advance(self, rows: Tensor, rate: float, n_steps: int, *, before: Callable[[Step], None]) -> None:
        """One step on a batch; `before` sees what the weights gave, before they move.

        Raises DivergedError: on a CPU in the step that diverges, elsewhere within 32 of it, for looking waits for the device.
        """
        warmup = max(self.config.sparsity_warmup_frac * n_steps, 1)
        moment = TrainingMoment(self.step, min((self.step + 1) / warmup, 1.0))
        step = self.recipe.run(self.sae, rows, self.config, moment)
        self._record_error(step, rows)
        count(self.silent_tokens, step.fired, len(rows))
        before(step)
        self._optimizer.param_groups[0]["lr"] = self._rate = rate
        step.loss.sum().backward()
        if "aux_coefficient" in self.config.uses:
            silent = self.silent_tokens >= self.config.silent_after
            add_aux(self.sae, rows, silent, step.residual.detach(), self.config.aux_k, self.config.aux_coefficient)
        with torch.no_grad():
            self.decoder.before_step()
            if self.recipe.sparsity:
                self._clip()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.decoder.after_step()
            if self.config.variant == "jumprelu":
                self.sae.get_parameter("threshold").clamp_min_(0)
        self.step += 1

    def _clip(self) -> None:
        """Shorten each member's whole gradient to at most CLIPPED, for Adam remembers the largest for thousands of steps."""
        gradients = [gradient(p) for p in self._optimised.values()]
        lengths = torch.stack([each.flatten(1).norm(dim=1) for each in gradients]).norm(dim=0)
        factor = (CLIPPED / lengths.clamp_min(CLIPPED)).to(gradients[0].dtype)
        for each in gradients:
            each *= factor.view(-1, *[1] * (each.ndim - 1))

    def _record_error(self, step: Step, rows: Tensor) -> None:
        """Remember each member's worst error so far; infinite from the first loss that is not finite."""
        size = rows.detach().pow(2).sum(-1).mean().clamp_min(torch.finfo(rows.dtype).tiny)
        now = torch.where(step.loss.detach().isfinite(), step.error.detach() / size, torch.inf)
        self._worst = torch.maximum(self._worst, now.to(self._worst.dtype))
        if self._worst.device.type == "cpu" or self.step % 32 == 0:
            self.require_convergence()

    def is_finite(self) -> bool:
        """Whether all weights are numbers."""
        return all(bool(p.isfinite().all()) for p in self._optimised.values())

    def require_convergence(self) -> None:
        """Raise DivergedError where a member's worst error exceeds EXPLODED."""
        diverged = (self._worst > EXPLODED).nonzero()[:, 0].tolist()
        if not diverged:
            return
        config = self.config
        seeds = ", ".join(str(config.seeds[member]) for member in diverged)
        why = (
            f"the learning rate, {self._rate:.3g} at that step, is most likely too high: lower lr or raise warmup_frac"
        )
        if self.step == 0:
            why = "the start alone does that, so the activations are most likely too far apart in size: look at their norms"
        elif "sparsity_warmup_frac" in config.uses and self.step < config.sparsity_warmup_frac * (
            config.n_tokens // config.batch
        ):
            why += "; the sparsity term is still rising: raise sparsity_warmup_frac or lower its weight"
        raise DivergedError(
            f"training diverged at step {self.step} of {config.n_tokens // config.batch} (seeds {seeds}; {config.variant}): "
            f"{why}"
        )

    def state(self, points: list[dict]) -> State:
        """All that the next step depends on, and the trace's points so far."""
        tensors = {f"sae.{name}": p for name, p in self.sae.named_parameters()} | {"silent_tokens": self.silent_tokens}
        tensors |= {f"decoder.{name}": p for name, p in self.decoder.parameters().items() if name != "W_dec"}
        for name, parameter in self._optimised.items():
            moments = self._optimizer.state[parameter]
            tensors |= {f"adam.{key}.{name}": moments[key] for key in ("step", "exp_avg", "exp_avg_sq")}
        return State(self.step, tensors, points)

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Go back to a state of the same recipe."""
        self.step = state.step
        for name, parameter in self.sae.named_parameters():
            parameter.copy_(state.tensors[f"sae.{name}"])
        for name, parameter in self.decoder.parameters().items():
            if name != "W_dec":
                parameter.copy_(state.tensors[f"decoder.{name}"])
        for name, parameter in self._optimised.items():
            moments = {
                key: torch.empty_like(parameter).copy_(state.tensors[f"adam.{key}.{name}"])
                for key in ("exp_avg", "exp_avg_sq")
            }
            step = state.tensors[f"adam.step.{name}"].to(parameter.device)
            self._optimizer.state[parameter] = {"step": step} | moments
        self.silent_tokens.copy_(state.tensors["silent_tokens"])

    def standing(self, space: Space) -> SAE:
        """A copy of the members as `finished` would hand them over now; training goes on untouched."""
        twin = copy.copy(self)
        twin.sae = copy.deepcopy(self.sae)
        return twin.finished(space)

    def finished(self, space: Space) -> SAE:
        """The members for raw activations."""
        return space.leave(self.sae).cpu().requires_grad_(True)


def centroids_of(config: TrainConfig) -> Centroids | None:
    """What rows that begin at points of the data are made of; None where they do not."""
    return config.centroids if RECIPES[config.variant].archetypal else STARTS.get(config.start)


def _center(sample: Tensor, config: TrainConfig) -> Tensor:
    """Where decoder biases begin."""
    if config.decoder_bias == "none":
        return sample.new_zeros(sample.shape[1])
    return geometric_median(sample[:: max(len(sample) // SAMPLE_ROWS, 1)][:SAMPLE_ROWS])
