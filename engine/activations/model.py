"""Load a transformers model with its tokenizer from a folder or a hub id, after checking all that can be checked before."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn

from seedscope.engine.activations import model_files
from seedscope.engine.machine import require_memory

if TYPE_CHECKING:
    import transformers


class LanguageModel(NamedTuple):
    """A language model with its tokenizer, in evaluation mode."""

    network: nn.Module
    tokenizer: "transformers.PreTrainedTokenizerBase | None"  # None where the folder holds none: then only token ids can be read
    name: str
    digest: str  # 16 hex digits over the parameters
    causal: bool = True  # False: every token sees all others, so there is no next-token loss to measure
    source: str | None = None  # what `load_model` was given, an absolute path or a hub id; None: it was made in memory
    is_random: bool = False  # its weights were drawn anew by `randomised`

    @property
    def pretrained(self) -> "transformers.PreTrainedModel":
        """The network as the transformers model that it is; only synthetic studies have a network of another kind."""
        return cast("transformers.PreTrainedModel", self.network)

    @property
    def vocabulary(self) -> int:
        """Token ids are 0 to this number less one: the rows of the embedding."""
        return self.pretrained.get_input_embeddings().get_parameter("weight").shape[0]


def load_model(path: str, *, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Load a causal or encoder-only language model and its tokenizer from a folder or a hub id.

    Nothing of the folder is executed. Raises ValueError, before weights are read where that is possible, for: no folder,
    no config.json, a model type that transformers does not know, an encoder-decoder, weights that are missing,
    truncated or do not belong to the architecture, and a model that does not fit into memory.
    """
    import transformers  # seconds to import, needed only here
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = model_files.local_folder(path)
    config = _config(path)
    causal = _is_causal(config)
    own_class = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
    factory = _factory(config) if causal else own_class
    files = model_files.weight_files(folder) if folder else []
    require_memory(path, model_files.n_parameters(files) or _n_parameters(config), dtype.itemsize)
    try:
        loaded = factory.from_pretrained(str(folder or path), dtype=dtype, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise ValueError(f"the weights of {path!r} do not fit its config.json or cannot be read: {error}") from error
    network, info = cast("tuple[transformers.PreTrainedModel, dict[str, Any]]", loaded)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{path!r} lacks {len(missing)} weights of a {type(network).__name__} ({', '.join(missing[:3])}): they would "
            "be random; save the model with the class its config.json names under architectures"
        )
    network.eval()
    source = str(folder.absolute()) if folder else path
    return LanguageModel(network, _tokenizer(path, folder), Path(path).name, _digest(network), causal, source)


@lru_cache(maxsize=1)
def loaded_again(source: str, is_random: bool, digest: str, device: str) -> LanguageModel:
    """A model in another process, from what its `source`, `is_random` and `digest` say; the last one stays in memory.

    Raises ValueError where the weights there are others.
    """
    model = load_model(source)
    model.network.to(device)
    model = randomised(model) if is_random else model
    if model.digest != digest:
        raise ValueError(
            f"the model at {source} has the digest {model.digest}, expected {digest}: its files differ by node"
        )
    return model


def _config(path: str) -> "transformers.PreTrainedConfig":
    from transformers import AutoConfig, __version__

    try:
        config = AutoConfig.from_pretrained(str(Path(path).expanduser()), trust_remote_code=False)
    except OSError as error:
        raise ValueError(
            f"found no language model at {path!r}, expected a folder written by save_pretrained or a hub id ({error})"
        ) from error
    except (ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"transformers {__version__} does not know the model type of {path!r}; upgrade transformers, or name a known "
            f"model_type in its config.json ({first})"
        ) from error
    if config.is_encoder_decoder or config.get_text_config(decoder=True).is_encoder_decoder:
        raise ValueError(
            f"{path!r} is an encoder-decoder ({config.model_type}), expected a causal or an encoder-only model"
        )
    return config


def _is_causal(config: "transformers.PreTrainedConfig") -> bool:
    """Some families serve as both; there the config's is_decoder says which. A text decoder in a multimodal wrapper is causal."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
    )

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return type(config) not in MODEL_FOR_MASKED_LM_MAPPING or bool(getattr(config, "is_decoder", False))


def _factory(config: "transformers.PreTrainedConfig") -> Any:
    """The class that loads a causal model with its head."""
    import transformers

    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText


def _n_parameters(config: "transformers.PreTrainedConfig") -> int:
    """Of the model that a config describes, without allocating it."""
    from transformers import AutoModel

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())


def _tokenizer(path: str, folder: Path | None) -> "transformers.PreTrainedTokenizerBase | None":
    from transformers import AutoTokenizer

    if folder and not any((folder / name).is_file() for name in model_files.TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(str(folder or path), trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ValueError(f"the tokenizer of {path!r} cannot be read: {error}; copy its files again") from error


def randomised(model: LanguageModel, *, seed: int = 0) -> LanguageModel:
    """The same architecture with newly initialised weights: a control in which nothing was learned.

    Used by paper A, as explanations can score high even there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = type(model.pretrained)(model.pretrained.config)
    network = network.to(model.pretrained.dtype).to(model.pretrained.device).eval()
    return model._replace(
        network=network, name=f"{model.name} with random weights", digest=_digest(network), is_random=True
    )


@torch.no_grad()
def _digest(network: nn.Module) -> str:
    sha = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
        sha.update(f"{name}:{tuple(parameter.shape)}".encode())
        sha.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]
