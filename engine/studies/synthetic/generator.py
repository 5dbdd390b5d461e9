"""True features and samples of them: free ones anywhere on the sphere, low-rank ones that share few dimensions."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import sparse

FREE, LOW = "free", "low"
CHUNK = 16_384  # samples that one generator draws: a prefix of the samples is the same whatever their number
TRAINING, EVALUATION = 0, 1  # streams that never share a sample


@dataclass(frozen=True)
class SyntheticConfig:
    """What samples are made of. A sample is the sum of its active true features, each times |N(0, 1)|, and noise."""

    d_in: int = 128
    """Numbers per sample."""
    n_free: int = 96
    """True features drawn on the whole sphere."""
    n_low: int = 2000
    """True features drawn inside one subspace."""
    r: int = 24
    """Dimensions of that subspace."""
    rate_free: float = 0.04
    """Share of samples in which a free feature is active."""
    rate_low: float = 0.0015
    """Share of samples in which a low-rank feature is active."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on every number."""
    seed: int = 0
    """Of the true features and the samples; the SAEs have seeds of their own."""

    def __post_init__(self) -> None:
        if self.d_in < 1 or min(self.n_free, self.n_low) < 0:
            raise ValueError(
                f"d_in is {self.d_in}, n_free {self.n_free}, n_low {self.n_low}, expected d_in >= 1 and no negative number"
            )
        if not self.n_free + self.n_low:
            raise ValueError("n_free and n_low are 0, expected at least one true feature")
        if not 1 <= self.r <= self.d_in:
            raise ValueError(f"r is {self.r}, expected 1 to d_in ({self.d_in}): the subspace lies among the samples")
        for name in ("rate_free", "rate_low"):
            if not 0 < (rate := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is {rate}, expected a share above 0 and at most 1")
        if not (self.noise >= 0 and np.isfinite(self.noise)):
            raise ValueError(f"noise is {self.noise}, expected a standard deviation of 0 or more")

    @property
    def active_free(self) -> float:
        """Free features that are active at once, on average."""
        return self.n_free * self.rate_free

    @property
    def active_low(self) -> float:
        """Low-rank features that are active at once, on average."""
        return self.n_low * self.rate_low

    @property
    def digest(self) -> str:
        """16 hex digits over the settings, which say all of the true features and the samples."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class TrueFeatures(NamedTuple):
    """The true features: free ones first, then the low-rank ones."""

    features: Float[np.ndarray, "n d"]  # unit rows
    n_free: int
    span: Float[np.ndarray, "d r"]  # orthonormal columns, of the subspace that holds the low-rank features
    rates: Float[np.ndarray, " n"]

    @property
    def free(self) -> Float[np.ndarray, "free d"]:
        """The free features."""
        return self.features[: self.n_free]

    @property
    def low(self) -> Float[np.ndarray, "low d"]:
        """The low-rank features."""
        return self.features[self.n_free :]

    @property
    def names(self) -> list[str]:
        """`free 0` .. and `low 0` .., in the order of the features."""
        n_low = len(self.features) - self.n_free
        return [f"{FREE} {i}" for i in range(self.n_free)] + [f"{LOW} {i}" for i in range(n_low)]


def draw_truth(config: SyntheticConfig) -> TrueFeatures:
    """The true features that a configuration's seed draws."""
    rng = np.random.default_rng((config.seed, 0))
    span = np.linalg.qr(rng.standard_normal((config.d_in, config.r)))[0]
    free = rng.standard_normal((config.n_free, config.d_in))
    low = rng.standard_normal((config.n_low, config.r)) @ span.T
    rows = np.concatenate([free, low])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rates = np.repeat([config.rate_free, config.rate_low], [config.n_free, config.n_low])
    return TrueFeatures(rows.astype(np.float32), config.n_free, span.astype(np.float32), rates)


class Samples(NamedTuple):
    """Consecutive samples."""

    rows: Float[np.ndarray, "samples d"]  # float32
    codes: sparse.csr_matrix  # (samples, true features), how strongly each is active


def draw_samples(config: SyntheticConfig, n: int, *, stream: int = TRAINING) -> Iterator[Samples]:
    """The first n samples of a stream, CHUNK at a time; the same for the same configuration.

    Cost: one random number per activation, not per sample and feature, so that thousands of rare features are cheap.
    """
    truth = draw_truth(config)
    for chunk, first in enumerate(range(0, n, CHUNK)):
        rng = np.random.default_rng((config.seed, 1 + stream, chunk))
        groups = (config.n_free, config.rate_free), (config.n_low, config.rate_low)
        codes = sparse.hstack([_codes(rng, CHUNK, *group) for group in groups], format="csr", dtype=np.float32)
        rows = np.asarray(codes @ truth.features, np.float32)
        if config.noise:
            rows += np.float32(config.noise) * rng.standard_normal(rows.shape, np.float32)
        n_kept = min(CHUNK, n - first)
        yield Samples(rows[:n_kept], codes[:n_kept])


def _codes(rng: np.random.Generator, n_samples: int, n: int, rate: float) -> sparse.csr_matrix:
    """Bernoulli times |N(0, 1)|: gaps between activations are geometric."""
    cells, places, reached = n_samples * n, [], -1
    while n and reached < cells:
        gaps = rng.geometric(rate, max(int(1.1 * (cells - reached) * rate), 64))
        places.append(reached + np.cumsum(gaps))
        reached = int(places[-1][-1])
    at = np.concatenate(places) if places else np.zeros(0, np.int64)
    at = at[at < cells]
    values = np.abs(rng.standard_normal(len(at), np.float32))
    sample, feature = np.divmod(at, max(n, 1))
    return sparse.csr_matrix((values, (sample, feature)), (n_samples, n))
