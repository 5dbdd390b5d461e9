"""A study file, `study.toml`: everything that a study is to consist of, checked as a whole before any work begins."""

import glob
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_args

from engine import catalogue
from engine.config import VARIANTS, Centroids, DataOrder, DecoderBias, Preprocessing, Start, TrainConfig
from engine.hookpoints import SITES, TRANSFORMER_LENS
from engine.importers import FORMATS
from engine.importers.hub import PREFIX
from engine.schema import name_problem
from engine.sources import OPTIONS, documents
from engine.stability import EPSILON, THETA
from engine.tomlfile import Check, Table, Unfit, any_of, reading, shown

MOST_MEMBERS = 1000
EXAMPLE = """[study]
name = "gpt2-l7"
[[ensemble]]
name = "topk-16k"
import = ["ckpts/topk/seed*"]"""
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_MODULE_PATH = re.compile(r"\w+(\.\w+)*")


@dataclass(frozen=True)
class ImportPlan:
    """An ensemble of SAE files."""

    name: str
    hookpoint: str | None
    paths: tuple[Path, ...]  # files or folders, each of one SAE or of several; hf:OWNER/REPO/FOLDER is one too
    format: str = "auto"
    seeds: tuple[int, ...] | None = None  # one per SAE in the order of the paths; None: as the files say
    shared_start: catalogue.YesNo = "unknown"
    force: bool = False


@dataclass(frozen=True)
class TrainPlan:
    """An ensemble to be trained."""

    name: str
    hookpoint: str | None  # None: the study file's
    config: TrainConfig


@dataclass(frozen=True)
class StudyFile:
    """What a study file asks for; local paths are absolute."""

    name: str
    theta: float
    epsilon: float
    model: str | None
    hookpoint: str | None  # of ensembles that name none
    tokens: catalogue.Tokens | None  # of the evaluation
    train_source: tuple[str, ...]  # of training: all of it, or its train part where tokens.part is held-out
    ensembles: tuple[ImportPlan | TrainPlan, ...]
    control: str | None = None  # random-weights: what is trained is trained on the re-initialised model as well


class _Given(NamedTuple):
    """What the rest of the file says, as far as an ensemble depends on it."""

    folder: Path  # that relative paths start from
    lacks: list[str]  # tables that training needs
    hookpoint: bool  # whether [model] names one, right or wrong


def read(path: Path) -> StudyFile:
    """Check a study file; no model is loaded, and of the tokens the first document is looked at.

    Raises ValueError with all problems found, each with its line, what was found, what was expected and the way out.
    """
    folder = path.absolute().parent
    with reading(path, example=EXAMPLE) as top, top.alone(_HOMES):
        name, theta, epsilon, control = _study(top)
        tables = top.tables("ensemble")
        model, hookpoint, has_hookpoint = _model(top, folder)
        tokens, train_source = _tokens(top, folder, trains=any("train" in table for table in tables))
        given = _Given(folder, [f"[{key}]" for key in ("model", "tokens") if key not in top], has_hookpoint)
        ensembles = _ensembles(top, tables, given)
    return StudyFile(name, theta, epsilon, model, hookpoint, tokens, train_source, ensembles, control)


# -- tables ----------------------------------------------------------------------------------------------------------


def _study(top: Table) -> tuple[str, float, float, str | None]:
    table = top.table("study", required="[study] with a name")
    if table is None:
        return "", THETA, EPSILON, None
    with table.alone(_HOMES):
        name = table.take("name", _name, "", required="the study's name in quotes")
        theta = table.take("theta", _number("a cosine from -1 to 1", lambda v: -1 <= v <= 1), THETA)
        epsilon = table.take("epsilon", _number("0 to below 0.5", lambda v: 0 <= v < 0.5), EPSILON)
        control = table.take("control", _one_of((catalogue.CONTROL,)))
    return name, theta, epsilon, control


def _model(top: Table, folder: Path) -> tuple[str | None, str | None, bool]:
    """(model, hook point, whether a hook point is given at all)."""
    table = top.table("model")
    if table is None:
        return None, None, False
    with table.alone(_HOMES):
        path = table.take("path", _model_in(folder), required="a folder or a hub id of a transformers model")
        return path, table.take("hookpoint", _hookpoint), "hookpoint" in table


