"""Facts of the SAEs at a path, one after another, without importing any: for `seedscope inspect`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from seedscope.engine.saes.importers.ensemble import located, numbered, numbers_in_names, read_recognised
from seedscope.engine.saes.importers.facts import BY_USER, Facts, assumed, changed
from seedscope.engine.saes.importers.recognise import RecognisedSAE
from seedscope.engine.urls.cache import with_urls


@dataclass(frozen=True)
class Inspected:
    """One SAE: its facts and remarks, or the reason why it cannot be imported."""

    path: str
    format: str
    facts: Facts
    assumed: list[str]  # facts that no file states
    remarks: tuple[str, ...] = ()
    refused: str | None = None


def inspect(
    path: Path | str,
    format: str = "auto",
    *,
    model: str | None = None,
    hookpoint: str | None = None,
    hookpoint_out: str | None = None,
) -> list[Inspected]:
    """What importing the SAEs at a path would take as their facts, in natural order of their names.

    `model`, `hookpoint` and `hookpoint_out` are the user's word, as at import. Memory: one SAE at a time. An SAE that is refused
    has its reason and no facts. Raises ValueError where there is no SAE at the path.
    """
    saes = located(path, format)
    by_user = {"model": model, "hook_point": hookpoint, "output_hook_point": hookpoint_out}
    members = list(_each(saes, by_user))
    read = [(i, sae) for i, (sae, member) in enumerate(zip(saes, members, strict=True)) if not member.refused]
    if read:
        recorded = [_seed(members[i].facts) for i, _ in read]
        seeds, origin = numbered(recorded, numbers_in_names([sae for _, sae in read]))
        for (i, sae), seed in zip(read, seeds, strict=True):
            if origin:
                facts = changed(members[i].facts, origin, seed=str(seed))
                members[i] = Inspected(members[i].path, sae.format, facts, assumed(facts), members[i].remarks)
    return members


def _each(saes: list[RecognisedSAE], by_user: Mapping[str, str | None]) -> Iterator[Inspected]:
    for sae in saes:
        try:
            member = read_recognised(sae)
        except ValueError as error:
            yield Inspected(with_urls(str(sae.path)), sae.format, {}, [], refused=str(error))
            continue
        facts = changed(member.facts, BY_USER, **by_user)
        yield Inspected(with_urls(str(sae.path)), sae.format, facts, assumed(facts), member.remarks)


def _seed(facts: Facts) -> int | None:
    value = facts["seed"][0]
    return int(value) if value.isdigit() else None
