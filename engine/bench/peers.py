"""Time that other programs take for the activity of one SAE, run by an interpreter that has them.

`python peers.py NAME SPEC.json` prints one JSON object: seconds and features, or why there are none. It imports nothing of
this project: their pins exclude ours, so they need an environment of their own.
"""

import contextlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def sae_dashboard(spec: dict[str, Any]) -> dict[str, Any]:
    """SAEDashboard's data of some features: histograms, logits and top sequences, from the same windows."""
    import torch
    import transformer_lens
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE, HookedSAETransformer
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    from transformers import PreTrainedTokenizerFast

    network, tokens = _network(spec), _tokens(spec)
    c = network.config
    settings = transformer_lens.HookedTransformerConfig(
        n_layers=c.num_hidden_layers, d_model=c.hidden_size, n_ctx=tokens.shape[1], d_head=c.head_dim,
        n_heads=c.num_attention_heads, d_mlp=c.intermediate_size, d_vocab=c.vocab_size, act_fn="silu", eps=c.rms_norm_eps,
        normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=c.head_dim, rotary_adjacent_pairs=False,
        rotary_base=10_000, final_rms=True, gated_mlp=True, n_key_value_heads=c.num_key_value_heads, device="cpu",
    )  # fmt: skip
    model = HookedSAETransformer(settings)
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_file=spec["tokenizer"])
    model.load_state_dict(convert_llama_weights(network, settings), strict=False)
    model.eval()
    sae = SAE.load_from_disk(spec["sae"])
    sae.cfg.rescale_acts_by_decoder_norm = (
        True  # rows are unit already: the same, but it folds norms and refuses without
    )
    n = spec["dashboard_features"]
    options = {"hook_point": spec["hookpoint"], "minibatch_size_features": min(n, 256), "minibatch_size_tokens": 64}
    with torch.no_grad():
        SaeVisRunner(SaeVisConfig(features=range(2), **options)).run(encoder=sae, model=model, tokens=tokens[:64])
        began = time.perf_counter()
        SaeVisRunner(SaeVisConfig(features=range(n), **options)).run(encoder=sae, model=model, tokens=tokens)
    return {"seconds": time.perf_counter() - began, "features": n, "version": version("sae-dashboard")}


def delphi(spec: dict[str, Any]) -> dict[str, Any]:
    """delphi's cache of all features, written to disk: which fire where and how strongly, nothing made of it yet."""
    import torch
    from delphi.latents.cache import LatentCache
    from sae_lens import SAE

    network, tokens, sae = _network(spec), _tokens(spec), SAE.load_from_disk(spec["sae"])
    path = spec["module"]

    def cached(some: torch.Tensor) -> None:
        cache = LatentCache(network, {path: sae.encode}, batch_size=32)
        cache.run(some.numel(), some)
        cache.save_splits(n_splits=2, save_dir=Path(spec["scratch"]))

    cached(tokens[:64])
    began = time.perf_counter()
    cached(tokens)
    return {"seconds": time.perf_counter() - began, "features": sae.cfg.d_sae, "version": version("eai-delphi")}


def _network(spec: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(spec["model"], torch_dtype=torch.float32).eval()


def _tokens(spec: dict[str, Any]) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.load(spec["tokens"])).long()


def main() -> None:
    """Measure one peer; an error inside it is printed as its answer."""
    name, spec = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = {"sae_dashboard": sae_dashboard, "delphi": delphi}[name](spec)
        except ImportError as error:
            answer = {"missing": f"not installed ({error})"}
        except Exception as error:
            answer = {"missing": f"{type(error).__name__}: {error!s:.200}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
