"""A training that stops at a chosen step, and whether two trainings gave the same members."""

import torch

from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.saes.sae import SAE

CONFIG = TrainConfig(
    d_sae=24, k=3, seeds=(0, 2), n_tokens=64 * 40, batch=64, lr=1e-2, aux_k=4, silent_after=200, group_fracs=(0.5, 0.5)
)


class Stop(Exception):
    pass


def stop_at(step: int, config: TrainConfig = CONFIG):
    """A report that ends the training behind so many steps."""

    def report(done: int, total: int) -> None:
        if done >= step * config.batch:
            raise Stop

    return report


def same(a: SAE, b: SAE) -> bool:
    names = a.convention.tensors
    return a.seeds == b.seeds and all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)
