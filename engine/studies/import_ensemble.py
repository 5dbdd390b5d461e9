"""Imports SAE files of any library as an ensemble: checks them together, saves them in this project's format, catalogues them."""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from seedscope.engine.activations.recorded import open_recorded, require_width
from seedscope.engine.contract.places import same_place
from seedscope.engine.saes import sae
from seedscope.engine.saes.importers.ensemble import located, read_many, read_recognised
from seedscope.engine.saes.importers.facts import BY_USER, NEURONPEDIA, changed, completed_as_transcoder
from seedscope.engine.saes.importers.imported import LARGEST, Imported
from seedscope.engine.store import catalogue

# Rows that two members share to the last bit have never been trained in either: they still stand where both began.
EQUAL_ROWS_SHOWN = 3
PROVENANCE: tuple[str, ...] = (
    "model",
    "hookpoint",
    "hookpoint_out",
)  # kept with a member's file where its source names them


def enrol(
    root: Path,
    study: str,
    ensemble: str,
    paths: Sequence[Path | str],
    *,
    format: str = "auto",
    seeds: Sequence[int] | None = None,
    model: str | None = None,
    hookpoint: str | None = None,
    hookpoint_out: str | None = None,
    tokens: catalogue.Tokens | None = None,
    activations: catalogue.RecordedActivations | None = None,
    shared_start: catalogue.YesNo | None = None,
    neuronpedia: Sequence[str] = (),
    force: bool = False,
    replaced: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> catalogue.EnsemblePlan:
    """Add SAE files as an ensemble to a study under the root, which begins with it if need be.

    `model`, `tokens` become the study's where given, and `activations`, which stand in their place; `hookpoint` is the
    ensemble's, by default the one that the files name, and so is `hookpoint_out`, which transcoders predict: given for files that
    do not say what they are, these are transcoders. Members wait on disk, in a folder that vanishes where one is refused: memory
    is that of one, and the disk holds them twice for a while. The catalogue is written last. Raises ValueError for files that
    cannot be read, SAEs that are not members of one ensemble, the same SAE twice, a claim about the start that the weights
    refute, a name in use (unless `replaced`), activations of another width, and a hook point other than the files' (unless
    `force`, which is remembered).
    """
    catalogue.require_name("study", study)
    folder = root / study
    former = catalogue.read(folder) or catalogue.StudyPlan(study)
    plan = measured_on(replace(former, model=model or former.model), tokens, activations)
    catalogue.require_name("ensemble", ensemble)
    if not replaced and any(each.name == ensemble for each in former.ensembles):
        raise ValueError(
            f"study {study} has an ensemble {ensemble} already; choose another name, or give --replace to put the new one "
            "in its place"
        )
    target = folder / "sae" / ensemble
    with _unfinished(folder / "sae" / f".{ensemble}-unfinished") as unfinished:
        read = unfinished / "read"
        members = read_many(
            paths, format, seeds, force=force, keep=lambda member: _on_disk(with_zero_rows(member), read)
        )
        members = _on_neuronpedia(members, neuronpedia)
        members.sort(key=lambda member: member.seed or 0)
        if hookpoint_out:
            members = [_as_transcoder(member, hookpoint_out) for member in members]
        members = [
            replace(
                each,
                facts=changed(each.facts, BY_USER, hook_point=hookpoint, output_hook_point=hookpoint_out, model=model),
            )
            for each in members
        ]
        remarks = _other_hook_points(members[0], hookpoint, hookpoint_out, force=force)
        if activations:
            require_width(open_recorded(activations.source), members[0].d_in, ensemble)
        kept = [described(member) for member in members]
        refuse_copies(kept)
        start, evidence = start_of(members, shared_start)
        remarks += evidence
        name = hashlib.sha256(" ".join(f"{m.seed}:{m.digest}" for m in kept).encode()).hexdigest()[:16]
        for done, member in enumerate(members):
            provenance = {key: member.source[key] for key in PROVENANCE if key in member.source}
            as_sae(member).save(unfinished, provenance=provenance)
            report(done + 1, len(members))
        shutil.rmtree(read)
        target.mkdir(parents=True, exist_ok=True)
        # Of the same SAEs, imported before: its files may have been damaged since.
        shutil.rmtree(target / name, ignore_errors=True)
        unfinished.replace(target / name)
    imported = catalogue.EnsemblePlan(
        name=ensemble,
        origin="imported",
        folder=str((target / name).relative_to(folder)),
        members=tuple(kept),
        variant=_agreed(member.source.get("architecture") for member in members) or members[0].convention.architecture,
        hookpoint=hookpoint or members[0].source.get("hookpoint"),
        transcoder=members[0].convention.transcoder,
        hookpoint_out=hookpoint_out or members[0].source.get("hookpoint_out"),
        shared_start=start,
        remarks=tuple(remarks),
    )
    # What it replaces stays on disk until the next publish: the published store still names it.
    catalogue.write(plan.with_ensemble(imported), folder)
    return imported


def _other_hook_points(first: Imported, hookpoint: str | None, hookpoint_out: str | None, *, force: bool) -> list[str]:
    """Remarks on hook points that were given and are not those of the files; raises ValueError for them without `force`."""
    remarks = []
    for given, name, what, option in (
        (hookpoint, "hookpoint", "hook point", "--hookpoint"),
        (hookpoint_out, "hookpoint_out", "output hook point", "--hookpoint-out"),
    ):
        named = first.source.get(name)
        if given and named and not same_place(given, named):
            differ = f"{what} {given} was given, {first.source['path']} says {named}"
            if not force:
                raise ValueError(f"{differ}; leave {option} out, or give --force to go on and have it remembered")
            remarks.append(f"forced: {differ}")
    return remarks


def measured_on(
    plan: catalogue.StudyPlan, tokens: catalogue.Tokens | None, activations: catalogue.RecordedActivations | None
) -> catalogue.StudyPlan:
    """The catalogue with the tokens or the recorded activations that a study is measured on: the last given count."""
    if activations:
        return replace(plan, tokens=None, activations=activations)
    return replace(plan, tokens=tokens, activations=None) if tokens else plan


def _on_disk(member: Imported, folder: Path) -> Imported:
    """The same SAE with its tensors mapped from a file in a folder, so that an ensemble takes the memory of one member."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    save_file(member.tensors, path)
    with safe_open(path, "pt") as file:
        return replace(member, tensors={name: file.get_tensor(name) for name in member.tensors})


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder that vanishes unless it was given its final name, and so do the folders above it that it leaves empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty
            folder.parent.rmdir()
            folder.parent.parent.rmdir()


def as_sae(member: Imported) -> sae.SAE:
    """One SAE in our own form."""
    return sae.assemble(
        {name: tensor[None] for name, tensor in member.tensors.items()}, member.convention, (_seed(member),)
    )


def _as_transcoder(member: Imported, hookpoint_out: str) -> Imported:
    """The same tensors as those of a transcoder, by the user's word; raises ValueError where they cannot be."""
    c = member.convention
    if c.transcoder:
        return member
    if c.subtract_b_dec or c.normalize != "none" or c.input_scale != 1:
        raise ValueError(
            f"--hookpoint-out {hookpoint_out} was given, but {member.source['path']} is an SAE: it gives back what it reads, with "
            "its normalisation undone or b_dec taken out first. Leave --hookpoint-out out"
        )
    facts = completed_as_transcoder(member.facts, len(member.tensors["b_dec"]))
    return replace(
        member,
        convention=replace(c, transcoder=True),
        facts=facts,
        remarks=(*member.remarks, "a transcoder by your word: its files do not say so"),
    )


def with_zero_rows(member: Imported) -> Imported:
    """The SAE with zeros for decoder rows that are not finite, which would make every reconstruction that uses them NaN."""
    rows = member.tensors["W_dec"]
    finite = (rows.abs() <= LARGEST).all(1)
    if finite.all():
        return member
    n_rows = int((~finite).sum())
    remark = (
        f"{n_rows:,} decoder row{'s' * (n_rows > 1)} not finite (NaN or infinite), set to zero: without a direction"
    )
    tensors = {**member.tensors, "W_dec": torch.where(finite[:, None], rows, 0)}
    return replace(member, tensors=tensors, remarks=(*member.remarks, remark))


def _seed(member: Imported) -> int:
    """The seed of an SAE; raises ValueError where its files name none and none was given."""
    if member.seed is None:
        raise ValueError(f"the seed of {member.source['path']} is not known; give the seeds")
    return member.seed


def _on_neuronpedia(members: list[Imported], sources: Sequence[str]) -> list[Imported]:
    """Members with their pages on Neuronpedia as MODEL/SOURCE, one for each in the order given; none changes nothing."""
    if not sources:
        return members
    if len(sources) != len(members):
        raise ValueError(
            f"{len(sources)} of --neuronpedia for {len(members)} SAEs, expected one for each, in the order of the paths"
        )
    if unusable := [source for source in sources if not re.fullmatch(r"[\w.-]+/[\w.-]+", source)]:
        raise ValueError(f"--neuronpedia is {unusable[0]!r}, expected MODEL/SOURCE such as gpt2-small/7-res-jb")
    return [
        replace(member, facts=member.facts | {NEURONPEDIA: (source, BY_USER)})
        for member, source in zip(members, sources, strict=True)
    ]


def described(member: Imported) -> catalogue.MemberPlan:
    """What the catalogue says of an SAE; its digest covers tensors and convention, not the file."""
    source = member.source
    trained_on = [source[name] for name in ("model", "hookpoint") if name in source]
    return catalogue.MemberPlan(
        seed=_seed(member),
        digest=as_sae(member).digest(0),
        source=source["path"],
        library=member.library,
        trained_on=" at ".join(trained_on) or None,
        remarks=member.remarks,
        facts=member.facts,
    )


def digests_at(
    path: Path | str, format: str = "auto", *, hookpoint_out: str | None = None
) -> Iterator[tuple[str, str]]:
    """(path, digest) of every SAE at a path or a name on a hub, as `enrol` would record them; they are read one by one.

    `hookpoint_out` as it was given to `enrol`: by it a file that does not say so counts as a transcoder's. Raises ValueError where
    there is no SAE, and for one that cannot be represented.
    """
    for each in located(path, format):
        member = with_zero_rows(read_recognised(each))
        if hookpoint_out:
            member = _as_transcoder(member, hookpoint_out)
        yield str(each.path), as_sae(member if member.seed is not None else replace(member, seed=0)).digest(0)


def _agreed(values: Iterable[str | None]) -> str | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def start_of(members: list[Imported], claimed: catalogue.YesNo | None) -> tuple[catalogue.YesNo, list[str]]:
    """Whether members share a start, and what says so: the files, or rows that are equal and hence still at theirs."""
    if any("start shared" in remark for member in members for remark in member.remarks):
        evidence = ["members share a start: all were built from the same archetypes"]
    else:
        equal_rows = _equal_rows(members)
        evidence = [equal_rows] if equal_rows else []
    if evidence and claimed == "no":
        raise ValueError(f"--shared-start no was given, but {evidence[0]}; give --shared-start yes, or leave it out")
    return ("yes" if evidence else claimed or "unknown"), evidence


def _equal_rows(members: list[Imported]) -> str | None:
    # Equal rows have equal sums: 4,560 pairs of 96 members compare one number per row, and few whole rows.
    sums = [member.tensors["W_dec"].double().sum(1) for member in members]
    for (first, one), (second, other) in combinations(enumerate(members), 2):
        alike = (sums[first] == sums[second]).nonzero()[:, 0]
        a, b = one.tensors["W_dec"][alike], other.tensors["W_dec"][alike]
        equal = alike[(a == b).all(1) & sae.directed(a)]
        if len(equal):
            shown = ", ".join(str(int(row)) for row in equal[:EQUAL_ROWS_SHOWN])
            return (
                f"members share a start: {len(equal):,} decoder rows ({shown}{', ..' if len(equal) > EQUAL_ROWS_SHOWN else ''}) "
                f"are equal in seeds {one.seed} and {other.seed}"
            )
    return None


def refuse_copies(members: list[catalogue.MemberPlan]) -> None:
    """Raise ValueError where two members are the same SAE."""
    for one, other in combinations(members, 2):
        if one.digest == other.digest:
            raise ValueError(
                f"{one.source} and {other.source} hold the same SAE (digest {one.digest}), expected independently trained "
                "ones; leave one out"
            )
