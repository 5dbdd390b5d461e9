"""Read one SAE, or several as the members of an ensemble."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from seedscope.engine.saes.importers.hub import local
from seedscope.engine.saes.importers.imported import Imported
from seedscope.engine.saes.importers.recognise import READERS, RecognisedSAE, is_main, of_folder, recognise

FORMATS = ("auto", *READERS)
_MUST_AGREE = ("model", "hookpoint")


def read(path: Path | str, format: str = "auto") -> Imported:
    """The one SAE at a path; raises ValueError where there is none, more than one, or one that cannot be represented."""
    found = _found(local(path), format)
    if len(found) > 1:
        names = ", ".join(str(one.path) for one in found[:4])
        raise ValueError(
            f"{path} holds {len(found)} SAEs ({names}{', ..' if len(found) > 4 else ''}), expected one: name it"
        )
    return READERS[found[0].format](found[0].path)


def read_many(
    paths: Sequence[Path | str], format: str = "auto", seeds: Sequence[int] | None = None, *, force: bool = False
) -> list[Imported]:
    """The SAEs at all paths as members of one ensemble, in this order, each with its seed.

    Seeds are the given ones, else those that the library recorded, else the trailing numbers of the folders' names, else
    0, 1, ..: the first of these that every member has. Raises ValueError naming both paths where two members have one seed,
    or differ in their shapes, convention, model or hookpoint, or are steps of one run. With `force` another model or
    hookpoint is a remark of the member that differs from the first.
    """
    if not paths:
        raise ValueError("no path was given, expected at least one SAE")
    found = [one for path in paths for one in _found(local(path), format)]
    places: dict[Path, Path] = {}
    for one in found:
        place = one.path.resolve()
        if place in places:
            raise ValueError(f"{one.path} is given twice (also as {places[place]}); name every SAE once")
        places[place] = one.path
    if seeds is not None and len(seeds) != len(found):
        raise ValueError(f"{len(seeds)} seeds were given for {len(found)} SAEs, expected one each")
    members = [READERS[one.format](one.path) for one in found]
    members = [members[0], *(_compared(members[0], member, force) for member in members[1:])]
    _one_step_each(members)
    members = [replace(member, seed=seed) for member, seed in zip(members, _seeds(found, members, seeds), strict=True)]
    _distinct(members, given=seeds is not None)
    return _share(members)


def _found(path: Path, format: str) -> list[RecognisedSAE]:
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    if format == "auto":
        return recognise(path)
    if path.is_file():
        here = of_folder(path.parent) if is_main(path) else None
        return [here if here and here.format == format else RecognisedSAE(path, format, path.stem)]
    found = recognise(path)
    if kept := [one for one in found if one.format == format]:
        return kept
    raise ValueError(f"{path} holds {found[0].format} ({found[0].path}), expected {format}: leave the format at auto")


def _compared(first: Imported, other: Imported, force: bool) -> Imported:
    """The other one, if it can be a member beside the first; with a remark where that was forced."""
    pairs = [
        ("d_in", first.d_in, other.d_in),
        ("d_sae", first.d_sae, other.d_sae),
        *((name, value, other.convention.as_json()[name]) for name, value in first.convention.as_json().items()),
        *(
            (name, first.source[name], other.source[name])
            for name in _MUST_AGREE
            if name in first.source and name in other.source
        ),
    ]
    forced = []
    for name, one, another in pairs:
        if one == another:
            continue
        told = f"{first.source['path']} has {name} {one}, {other.source['path']} has {name} {another}"
        if name not in _MUST_AGREE:
            raise ValueError(
                f"{told}: members of an ensemble differ by their seed alone. Import them as ensembles of their own"
            )
        if not force:
            raise ValueError(
                f"{told}: members of an ensemble differ by their seed alone. Import them as ensembles of their own, or give "
                "--force to compare them all the same"
            )
        forced.append(f"forced: {told}")
    return replace(other, remarks=(*other.remarks, *forced))


def _one_step_each(members: list[Imported]) -> None:
    runs: dict[str, str] = {}
    for member in members:
        run, path = member.source.get("run"), member.source["path"]
        if run in runs:
            raise ValueError(
                f"{runs[run]} and {path} are steps of one run, expected one SAE per seed: name one of them"
            )
        if run:
            runs[run] = path


def _seeds(found: list[RecognisedSAE], members: list[Imported], given: Sequence[int] | None) -> list[int]:
    for seeds in (given, [member.seed for member in members], [one.number for one in found]):
        if seeds is not None and None not in seeds:
            return [int(seed) for seed in seeds if seed is not None]
    return list(range(len(members)))


def _distinct(members: list[Imported], *, given: bool) -> None:
    paths: dict[int, str] = {}
    for member in members:
        seed, path = member.seed or 0, member.source["path"]
        if seed < 0:
            raise ValueError(f"the seed of {path} is {seed}, expected a whole number of at least 0")
        if seed in paths:
            raise ValueError(
                f"{paths[seed]} and {path} both have the seed {seed}, expected different seeds: "
                + (
                    "give every SAE its own"
                    if given
                    else "leave one out, or give their seeds yourself, such as --seeds 0,1"
                )
            )
        paths[seed] = path


def _share(members: list[Imported]) -> list[Imported]:
    """Say where all members were built from the same archetypes: their agreement is then partly by construction."""
    archetypes = {member.source.get("archetypes") for member in members}
    if len(members) < 2 or len(archetypes) > 1 or None in archetypes:
        return members
    return [replace(member, remarks=(*member.remarks, "start shared: dictionary.C")) for member in members]
