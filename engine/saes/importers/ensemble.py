"""Reading the SAE at one path, or the SAEs at several paths as the members of one ensemble."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from seedscope.engine.contract.places import same_place
from seedscope.engine.contract.schema import LARGEST_SEED
from seedscope.engine.contract.urls import url_in
from seedscope.engine.saes.importers import registry
from seedscope.engine.saes.importers.facts import ASSUMED, BY_USER, changed
from seedscope.engine.saes.importers.hub import local, repository_names
from seedscope.engine.saes.importers.imported import Imported, as_given, bounded
from seedscope.engine.saes.importers.recognise import READERS, RecognisedSAE, is_main, of_folder, recognise
from seedscope.engine.saes.importers.settings import in_names
from seedscope.engine.saes.importers.values import shown
from seedscope.engine.urls.cache import with_urls

FORMATS = ("auto", *READERS)
_MUST_AGREE = ("model", "hookpoint", "hookpoint_out")


def read(path: Path | str, format: str = "auto") -> Imported:
    """The one SAE at a path; raises ValueError where there is none, more than one, or one that cannot be represented."""
    saes = located(path, format)
    if len(saes) > 1:
        names = ", ".join(with_urls(str(sae.path)) for sae in saes[:4])
        raise ValueError(
            f"{path} holds {len(saes)} SAEs ({names}{', ..' if len(saes) > 4 else ''}), expected one: name it"
        )
    return read_recognised(saes[0])


def at_hand(paths: Sequence[str]) -> Sequence[str]:
    """The same paths, those behind URLs fetched, with a bar of their own."""
    for path in paths:
        if url_in(path):
            local(path)
    return paths


def read_recognised(sae: RecognisedSAE) -> Imported:
    """A recognised SAE, with what SAELens' registry says of it where it was named so; raises ValueError as its importer does."""
    try:
        return _read(sae)
    except ValueError as error:  # it may repeat what a file says
        raise ValueError(bounded(with_urls(str(error)))) from None


def _by_url(member: Imported) -> Imported:
    """The SAE with URLs in place of where their files lie here, wherever it says what was read from where."""
    return replace(
        member,
        source={name: with_urls(value) if isinstance(value, str) else value for name, value in member.source.items()},
        remarks=tuple(map(with_urls, member.remarks)),
        facts={name: (with_urls(value), with_urls(origin)) for name, (value, origin) in member.facts.items()},
    )


def _read(sae: RecognisedSAE) -> Imported:
    if sae.entry is None:
        return _by_url(READERS[sae.format](sae.path))
    try:
        return registry.applied(READERS[sae.format](sae.path), sae.entry)
    except ValueError as error:
        if sae.entry.scale is None:
            raise
        raise ValueError(
            f"{error}. {registry.REGISTRY} has the factor for {sae.entry.name}: {sae.entry.scale:g}"
        ) from None


def read_many(
    paths: Sequence[Path | str],
    format: str = "auto",
    seeds: Sequence[int] | None = None,
    *,
    force: bool = False,
    keep: Callable[[Imported], Imported] = lambda member: member,
) -> list[Imported]:
    """The SAEs at all paths as members of one ensemble, in this order, each with its seed.

    Seeds are the first of these that every member has: `seeds`, the seeds that the library recorded, the trailing numbers of
    the folders' names, and 0, 1, 2 and so on. Raises ValueError naming both paths where two members have the same seed, differ
    in their shapes, convention, model, hookpoint or a setting of their training, or are steps of one run. With `force`, another
    model, hookpoint or setting becomes a remark of the member that differs from the first. `keep` gets every SAE as soon as it is
    read, and gives what stands for it from then on: an SAE whose tensors are on disk, say.
    """
    if not paths:
        raise ValueError("no path was given, expected at least one SAE")
    saes = [sae for path in paths for sae in located(path, format)]
    resolved: dict[Path, Path] = {}
    for sae in saes:
        path = sae.path.resolve()
        if path in resolved:
            raise ValueError(
                f"{with_urls(str(sae.path))} is given twice (also as {with_urls(str(resolved[path]))}); name every SAE once"
            )
        resolved[path] = sae.path
    if seeds is not None and len(seeds) != len(saes):
        raise ValueError(f"{len(seeds)} seeds were given for {len(saes)} SAEs, expected one each")
    members = [keep(read_recognised(sae)) for sae in saes]
    _require_distinct_runs(members)
    members = [
        replace(member, settings={**member.settings, **named})
        for member, named in zip(members, _named(saes), strict=True)
    ]
    return as_members(members, numbers_in_names(saes), seeds, force=force)


