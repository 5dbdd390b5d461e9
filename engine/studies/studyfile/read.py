"""Reads a study file, `study.toml`, into a StudyFile; all of it is checked before any work begins."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.contract.schema import ANALYSES
from seedscope.engine.contract.sources import CAUSES, FREE, MODEL, OF_MODELS, settings_of
from seedscope.engine.contract.stability import EPSILON, THETA
from seedscope.engine.demo import stdlib
from seedscope.engine.executors.settings import ExecutorSettings
from seedscope.engine.saes.importers.ensemble import FORMATS
from seedscope.engine.store import catalogue
from seedscope.engine.studies.studyfile import recipes, values
from seedscope.engine.studies.studyfile.executor import executor_in
from seedscope.engine.studies.studyfile.paths import activations_in, model_in, models_in, paths_in, sources_in
from seedscope.engine.studies.studyfile.toml import Table, reading, shown

EXAMPLE = """[study]
name = "gpt2-l7"
[[ensemble]]
name = "topk-16k"
import = ["ckpts/topk/seed*"]"""


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
    hookpoint_out: str | None = None  # of transcoders whose files do not say what they predict


@dataclass(frozen=True)
class TrainPlan:
    """An ensemble to be trained."""

    name: str
    hookpoint: str | None  # None: the study file's
    config: TrainConfig
    l0: float | None = None  # active features per token that l1 is to be found for; None: l1 stands as it is


@dataclass(frozen=True)
class ModelSeedsPlan:
    """An ensemble with one member per language model, all on the same tokens; they begin apart."""

    name: str
    hookpoint: str | None  # None: the study file's
    config: TrainConfig  # with a data sample for every model
    models: tuple[str, ...]  # folders or hub ids, at least two

    @classmethod
    def of(cls, source: str, hookpoint: str | None, recipe: TrainConfig, models: tuple[str, ...]) -> "ModelSeedsPlan":
        """The ensemble that stands beside those of the causes of a `source`, by their recipe."""
        differing = settings_of(OF_MODELS, len(models)) | {"seeds": tuple(range(len(models)))}
        return cls(f"{source}-{MODEL}", hookpoint, replace(recipe, **differing), models)


@dataclass(frozen=True)
class AnchorPlan:
    """One SAE, and the comparisons that are to be trained for it."""

    name: str
    hookpoint: str | None  # None: the study file's, else the one that the SAE's files name
    path: Path
    settings: dict[str, Any]  # fields of TrainConfig; width, variant and sparsity are the SAE's
    format: str = "auto"
    force: bool = False


@dataclass(frozen=True)
class RecordedPlan:
    """Recorded activations that a study is measured on, in place of a model and text."""

    source: str  # a file or folder
    hookpoint: str | None = None
    settings: dict[str, Any] = field(
        default_factory=dict
    )  # fields of catalogue.RecordedActivations that the file names


Plan = ImportPlan | TrainPlan | ModelSeedsPlan | AnchorPlan


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
    ensembles: tuple[Plan, ...]
    control: str | None = None  # random-weights: what is trained is trained on the re-initialised model as well
    analyses: tuple[str, ...] | None = None  # that are computed; None: all
    loss_tokens: int | None = None  # that losses are measured on
    recorded: RecordedPlan | None = None
    executor: ExecutorSettings = field(default_factory=ExecutorSettings)
    """Where units of work run."""


class _Surroundings(NamedTuple):
    """What an ensemble depends on in the rest of the file."""

    folder: Path  # that relative paths start from
    lacks: list[str]  # tables that training needs
    hookpoint: bool  # whether [model] names one, right or wrong


class _Settings(NamedTuple):
    """What [study] says."""

    name: str = ""
    theta: float = THETA
    epsilon: float = EPSILON
    control: str | None = None
    analyses: tuple[str, ...] | None = None
    loss_tokens: int | None = None


def read_study_file(path: Path) -> StudyFile:
    """Check a study file; no model is loaded, and of the tokens the first document is looked at.

    Raises ValueError with all problems found, each with its line, what was found, what was expected and the way out.
    """
    folder = path.absolute().parent
    with reading(path, example=EXAMPLE) as top, top.alone(_HOMES):
        study = _study(top)
        tables, sources = top.tables("ensemble"), top.tables("sources")
        model, hookpoint, has_hookpoint = _model(top, folder)
        tokens, train_source = _tokens(
            top, folder, trains=bool(sources) or any("train" in table or "anchor" in table for table in tables)
        )
        recorded = _recorded(top, folder)
        around = _Surroundings(folder, [f"[{key}]" for key in ("model", "tokens") if key not in top], has_hookpoint)
        ensembles = _ensembles(top, tables, sources, around)
        executor = executor_in(top, folder, _HOMES)
    return StudyFile(
        study.name, study.theta, study.epsilon, model, hookpoint, tokens, train_source, ensembles, study.control,
        study.analyses, study.loss_tokens, recorded, executor,
    )  # fmt: skip


# -- tables ----------------------------------------------------------------------------------------------------------


def _study(top: Table) -> _Settings:
    table = top.table("study", required="[study] with a name")
    if table is None:
        return _Settings()
    with table.alone(_HOMES):
        return _Settings(
            name=table.take("name", values.name, "", required="the study's name in quotes"),
            theta=table.take("theta", values.number("a cosine from -1 to 1", lambda v: -1 <= v <= 1), THETA),
            epsilon=table.take("epsilon", values.number("0 to below 0.5", lambda v: 0 <= v < 0.5), EPSILON),
            control=table.take("control", values.one_of((catalogue.CONTROL,))),
            analyses=table.take("analyses", values.some_of(ANALYSES)),
            loss_tokens=table.take("loss_tokens", values.whole(1)),
        )


def _model(top: Table, folder: Path) -> tuple[str | None, str | None, bool]:
    """(model, hook point, whether a hook point is given at all)."""
    table = top.table("model")
    if table is None:
        return None, None, False
    with table.alone(_HOMES):
        path = table.take("path", model_in(folder), required="a folder or a hub id of a transformers model")
        return path, table.take("hookpoint", values.hookpoint), "hookpoint" in table


def _tokens(top: Table, folder: Path, *, trains: bool) -> tuple[catalogue.Tokens | None, tuple[str, ...]]:
    """The evaluation tokens, and the source to train on; the two share no document."""
    table = top.table("tokens")
    if table is None:
        return None, ()
    if "model" not in top:
        top.wrong("tokens", "stand without [model], expected one that reads them; add it, or leave [tokens] out")
    with table.alone(_HOMES):
        source = table.take("source", sources_in(folder), {}, required='files or hf:NAME, such as "corpus/*.txt"')
        held_out = table.take("held_out", sources_in(folder), {})
        own = stdlib.SOURCE in (held_out or source)  # it has a held-out part of its own
        splits = trains and not held_out and not own
        tokens = catalogue.Tokens(
            source=tuple((held_out or source).values()),
            n_eval=table.take("eval", values.whole(1)),
            n_ctx=table.take("n_ctx", values.whole(2)),
            bos=table.take("bos", values.one_of(("exclude", "include")), "exclude"),
            outliers=table.take("outliers", values.one_of(("exclude", "include")), "exclude"),
            part="held-out" if splits else "all",
            remark=stdlib.load_corpus().remark
            if own
            else ", ".join(held_out or source) + (", held-out documents" if splits else ""),
        )
    return tokens, tuple(source.values()) if trains else ()


def _recorded(top: Table, folder: Path) -> RecordedPlan | None:
    table = top.table("activations")
    if table is None:
        return None
    for name in ("model", "tokens"):
        if name in top:
            top.wrong(
                "activations",
                f"stand beside [{name}], expected one of them: they are measured on in place of a model and text",
            )
    with table.alone(_HOMES):
        source = table.take("source", activations_in(folder), "", required='a file or folder, such as "activations/"')
        settings = {
            "n_eval": table.take("eval", values.whole(1)),
            "outliers": table.take("outliers", values.one_of(("exclude", "include"))),
        }
        given = {name: value for name, value in settings.items() if value is not None}
        return RecordedPlan(source, table.take("hookpoint", values.hookpoint), given)


def _ensembles(top: Table, tables: list[Table], sources: list[Table], around: _Surroundings) -> tuple[Plan, ...]:
    if "ensemble" not in top and "sources" not in top:
        top.wrong("ensemble", "is missing, expected at least one [[ensemble]] with a name and import or train")
    names: dict[str, int] = {}
    plans: list[Plan] = []
    for table in (*tables, *sources):
        for plan in _source_plans(table, around) if table in sources else _plans(table, around):
            plans.append(plan)
            if plan.name in names:
                key, clash = ("sweep", f"makes {plan.name}") if "sweep" in table else ("name", f"= {shown(plan.name)}")
                table.wrong(key, f"{clash}, expected another name: line {names[plan.name]} has it already")
            elif plan.name:
                names[plan.name] = table.line("name")
    return tuple(plans)


def _plans(table: Table, around: _Surroundings) -> Sequence[Plan]:
    if "anchor" in table:
        return [_anchor_plan(table, around)]
    return _train_plans(table, around) if "train" in table else [_import_plan(table, around)]


def _import_plan(table: Table, around: _Surroundings) -> ImportPlan:
    with table.alone(_HOMES):
        name, hookpoint = _head(table)
        table.allow("train", "sweep")
        if "import" not in table:
            table.wrong("", 'has neither import nor train, expected one of them; such as import = ["ckpts/seed*"]')
        elif "sweep" in table:
            table.wrong("sweep", "stands beside import, expected train: a sweep varies a recipe; leave it out")
        return ImportPlan(
            name,
            hookpoint,
            paths=table.take("import", paths_in(around.folder), ()),
            format=table.take("format", values.one_of(FORMATS), "auto"),
            seeds=table.take("seeds", values.seeds),
            shared_start=table.take("shared_start", values.one_of(get_args(catalogue.YesNo)), "unknown"),
            force=table.take("force", values.truth, False),
            hookpoint_out=table.take("hookpoint_out", values.hookpoint),
        )


def _train_plans(table: Table, around: _Surroundings) -> list[TrainPlan]:
    """One plan, or one for every combination of a sweep."""
    with table.alone(_HOMES):
        name, hookpoint = _head(table)
        table.allow("import")
        if "import" in table:
            table.wrong("import", "stands beside train, expected one of them; make it two ensembles")
        train, sweep = table.table("train"), table.table("sweep")
    if around.lacks:
        table.wrong(
            "train", f"needs {' and '.join(around.lacks)}, expected both [model] and [tokens]; add what is missing"
        )
    elif not around.hookpoint and "hookpoint" not in table and (sweep is None or "hookpoint" not in sweep):
        table.wrong("hookpoint", "is missing, expected one here or below [model], such as blocks.7.hook_resid_post")
    settings = {} if train is None else _settings(train)
    if sweep is not None:
        return _swept(table, train, sweep, name, hookpoint, settings)
    if train is None or settings is None:
        return [TrainPlan(name, hookpoint, TrainConfig())]
    recipe, misfits = recipes.recipe_from(settings)
    for misfit in misfits:
        train.wrong(misfit.key, misfit.problem)
    return [TrainPlan(name, hookpoint, *recipe)]


def _source_plans(table: Table, around: _Surroundings) -> list[Plan]:
    """An ensemble for each cause, named after it; one recipe for all."""
    with table.alone(_HOMES):
        name, hookpoint = _head(table)
        causes = table.take("causes", values.some_of(tuple(CAUSES)), tuple(CAUSES))
        models = table.take("models", models_in(around.folder), ())
        train = table.table("train")
    if around.lacks:
        table.wrong("", f"needs {' and '.join(around.lacks)}, expected both [model] and [tokens]; add what is missing")
    elif not around.hookpoint and not hookpoint:
        table.wrong("hookpoint", "is missing, expected one here or below [model], such as blocks.7.hook_resid_post")
    if train is None:
        recipe = recipes.Recipe(TrainConfig())
    elif (found := _recipe_of_sources(train)) is None:
        return []
    else:
        recipe = found
    config, n = recipe.config, len(recipe.config.seeds)
    plans: list[Plan] = [
        TrainPlan(f"{name}-{cause}", hookpoint, replace(config, **settings_of(CAUSES[cause], n)), recipe.l0)
        for cause in causes
    ]
    if models:
        plans.append(ModelSeedsPlan.of(name, hookpoint, config, models))
    return plans


def _recipe_of_sources(train: Table) -> recipes.Recipe | None:
    """The recipe that the causes of [[sources]] vary; None where anything is wrong with it."""
    settings = _settings(train)
    if settings is None:
        return None
    for key in (each for each in FREE if each in settings):
        train.wrong(key, "is what the causes of [[sources]] decide, expected other settings; leave it out")
    recipe, misfits = recipes.recipe_from({key: value for key, value in settings.items() if key not in FREE})
    for misfit in misfits:
        train.wrong(misfit.key, misfit.problem)
    config, n = recipe.config, len(recipe.config.seeds)
    if "start" not in config.uses:
        train.wrong("variant", f"= {shown(config.variant)}, expected one whose members can begin at random rows")
    elif config.seeds != tuple(range(n)):
        train.wrong(
            "seeds", f"= {list(config.seeds)}, expected how many, such as {n}: what does not differ is seed 0's"
        )
    return recipe if not misfits and "start" in config.uses and config.seeds == tuple(range(n)) else None


def _settings(train: Table) -> dict[str, Any] | None:
    """The settings of a recipe; None where its variant is none, so that nothing more can be said of them."""
    with train.alone(_HOMES):
        settings = recipes.settings_in(train)
    return None if "variant" in train and "variant" not in settings else settings


def _swept(
    table: Table, train: Table | None, sweep: Table, name: str, hookpoint: str | None, settings: dict[str, Any] | None
) -> list[TrainPlan]:
    """The plans of a sweep; without any where it, or the recipe that it varies, is wrong."""
    with sweep.alone(_HOMES):
        combinations = recipes.combinations(sweep, name)
    twice = [key for key in sweep if (train is not None and key in train) or (key == "hookpoint" and key in table)]
    for key in twice:
        place = "beside the sweep" if key == "hookpoint" else "in train"
        sweep.wrong(key, f"stands {place} as well, expected it once; leave one of them out")
    if settings is None or twice:
        return []
    return [
        TrainPlan(each.name, each.settings.get("hookpoint", hookpoint), *recipe)
        for each, recipe in recipes.sweep_recipes(settings, combinations, sweep)
    ]


def _anchor_plan(table: Table, around: _Surroundings) -> AnchorPlan:
    with table.alone(_HOMES):
        name, hookpoint = _head(table)
        paths = table.take("anchor", paths_in(around.folder), (Path(),))
        if len(paths) > 1:
            table.wrong("anchor", f"names {len(paths)} SAEs, expected one; seeds of one recipe are brought with import")
        for key in ("import", "sweep", "shared_start", "seeds"):
            table.allow(key)
            if key in table:
                table.wrong(
                    key, "stands beside anchor, expected one SAE and train = { } for its comparisons; leave it out"
                )
        format = table.take("format", values.one_of(FORMATS), "auto")
        force, recipe = table.take("force", values.truth, False), table.table("train")
    if around.lacks:
        lacks = " and ".join(around.lacks)
        table.wrong("anchor", f"needs {lacks}, expected both [model] and [tokens] to train comparisons on; add them")
    return AnchorPlan(name, hookpoint, paths[0], {} if recipe is None else _free(recipe), format, force)


def _free(train: Table) -> dict[str, Any]:
    """The settings of comparisons that their anchor leaves open, by the fields of TrainConfig."""
    with train.alone(_HOMES):
        settings = {key: train.take(key, check) for key, check in recipes.OF_COMPARISONS.items()}
        for key in ("variant", *recipes.KEYS):
            train.allow(key)
            if key in train and key not in settings:
                others = ", ".join(settings)
                train.wrong(key, f"stands beside anchor, which decides it; expected some of {others}; leave it out")
    return {recipes.FIELD.get(key, key): value for key, value in settings.items() if value is not None}


def _head(table: Table) -> tuple[str, str | None]:
    name = table.take("name", values.name, "", required="the ensemble's name in quotes")
    return name, table.take("hookpoint", values.hookpoint)


# Where a key belongs that stands in a table that does not know it.
_HOMES = {
    **dict.fromkeys(("variant", *recipes.KEYS), "train = { } of an [[ensemble]]"),
    **dict.fromkeys(("source", "eval", "n_ctx", "bos", "outliers", "held_out"), "[tokens]"),
    **dict.fromkeys(("import", "train", "anchor", "sweep", "format", "shared_start", "force"), "an [[ensemble]]"),
    **dict.fromkeys(("theta", "epsilon", "control", "analyses", "loss_tokens"), "[study]"), "name": "[study] or an [[ensemble]]",
    **dict.fromkeys(("causes", "models"), "[[sources]]"),
    **dict.fromkeys(("kind", "address", "partition", "cpus", "gpus", "memory", "workers"), "[executor]"),
    "path": "[model]", "hookpoint": "[model] or an [[ensemble]]", "hookpoint_out": "an [[ensemble]] with import",
}  # fmt: skip