def _tokens(top: Table, folder: Path, *, trains: bool) -> tuple[catalogue.Tokens | None, tuple[str, ...]]:
    """The evaluation tokens, and the source to train on; the two share no document."""
    table = top.table("tokens")
    if table is None:
        return None, ()
    if "model" not in top:
        top.wrong("tokens", "stand without [model], expected one that reads them; add it, or leave [tokens] out")
    with table.alone(_HOMES):
        source = table.take("source", _sources_in(folder), {}, required='files or hf:NAME, such as "corpus/*.txt"')
        held_out = table.take("held_out", _sources_in(folder), {})
        splits = trains and not held_out
        tokens = catalogue.Tokens(
            source=tuple((held_out or source).values()),
            n_eval=table.take("eval", _whole(1)),
            n_ctx=table.take("n_ctx", _whole(2)),
            bos=table.take("bos", _one_of(("exclude", "include")), "exclude"),
            outliers=table.take("outliers", _one_of(("exclude", "include")), "exclude"),
            part="held-out" if splits else "all",
            remark=", ".join(held_out or source) + (", held-out documents" if splits else ""),
        )
    return tokens, tuple(source.values()) if trains else ()


def _ensembles(top: Table, tables: list[Table], given: _Given) -> tuple[ImportPlan | TrainPlan, ...]:
    if "ensemble" not in top:
        top.wrong("ensemble", "is missing, expected at least one [[ensemble]] with a name and import or train")
    names: dict[str, int] = {}
    plans = []
    for table in tables:
        plans.append(_train_plan(table, given) if "train" in table else _import_plan(table, given))
        name = plans[-1].name
        if name in names:
            table.wrong("name", f"= {shown(name)}, expected another name: line {names[name]} has it already")
        elif name:
            names[name] = table.line("name")
    return tuple(plans)


def _import_plan(table: Table, given: _Given) -> ImportPlan:
    with table.alone(_HOMES):
        name, hookpoint = _head(table)
        table.known("train")
        if "import" not in table:
            table.wrong("", 'has neither import nor train, expected one of them; such as import = ["ckpts/seed*"]')
        return ImportPlan(
            name,
            hookpoint,
            paths=table.take("import", _paths_in(given.folder), ()),
            format=table.take("format", _one_of(FORMATS), "auto"),
            seeds=table.take("seeds", _seeds),
            shared_start=table.take("shared_start", _one_of(get_args(catalogue.YesNo)), "unknown"),
            force=table.take("force", _truth, False),
        )


def _train_plan(table: Table, given: _Given) -> TrainPlan:
    with table.alone(_HOMES):
        name, hookpoint = _head(table)
        table.known("import")
        if "import" in table:
            table.wrong("import", "stands beside train, expected one of them; make it two ensembles")
        recipe = table.table("train")
    if given.lacks:
        table.wrong(
            "train", f"needs {' and '.join(given.lacks)}, expected both [model] and [tokens]; add what is missing"
        )
    elif not given.hookpoint and "hookpoint" not in table:
        table.wrong("hookpoint", "is missing, expected one here or below [model], such as blocks.7.hook_resid_post")
    return TrainPlan(name, hookpoint, _recipe(recipe) if recipe else TrainConfig())


def _head(table: Table) -> tuple[str, str | None]:
    name = table.take("name", _name, "", required="the ensemble's name in quotes")
    return name, table.take("hookpoint", _hookpoint)


def _recipe(table: Table) -> TrainConfig:
    variant = table.take("variant", _one_of(VARIANTS), "" if "variant" in table else VARIANTS[0])
    found = {_FIELD.get(key, key): table.take(key, check) for key, check in _RECIPE.items()}
    with table.alone(_HOMES):
        table.known("variant")
    if not variant:
        return TrainConfig()
    uses = TrainConfig(variant=variant).uses
    for key in _RECIPE:
        if key in table and _FIELD.get(key, key) not in uses:
            others = [each for each in VARIANTS if _FIELD.get(key, key) in TrainConfig(variant=each).uses]
            table.wrong(
                key, f"is a setting of {any_of(others)}, expected those of {variant}; leave it out or set variant"
            )
    found = {field: value for field, value in found.items() if value is not None}
    whole = vars(TrainConfig()) | found
    if "k" in uses and whole["k"] > whole["d_sae"]:
        key, other = ("k", "d_sae") if "k" in table else ("d_sae", "k")
        relation = "at most" if key == "k" else "at least"
        table.wrong(key, f"= {whole[key]}, expected {relation} {other} ({whole[other]}); lower k or raise d_sae")
    elif whole["n_tokens"] < whole["batch"]:
        key = "tokens" if "tokens" in table else "batch"
        told = f"with tokens {whole['n_tokens']} and batch {whole['batch']}"
        table.wrong(key, f"leaves no step {told}, expected at least one batch of tokens; raise tokens or lower batch")
    else:
        try:
            return TrainConfig(**found, variant=variant)
        except ValueError as error:  # what several settings say together
            table.wrong("", f"does not fit together: {error}")
    return TrainConfig()


