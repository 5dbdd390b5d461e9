"""`seedscope.from_saelens`: against NumPy, against the same SAEs imported from files, and with SAELens' own objects."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

import seedscope
from seedscope.engine.progress import Progress
from seedscope.engine.saes import saelens
from seedscope.engine.saes.importers.saelens import from_object, read
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.import_ensemble import enrol
from seedscope.engine.studies.publish import publish
from support.studies import members_that_agree

CHECKPOINTS = Path(__file__).parents[2] / "engine/saes/checkpoints/saelens"
# Folders of an SAE alone, as `save_model` writes them: what the object would be saved as again.
PLAIN = sorted(
    path.parent.name
    for path in CHECKPOINTS.glob("*/cfg.json")
    if not path.with_name("activation_scaler.json").exists() and not path.with_name("runner_cfg.json").exists()
)


class Kept:
    """The files of an SAE with the two attributes by which SAELens' objects give them."""

    def __init__(self, folder: Path) -> None:
        self.cfg, self.folder = self, folder

    def to_dict(self) -> dict[str, Any]:
        return json.loads((self.folder / "cfg.json").read_text())

    def state_dict(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "sae_weights.safetensors")


@pytest.fixture
def kept(tmp_path: Path) -> Callable[..., list[Kept]]:
    """Members of an ensemble as SAELens' folders; `about` is their metadata, by member."""

    def keep(members=None, *about: dict[str, Any]) -> list[Kept]:
        members = members or members_that_agree()
        for i in range(members.n_members):
            saelens.save(members.only(i), tmp_path / f"{i}", about[i] if i < len(about) else {})
        return [Kept(tmp_path / f"{i}") for i in range(members.n_members)]

    return keep


def test_every_number_is_what_numpy_finds(kept):
    members = members_that_agree()
    frame = seedscope.from_saelens(kept(members), quiet=True)
    rows = members.W_dec.detach().numpy().astype(np.float64)
    rows = np.divide(
        rows, np.linalg.norm(rows, axis=2, keepdims=True), out=np.zeros_like(rows), where=rows.any(2)[..., None]
    )
    assert len(frame) == 5 * 48
    for member in range(5):
        mine = frame[frame["member"] == member]
        cosines = {}
        for other in range(5):
            found = mine[f"cosine_seed_{other}"].to_numpy()
            valid = rows[other].any(1)
            best = np.where(rows[member].any(1), (rows[member] @ rows[other][valid].T).max(1), np.nan)
            np.testing.assert_allclose(found, best if other != member else np.full(48, np.nan), atol=1e-6)
            cosines[other] = best
        del cosines[member]
        best = np.stack(list(cosines.values()), 1)
        hits = (best >= 0.7).sum(1)
        np.testing.assert_array_equal(mine["n_matched"], hits)
        np.testing.assert_allclose(mine["stability"], hits / 4)
        np.testing.assert_allclose(mine["mean_best_cosine"], best.mean(1), atol=1e-6)
        ends = [stats.binomtest(int(x), 4).proportion_ci(0.95, "exact") for x in hits]
        np.testing.assert_allclose(mine[["stability_low", "stability_high"]], ends)
        dead = ~rows[member].any(1)
        expected = np.select([dead, hits == 4, hits == 0], ["dead", "stable", "unstable"], "middle")
        assert mine["bucket"].tolist() == expected.tolist()
    assert set(frame["bucket"]) == {"stable", "middle", "unstable", "dead"}
    assert frame.attrs["shared_start"] == "unknown"
    share = np.mean([(each[each.any(1)].mean(0) ** 2).sum() for each in rows])
    assert frame.attrs["mean_direction"]["share"] == pytest.approx(share, rel=1e-5)


