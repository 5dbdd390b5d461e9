"""Tiny random models of many families, made from their configs, and a tokenizer: nothing is downloaded."""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from seedscope.engine.activations.model import LanguageModel

WIDTH, LAYERS, VOCABULARY, CONTEXT = 16, 3, 97, 64
USUAL = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": CONTEXT,
}  # fmt: skip
GPT2 = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": CONTEXT}
OPT = {key: USUAL[key] for key in USUAL if "key_value" not in key and "inter" not in key} | {"ffn_dim": 24}
FAMILIES = {
    "llama": USUAL,
    "mistral": USUAL,
    "qwen2": USUAL,
    "qwen3": USUAL | {"head_dim": 8},
    "gemma": USUAL | {"head_dim": 8},
    "gemma2": USUAL | {"head_dim": 8},
    "gemma3_text": USUAL | {"head_dim": 8},
    "gpt2": GPT2,
    "gptj": GPT2 | {"rotary_dim": 4},
    "gpt_neox": USUAL,
    "opt": OPT | {"word_embed_proj_dim": WIDTH},
    "phi": USUAL,
    "olmo2": USUAL,
    "mixtral": USUAL | {"num_local_experts": 2},
    "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 2},
    "falcon": USUAL,
    "mpt": {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": 2},
}
BERT = USUAL | {"type_vocab_size": 2}


def network(family: str, *, seed: int = 0, **settings):
    """A random model of a family, its weights large enough that every part of it matters."""
    given = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1} | FAMILIES.get(family, BERT) | settings
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, **given)
    torch.manual_seed(seed)
    made = (AutoModelForCausalLM if family in FAMILIES else AutoModel).from_config(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def tokenizer(*, bos: bool = True, **settings) -> PreTrainedTokenizerFast:
    """Words w2 .. w96, split at spaces; 0 is BOS and 1 padding."""
    words = {"<s>": 0, "<pad>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", **special, **settings)


def tiny(family: str, *, bos: bool = True, **settings) -> LanguageModel:
    """A tiny model with its tokenizer."""
    causal = family in FAMILIES
    return LanguageModel(network(family, **settings), tokenizer(bos=bos), family, "0" * 16, causal)


def save(folder, family: str, *, tokenizer_too: bool = True, **settings):
    """What save_pretrained writes for a tiny model; returns the network."""
    made = network(family, **settings)
    if family not in FAMILIES:
        made = getattr(transformers, f"{type(made).__name__.removesuffix('Model')}ForMaskedLM")(made.config).eval()
    made.save_pretrained(folder)
    if tokenizer_too:
        tokenizer(**({"bos": True} if family in FAMILIES else {"bos": False, "cls_token": "<s>"})).save_pretrained(
            folder
        )
    return made
