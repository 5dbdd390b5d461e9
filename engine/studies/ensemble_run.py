"""One ensemble of a study while it is analysed: its plan, members, parts and what activity is measured on, read once."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seedscope.engine.contract.directions import NO_OUTPUT
from seedscope.engine.executors.local import HERE
from seedscope.engine.executors.unit import Executor
from seedscope.engine.machine import free_memory
from seedscope.engine.matching.match import affordable
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.saes.sae import SAE
from seedscope.engine.saes.stored import StoredMembers
from seedscope.engine.store.catalogue import EnsemblePlan, StudyPlan
from seedscope.engine.store.evaluation import MEASURED_VERSION, measured_from
from seedscope.engine.store.parts import Part, Parts
from seedscope.engine.studies.evaluator import Evaluator, HookPoint

HELD_SHARE = 0.25  # of the free memory, that weights may take while tokens are encoded


@dataclass(frozen=True)
class EnsembleRun:
    """What every analysis of one ensemble takes."""

    study: Path
    plan: StudyPlan
    ensemble: EnsemblePlan
    evaluator: Evaluator | None
    """None where no model and tokens are given, or no hook point is known: then there is no activity."""
    one_to_one: bool | None
    """Whether all pairs are matched one to one; None: where that is cheap."""
    device: torch.device
    progress: Progress
    executor: Executor = HERE
    """Where units of work run."""

    @cached_property
    def members(self) -> SAE:
        """All members' tensors, in memory; `stored` has their sizes without them."""
        return sae.load(self.study / self.ensemble.folder, self.ensemble.seeds, self.sae_digests)

    @cached_property
    def stored(self) -> StoredMembers:
        """The members on disk, to be read one at a time."""
        return StoredMembers(self.study / self.ensemble.folder, self.ensemble.seeds, self.sae_digests)

    @cached_property
    def groups(self) -> list[range]:
        """Consecutive members that are encoded together: as many as take HELD_SHARE of the free memory, at least one.

        No number depends on it.
        """
        size = 4 * self.stored.d_sae * (self.stored.d_in + self.stored.d_out)
        at_once = max(int(HELD_SHARE * free_memory(torch.device("cpu")) / size), 1)
        n = self.stored.n_members
        return [range(start, min(start + at_once, n)) for start in range(0, n, at_once)]

    def load(self, group: range) -> SAE:
        """The tensors of some consecutive members, in memory."""
        return sae.load(self.study / self.ensemble.folder, self.seeds[group.start : group.stop])

    @cached_property
    def parts(self) -> Parts:
        """Results on disk."""
        return Parts(self.study, self.ensemble.name)

    def units_folder(self, work: str, made_from: object) -> Path:
        """A folder for results of units, which names all that they are made from; it goes with the study's scratch files."""
        content = json.dumps([work, self.ensemble.name, made_from], sort_keys=True)
        folder = self.study / "scratch" / "units" / f"{work}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder.absolute()

    @property
    def unit_device(self) -> str:
        """The device that units compute on."""
        return self.executor.device or self.device.type

    @property
    def name(self) -> str:
        """The ensemble's."""
        return self.ensemble.name

    @property
    def hookpoint(self) -> str:
        """Where its SAEs read the model; raises ValueError where that is not known, and so activity cannot be measured.

        Of recorded activations the place need not be known.
        """
        if not self.ensemble.hookpoint:
            if self.evaluator and self.evaluator.recorded:
                return "an unknown hook point"
            raise ValueError(f"the hook point of ensemble {self.name} is not known; give it with --hookpoint")
        return self.ensemble.hookpoint

    @property
    def hookpoint_out(self) -> str | None:
        """Where the members' output is compared with the model; None where it is not known or cannot be read there."""
        return None if self.undefined else self.ensemble.hookpoint_out or self.hookpoint

    @property
    def output(self) -> HookPoint | None:
        """The place that transcoders predict, with d_out; None for SAEs, which rebuild what they read, and where it is unknown."""
        name = self.hookpoint_out if self.ensemble.transcoder else None
        return HookPoint(name, self.stored.d_out) if name else None

    @property
    def undefined(self) -> str:
        """Why nothing that compares output with the model is defined; "" where it is."""
        if not self.ensemble.transcoder:
            return ""
        if reason := self.evaluator and self.evaluator.unpredictable.get(self.name):
            return f"undefined: {reason}"
        return "" if self.ensemble.hookpoint_out else NO_OUTPUT

    @property
    def seeds(self) -> tuple[int, ...]:
        """Members' seeds, ascending; the order of every (members, ..) array."""
        return self.ensemble.seeds

    @property
    def sae_digests(self) -> list[str]:
        """Members' digests, in the order of seeds."""
        return [member.digest for member in self.ensemble.members]

    @cached_property
    def measured(self) -> dict[str, Any]:
        """What parts of activity say that they were computed from; empty without an evaluator."""
        return measured_from(self.ensemble, self.evaluator.evaluation) if self.evaluator else {}

    @property
    def judgement(self) -> dict[str, float]:
        """What buckets depend on beside matches and activity."""
        return {"theta": self.plan.theta, "epsilon": self.plan.epsilon}

    @property
    def assigns(self) -> bool:
        """Whether all pairs are matched one to one."""
        if self.one_to_one is None:
            return affordable(self.stored.n_members, self.stored.d_sae, self.stored.d_out)
        return self.one_to_one

    def part(self, analysis: str, about: dict[str, Any]) -> Part:
        """A part that was written before; raises LookupError where it is not there."""
        part = self.parts.find(analysis, **about)
        if part is None:
            raise LookupError(f"found no part {analysis} of {self.name} that was computed from {about}")
        return part

    def find_activity(self) -> Part | None:
        """The activity that is there; without an evaluator, any of these SAEs at this hook point."""
        unmeasured = {"version": MEASURED_VERSION, "saes": self.sae_digests, "hookpoint": self.ensemble.hookpoint}
        return self.parts.find("activity", **(self.measured or unmeasured))

    def left_out(self, activity: Part) -> np.ndarray:
        """Flat indices of tokens that do not count at the ensemble's hook point; the same for all members."""
        return activity.read(self.seeds[0], "left_out")["left_out"]


def living(activity: Part | None, seeds: tuple[int, ...]) -> np.ndarray | None:
    """(members, d_sae) features that fired on the evaluation tokens; None where activity is not known."""
    if activity is None:
        return None
    return np.stack([activity.read(seed, "n_active")["n_active"] > 0 for seed in seeds])
