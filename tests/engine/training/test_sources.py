"""What differs between members: start, data order, data sample; and the member that ensembles of all causes share."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from seedscope.engine.contract.recipe import TrainConfig, as_parameters
from seedscope.engine.contract.sources import CAUSES, MODELS, cause_of, settings_of
from seedscope.engine.training.batches import batches
from seedscope.engine.training.ensemble import train_ensemble
from seedscope.engine.training.starts import random_start

N = 3
PLAIN = TrainConfig(
    d_sae=24, k=3, seeds=tuple(range(N)), n_tokens=32 * 60, batch=32, lr=1e-2, aux_k=4, silent_after=100
)
CONFIGS = {cause: replace(PLAIN, **settings_of(parts, N)) for cause, parts in CAUSES.items()}


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    codes = np.abs(rng.normal(size=(960, 30))) * (rng.random((960, 30)) < 0.1)
    return (codes @ rng.normal(size=(30, 8))).astype(np.float32)


@pytest.fixture(scope="module")
def trained(rows):
    return {cause: train_ensemble(rows, config) for cause, config in CONFIGS.items()}


def test_seed_0_is_the_same_sae_bit_for_bit_whatever_differs_between_the_members(trained):
    digests = {cause: made.digest(0) for cause, made in trained.items()}
    assert len(set(digests.values())) == 1
    others = list(chain.from_iterable((made.digest(1), made.digest(2)) for made in trained.values()))
    assert len(set(others)) == len(others)


@pytest.mark.parametrize("cause", CAUSES)
def test_members_see_what_the_cause_says(cause):
    number = np.arange(90, dtype=np.float32)[:, None]  # a row's place in the pool
    seen = np.stack(
        [
            b.numpy()[..., 0]
            for b in batches(number, replace(CONFIGS[cause], n_tokens=60, batch=10), dtype=torch.float32)
        ]
    )
    epoch = seen[:3].reshape(30, N)  # 30 rows of 90 are one sample
    samples = [set(epoch[:, member].astype(int)) for member in range(N)]
    own = "sample" in CAUSES[cause]
    assert samples == [set(range(30 * (m if own else 0), 30 * (m if own else 0) + 30)) for m in range(N)]
    orders = [tuple(epoch[:, member] % 30) for member in range(N)]
    assert len(set(orders)) == (N if "order" in CAUSES[cause] else 1)


def test_a_shared_random_start_is_that_of_seed_0_for_every_member(trained):
    center = torch.zeros(8)
    alike = random_start((0, 1, 5), 8, 24, center=center, k=3, shared=True)
    apart = random_start((0, 1, 5), 8, 24, center=center, k=3)
    for name in ("W_enc", "W_dec"):
        of = getattr(alike, name)
        assert torch.equal(of[0], getattr(apart, name)[0])
        assert torch.equal(of[0], of[1])
        assert torch.equal(of[0], of[2])
    assert alike.seeds == (0, 1, 5)
    assert CONFIGS["order"].shares_start
    assert not CONFIGS["all"].shares_start


def test_recipes_name_their_cause_and_older_digests_stay_as_they_were():
    for cause, config in CONFIGS.items():
        assert cause_of(as_parameters(config)) == cause
    assert not {"data_sample", "data_samples", "start"} & set(as_parameters(PLAIN))
    assert cause_of(as_parameters(PLAIN)) == "start"
    assert (
        cause_of({"start": "random-shared", "data_order": "independent", "data_sample": "independent"})
        == "order+sample"
    )
    assert cause_of({"start": "random-shared"}) is None  # nothing differs
    assert cause_of({"start": "kmeans-shared"}) is None
    assert cause_of({"centroids": "shared"}) is None
    assert cause_of(None) is None
    assert cause_of({MODELS: ["a", "b"], "data_sample": "independent"}) == "model"


def test_seeds_that_would_share_a_sample_are_refused():
    with pytest.raises(ValueError, match=r"data_samples is 2 for seeds \[0, 1, 2\], expected a sample for each"):
        replace(PLAIN, data_sample="independent", data_samples=2)
    with pytest.raises(ValueError, match="data_samples is 1"):
        replace(PLAIN, data_sample="independent")


def test_samples_without_a_batch_are_refused(rows):
    with pytest.raises(ValueError, match="found 29 activations in each of 3 samples, expected at least one batch"):
        train_ensemble(rows[:89], CONFIGS["sample"])
