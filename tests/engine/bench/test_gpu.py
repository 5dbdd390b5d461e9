"""`bench gpu` without a GPU: every step runs at tiny sizes, right results pass, every perturbed one is refused, time is kept."""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from seedscope.app.cli.main import app
from seedscope.app.cli.options import Stop
from seedscope.engine.bench import gpu, gpu_matching
from seedscope.engine.bench.gpu_sizes import GpuSizes
from seedscope.engine.bench.gpu_work import GpuSlot, Limit, Work, WrongResultError, measure, within, within_norm
from seedscope.engine.bench.products import dictionaries
from seedscope.engine.bench.report import BenchLine
from support.paths import ROOT

CPU = torch.device("cpu")
TINY = GpuSizes(
    rows=640, d_in=24, pairs=2, assigned_rows=50, resident_members=3, queries=3, d_sae=128, k=4, trained_members=3, batch=64,
    layers=2, heads=2, vocabulary=60, windows=6, n_ctx=10, span_members=4, span_rows=30, projected_members=3,
    projected_features=256,
)  # fmt: skip
MOST_S = 60.0
CHECKED = [step for step in gpu.STEPS if step.name != "peers of training"]


def slot(seconds: float = MOST_S) -> GpuSlot:
    return GpuSlot(CPU, time.perf_counter() + seconds)


