"""Files that were made to hurt: refused in one line that names the file, in seconds, and in memory that does not grow with them."""

import io
import json
import os
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seedscope.engine.saes.importers.ensemble import read
from seedscope.engine.saes.importers.inspect import inspect
from support.commands import assert_one_line, run
from support.importer_checks import CHECKPOINTS
from support.specimens import SPECIMENS

SECONDS, GIGABYTE = 10.0, 2**30
BOMB = 300 * 2**20  # bytes that a few hundred thousand unfold to
WEIGHTS = {"encoder.weight": (24, 8), "encoder.bias": (24,), "decoder.weight": (8, 24), "bias": (8,)}


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in WEIGHTS.items()}


def archive(path: Path, program: bytes, **members: bytes) -> Path:
    """A `torch.save` file with a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program)
        for name, content in members.items():
            file.writestr(f"archive/data/{name}", content)
    return path


def doubled(kind: bytes, levels: int) -> bytes:
    """A pickle of ((..), (..)) with each level twice the one below: 2^levels parts in a few bytes."""
    program = b"\x80\x02" + (b"]" if kind == b"l" else b")")
    program += b"q\x00"
    for level in range(levels):
        program += (b"h" + bytes([level])) * 2
        program += (b"\x86" if kind == b"t" else b"") if kind == b"t" else b""
        if kind == b"l":
            program = program[:-4] + b"](h" + bytes([level]) + b"h" + bytes([level]) + b"e"
        program += b"q" + bytes([level + 1])
    return program


def tuples_as_key(folder: Path) -> Path:
    program = b"\x80\x02}" + doubled(b"t", 60)[2:] + b"K\x01s."
    return archive(folder / "sae.pt", program)


def tuples_as_key_of_an_ordered_dict(folder: Path) -> Path:
    program = b"\x80\x02ccollections\nOrderedDict\n]" + doubled(b"t", 60)[2:] + b"K\x01\x86a\x85R."
    return archive(folder / "sae.pt", program)


def tuples_in_a_set(folder: Path) -> Path:
    program = b"\x80\x04\x8f(" + doubled(b"t", 60)[2:] + b"\x90."
    return archive(folder / "sae.pt", program)


def tuples_as_the_name_of_a_storage(folder: Path) -> Path:
    deep = doubled(b"t", 60)[2:]
    program = (
        b"\x80\x02}X\x0e\x00\x00\x00encoder.weight" + b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"(X\x07\x00\x00\x00storage"
        + b"ctorch\nFloatStorage\n" + deep + b"X\x03\x00\x00\x00cpuK\x01tQ" + b"K\x00K\x01\x85K\x01\x85\x89}tRs."
    )  # fmt: skip
    return archive(folder / "sae.pt", program)


def lists_of_lists(folder: Path) -> Path:
    """What walks through it would walk 2^60 steps."""
    return archive(folder / "sae.pt", b"\x80\x02}X\x01\x00\x00\x00a" + doubled(b"l", 60)[2:] + b"s.")


def nested_in_itself(folder: Path) -> Path:
    config: dict[str, object] = {"sparsity": "topk"}
    config["config"] = config
    torch.save(
        {"model_state_dict": {"W_enc": 1, "b_enc": 1, "W_dec": 1, "b_dec": 1}, "config": config, "k": 3},
        folder / "sae.pt",
    )
    return folder / "sae.pt"


def repeated_number(folder: Path) -> Path:
    """Tensors of 2^40 numbers that are one number, with strides of zero."""
    huge = torch.zeros(1).as_strided((2**20, 2**20), (0, 0))
    torch.save(state() | {"encoder.weight": huge}, folder / "sae.pt")
    return folder / "sae.pt"


def bomb(path: Path, name: str, n_bytes: int) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file,
        file.open(name, "w", force_zip64=True) as member,
    ):
        for _ in range(n_bytes // 2**20):
            member.write(bytes(2**20))


def bomb_of_a_pickle(folder: Path) -> Path:
    bomb(folder / "sae.pt", "archive/data.pkl", BOMB)
    return folder / "sae.pt"


def bomb_of_numbers(folder: Path) -> Path:
    bomb(folder / "params.npz", "W_enc.npy", BOMB)
    return folder / "params.npz"


def lying_bomb(folder: Path) -> Path:
    """It declares 100 bytes and unfolds to a gigabyte."""
    bomb(folder / "sae.pt", "archive/data.pkl", BOMB)
    data = bytearray((folder / "sae.pt").read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 100)
    (folder / "sae.pt").write_bytes(data)
    return folder / "sae.pt"


def array_without_its_numbers(folder: Path) -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**18)})
    with zipfile.ZipFile(folder / "params.npz", "w") as file:
        file.writestr("W_enc.npy", header.getvalue())
    return folder / "params.npz"


def huge_place_in_the_memo(folder: Path) -> Path:
    return archive(folder / "sae.pt", b"\x80\x02}r\xff\xff\xff\x7f.")


def huge_array_of_bytes(folder: Path) -> Path:
    return archive(folder / "sae.pt", b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b".")


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "sae.safetensors")
    (folder / "cfg.json").write_text("{}")
    return folder


def pipe_as_a_pickle(folder: Path) -> Path:
    os.mkfifo(folder / "sae.pt")
    return folder / "sae.pt"


def pipe_as_a_config(folder: Path) -> Path:
    for path in (CHECKPOINTS / "saelens" / "topk").iterdir():
        if path.is_file() and path.name != "cfg.json":
            (folder / path.name).write_bytes(path.read_bytes())
    os.mkfifo(folder / "cfg.json")
    return folder


def device(folder: Path) -> Path:
    (folder / "sae.pt").symlink_to("/dev/zero")
    return folder / "sae.pt"


def with_config(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pipe_free = CHECKPOINTS / "saelens" / "topk"
        for path in pipe_free.iterdir():
            if path.is_file():
                (folder / path.name).write_bytes(path.read_bytes())
        (folder / "cfg.json").write_text(text)
        return folder

    return write


def links_in_a_circle(folder: Path) -> Path:
    for i in range(12):
        (folder / f"run{i}").symlink_to(folder, target_is_directory=True)
    return folder


deep_config = with_config('{"architecture":' + "[" * 200_000 + "]" * 200_000 + "}")
huge_config = with_config('{"architecture": "' + "x" * 2**25 + '"}')
long_value = with_config('{"architecture": "' + "x" * 2**20 + '"}')
huge_number = with_config('{"architecture": "topk", "k": ' + "9" * 100_000 + "}")

HOSTILE = [
    tuples_as_key, tuples_as_key_of_an_ordered_dict, tuples_in_a_set, tuples_as_the_name_of_a_storage, lists_of_lists,
    nested_in_itself, repeated_number, bomb_of_a_pickle, bomb_of_numbers, lying_bomb, array_without_its_numbers,
    huge_place_in_the_memo, huge_array_of_bytes, pipe, pipe_as_a_pickle, pipe_as_a_config, device, links_in_a_circle, deep_config,
    huge_config, long_value, huge_number,
]  # fmt: skip
NAMES = [each.__name__ if each.__name__ != "write" else f"config {i}" for i, each in enumerate(HOSTILE)]


@pytest.mark.parametrize("make", HOSTILE, ids=NAMES)
def test_it_is_refused_in_one_line_in_time_and_memory(make, tmp_path):
    folder = tmp_path / "hostile"
    folder.mkdir()
    path = make(folder)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = run("import", "new", "them", path, "--root", tmp_path / "root", "--no-check")
    assert_one_line(done, str(tmp_path))
    assert len(done.stderr) < 1600
    assert time.monotonic() - began < SECONDS
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < GIGABYTE
    assert not (tmp_path / "root" / "new").exists()


# -- types in configs ----------------------------------------------------------------------------------------------

ODD = (
    None,
    True,
    0,
    -1,
    3.5,
    float("nan"),
    float("inf"),
    10**30,
    "",
    "x" * 5_000,
    [],
    [[1], {"a": 1}],
    {},
    {"k": {"k": [1]}},
)


FEW = (None, [[1], {"a": 1}], "x" * 5_000)


@pytest.mark.parametrize("format", SPECIMENS)
def test_an_odd_type_at_any_place_of_a_config_is_read_or_refused_in_short_words(format, tmp_path):
    with_odd_values(SPECIMENS[format][:1], tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("format", SPECIMENS)
def test_every_odd_value_at_any_place_of_a_config_is_read_or_refused_in_short_words(format, tmp_path):
    """Every setting, and every setting of a setting: 9,000 configs of all formats."""
    with_odd_values(SPECIMENS[format], tmp_path, ODD)


def with_odd_values(writers: list[Callable[[Path], Path]], tmp_path: Path, values: tuple[object, ...]) -> None:
    for index, write in enumerate(writers):
        folder = tmp_path / str(index)
        folder.mkdir()
        path = write(folder)
        for file in [each for each in folder.rglob("*.json") if isinstance(json.loads(each.read_text()), dict)]:
            raw = file.read_text()
            for keys in places(json.loads(raw)):
                for value in values:
                    file.write_text(json.dumps(changed(raw, keys, value)))
                    text = read_or_refused(path)
                    assert len(text) < 1_000, (file, keys)
                    assert "\n" not in text, (file, keys)
            file.write_text(raw)


def changed(raw: str, keys: tuple[str, ...], value: object) -> dict:
    config = holder = json.loads(raw)
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    return config


def read_or_refused(path: Path) -> str:
    """Why it is refused, or the longest of what is kept of it."""
    try:
        member = read(path)
    except ValueError as error:
        return str(error)
    return max((*member.remarks, *member.source.values()), key=len)


def places(config: dict, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in config.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += places(value, (*above, key))
    added = [
        (*above, name)
        for name in ("activation_fn_kwargs", "submodule_name", "metadata", "trainer")
        if name not in config
    ]
    return found + (added if not above else [])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "0", "-1"])
def test_a_scale_that_is_no_positive_number_is_refused(value, tmp_path):
    tensors = {
        "W_enc": torch.randn(8, 24),
        "b_enc": torch.zeros(24),
        "W_dec": torch.randn(24, 8),
        "b_dec": torch.zeros(8),
    }
    save_file(tensors, tmp_path / "sae.safetensors")
    text = f'{{"architecture": "relu", "subtract_b_dec": true, "input_scale": {value}}}'
    (tmp_path / "sae.json").write_text(text)
    with pytest.raises(ValueError, match="input_scale"):
        read(tmp_path / "sae.safetensors")


@pytest.mark.parametrize("shape", [(0, 24), (8, 0), (0, 0)])
def test_an_sae_without_features_or_dimensions_is_refused(shape, tmp_path):
    d_in, d_sae = shape
    tensors = {
        "W_enc": torch.zeros(d_in, d_sae), "b_enc": torch.zeros(d_sae),
        "W_dec": torch.zeros(d_sae, d_in), "b_dec": torch.zeros(d_in),
    }  # fmt: skip
    save_file(tensors, tmp_path / "one.safetensors", {"architecture": "relu", "subtract_b_dec": "true"})
    with pytest.raises(ValueError, match="at least one of each"):
        read(tmp_path / "one.safetensors")


def test_what_a_file_says_reaches_no_terminal_as_it_is(tmp_path):
    config = {"architecture": "\x1b[2J\x1b]0;evil\x07" + "\u202e" * 5}
    done = run("inspect", with_config(json.dumps(config))(tmp_path))
    assert_done_without(done.stderr + done.stdout, "\x1b", "\x07", "\u202e")


def assert_done_without(text: str, *characters: str) -> None:
    assert [each for each in characters if each in text] == []


def test_inspecting_hostile_files_names_each_and_goes_on(tmp_path):
    for i, make in enumerate((tuples_as_key, repeated_number)):
        (tmp_path / str(i)).mkdir()
        make(tmp_path / str(i))
    found = inspect(CHECKPOINTS / "saelens" / "topk")
    assert found[0].refused is None
    with pytest.raises(ValueError, match=r"sae\.pt"):
        inspect(tmp_path / "0")
