"""What stays on the device and what leaves it, when texts, neighbours and pairs want room."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seedscope.engine.contract.queries import LiveQuery
from seedscope.engine.live.residents import Residents
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from support.tiny_models import WIDTH, save

SEEDS = (0, 1, 2)
PLACE = "blocks.0.hook_resid_post"


@pytest.fixture
def root(tmp_path: Path, make_sae: Callable[..., SAE]) -> Path:
    """A study with a tiny model and three SAEs, twice: `sae` and, the same again, `more`."""
    study = tmp_path / "study"
    members = tuple(catalogue.MemberPlan(seed, "0") for seed in SEEDS)
    kept = [catalogue.EnsemblePlan(name, "imported", name, members, hookpoint=PLACE) for name in ("sae", "more")]
    catalogue.write(
        catalogue.StudyPlan("study", str(tmp_path / "model"), catalogue.Tokens(()), ensembles=tuple(kept)), study
    )
    for ensemble in kept:
        make_sae(d_in=WIDTH, d_sae=64, dtype=np.float32).save(study / ensemble.folder)
    save(tmp_path / "model", "gpt2")
    publish(study, "study-1.duckdb")
    return tmp_path


def publish(study: Path, name: str) -> None:
    (study / name).touch()
    (study / "CURRENT").write_text(f"{name}\ntests\n")


def text(ensemble: str = "sae", words: str = "w5 w6") -> LiveQuery:
    return LiveQuery("try", "study", ensemble, ensemble, SEEDS, text=words)


NEIGHBOURS = LiveQuery("neighbours", "study", "sae", "sae", SEEDS, feature=3)
PAIR = LiveQuery("pair", "study", "sae", "sae", SEEDS, other=1)


def size_of(root: Path) -> tuple[int, int]:
    """Bytes of the model and of one ensemble's SAEs."""
    residents = Residents(root, "cpu")
    residents.answer([text()])
    held = residents.status()["resident"]
    return held[str(root / "model")], held["study/sae SAEs"]


def arrays_of(residents: Residents, query: LiveQuery) -> dict[str, list]:
    (answer,) = residents.answer([query])
    assert answer.error is None
    return {name: array.tolist() for name, array in answer.arrays.items()}


def test_model_and_saes_stay_and_are_loaded_once(root: Path):
    residents = Residents(root, "cpu")
    first = arrays_of(residents, text())
    before = dict(residents._held)
    assert arrays_of(residents, text()) == first
    assert {key: id(held.value) for key, held in residents._held.items()} == {
        key: id(held.value) for key, held in before.items()
    }
    status = residents.status()
    parameters = sum(
        p.numel() for held in before.values() if isinstance(held.value, SAE) for p in held.value.parameters()
    )
    assert status["resident"]["study/sae SAEs"] == 4 * parameters == 4 * 3 * (2 * 64 * WIDTH + 64 + WIDTH)
    assert status["bytes"] == sum(status["resident"].values()) <= status["budget"]


def test_texts_neighbours_and_pairs_are_answered_by_one_engine(root: Path):
    residents = Residents(root, "cpu")
    for query in (text(), NEIGHBOURS, PAIR, text("more"), NEIGHBOURS):
        assert residents.answer([query])[0].error is None
    assert set(residents.status()["resident"]) == {
        str(root / "model"), "study/sae SAEs", "study/more SAEs", "study/sae decoder",
    }  # fmt: skip


@pytest.mark.parametrize("room", [0.4, 0.7, 1.0, 1.5, 2.0])
def test_with_less_room_answers_are_the_same_and_the_bound_holds(root: Path, room: float):
    model, saes = size_of(root)
    expected = {name: arrays_of(Residents(root, "cpu"), text(name)) for name in ("sae", "more")}
    residents = Residents(root, "cpu", budget=model + int(room * saes))
    for name in ("sae", "more", "more", "sae"):
        assert arrays_of(residents, text(name)) == expected[name]
        assert residents.status()["bytes"] <= model + room * saes
        assert str(root / "model") in residents.status()["resident"]  # SAEs make room for each other


def test_a_model_larger_than_all_that_may_be_held_works_alone(root: Path):
    model, saes = size_of(root)
    assert saes < model
    residents = Residents(root, "cpu", budget=saes)
    expected = arrays_of(Residents(root, "cpu"), text())
    for _ in range(2):
        assert arrays_of(residents, text()) == expected
    assert residents.status()["bytes"] <= saes


def test_an_sae_larger_than_all_that_may_be_held_is_refused(root: Path):
    _, saes = size_of(root)
    (answer,) = Residents(root, "cpu", budget=saes // 3 - 1).answer([text()])
    assert f"study/sae SAEs would take {saes // 3:,} bytes, the engine may hold {saes // 3 - 1:,}" in answer.error


def test_the_least_recently_used_leaves_first_whatever_it_is(root: Path):
    model, saes = size_of(root)
    rows = 3 * 64 * WIDTH * 4
    residents = Residents(root, "cpu", budget=model + saes + rows)
    residents.answer([NEIGHBOURS])
    residents.answer([text()])
    residents.answer([NEIGHBOURS])
    residents.answer([text("more")])
    held = residents.status()["resident"]
    assert held["study/more SAEs"] == saes
    assert held["study/sae decoder"] == rows  # used after the SAEs of `sae`
    assert "study/sae SAEs" not in held


def test_a_new_publication_loads_the_saes_anew(root: Path, make_sae: Callable[..., SAE]):
    residents = Residents(root, "cpu")
    before = arrays_of(residents, text())
    make_sae(d_in=WIDTH, d_sae=64, dtype=np.float32, seed=5).save(root / "study" / "sae")
    assert arrays_of(residents, text()) == before
    publish(root / "study", "study-2.duckdb")
    after = arrays_of(residents, text())
    assert after != before
    assert after == arrays_of(Residents(root, "cpu"), text())


def test_nobody_waits_for_what_another_lane_loads(root: Path):
    residents = Residents(root, "cpu")
    begun, go_on = threading.Event(), threading.Event()

    def load() -> SAE:
        begun.set()
        assert go_on.wait(20)
        return residents._member(replace(text(), seeds=(0,)), root / "study" / "sae" / "seed-0.safetensors")

    thread = threading.Thread(target=residents._hold, args=(("slow", 1), lambda: 10, load))
    thread.start()
    try:
        assert begun.wait(20)
        assert residents.answer([NEIGHBOURS])[0].error is None
        assert "slow" not in residents.status()["resident"]
    finally:
        go_on.set()
        thread.join()
    assert "slow" in residents.status()["resident"]


def test_what_is_being_loaded_counts_already(root: Path, make_sae: Callable[..., SAE]):
    model, saes = size_of(root)
    residents = Residents(root, "cpu", budget=model + saes)
    residents.answer([text()])

    def load() -> SAE:
        assert residents.status()["bytes"] <= model + saes - 1000
        return make_sae(members=1)

    residents._hold(("new", 1), lambda: 1000, load)
    with pytest.raises(ZeroDivisionError):
        residents._hold(("broken", 1), lambda: 1000, lambda: 1 // 0)
    assert residents._loading == 0
    assert residents.answer([text()])[0].error is None
