"""Run peers' benchmarks in processes of another Python interpreter, as they pin other versions than this project."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

INTERPRETER = "SEEDSCOPE_BENCH_PYTHON"  # one that has the peers; this one by default


def ask_peers(
    script: str, peers: Iterable[str], spec: dict[str, Any], folder: Path, *, limit_s: float | None = None
) -> dict[str, dict[str, Any]]:
    """{peer: its JSON answer, or {"missing": why}}, one after the other; `script` is beside this module, the spec in `folder`.

    A peer that takes longer than `limit_s` seconds is ended, and that is why it has no answer.
    """
    python = os.environ.get(INTERPRETER, sys.executable)
    place, answers = folder / "spec.json", {}
    place.write_text(json.dumps(spec))
    for name in peers:
        try:
            # Isolated, for modules of this package have names of libraries that peers import, such as requests.
            done = subprocess.run(
                [python, "-I", "-W", "ignore", str(Path(__file__).with_name(script)), name, str(place)],
                capture_output=True,
                text=True,
                check=False,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired as late:
            answers[name] = {"missing": f"it was not done in {late.timeout:.0f} s"}
            continue
        last = done.stdout.strip().splitlines()[-1:] if done.returncode == 0 else []
        answers[name] = json.loads(last[0]) if last else {"missing": f"it ended with exit {done.returncode}"}
    return answers


def seconds_or_reason(answer: dict[str, Any]) -> float | str:
    """A peer's seconds, or why there are none."""
    return answer["seconds"] if "seconds" in answer else str(answer["missing"])