# -- values ----------------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Unfit("expected a text in quotes that is not empty")
    return value


def _name(value: Any) -> str:
    if problem := name_problem(_text(value)):
        raise Unfit(problem)
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Unfit("expected true or false, without quotes")
    return value


def _number(expected: str, fits: Callable[[float], bool]) -> Check:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
            raise Unfit(f"expected {expected}")
        return float(value)

    return check


def _whole(least: int) -> Check:
    """A whole number; 5e7, which TOML reads as a float, is how many tokens are often written."""

    def check(value: Any) -> int:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value != value // 1 or value < least:
            raise Unfit(f"expected a whole number of at least {least}")
        return int(value)

    return check


def _one_of(allowed: Sequence[str], otherwise: str = "") -> Check:
    def check(value: Any) -> str:
        if value not in allowed:
            near = get_close_matches(value, allowed, n=1) if isinstance(value, str) else []
            raise Unfit(f"expected {any_of(allowed)}{f'; did you mean {near[0]}?' if near else otherwise}")
        return value

    return check


def _texts(value: Any) -> list[str]:
    """One text, or a list of them."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(each, str) and each.strip() for each in values):
        raise Unfit("expected a text in quotes, or a list of them in [ ]")
    return values


def _seeds(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(each) is int and each >= 0 for each in value):
        raise Unfit("expected a list of whole numbers of at least 0, such as [0, 1, 2]")
    if twice := sorted({seed for seed in value if value.count(seed) > 1}):
        raise Unfit(f"expected every seed once, found {', '.join(map(str, twice))} more than once")
    return tuple(value)


def _members(value: Any) -> tuple[int, ...]:
    """The seeds of an ensemble to be trained, or how many."""
    n = value if type(value) is int else len(seeds := _seeds(value))
    if not 2 <= n <= MOST_MEMBERS:
        raise Unfit(f"expected 2 to {MOST_MEMBERS} members: the stability of a single SAE is undefined")
    return tuple(range(n)) if type(value) is int else seeds


def _shares(value: Any) -> tuple[float, ...]:
    """Shares of a whole."""
    numbers = isinstance(value, list) and all(isinstance(each, int | float) and each is not True for each in value)
    if not numbers or not value or min(value) <= 0 or not math.isclose(sum(value), 1, rel_tol=1e-6):
        raise Unfit("expected a list of numbers above 0 whose sum is 1, such as [0.1, 0.3, 0.6]")
    total = sum(value)
    return tuple(each / total for each in value)


def _hookpoint(value: Any) -> str:
    """A hook point in a spelling that is known; whether the model has it is seen when the model is."""
    name = _text(value)
    if TRANSFORMER_LENS.fullmatch(name) or (_MODULE_PATH.fullmatch(name) and "hook_" not in name):
        return name
    block, _, site = name.rpartition(".hook_")
    near = get_close_matches(site, SITES, n=1)
    nearest = f"; did you mean {block}.hook_{near[0]}?" if near and re.fullmatch(r"blocks\.\d+", block) else ""
    raise Unfit(
        f"expected blocks.LAYER.hook_ with {any_of(SITES)} behind it, or a module's path such as transformer.h.6{nearest}"
    )


_POSITIVE = _number("a number above 0", lambda v: 0 < v < float("inf"))
_AT_LEAST_0 = _number("a number of at least 0", lambda v: 0 <= v < float("inf"))
_FRACTION = _number("a share from 0 to 1", lambda v: 0 <= v <= 1)
# The keys of a recipe beside its variant; every other field of TrainConfig is one.
_RECIPE: dict[str, Check] = {
    "d_sae": _whole(1), "k": _whole(1), "seeds": _members, "tokens": _whole(1), "batch": _whole(1), "lr": _POSITIVE,
    "data_order": _one_of(get_args(DataOrder)), "warmup_frac": _FRACTION, "decay_frac": _FRACTION,
    "aux_coefficient": _AT_LEAST_0, "aux_k": _whole(1), "silent_after": _whole(1), "l1": _AT_LEAST_0,
    "l0_coefficient": _AT_LEAST_0, "bandwidth": _POSITIVE, "sparsity_warmup_frac": _FRACTION, "group_fracs": _shares,
    "centroids": _one_of(get_args(Centroids)), "delta": _AT_LEAST_0, "start": _one_of(get_args(Start)),
    "preprocessing": _one_of(get_args(Preprocessing)), "decoder_bias": _one_of(get_args(DecoderBias)),
}  # fmt: skip
_FIELD = {"tokens": "n_tokens"}  # of TrainConfig, where it is not the key
# Where a key belongs that stands in a table that does not know it.
_HOMES = {
    **dict.fromkeys(("variant", *_RECIPE), "train = { } of an [[ensemble]]"),
    **dict.fromkeys(("source", "eval", "n_ctx", "bos", "outliers", "held_out"), "[tokens]"),
    **dict.fromkeys(("import", "train", "format", "shared_start", "force"), "an [[ensemble]]"),
    **dict.fromkeys(("theta", "epsilon", "control"), "[study]"), "name": "[study] or an [[ensemble]]",
    "path": "[model]", "hookpoint": "[model] or an [[ensemble]]",
}  # fmt: skip


# -- values that name files ------------------------------------------------------------------------------------------


def _model_in(folder: Path) -> Check:
    def check(value: Any) -> str:
        name = _text(value)
        local = folder / Path(name).expanduser()
        if local.is_dir():
            if not (local / "config.json").is_file():
                raise Unfit(f"expected a folder of a transformers model, found no config.json in {local}")
            return str(local)
        if local.exists() or not _HUB_ID.fullmatch(name):
            found = "which is a file" if local.exists() else "which does not exist"
            raise Unfit(f"expected a folder, or a hub id such as EleutherAI/pythia-70m; it reads as {local}, {found}")
        return name

    return check


def _sources_in(folder: Path) -> Check:
    """{token source as written: as it is used}, local ones relative to a folder; their first document must be readable."""

    def check(value: Any) -> dict[str, str]:
        return {each: _source_in(folder, each) for each in _texts(value)}

    return check


def _source_in(folder: Path, source: str) -> str:
    if source.startswith(PREFIX):
        if find_spec("datasets") is None:
            raise Unfit("expected the datasets library for it, which is missing; pip install 'seedscope[hub]'")
        return source
    options = OPTIONS.match(source)
    is_name = (folder / Path(options["source"] if options else source).expanduser()).exists()
    local = str(folder / Path(source).expanduser()) if is_name else _anchored(folder, source)
    try:
        next(documents(local))
    except (ValueError, OSError) as error:
        raise Unfit(f"expected documents that can be read: {error}") from None
    return local


def _paths_in(folder: Path) -> Check:
    """Files and folders of SAEs: names first, patterns second; the matches of a pattern in natural order."""

    def check(value: Any) -> tuple[Path, ...]:
        found: list[Path] = []
        for pattern in _texts(value):
            if pattern.startswith(PREFIX):
                found.append(_on_hub(pattern))
                continue
            named = folder / Path(pattern).expanduser()
            names = [str(named)] if named.exists() else glob.glob(_anchored(folder, pattern), recursive=True)
            if not names:
                raise Unfit(f"expected SAE files or folders, {pattern!r} matches none{_what_there_is(named)}")
            found += map(Path, sorted(names, key=_natural))
        if twice := sorted({str(path) for path in found if found.count(path) > 1}):
            raise Unfit(f"expected every SAE once, {twice[0]} is matched twice; narrow the patterns")
        return tuple(found)

    return check


def _on_hub(name: str) -> Path:
    """A name on a hub as a path, which engine.importers downloads."""
    if not re.fullmatch(rf"{PREFIX}[\w.-]+/[\w.-]+(@[\w./-]+)?(/[^/]+)*/?", name):
        raise Unfit(f"expected {PREFIX}OWNER/REPO or {PREFIX}OWNER/REPO/FOLDER, found {shown(name)}")
    return Path(name)


def _anchored(folder: Path, pattern: str) -> str:
    """A pattern that means the same from anywhere; the folder's own name is no pattern."""
    path = Path(pattern).expanduser()
    return str(path) if path.is_absolute() else str(Path(glob.escape(str(folder))) / path)


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders seed2 before seed10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _what_there_is(path: Path) -> str:
    """The content of the nearest folder on the way to a path that does not exist."""
    folder = next(each for each in path.parents if each.is_dir())
    try:
        names = sorted((each.name for each in folder.iterdir() if not each.name.startswith(".")), key=_natural)
    except OSError as error:
        return f"; {folder} cannot be listed ({error.strerror})"
    return f"; {folder} holds {', '.join(names[:4]) or 'nothing'}{', ..' if len(names) > 4 else ''}"
