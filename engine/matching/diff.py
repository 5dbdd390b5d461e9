"""Two versions of one SAE: what became of every feature of the old one, and what is new in the other; as JSON."""

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from seedscope.engine.contract.files import write_whole
from seedscope.engine.contract.schema import NO_MATCH, PAIR_RULES
from seedscope.engine.contract.stability import THETA, clopper_pearson, is_match
from seedscope.engine.matching.assignment import hungarian
from seedscope.engine.matching.fates import FATES, ORIGINS, SAME, Towards, fates_of
from seedscope.engine.matching.kernels import best_cosines
from seedscope.engine.matching.match import NULL_KINDS, random_dictionary
from seedscope.engine.matching.nearest import nearest
from seedscope.engine.matching.pair import PairSide, described, read_comparable
from seedscope.engine.saes.importers.imported import Imported
from seedscope.engine.saes.sae import assemble, directed, unit_rows

FORMAT, FORMAT_VERSION = "seedscope.diff", 1
N_BINS = 50  # of the histogram of best cosines, from 0 to 1
N_BY_CHANCE = 1024  # old rows that are looked for in random dictionaries


@dataclass(frozen=True)
class OldFeatures:
    """Every feature of OLD that has a direction; lists run in parallel."""

    feature: list[int] = field(repr=False)
    fate: list[str] = field(repr=False)  # one of fates.FATES
    partner: list[int | None] = field(repr=False)  # the rule's, in NEW; None: the rule forms no pair
    cosine: list[float | None] = field(repr=False)  # the one that theta is compared with
    nearest: list[int] = field(repr=False)  # nearest feature of NEW
    nearest_cosine: list[float] = field(repr=False)


@dataclass(frozen=True)
class NewFeatures:
    """Every feature of NEW that has a direction; lists run in parallel."""

    feature: list[int] = field(repr=False)
    origin: list[str] = field(repr=False)  # one of fates.ORIGINS
    nearest: list[int] = field(repr=False)  # nearest feature of OLD
    nearest_cosine: list[float] = field(repr=False)


@dataclass(frozen=True)
class DiffReport:
    """The result of `seedscope diff`. Shares are of the features of OLD that have a direction."""

    rule: str
    theta: float
    same: float  # cosine from which a matched feature counts as survived
    forced: list[str]  # differences that would have been refused without --force
    remarks: list[str]
    old: PairSide
    new: PairSide
    counts: dict[str, int]  # {fate: features of OLD}
    origins: dict[str, int]  # {origin: features of NEW}
    survived: float
    kept: float  # survived or moved: what --fail-below is compared with
    kept_interval: tuple[float, float]  # 95 % Clopper-Pearson, as if features were drawn independently
    by_chance: dict[str, float]  # {kind of random dictionary: share of OLD that reaches theta in it}
    gap: float | None  # bound on how far a one-to-one matching is below the best one, relative; None for other rules
    histogram: list[int]  # best cosines of OLD in NEW in N_BINS equal bins from 0 to 1; those below 0 are in the first
    old_features: OldFeatures
    new_features: NewFeatures
    parts: dict[int, list[int]] = field(repr=False)  # {feature of OLD that split: features of NEW, nearest first}
    joined: dict[int, list[int]] = field(
        repr=False
    )  # {feature of NEW: features of OLD that merged into it, nearest first}

    @property
    def n_old(self) -> int:
        """Features of OLD that have a direction."""
        return len(self.old_features.feature)

    @property
    def n_new(self) -> int:
        """Features of NEW that have a direction."""
        return len(self.new_features.feature)

    def as_json(self) -> dict[str, Any]:
        """The report with the name and version of its format."""
        head = {"format": FORMAT, "version": FORMAT_VERSION, "seedscope": version("seedscope")}
        return head | {"sign": "signed", "ties": "lowest index", "precision": "float32"} | asdict(self)


class _Rows(NamedTuple):
    """Unit rows of the features that have a direction."""

    valid: Tensor  # ascending indices of these features
    decoder: Tensor
    encoder: Tensor | None  # of the same features; None where the rule does not ask