def as_members(
    members: list[Imported], names: Sequence[int | None], seeds: Sequence[int] | None = None, *, force: bool = False
) -> list[Imported]:
    """SAEs that were read as members of one ensemble, in this order, each with its seed; `names`: the seeds that names say.

    Raises ValueError as `read_many` for those that cannot be, but for steps of one run.
    """
    members = [members[0], *(_compared(members[0], member, force) for member in members[1:])]
    chosen, origin = numbered([member.seed for member in members], names, seeds)
    members = [_with_seed(member, seed, origin) for member, seed in zip(members, chosen, strict=True)]
    _require_distinct_seeds(members, by_user=seeds is not None)
    return _with_shared_start(members)


def located(given: Path | str, format: str) -> list[RecognisedSAE]:
    """The SAEs at a path or a name on a hub, each with the names that lead to it there; links keep their own names.

    `saelens:RELEASE/SAE_ID` is a name on the hub that SAELens' registry knows.
    """
    entry = registry.lookup(str(given)) if str(given).startswith(registry.PREFIX) else None
    if entry is not None:
        given = entry.hub
        if entry.layout == "connor_rob_hook_z":  # its config lies beside the file
            local(f"{given.removesuffix('.pt')}_cfg.json")
    path = local(given)
    repository = repository_names(given)
    saes = []
    try:
        found = recognised(path, format)
    except ValueError as error:
        raise ValueError(with_urls(str(error))) from None
    for sae in found:
        names = as_given(sae.path).parts
        if repository:
            # In the local copy a repository's files lie in a folder that is named after a commit.
            owner, name, *folders = repository
            commit = as_given(path).parents[len(folders) - 1] if folders else as_given(path)
            names = (owner, name, *as_given(sae.path).relative_to(commit).parts)
            sae = replace(sae, name=name if sae.name == commit.name else sae.name)
        saes.append(replace(sae, names=names, entry=entry))
    return saes


def recognised(path: Path, format: str) -> list[RecognisedSAE]:
    """The SAEs of a format at a path; raises ValueError for an unknown format and where there is none of it."""
    if format not in FORMATS:
        raise ValueError(f"format is {shown(format)}, expected one of {', '.join(FORMATS)}")
    if format == "auto":
        return recognise(path)
    if path.is_file():
        here = of_folder(path.parent) if is_main(path) else None
        return [here if here and here.format == format else RecognisedSAE(path, format, path.stem)]
    saes = recognise(path)
    if of_format := [sae for sae in saes if sae.format == format]:
        return of_format
    raise ValueError(f"{path} holds {saes[0].format} ({saes[0].path}), expected {format}: leave the format at auto")


def _compared(first: Imported, other: Imported, force: bool) -> Imported:
    """The other SAE, if it can be a member of the same ensemble as the first; with a remark for every forced difference."""
    pairs = [
        ("d_in", first.d_in, other.d_in),
        ("d_out", first.d_out, other.d_out),
        ("d_sae", first.d_sae, other.d_sae),
        *((name, value, asdict(other.convention)[name]) for name, value in asdict(first.convention).items()),
    ]
    by_force = [
        *(
            (name, first.source[name], other.source[name])
            for name in _MUST_AGREE
            if name in first.source and name in other.source
        ),
        *((name, value, other.settings[name]) for name, value in first.settings.items() if name in other.settings),
    ]
    forced = []
    for may_be_forced, (name, one, another) in [
        *((False, pair) for pair in pairs),
        *((True, pair) for pair in by_force),
    ]:
        if one == another or (name.startswith("hookpoint") and same_place(str(one), str(another))):
            continue
        difference = f"{first.source['path']} has {name} {one}, {other.source['path']} has {name} {another}"
        if not may_be_forced:
            raise ValueError(
                f"{difference}: members of an ensemble differ by their seed alone. Import them as ensembles of their own"
            )
        if not force:
            raise ValueError(
                f"{difference}: members of an ensemble differ by their seed alone. Import them as ensembles of their own, or give "
                "--force to compare them all the same"
            )
        forced.append(f"forced: {difference}")
    return replace(other, remarks=(*other.remarks, *forced))


