"""Two SAEs of any library matched without a study: shares of matches, all partners, and the origin of both; as JSON."""

import json
import re
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seedscope.engine.contract.directions import SENTENCE
from seedscope.engine.contract.files import write_whole
from seedscope.engine.contract.places import same_place
from seedscope.engine.contract.schema import NO_MATCH
from seedscope.engine.contract.stability import is_match
from seedscope.engine.matching.match import Dictionary, PairMatches, affordable, dictionaries, match_pair
from seedscope.engine.saes.importers.ensemble import read
from seedscope.engine.saes.importers.imported import Imported
from seedscope.engine.saes.sae import SAE, assemble

FORMAT, FORMAT_VERSION = "seedscope.match", 1
UNKNOWN = "unknown"  # a seed that no file records
# What two SAEs must share, beside the widths, to be comparable.
_COMPARED = ("model", "hookpoint", "hookpoint_out")
_DIGEST = re.compile(r"[0-9a-f]{16}")  # of a model's weights: the name of a model in SeedScope's own files
# Fields of the convention whose differences are remarks; the others say how units are scaled and biases used.
_REMARKED = ("architecture", "k", "normalize")


@dataclass(frozen=True)
class PairSide:
    """One of the two SAEs, and where it comes from; fields that its files do not record are None."""

    path: str
    digest: str  # over tensors and convention: the same as in a study that holds this SAE
    seed: str
    d_in: int
    d_sae: int
    n_undirected: int  # decoder rows that are zero or not finite, which are left out
    model: str | None
    hookpoint: str | None
    library: str | None  # with its version where it is recorded
    architecture: str
    variant: str | None  # its library's name for the architecture
    convention: dict[str, Any] = field(repr=False)  # the forward pass, the fields of engine.saes.convention.Convention
    remarks: list[str]

    def __str__(self) -> str:
        place = [f"model {self.model}" if self.model else "", f"at {self.hookpoint}" if self.hookpoint else ""]
        words = [
            self.library or "library not recorded",
            ", read as ".join(dict.fromkeys(filter(None, (self.variant, self.architecture)))),
            f"{self.d_sae:,} features of {self.d_in:,} numbers",
            f"seed {self.seed}", " ".join(filter(None, place)) or "model not recorded", f"digest {self.digest}",
        ]  # fmt: skip
        return f"{self.path}: {', '.join(words)}"


@dataclass(frozen=True)
class Direction:
    """The features of one side and their partners on the other; lists are over features with a direction."""

    n_matched: int
    shared: float  # n_matched over the number of features with a direction, 0 to 1
    mmcs: float  # mean max cosine similarity
    feature: list[int] = field(repr=False)
    partner: list[int | None] = field(repr=False)  # None: the rule forms no pair
    cosine: list[float | None] = field(repr=False)
    runner_up_cosine: list[float] = field(repr=False)
    mutual: list[bool] = field(repr=False)
    encoder_cosine: list[float] = field(repr=False)  # at the nearest decoder row


@dataclass(frozen=True)
class PairReport:
    """The result of `seedscope match`."""

    rule: str
    theta: float
    absolute: bool
    forced: list[str]  # differences that would have been refused without --force
    remarks: list[str]  # what a reader of the pair should know; each side has remarks of its own
    a: PairSide
    b: PairSide
    # Mean cosine of the one-to-one matching (MCC), which for a single pair is PW-MCC; None where it was not computed.
    pw_mcc: float | None
    hungarian_distance: float | None  # mean(1 - cosine)
    gap: float | None  # bound on how far that matching is below the best one, relative
    a_to_b: Direction
    b_to_a: Direction

    def as_json(self) -> dict[str, Any]:
        """The report with the name and version of its format."""
        head = {"format": FORMAT, "version": FORMAT_VERSION, "seedscope": version("seedscope")}
        rules = {"sign": "absolute" if self.absolute else "signed", "ties": "lowest index", "precision": "float32"}
        return head | rules | asdict(self)


def compare(
    path_a: Path | str,
    path_b: Path | str,
    *,
    rule: str = "argmax",
    theta: float = 0.7,
    absolute: bool = False,
    force: bool = False,
) -> PairReport:
    """Match the SAEs at two paths: files or folders of any library that engine.saes.importers reads, or names on a hub.

    One-to-one matching is done where it is `affordable` or the rule needs it. Raises ValueError where an SAE cannot be read or
    has no feature with a direction, and where the two cannot be compared: if they differ in d_in, or, unless `force`, in their
    model or hook point.
    """
    one, other, forced, remarks = read_comparable(path_a, path_b, force=force)
    side_a, a = _prepared(path_a, one)
    side_b, b = _prepared(path_b, other)
    del one, other  # the largest SAEs take gigabytes, and the two dictionaries are all that is matched
    if side_a.digest == side_b.digest:
        remarks.append(f"both hold the same SAE (digest {side_a.digest}): every feature is its own partner")
    elif side_a.seed == side_b.seed != UNKNOWN:
        remarks.append(f"both record seed {side_a.seed}: they may share their start")
    assign = rule in ("hungarian", "both") or affordable(2, max(side_a.d_sae, side_b.d_sae), side_a.d_in)
    forward, backward, one_to_one = match_pair(a, b, assign=assign, absolute=absolute)
    mcc = float(np.mean(one_to_one.cosine[one_to_one.partner >= 0])) if one_to_one else None
    return PairReport(
        rule=rule,
        theta=theta,
        absolute=absolute,
        forced=forced,
        remarks=remarks,
        a=side_a,
        b=side_b,
        pw_mcc=mcc,
        hungarian_distance=None if mcc is None else 1 - mcc,
        gap=one_to_one.gap if one_to_one else None,
        a_to_b=_direction(forward, a.valid.numpy(), rule, theta),
        b_to_a=_direction(backward, b.valid.numpy(), rule, theta),
    )


