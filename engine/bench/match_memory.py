"""What importing, matching, geometry and publishing of an ensemble hold in memory, as its members become more.

Members are random SAEs on disk in SAELens' layout; `seedscope import` and `seedscope analyze` read them as they read any. Each
runs as a process of its own. If members are streamed, twice as many take hardly more memory: what one member and what is found
about it take, not the weights of all.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from seedscope.engine.bench.dashboard import process_memory
from seedscope.engine.bench.report import BenchLine

_MEMBERS = (6, 12)
_D_SAE, _D_IN = 4_096, 512
_PERIOD_S = 0.02  # of looking at the memory


@dataclass(frozen=True)
class _Run:
    """Seconds and largest memory of one command."""

    seconds: float
    anonymous: int  # bytes that are not of mapped files


def lines() -> Iterator[BenchLine]:
    """One line per command; nothing where there is no /proc to read memory from."""
    if not process_memory(1):
        yield BenchLine("memory of matching", None, remark="not measured: needs Linux")
        return
    runs: dict[str, list[_Run]] = {name: [] for name in ("import", "match and publish", "subspaces")}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for seed in range(max(_MEMBERS)):
            _write_sae(root / f"sae{seed}", seed)
        for n in _MEMBERS:
            study, saes = f"members{n}", [str(root / f"sae{seed}") for seed in range(n)]
            runs["import"].append(_run(root, "import", study, "drawn", *saes))
            for name in list(runs)[1:]:
                runs[name].append(_run(root, "analyze", study, "--only", name.removesuffix(" and publish")))
    weights = 2 * 4 * _D_SAE * _D_IN  # encoder and decoder; spans need the decoder alone
    for name, (few, many) in runs.items():
        per_member = (many.anonymous - few.anonymous) / (_MEMBERS[1] - _MEMBERS[0])
        remark = (
            f"{_MEMBERS[0]} members: {few.anonymous / 1e6:.0f} MB, {few.seconds:.0f} s; {per_member / 1e6:.1f} MB for each further "
            f"one, whose weights are {weights / 1e6:.1f} MB"
        )
        yield BenchLine(
            f"{name}, {_MEMBERS[1]} x {_D_SAE:,} x {_D_IN}", many.seconds, remark=remark,
            figure=f"{many.anonymous / 1e6:.0f} MB, {many.seconds:.0f} s",
            numbers={"anonymous_bytes": float(many.anonymous), "bytes_per_member": per_member, "member_bytes": float(weights)},
        )  # fmt: skip


def _write_sae(folder: Path, seed: int) -> None:
    """One SAE of random weights in SAELens' layout."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.nn.functional.normalize(torch.randn(_D_SAE, _D_IN, generator=generator), dim=1)
    tensors = {
        "W_dec": decoder,
        "W_enc": decoder.T.contiguous(),
        "b_enc": torch.zeros(_D_SAE),
        "b_dec": torch.zeros(_D_IN),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {
        "architecture": "topk", "k": 32, "d_in": _D_IN, "d_sae": _D_SAE, "dtype": "float32", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "metadata": {"hook_name": "blocks.0.hook_resid_post", "seed": seed},
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))


def _run(root: Path, *command: str) -> _Run:
    """Run `seedscope` and watch its memory; raises RuntimeError where it fails."""
    began, most = time.perf_counter(), 0
    whole = [sys.executable, "-m", "seedscope.app.cli", *command, "--root", str(root / "data"), "--quiet"]
    process = subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(process.stderr.read() if process.stderr else ""))
    reader.start()
    while process.poll() is None:
        most = max(most, sum(each.anonymous for each in process_memory(process.pid)))
        time.sleep(_PERIOD_S)
    reader.join()
    if process.returncode:
        raise RuntimeError(f"seedscope {command[0]} ended with exit {process.returncode}: {said[0][-300:]}")
    return _Run(time.perf_counter() - began, most)