def perturbed(values: torch.Tensor | np.ndarray, name: str) -> torch.Tensor | np.ndarray:
    """Another answer of the same kind: numbers 5 % off, indices one further, the other truth."""
    if isinstance(values, torch.Tensor):
        array = (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy().copy()
    else:
        array = np.array(values)
    if name == "certified":
        array = array + 1.5
    elif array.dtype == bool:
        array = ~array
    elif np.issubdtype(array.dtype, np.integer):
        array = array + 1
    else:
        array = array * 1.05 + 1e-3
    return torch.from_numpy(array).to(values.device) if isinstance(values, torch.Tensor) else array


def refused(work: Work) -> Iterator[str]:
    """Runs a piece of work; its result passes, and the names of the parts that are refused when they are perturbed follow."""
    result = (work.checked or work.ours)()
    result = {name: values.clone() if isinstance(values, torch.Tensor) else values for name, values in result.items()}
    assert 0 <= work.check(result) <= 1
    for name, values in result.items():
        with pytest.raises(WrongResultError):
            work.check(result | {name: perturbed(values, name)})
        yield name


@pytest.mark.parametrize("step", CHECKED, ids=lambda step: step.name)
def test_every_result_passes_and_every_part_of_it_is_refused_when_it_is_perturbed(step):
    for work in step.run(TINY, slot()):
        if isinstance(work, Work):
            assert list(refused(work)), work.name
            for limit in (*work.limits.values(), *work.beside.values()):
                limit.run()
            assert not work.limit or work.limit in work.limits
        else:
            assert work.remark.startswith("not measured: ")


# Triton decides at its import whether it interprets, and this process may hold it already.
INTERPRETED = """
import sys
import torch
from seedscope.engine.bench import gpu_matching
from seedscope.engine.bench.gpu_sizes import GpuSizes
a, b = torch.load(sys.argv[1])
torch.save(gpu_matching.fused(a, b, GpuSizes(pairs=2), "interpreted").checked(), sys.argv[2])
"""


def fused_work() -> Work | BenchLine:
    """The fused kernel's work at a size that takes an interpreter a second."""
    a, b = dictionaries(14, 24, "cpu")
    return gpu_matching.fused(a, b, TINY, "14 x 14 rows of 24")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_fused_kernel_passes_in_tritons_interpreter_and_is_refused_when_it_is_perturbed(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    asked, answered = tmp_path / "asked.pt", tmp_path / "answered.pt"
    torch.save(dictionaries(14, 24, "cpu"), asked)
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED, str(asked), str(answered)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.load(answered, weights_only=False)  # written above
    names = list(refused(replace(fused_work(), checked=lambda: found)))
    assert {name[:-2] for name in names if name != "certified"} == {"cosine", "partner", "runner_up"}
    assert len(names) == 7


def test_without_the_interpreter_the_fused_kernel_is_not_measured_and_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    line = fused_work()
    assert isinstance(line, BenchLine)
    assert (line.ours_s, line.failed) == (None, False)
    assert line.remark.startswith("not measured: ")


@pytest.fixture(scope="module")
def measured() -> list[BenchLine]:
    """The whole run at tiny sizes, as the command makes it; peers are asked, and may be missing."""
    return list(gpu.lines(device=CPU, sizes=TINY, rounds=1))


def test_a_whole_run_checks_and_times_every_step(measured):
    assert not any(line.failed for line in measured)
    timed = [line for line in measured if line.ours_s is not None]
    assert len(timed) == 17
    for line in timed:
        assert line.ours_s > 0
        assert line.remark.startswith("right: ")
        assert 0 <= line.numbers["error_of_allowed"] <= 1
        assert line.limit_s is None or line.limit_s > 0
    (peers,) = [line for line in measured if line.figure == "see training"]
    assert set(peers.peers_s) == {"sparsify's kernels", "flex_sae's kernels"}
    assert measured[0].work.startswith("device: cpu")


def test_a_run_without_time_measures_nothing_and_every_step_says_so():
    done = []
    lines = list(gpu.lines(device=CPU, sizes=TINY, minutes=0, report=lambda at, of: done.append((at, of))))
    assert [line.work for line in lines[1:]] == [step.name for step in gpu.STEPS]
    assert all(line.ours_s is None and "give --minutes a larger number" in line.remark for line in lines[1:])
    assert done[-1] == (len(gpu.STEPS), len(gpu.STEPS))


def slow(sizes: GpuSizes, where: GpuSlot) -> Iterator[Work]:
    """Takes more than the minutes of the test below."""
    yield Work("slow", lambda: time.sleep(0.05), lambda found: 0.0)
    yield Work("behind it", lambda: None, lambda found: 0.0)


def test_what_one_step_overruns_later_ones_miss_and_say_so():
    steps = (gpu.GpuStep("first", 0.5, slow), gpu.GpuStep("second", 0.5, slow))
    _, first, behind, second = gpu.lines(device=CPU, minutes=0.04 / 60, steps=steps)
    assert first.figure == "right, not timed"
    assert "no time was left" in first.remark
    assert behind.remark.startswith(gpu.NOTHING_LEFT)
    assert second.work == "second"
    assert second.remark.startswith(gpu.NOTHING_LEFT)


def breaks(sizes: GpuSizes, where: GpuSlot) -> Iterator[Work]:
    raise RuntimeError("no such\n instruction")
    yield


def wrong(sizes: GpuSizes, where: GpuSlot) -> Iterator[Work]:
    right = np.arange(3.0)
    yield Work(
        "sums", lambda: {"sum": right + np.array([0, 0, 1e-3])}, lambda found: within("sum", found["sum"], right, 1e-6)
    )


def test_a_wrong_result_gets_no_time_an_error_is_told_and_the_steps_behind_them_run():
    steps = tuple(gpu.GpuStep(run.__name__, 1.0, run) for run in (wrong, breaks, slow))
    _, refusal, error, *others = gpu.lines(device=CPU, steps=steps, rounds=1)
    assert (refusal.figure, refusal.ours_s, refusal.failed) == ("WRONG", None, True)
    assert "sum is off by 0.001 from float64's, allowed are 1e-06" in refusal.remark
    assert (error.figure, error.failed) == ("ERROR", True)
    assert "RuntimeError: no such instruction" in error.remark
    assert [line.failed for line in others] == [False, False]
    assert others[0].ours_s > 0.04


def test_one_number_of_many_is_enough_to_refuse():
    right = np.zeros(1000)
    found = right.copy()
    found[77] = 2e-6
    assert within("values", right, right, 1e-6) == 0
    for other in (found, right[:-1], np.where(np.arange(1000) == 5, np.nan, right)):
        with pytest.raises(WrongResultError):
            within("values", other, right, 1e-6)
    with pytest.raises(WrongResultError):  # what cannot be compared is not right
        within("values", np.full(3, np.nan), np.full(3, np.nan), 1e-6)
    with pytest.raises(WrongResultError):
        within_norm("values", np.full(3, np.nan), np.ones(3), 1e-6)


def test_a_limit_counts_as_often_as_the_work_contains_it():
    naps = {"nap": Limit(lambda: time.sleep(2e-3), 3)}
    line = measure(
        Work("naps", lambda: time.sleep(6e-3), lambda found: 0.0, limit="nap", limits=naps, flops=1e9), slot()
    )
    assert 0.3 < line.ratio < 3
    assert line.numbers["tflops"] == pytest.approx(1e-3 / line.ours_s)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_command_is_one_line_and_exit_1(tmp_path):
    result = CliRunner().invoke(app, ["bench", "gpu", "--json", str(tmp_path / "gpu.json")])
    assert isinstance(result.exception, Stop)
    said = str(result.exception)
    assert "bench gpu looked for a CUDA device and found none" in said
    assert "machine with an NVIDIA GPU" in said
    assert not (tmp_path / "gpu.json").exists()


def test_minutes_belong_to_the_section_gpu():
    result = CliRunner().invoke(app, ["bench", "match", "--minutes", "3"])
    assert isinstance(result.exception, Stop)
    assert "expected the section gpu" in str(result.exception)


def test_lines_are_kept_as_they_come_and_a_wrong_one_ends_the_command_with_a_failure(tmp_path, monkeypatch):
    """The command itself, on a processor in a GPU's place; what was measured before a step that breaks off is in the file."""
    file = tmp_path / "gpu.json"
    seen = []

    def looks(sizes: GpuSizes, where: GpuSlot) -> Iterator[Work]:
        seen.extend(json.loads(file.read_text())["lines"])
        return iter(())

    monkeypatch.setattr(gpu, "cuda_device", lambda: CPU)
    monkeypatch.setattr(gpu.lines, "__kwdefaults__", gpu.lines.__kwdefaults__ | {
        "steps": (gpu.GpuStep("wrong", 0.5, wrong), gpu.GpuStep("looks", 0.5, looks)),
    })  # fmt: skip
    result = CliRunner().invoke(app, ["bench", "gpu", "--json", str(file), "--quiet", "--minutes", "1"])
    assert "1 of 2 lines failed" in str(result.exception)
    assert [line["figure"] for line in seen] == ["not measured", "WRONG"]
    assert [line["failed"] for line in json.loads(file.read_text())["lines"]] == [False, True]
    assert "WRONG" in result.stdout


# -- a device ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_device_every_step_is_right_at_small_sizes():
    small = replace(TINY, rows=4_096, d_in=768, d_sae=2_048, k=32, batch=512, heads=12, resident_members=8)
    lines = list(gpu.lines(device=gpu.cuda_device(), sizes=small, minutes=4))
    assert not [(line.work, line.remark) for line in lines if line.failed]
    assert all("peak_bytes" in line.numbers for line in lines if line.ours_s is not None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("step", CHECKED, ids=lambda step: step.name)
def test_on_a_device_a_perturbed_result_is_refused(step):
    for work in step.run(TINY, GpuSlot(gpu.cuda_device(), time.perf_counter() + MOST_S)):
        if isinstance(work, Work):
            assert list(refused(work)), work.name
