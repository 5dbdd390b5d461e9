"""Time that other programs' kernels take for training steps of one TopK SAE on a device, run by an interpreter that has them.

`python gpu_peers.py NAME SPEC.json` prints one JSON object: seconds of one step and how far the first error is from
float64's, or why there are none. It stands alone, as `trainers.py` does. Both peers take the spec's rows and sizes.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any


def sparsify(spec: dict[str, Any]) -> dict[str, Any]:
    """eai-sparsify's SparseCoder: its fused encoder and Triton decoder, bf16 inside, as its own trainer steps it; with Adam."""
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    x = _rows(spec)
    coder = SparseCoder(spec["d_in"], SparseCoderConfig(num_latents=spec["d_sae"], k=spec["k"]), device=spec["device"])
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-4)

    def loss() -> Any:
        return coder(x).fvu

    def step() -> None:
        loss().backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        coder.set_decoder_norm_to_unit_norm()

    right = _error(x, coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec, spec["k"])
    variance = (x - x.mean(0)).double().square().sum()
    with torch.no_grad():
        off = float(loss() / (right * len(x) / variance) - 1)
    return _timed(spec, step) | {"off": abs(off), "version": _version("eai-sparsify")}


def flex_sae(spec: dict[str, Any]) -> dict[str, Any]:
    """flex_sae's TopK decoder loss in Triton behind a plain encoder, float32, with Adam."""
    import torch
    from flex_sae import triton_topk_sae_loss

    x = _rows(spec)
    generator = torch.Generator().manual_seed(1)
    start = torch.nn.functional.normalize(torch.randn(spec["d_sae"], spec["d_in"], generator=generator), dim=1)
    W_enc, W_dec = (torch.nn.Parameter(start.to(spec["device"], copy=True)) for _ in range(2))
    b_enc, b_dec = (torch.nn.Parameter(torch.zeros(n, device=spec["device"])) for n in (spec["d_sae"], spec["d_in"]))
    optimizer = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=1e-4)

    def loss() -> Any:
        pre = torch.nn.functional.linear(x - b_dec, W_enc, b_enc)
        values, indices = pre.topk(spec["k"], dim=1, sorted=False)
        return triton_topk_sae_loss(indices, W_dec, values.relu(), b_dec, x)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    right = _error(x, W_enc, b_enc, W_dec, b_dec, spec["k"])
    with torch.no_grad():
        off = float(loss() * spec["d_in"] / right - 1)
    return _timed(spec, step) | {"off": abs(off), "version": _version("flex-sae")}


def _rows(spec: dict[str, Any]) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.load(spec["rows"])).to(spec["device"])


def _error(x: Any, W_enc: Any, b_enc: Any, W_dec: Any, b_dec: Any, k: int) -> Any:
    """Squared error per token in float64 by the definition of a TopK SAE."""
    import torch

    with torch.no_grad():
        W_enc, b_enc, W_dec, b_dec, x = (t.double() for t in (W_enc, b_enc, W_dec, b_dec, x))
        values, indices = ((x - b_dec) @ W_enc.T + b_enc).topk(k, dim=1)
        out = torch.nn.functional.embedding_bag(indices, W_dec, per_sample_weights=values.relu(), mode="sum") + b_dec
        return (x - out).square().sum(1).mean()


def _timed(spec: dict[str, Any], step: Callable[[], None]) -> dict[str, Any]:
    """Median seconds of a step after three to warm up."""
    import torch

    def wait() -> None:
        if spec["device"] == "cuda":
            torch.cuda.synchronize()

    taken = []
    for _ in range(3 + spec["steps"]):
        wait()
        began = time.perf_counter()
        step()
        wait()
        taken.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if spec["device"] == "cuda" else None
    return {"seconds": median(taken[3:]), "peak_bytes": peak}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def main() -> None:
    """Measure one peer; an error inside it is printed as its answer."""
    name, spec = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    if find_spec(name) is None:  # before torch is loaded for nothing
        print(json.dumps({"missing": "not installed"}))
        return
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = {"sparsify": sparsify, "flex_sae": flex_sae}[name](spec)
        except ImportError as error:
            answer = {"missing": f"not installed ({error})"}
        except Exception as error:
            answer = {"missing": f"{type(error).__name__}: {error!s:.300}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