def _named(saes: list[RecognisedSAE]) -> list[dict[str, str]]:
    """The settings in every SAE's path, as it was given, below the folders that all have in common."""
    names = [sae.names for sae in saes]
    n_common = next(
        (i for i, level in enumerate(zip(*names, strict=False)) if len(set(level)) > 1), min(map(len, names))
    )
    return [in_names(each[n_common:]) for each in names]


def _require_distinct_runs(members: list[Imported]) -> None:
    """Raise ValueError where two members are steps of one training run."""
    runs: dict[str, str] = {}
    for member in members:
        run, path = member.source.get("run"), member.source["path"]
        if run in runs:
            raise ValueError(
                f"{runs[run]} and {path} are steps of one run, expected one SAE per seed: name one of them"
            )
        if run:
            runs[run] = path


def numbers_in_names(saes: Sequence[RecognisedSAE]) -> list[int | None]:
    """The seeds that names say: trailing numbers, or those of siblings NAME, NAME-seed2, NAME-seed3, the first of which is 1."""
    numbers = [sae.number for sae in saes]
    if None not in numbers:
        return numbers
    for names in zip(*(sae.names for sae in saes), strict=False):
        suffix = re.compile(re.escape(min(names, key=len)) + r"(?:[-_]seed[-_]?(\d+))?")
        matches = [match for name in names if (match := suffix.fullmatch(name))]
        if len(set(names)) == len(matches) == len(saes) > 1:
            return [int(match[1] or 1) for match in matches]
    return numbers


def numbered(
    recorded: Sequence[int | None], names: Sequence[int | None], by_user: Sequence[int] | None = None
) -> tuple[list[int], str]:
    """Seeds of members and where they are from, "" for their files; `names`: the trailing numbers of the folders' names."""
    for seeds, origin in ((by_user, BY_USER), (recorded, ""), (names, "number in the name")):
        if seeds is not None and None not in seeds:
            return [int(seed) for seed in seeds if seed is not None], origin
    return list(range(len(recorded))), ASSUMED


def _with_seed(member: Imported, seed: int, origin: str) -> Imported:
    facts = changed(member.facts, origin, seed=str(seed)) if origin else member.facts
    return replace(member, seed=seed, facts=facts)


def _require_distinct_seeds(members: list[Imported], *, by_user: bool) -> None:
    """Raise ValueError for a seed that no table holds and for two members of one seed; `by_user`: the seeds are an option's."""
    paths: dict[int, str] = {}
    for member in members:
        seed, path = member.seed or 0, member.source["path"]
        if seed < 0:
            raise ValueError(f"the seed of {path} is {seed}, expected a whole number of at least 0")
        if seed > LARGEST_SEED:
            raise ValueError(
                f"the seed of {path} is {seed}, expected at most {LARGEST_SEED}, which 64 bits hold: give other numbers for "
                "the seeds, such as --seeds 0,1"
            )
        if seed in paths:
            raise ValueError(
                f"{paths[seed]} and {path} both have the seed {seed}, expected different seeds: "
                + (
                    "give every SAE its own"
                    if by_user
                    else "leave one out, or give their seeds yourself, such as --seeds 0,1"
                )
            )
        paths[seed] = path


def _with_shared_start(members: list[Imported]) -> list[Imported]:
    """The members, with a remark if all have the same archetypes: their agreement is then partly by construction."""
    archetypes = {member.source.get("archetypes") for member in members}
    if len(members) < 2 or len(archetypes) > 1 or None in archetypes:
        return members
    return [replace(member, remarks=(*member.remarks, "start shared: dictionary.C")) for member in members]
