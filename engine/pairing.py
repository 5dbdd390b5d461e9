"""Two SAE files, matched without a study: what they share, and every partner, with where it all comes from."""

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from engine.files import write_whole
from engine.match import PairMatches, affordable, dictionaries, match_pair
from engine.sae import SAE, read
from engine.schema import NO_MATCH
from engine.stability import is_match

FORMAT, FORMAT_VERSION = "seedscope.match", 1
_COMPARED = ("model", "hookpoint")  # what two SAEs must share beside d_in for their directions to mean the same


@dataclass(frozen=True)
class Side:
    """One of the two SAEs."""

    path: str
    digest: str
    seed: str
    d_in: int
    d_sae: int
    n_undirected: int  # decoder rows that are zero or not finite: excluded
    model: str | None
    hookpoint: str | None


@dataclass(frozen=True)
class Direction:
    """The features of one side and their partners on the other; lists are over features with a direction."""

    n_matched: int
    shared: float  # n_matched over the features with a direction
    mmcs: float  # mean max cosine
    feature: list[int] = field(repr=False)
    partner: list[int | None] = field(repr=False)  # None: the rule forms no pair
    cosine: list[float | None] = field(repr=False)
    runner_up_cosine: list[float] = field(repr=False)
    mutual: list[bool] = field(repr=False)
    encoder_cosine: list[float] = field(repr=False)  # at the nearest decoder row


@dataclass(frozen=True)
class PairReport:
    """Everything `seedscope match` says."""

    rule: str
    theta: float
    absolute: bool
    forced: list[str]  # differences that --force passed over
    a: Side
    b: Side
    pw_mcc: (
        float | None
    )  # mean cosine of the one-to-one matching; of one pair, so PW-MCC is its MCC. None: not computed
    hungarian_distance: float | None  # mean(1 - cosine)
    gap: float | None  # proven relative distance of that matching to the best one
    a_to_b: Direction
    b_to_a: Direction

    def as_json(self) -> dict[str, Any]:
        """The report with the name and version of its format."""
        head = {"format": FORMAT, "version": FORMAT_VERSION, "seedscope": version("seedscope")}
        rules = {"sign": "absolute" if self.absolute else "signed", "ties": "lowest index", "precision": "float32"}
        return head | rules | asdict(self)


def compare(
    path_a: Path, path_b: Path, *, rule: str = "argmax", theta: float = 0.7, absolute: bool = False, force: bool = False
) -> PairReport:
    """Match the SAEs of two files.

    One-to-one matching is done where it is cheap or the rule needs it. Raises ValueError where they cannot be compared:
    another d_in always, another model or hook point unless `force`, and a side without any feature that has a direction.
    """
    (sae_a, meta_a), (sae_b, meta_b) = read(path_a), read(path_b)
    forced = _differences(path_a, meta_a, path_b, meta_b)
    if sae_a.d_in != sae_b.d_in:
        raise ValueError(
            f"{path_a} has d_in {sae_a.d_in}, {path_b} has {sae_b.d_in}: they read different activations and cannot be matched"
        )
    if forced and not force:
        raise ValueError(f"{'; '.join(forced)}: such SAEs are not comparable; --force matches them all the same")
    (a,), (b,) = dictionaries(sae_a), dictionaries(sae_b)
    for path, side in ((path_a, a), (path_b, b)):
        if not len(side.valid):
            raise ValueError(
                f"{path}: all {len(side.decoder)} decoder rows are zero or not finite; nothing can be matched"
            )
    assign = rule in ("hungarian", "both") or affordable(2, max(len(a.decoder), len(b.decoder)), sae_a.d_in)
    forward, backward, one_to_one = match_pair(a, b, assign=assign, absolute=absolute)
    mcc = float(np.mean(one_to_one.cosine[one_to_one.partner >= 0])) if one_to_one else None
    return PairReport(
        rule=rule,
        theta=theta,
        absolute=absolute,
        forced=forced,
        a=_side(path_a, sae_a, meta_a, len(a.valid)),
        b=_side(path_b, sae_b, meta_b, len(b.valid)),
        pw_mcc=mcc,
        hungarian_distance=None if mcc is None else 1 - mcc,
        gap=one_to_one.gap if one_to_one else None,
        a_to_b=_direction(forward, a.valid.numpy(), rule, theta),
        b_to_a=_direction(backward, b.valid.numpy(), rule, theta),
    )


def write(report: PairReport, path: Path) -> None:
    """Write the report as JSON."""
    write_whole(path, json.dumps(report.as_json(), allow_nan=False))


def _differences(path_a: Path, meta_a: dict[str, str], path_b: Path, meta_b: dict[str, str]) -> list[str]:
    return [
        f"{name} is {meta_a[name]!r} in {path_a} and {meta_b[name]!r} in {path_b}"
        for name in _COMPARED
        if name in meta_a and name in meta_b and meta_a[name] != meta_b[name]
    ]


def _side(path: Path, sae: SAE, meta: dict[str, str], n_directed: int) -> Side:
    return Side(
        path=str(path),
        digest=sae.digest(0),
        seed=meta.get("seed", "unknown"),
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        n_undirected=sae.d_sae - n_directed,
        model=meta.get("model"),
        hookpoint=meta.get("hookpoint"),
    )


def _direction(found: PairMatches, valid: np.ndarray, rule: str, theta: float) -> Direction:
    cosine, partner = found.rule_cosine(rule)[valid], found.rule_partner(rule)[valid]
    paired = cosine > NO_MATCH
    n_matched = int((paired & is_match(cosine, theta)).sum())
    return Direction(
        n_matched=n_matched,
        shared=n_matched / len(valid),
        mmcs=float(found.cosine[valid].mean()),
        feature=valid.tolist(),
        partner=[int(p) if held else None for p, held in zip(partner, paired, strict=True)],
        cosine=[float(c) if held else None for c, held in zip(cosine, paired, strict=True)],
        runner_up_cosine=found.runner_up[valid].tolist(),
        mutual=found.mutual[valid].tolist(),
        encoder_cosine=found.encoder_cosine[valid].tolist(),
    )