def diff(
    path_old: Path | str, path_new: Path | str, *, rule: str = "argmax", theta: float = THETA, force: bool = False
) -> DiffReport:
    """What became of the features of the SAE at `path_old` in the one at `path_new`; `engine.matching.fates` has the definitions.

    Paths are files or folders of any library that engine.saes.importers reads, or names on a hub. Raises ValueError for what
    `pair.compare` refuses, for an unknown rule, and unless 0 <= theta <= SAME. Memory: both SAEs while they are
    read, then their decoders (for rule `both` their encoders too), and three more decoders' worth for random dictionaries: 3.5 GB
    at 131,072 x 768.
    """
    if rule not in PAIR_RULES:
        raise ValueError(f"rule is {rule!r}, expected one of {', '.join(PAIR_RULES)}")
    if not 0 <= theta <= SAME:
        raise ValueError(f"theta is {theta}, expected 0 to {SAME}: from there on a feature counts as the same")
    read_old, read_new, forced, remarks = read_comparable(path_old, path_new, force=force)
    old, a = _prepared(path_old, read_old, encoder=rule == "both")
    del read_old  # the largest SAEs take gigabytes: none is held longer than its rows are needed
    new, b = _prepared(path_new, read_new, encoder=rule == "both")
    del read_new
    if old.digest == new.digest:
        remarks.append(f"both hold the same SAE (digest {old.digest})")
    to_new, to_old = (Towards(_cosine(each.cosine), each.partner.numpy()) for each in nearest(a.decoder, b.decoder))
    partners, gap = _partners(rule, a, b, to_new, to_old)
    found = fates_of(a.decoder, b.decoder, partners, to_new, to_old, theta=theta)
    counts = {name: int((found.fate == name).sum()) for name in FATES}
    n_kept, n = counts["survived"] + counts["moved"], len(found.fate)
    low, high = clopper_pearson(np.array(n_kept), n)
    of_old, of_new = a.valid.numpy(), b.valid.numpy()
    paired = partners.partner >= 0
    return DiffReport(
        rule=rule,
        theta=theta,
        same=SAME,
        forced=forced,
        remarks=remarks,
        old=old,
        new=new,
        counts=counts,
        origins={name: int((found.origin == name).sum()) for name in ORIGINS},
        survived=counts["survived"] / n,
        kept=n_kept / n,
        kept_interval=(float(low), float(high)),
        by_chance=_by_chance(a.decoder, b.decoder, theta),
        gap=gap,
        histogram=np.histogram(to_new.cosine.clip(0, 1), N_BINS, (0, 1))[0].tolist(),
        old_features=OldFeatures(
            feature=of_old.tolist(),
            fate=found.fate.tolist(),
            partner=[int(of_new[p]) if has else None for p, has in zip(partners.partner, paired, strict=True)],
            cosine=[float(c) if has else None for c, has in zip(partners.cosine, paired, strict=True)],
            nearest=of_new[to_new.partner].tolist(),
            nearest_cosine=to_new.cosine.tolist(),
        ),
        new_features=NewFeatures(
            feature=of_new.tolist(),
            origin=found.origin.tolist(),
            nearest=of_old[to_old.partner].tolist(),
            nearest_cosine=to_old.cosine.tolist(),
        ),
        parts={int(of_old[row]): of_new[rows].tolist() for row, rows in sorted(found.parts.items())},
        joined={int(of_new[row]): of_old[rows].tolist() for row, rows in sorted(found.joined.items())},
    )


def write(report: DiffReport, path: Path) -> None:
    """Write the report as JSON, in one step."""
    write_whole(path, json.dumps(report.as_json(), allow_nan=False))


def _prepared(path: Path | str, one: Imported, *, encoder: bool) -> tuple[PairSide, _Rows]:
    """One side of the report and its unit rows; raises ValueError where it has none."""
    decoder = one.tensors["W_dec"].float()
    valid = directed(decoder).nonzero()[:, 0]
    if not len(valid):
        raise ValueError(f"{path}: all {len(decoder)} decoder rows are zero or not finite; there is nothing to compare")
    sae = assemble({name: tensor[None] for name, tensor in one.tensors.items()}, one.convention, (one.seed or 0,))
    side = described(path, one, sae, len(valid))
    rows = decoder if len(valid) == len(decoder) else decoder[valid]
    columns = unit_rows(one.tensors["W_enc"].T.float()[valid]) if encoder else None
    return side, _Rows(valid, normalize(rows, dim=1), columns)


def _cosine(values: Tensor) -> np.ndarray:
    return values.clamp(-1, 1).numpy()


def _partners(rule: str, a: _Rows, b: _Rows, to_new: Towards, to_old: Towards) -> tuple[Towards, float | None]:
    """The rule's partners of the old rows, as in engine.matching.match; and the gap of a one-to-one matching."""
    if rule == "argmax":
        return to_new, None
    if rule == "mutual":
        is_mutual = to_old.partner[to_new.partner] == np.arange(len(to_new.partner))
        return _only(to_new, is_mutual), None
    decoders = hungarian(a.decoder, b.decoder)
    partners = Towards(np.nan_to_num(decoders.cosine, nan=NO_MATCH).clip(-1, 1), decoders.partner)
    if a.encoder is None or b.encoder is None:
        return partners, decoders.gap
    encoders = hungarian(a.encoder, b.encoder)
    agree = (partners.partner >= 0) & (partners.partner == encoders.partner)
    smaller = np.minimum(partners.cosine, np.nan_to_num(encoders.cosine, nan=NO_MATCH).clip(-1, 1))
    return _only(Towards(smaller, partners.partner), agree), decoders.gap


def _only(towards: Towards, paired: np.ndarray) -> Towards:
    return Towards(np.where(paired, towards.cosine, NO_MATCH), np.where(paired, towards.partner, -1))


def _by_chance(old: Tensor, new: Tensor, theta: float) -> dict[str, float]:
    """Share of old rows, of N_BY_CHANCE at random, that reach theta in a random dictionary of each kind."""
    generator = torch.Generator().manual_seed(0)
    rows = old[torch.randperm(len(old), generator=generator)[:N_BY_CHANCE]]
    shares = {}
    for kind in NULL_KINDS:
        best, _ = best_cosines(rows, random_dictionary(new, kind, generator))
        shares[kind] = float(is_match(best.cosine.numpy(), theta).mean())
    return shares
