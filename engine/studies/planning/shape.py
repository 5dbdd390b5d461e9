"""The sizes that a study's cost depends on, from a study file and a model's config.json; no weight is read."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from seedscope.engine.activations import model_files
from seedscope.engine.activations.hookpoints import TRANSFORMER_LENS
from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.contract.schema import ANALYSES
from seedscope.engine.demo import stdlib
from seedscope.engine.features.loss import LOSS_TOKENS
from seedscope.engine.studies.studyfile.read import AnchorPlan, ImportPlan, ModelSeedsPlan, StudyFile, TrainPlan

CHARACTERS_PER_TOKEN = 4.0  # assumed, of text that is not read
EVALUATED = 1_000_000  # tokens that are assumed to be measured on where neither the file nor the text says how many
ASSUMED_K = 64  # active features of imported SAEs, whose files are not opened
N_CTX = 1024  # of a window, where the file does not say: engine.activations.tokens takes the model's, at most this


class ModelShape(NamedTuple):
    """Sizes of a language model."""

    d_model: int
    n_layers: int
    n_parameters: int
    vocabulary: int
    d_mlp: int | None = None  # of `mlp.hook_post`; None: not known
    d_heads: int | None = None  # of `attn.hook_z`


@dataclass(frozen=True)
class GivenShape:
    """What was given beside a study file; None: nothing."""

    d_in: int | None = None
    n_layers: int | None = None
    n_parameters: int | None = None
    vocabulary: int | None = None


class EnsembleShape(NamedTuple):
    """Sizes of one ensemble, control ensembles among them."""

    name: str
    n_members: int
    d_sae: int
    d_in: int
    k: float  # active features per token
    hook: str
    blocks_below: float  # of the model, that run up to its hook point: a fraction where that lies inside one
    config: TrainConfig | None  # None: imported
    n_models: int = 1  # on whose activations its members are trained
    calibrated: bool = False  # its l1 is found first

    @property
    def n_features(self) -> int:
        """Of all members."""
        return self.n_members * self.d_sae

    @property
    def n_pairs(self) -> float:
        """Unordered pairs of members."""
        return self.n_members * (self.n_members - 1) / 2


class StudyShape(NamedTuple):
    """Sizes of a whole study."""

    name: str
    model: ModelShape | None  # None: no model, so nothing is harvested and no activity measured
    n_ctx: int
    n_eval: int
    characters: float  # of text that is tokenised
    loss_tokens: int
    analyses: tuple[str, ...]
    ensembles: tuple[EnsembleShape, ...]
    assumed: tuple[str, ...]  # remarks


def study_shape(file: StudyFile, given: GivenShape) -> StudyShape:
    """The sizes of what a study file asks for.

    Raises ValueError, naming the options that give it, where a model's shape is needed and not at hand, and for ensembles that
    are not planned.
    """
    assumed: list[str] = []
    model = _model_shape(file.model, given, assumed) if file.model else None
    tokens = file.tokens
    n_ctx = (tokens and tokens.n_ctx) or N_CTX
    ensembles = []
    for plan in file.ensembles:
        ensembles.append(shape := _ensemble_shape(plan, file, model, given, assumed))
        if file.control and isinstance(plan, TrainPlan):
            ensembles.append(shape._replace(name=f"{shape.name}-control"))
    characters, n_eval = _texts(file, ensembles, assumed)
    return StudyShape(
        file.name, model, n_ctx, n_eval, characters, file.loss_tokens or LOSS_TOKENS,
        tuple(ANALYSES if file.analyses is None else file.analyses), tuple(ensembles), tuple(assumed),
    )  # fmt: skip


def _texts(file: StudyFile, ensembles: Sequence[EnsembleShape], assumed: list[str]) -> tuple[float, int]:
    """Characters that are tokenised, and tokens that are measured on."""
    wanted = file.tokens.n_eval if file.tokens else None
    trained = [each.config for each in ensembles if each.config]
    if file.tokens and stdlib.SOURCE in file.tokens.source:
        corpus = stdlib.load_corpus()
        held_out = sum(len(text) for _, text in corpus.held_out)
        n_eval = int(held_out / _STDLIB_CHARACTERS_PER_TOKEN)
        read = held_out + (sum(len(text) for _, text in corpus.train) if trained else 0)
        return read, min(wanted or n_eval, n_eval) if wanted is None or wanted <= n_eval else wanted
    if file.tokens is None:
        if file.recorded is None:
            return 0.0, 0
        wanted = file.recorded.settings.get("n_eval")
    if wanted is None:
        assumed.append(f"{EVALUATED:,} tokens to measure on: the file does not say how many")
    n_train = max((config.n_tokens * config.data_samples for config in trained), default=0)
    n_eval = wanted or EVALUATED
    assumed.append(f"{CHARACTERS_PER_TOKEN:g} characters per token, and no more text than is asked for")
    return CHARACTERS_PER_TOKEN * (n_train + n_eval), n_eval


_STDLIB_CHARACTERS_PER_TOKEN = 3.54  # of the embedded model's tokenizer on the held-out files


def _ensemble_shape(
    plan: Any, file: StudyFile, model: ModelShape | None, given: GivenShape, assumed: list[str]
) -> EnsembleShape:
    if isinstance(plan, AnchorPlan):
        raise ValueError(
            f"ensemble {plan.name} is an anchor, expected train or import: what it trains is decided by the SAE's own files, "
            "which a plan does not open; write the comparisons as an ensemble with train to plan them"
        )
    hook = plan.hookpoint or file.hookpoint or ""
    below = _blocks_below(hook, model)
    if isinstance(plan, ImportPlan):
        d_sae, d_in = _imported_sizes(plan, given)
        assumed.append(f"{plan.name}: {ASSUMED_K} active features per token: imported files are not opened")
        return EnsembleShape(plan.name, len(plan.paths), d_sae, d_in, ASSUMED_K, hook, below, None)
    config = plan.config
    k = float(config.k)
    if "k" not in config.uses:
        k = float(getattr(plan, "l0", None) or ASSUMED_K)
        assumed.append(f"{plan.name}: {k:g} active features per token, for its variant has no k")
    n_models = len(plan.models) if isinstance(plan, ModelSeedsPlan) else 1
    d_in = given.d_in or _width(hook, model)
    calibrated = bool(getattr(plan, "l0", None))
    return EnsembleShape(plan.name, len(config.seeds), config.d_sae, d_in, k, hook, below, config, n_models, calibrated)


def _imported_sizes(plan: ImportPlan, given: GivenShape) -> tuple[int, int]:
    """(d_sae, d_in) of the first file with weights: those of its largest matrix, the wider side being the features."""
    for path in plan.paths:
        for file in [path] if path.is_file() else sorted(path.rglob("*.safetensors")) if path.is_dir() else []:
            if file.suffix != ".safetensors":
                continue
            shapes = [shape for shape in model_files.tensor_shapes(file).values() if len(shape) == 2]
            if shapes:
                largest = max(shapes, key=math.prod)
                return max(largest), given.d_in or min(largest)
    raise ValueError(
        f"ensemble {plan.name} is imported from files whose sizes cannot be told here, expected safetensors files; describe it as "
        "an ensemble with train to plan it"
    )


def _blocks_below(hook: str, model: ModelShape | None) -> float:
    """How many blocks run up to a hook point and with it; all where its name does not say.

    Of a block whose attention alone has run, the share of its weights that attention has.
    """
    if model is None:
        return 0.0
    numbers = [int(part) for part in hook.split(".") if part.isdigit()]
    if not numbers:
        return float(model.n_layers)
    inside = 1.0
    if hook.endswith("hook_resid_pre"):
        inside = 0.0
    elif hook.endswith(("hook_attn_out", "attn.hook_z", "hook_resid_mid")):
        of_block = (model.n_parameters - model.vocabulary * model.d_model) / model.n_layers
        attention = 4.0 * model.d_model * (model.d_heads or model.d_model)
        inside = min(attention / of_block, 1.0) if of_block > 0 else 1.0
    return min(numbers[0] + inside, float(model.n_layers))


def _width(hook: str, model: ModelShape | None) -> int:
    """Numbers per token at a hook point."""
    if model is None:
        raise ValueError(
            "found no model in the study file, expected one, or the width of the SAEs: give it with --d-in"
        )
    site = matched[2] if (matched := TRANSFORMER_LENS.fullmatch(hook)) else ""
    width = {"mlp.hook_post": model.d_mlp, "attn.hook_z": model.d_heads}.get(site, model.d_model)
    if width is None:
        raise ValueError(f"the width of {hook} is not known from what was given, expected --d-in")
    return width


def _model_shape(path: str, given: GivenShape, assumed: list[str]) -> ModelShape:
    """From a folder's or the hub cache's config.json, else from what was given; raises ValueError where something is missing."""
    folder = _folder(path)
    if folder is None:
        missing = [
            option
            for option, value in (
                ("--d-in", given.d_in), ("--layers", given.n_layers), ("--parameters", given.n_parameters),
                ("--vocabulary", given.vocabulary),
            )
            if value is None
        ]  # fmt: skip
        if missing:
            raise ValueError(
                f"found no config.json of {path!r} on this machine, expected its shape: give {', '.join(missing)}, or the "
                "folder of the model in [model]"
            )
        assumed.append(f"the shape of {path} as given")
        return ModelShape(given.d_in or 0, given.n_layers or 0, given.n_parameters or 0, given.vocabulary or 0)
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    named = {name: _first(config, keys) for name, keys in _KEYS.items()}
    d_model, n_layers, vocabulary = (named[name] for name in ("d_model", "n_layers", "vocabulary"))
    if not (d_model and n_layers and vocabulary):
        lacks = ", ".join(name for name in ("d_model", "n_layers", "vocabulary") if not named[name])
        raise ValueError(f"{folder / 'config.json'} does not say {lacks}, expected a transformers language model's")
    d_mlp = named["d_mlp"] or 4 * d_model
    heads, head_dim = named["n_heads"], config.get("head_dim")
    d_heads = heads * head_dim if heads and head_dim else d_model
    weights = sorted(folder.glob("*.safetensors"))
    if weights:
        n_parameters = model_files.n_parameters(weights)
    elif given.n_parameters:
        n_parameters = given.n_parameters
    else:  # embedding, attention, and an MLP with two matrices, three where it is gated
        gated = 3 if config.get("hidden_act", "").startswith(("silu", "gelu_pytorch", "swiglu")) else 2
        n_parameters = d_model * (vocabulary + n_layers * (4 * d_heads + gated * d_mlp))
        assumed.append(f"{n_parameters:,} parameters of {path}, counted from its config.json")
    return ModelShape(d_model, n_layers, n_parameters, vocabulary, d_mlp, d_heads)


_KEYS = {
    "d_model": ("hidden_size", "n_embd", "d_model"),
    "n_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "vocabulary": ("vocab_size",),
    "d_mlp": ("intermediate_size", "n_inner", "ffn_dim"),
    "n_heads": ("num_attention_heads", "n_head"),
}


def _first(config: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)


def _folder(path: str) -> Path | None:
    """Where a model's config.json lies: its folder, or the hub's cache; None where it is not on this machine."""
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None