class ComparableSAEs(NamedTuple):
    """Two SAEs whose decoder rows are directions of the same activations."""

    a: Imported
    b: Imported
    forced: list[str]  # differences that are refused without `force`
    remarks: list[str]


def read_comparable(path_a: Path | str, path_b: Path | str, *, force: bool = False) -> ComparableSAEs:
    """Read two SAEs and compare where they come from; raises ValueError as `compare` says."""
    one, other = read(path_a), read(path_b)
    if one.d_in != other.d_in:
        raise ValueError(
            f"{path_a} has d_in {one.d_in}, {path_b} has {other.d_in}: they read different activations and cannot be matched"
        )
    if (one.d_out, one.convention.transcoder) != (other.d_out, other.convention.transcoder):
        kinds = [
            f"{path} is {'a transcoder' if each.convention.transcoder else 'an SAE'} of decoder rows of {each.d_out} numbers"
            for path, each in ((path_a, one), (path_b, other))
        ]
        raise ValueError(f"{', '.join(kinds)}: their rows are not directions of the same, so they cannot be matched")
    forced, remarks = _differences(path_a, one, path_b, other)
    if one.convention.transcoder:
        remarks.append(SENTENCE)
    if forced and not force:
        raise ValueError(
            f"{'; '.join(forced)}: such SAEs are not comparable, unless these are two names of the same; "
            "--force matches them all the same"
        )
    return ComparableSAEs(one, other, forced, remarks)


def write(report: PairReport, path: Path) -> None:
    """Write the report as JSON, in one step."""
    write_whole(path, json.dumps(report.as_json(), allow_nan=False))


def _differences(path_a: Path | str, a: Imported, path_b: Path | str, b: Imported) -> tuple[list[str], list[str]]:
    """(differences that make the two incomparable, differences that are remarks)."""
    refused, remarks = [], []
    for name in _COMPARED:
        one, another = a.source.get(name), b.source.get(name)
        if one is None or another is None or one == another:
            continue
        if name.startswith("hookpoint") and same_place(one, another):
            continue
        if name == "model" and bool(_DIGEST.fullmatch(one)) != bool(_DIGEST.fullmatch(another)):
            remarks.append(
                f"model not compared: {one} in {path_a}, {another} in {path_b}, one by digest and one by name"
            )
        else:
            refused.append(f"{name} is {one!r} in {path_a} and {another!r} in {path_b}")
    for name in _REMARKED:
        one, another = getattr(a.convention, name), getattr(b.convention, name)
        if one != another and (name != "k" or a.convention.architecture == b.convention.architecture):
            remarks.append(f"{name} is {one} in {path_a} and {another} in {path_b}")
    return refused, remarks


def _prepared(path: Path | str, one: Imported) -> tuple[PairSide, Dictionary]:
    """One side of the report, and its directions; raises ValueError where it has none."""
    sae = assemble({name: tensor[None] for name, tensor in one.tensors.items()}, one.convention, (one.seed or 0,))
    (directions,) = dictionaries(sae)
    if not len(directions.valid):
        raise ValueError(f"{path}: all {sae.d_sae} decoder rows are zero or not finite; nothing can be matched")
    return described(path, one, sae, len(directions.valid)), directions


def described(path: Path | str, one: Imported, sae: SAE, n_directed: int) -> PairSide:
    """What a report says of one SAE; `sae` is `one` assembled, `n_directed` of its decoder rows have a direction."""
    source = one.source
    return PairSide(
        path=str(path),
        digest=sae.digest(0),
        seed=UNKNOWN if one.seed is None else str(one.seed),
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        n_undirected=sae.d_sae - n_directed,
        model=source.get("model"),
        hookpoint=source.get("hookpoint"),
        library=one.library,
        architecture=one.convention.architecture,
        variant=source.get("architecture"),
        convention=one.convention.as_json(),
        remarks=list(one.remarks),
    )


def _direction(matches: PairMatches, valid: np.ndarray, rule: str, theta: float) -> Direction:
    cosine, partner = matches.rule_cosine(rule)[valid], matches.rule_partner(rule)[valid]
    paired = cosine > NO_MATCH
    n_matched = int((paired & is_match(cosine, theta)).sum())
    return Direction(
        n_matched=n_matched,
        shared=n_matched / len(valid),
        mmcs=float(matches.cosine[valid].mean()),
        feature=valid.tolist(),
        partner=[int(p) if has_pair else None for p, has_pair in zip(partner, paired, strict=True)],
        cosine=[float(c) if has_pair else None for c, has_pair in zip(cosine, paired, strict=True)],
        runner_up_cosine=matches.runner_up[valid].tolist(),
        mutual=matches.mutual[valid].tolist(),
        encoder_cosine=matches.encoder_cosine[valid].tolist(),
    )