def test_it_says_what_a_study_of_the_same_files_says(kept, tmp_path):
    held = kept()
    frame = seedscope.from_saelens({7 - i: sae for i, sae in enumerate(held)}, theta=0.6, rule="both", quiet=True)
    enrol(tmp_path / "root", "mine", "topk", [sae.folder for sae in held], seeds=[7, 6, 5, 4, 3])
    analyse(tmp_path / "root" / "mine", only=("match",), device="cpu", progress=Progress(quiet=True))
    publish(tmp_path / "root" / "mine")
    ensemble = seedscope.open(tmp_path / "root")["mine"]["topk"]
    for seed in ensemble.seeds:
        for index in (0, 5, 47):
            feature = ensemble.feature(seed, index, theta=0.6, rule="both")
            (row,) = frame[(frame["seed"] == seed) & (frame["feature"] == index)].to_dict("records")
            same = ("stability", "stability_low", "stability_high", "p_stable", "p_unstable", "n_matched", "bucket")
            assert [row[name] for name in same] == [getattr(feature, name) for name in same]
            for match in feature.matches:
                found = row[f"cosine_seed_{match.seed}"]
                assert (None if np.isnan(found) else found) == match.cosine
    assert frame.attrs["digests"] == {str(m.seed): m.sae_digest for m in ensemble._store.members("topk")}
    attrs = json.loads(json.dumps(frame.attrs))
    assert (attrs["theta"], attrs["epsilon"], attrs["rule"], attrs["seeds"]) == (0.6, 0.05, "both", [7, 6, 5, 4, 3])


@pytest.mark.parametrize("name", PLAIN)
def test_an_object_is_read_as_its_files_are(name):
    ours, theirs = from_object(Kept(CHECKPOINTS / name), Path("saes[0]")), read(CHECKPOINTS / name)
    assert ours.convention == theirs.convention
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.tensors[key], theirs.tensors[key]) for key in theirs.tensors)
    assert (ours.source["path"], ours.remarks) == ("saes[0]", theirs.remarks)


def test_what_cannot_be_compared_is_refused_with_the_way_out(kept):
    held = kept(None, {"hook_name": "blocks.1.hook_resid_post"}, {"hook_name": "blocks.2.hook_resid_post"})
    for saes, message in (
        ([], "0 SAEs were given, expected at least 2"),
        (held[:1], "1 SAEs were given"),
        ([held[2], "runs/seed1"], r"saes\[1\] is a str, expected an SAE of SAELens 6"),
        ([held[2], held[3], held[2]], r"saes\[0\] and saes\[2\] hold the same SAE"),
        ({0: held[2], "1": held[3]}, "a key of saes is '1', expected seeds"),
        (held[:2], "give force=True to compare them all the same"),
        ([held[2], Kept(CHECKPOINTS / "topk")], r"saes\[0\] has d_in 16, saes\[1\] has d_in 8"),
        ([Kept(CHECKPOINTS / "checkpoint_topk")] * 2, "trained on activations that were scaled"),
    ):
        with pytest.raises(ValueError, match=message):
            seedscope.from_saelens(saes, quiet=True)
    for settings, message in (
        ({"theta": 2}, "theta is 2, expected a cosine"),
        ({"epsilon": 0.5}, "epsilon is 0.5"),
        ({"rule": "active"}, "rule is 'active', expected one of argmax, mutual, hungarian, both"),
        ({"shared_start": "maybe"}, "shared_start is 'maybe'"),
    ):
        with pytest.raises(ValueError, match=message):
            seedscope.from_saelens(held[2:], quiet=True, **settings)
    forced = seedscope.from_saelens(held[:2], force=True, quiet=True)
    assert any(remark.startswith("forced: ") for remark in forced.attrs["remarks"])


def test_a_shared_start_is_found_and_called_agreement(kept):
    members = members_that_agree()
    with torch.no_grad():
        members.W_dec[3, 9] = members.W_dec[1, 9]
    held = kept(members)
    with pytest.warns(
        UserWarning, match=r"1 decoder rows \(9\) are equal in seeds 1 and 3: read their numbers as agreement"
    ):
        frame = seedscope.from_saelens(held, quiet=True)
    assert frame.attrs["shared_start"] == "yes"
    with pytest.raises(ValueError, match="shared_start=no was given, but members share a start"):
        seedscope.from_saelens(held, shared_start="no", quiet=True)


def test_importing_the_package_still_loads_no_torch_and_a_lack_of_pandas_is_told():
    code = (
        "import sys, seedscope; assert 'torch' not in sys.modules; sys.modules['pandas'] = None\n"
        "try: seedscope.from_saelens([])\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install 'seedscope[notebook]'" in done.stdout


# -- SAELens itself ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the library imports
        return pytest.importorskip("sae_lens", reason="sae-lens brings 60 packages: install it to run this")


def filled(sae: Any, seed: int) -> Any:
    """Random tensors, ten decoder rows of which are nearly those of every other seed."""
    generator, shared = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    with torch.no_grad():
        for name, tensor in sae.named_parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.6)
            if name == "threshold":
                tensor.abs_()
        common = torch.randn(10, sae.W_dec.shape[1], generator=shared)
        sae.W_dec[:10] = common + 0.02 * torch.randn(common.shape, generator=generator)
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold = torch.tensor(0.73, dtype=torch.float64)
    return sae


KINDS = {
    "TopKSAE": {"k": 3}, "JumpReLUSAE": {}, "GatedSAE": {}, "StandardSAE": {"normalize_activations": "layer_norm"},
    "TopKTrainingSAE": {"k": 3}, "BatchTopKTrainingSAE": {"k": 3}, "JumpReLUTrainingSAE": {},
    "MatryoshkaBatchTopKTrainingSAE": {"k": 3, "matryoshka_widths": [8, 24]},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_saelens_objects_are_what_the_library_saves(library, kind, tmp_path):
    config = getattr(library, f"{kind}Config")(d_in=8, d_sae=24, **KINDS[kind])
    saes = [filled(getattr(library, kind)(config), seed) for seed in range(3)]
    before = [{name: tensor.clone() for name, tensor in sae.state_dict().items()} for sae in saes]
    frame = seedscope.from_saelens(saes, quiet=True)
    for sae, tensors in zip(saes, before, strict=True):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in sae.state_dict().items())
    for i, sae in enumerate(saes):
        (getattr(sae, "save_inference_model", None) or sae.save_model)(tmp_path / f"{i}")
    enrol(tmp_path / "root", "mine", "saes", [tmp_path / f"{i}" for i in range(3)])
    plan = json.loads((tmp_path / "root/mine/study.json").read_text())
    assert [member["digest"] for member in plan["ensembles"][0]["members"]] == list(frame.attrs["digests"].values())
    shared = frame[frame["feature"] < 10]
    assert (shared["stability"] == 1).all()
    assert (shared[["cosine_seed_0", "cosine_seed_1", "cosine_seed_2"]].min(axis=1) > 0.95).all()


@pytest.mark.slow
def test_a_scale_that_saelens_has_not_folded_in_is_refused_and_a_folded_one_changes_no_direction(library):
    config = library.TopKSAEConfig(d_in=8, d_sae=24, k=3, normalize_activations="expected_average_only_in")
    saes = [filled(library.TopKSAE(config), seed) for seed in range(3)]
    with pytest.raises(ValueError, match="trained on activations that were scaled"):
        seedscope.from_saelens(saes, quiet=True)
    before = [torch.nn.functional.normalize(sae.W_dec.detach(), dim=1).clone() for sae in saes]
    for sae in saes:
        sae.fold_activation_norm_scaling_factor(1.7)
        sae.cfg.normalize_activations = "none"
    frame = seedscope.from_saelens(saes, quiet=True)
    expected = (before[0] @ before[1].T).amax(1).numpy()
    np.testing.assert_allclose(frame.loc[frame["member"] == 0, "cosine_seed_1"], expected, atol=1e-5)
