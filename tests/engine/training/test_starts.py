"""Where members begin, and in which space they are trained: laws of the grid of constraint, start and preprocessing."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from seedscope.engine.contract.recipe import VARIANTS, TrainConfig, as_parameters
from seedscope.engine.demo import stdlib
from seedscope.engine.progress import Progress
from seedscope.engine.studies.studyfile.read import read_study_file
from seedscope.engine.studies.train import train_once, trained_entry
from seedscope.engine.training.ensemble import train_ensemble, training_space
from seedscope.engine.training.members import Training
from seedscope.engine.training.preprocessing import space_of
from seedscope.engine.training.snapshots import kept, units
from seedscope.engine.training.starts import kmeans
from support.golden import unit_rows

CONFIG = TrainConfig(
    d_sae=16, k=3, seeds=(4, 0), n_tokens=64 * 40, batch=64, lr=1e-2, aux_k=4, silent_after=200,
    group_fracs=(0.25, 0.25, 0.5), bandwidth=0.1, l1=0.03,
)  # fmt: skip
ARCHETYPAL = ("archetypal", "relaxed-archetypal")


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Sparse codes times a fixed dictionary, far off centre, with dimensions of unlike size and one that is constant."""
    rng = np.random.default_rng(0)
    codes = np.abs(rng.normal(size=(600, 30))) * (rng.random((600, 30)) < 0.1)
    x = (codes @ rng.normal(size=(30, 8)) + 2 * rng.normal(size=8)) * np.array([1, 4, 0.5, 1, 1, 2, 1, 1])
    x[:, 3] = 1.5
    return x


def train(rows: np.ndarray, **changes: object):
    return train_ensemble(rows, replace(CONFIG, **changes), dtype=torch.float64)


def begun(rows: np.ndarray, **changes: object) -> Training:
    sample = torch.from_numpy(rows)
    return Training(replace(CONFIG, **changes), sample, torch.device("cpu"))


def whitened(rows: np.ndarray, preprocessing: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows as they are trained on, but for the scale; mean; std)."""
    mean = rows.mean(0) * (preprocessing != "raw")
    std = rows.std(0) if preprocessing == "standardised" else np.ones(rows.shape[1])
    std[std == 0] = 1
    return (rows - mean) / std, mean, std


@pytest.mark.parametrize("preprocessing", ["centred", "standardised"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_members_are_those_trained_on_preprocessed_rows_and_take_raw_ones(rows, variant, preprocessing):
    z, mean, std = whitened(rows, preprocessing)
    own, there = train(rows, variant=variant, preprocessing=preprocessing), train(z, variant=variant)
    np.testing.assert_allclose(own.W_dec.detach().numpy() / std, there.W_dec.detach(), atol=1e-9)
    x, preprocessed, mean, std = (torch.from_numpy(each) for each in (rows[:100], z[:100], mean, std))
    with torch.no_grad():
        mine, theirs = own.encode(x), there.encode(preprocessed)
        torch.testing.assert_close(mine.indices, theirs.indices)
        torch.testing.assert_close(mine.values, theirs.values)
        torch.testing.assert_close(own.decode(mine), there.decode(theirs) * std + mean)


@pytest.mark.parametrize("variant", ["gated", "batchtopk", "relaxed-archetypal"])
def test_leaving_the_space_of_training_keeps_codes_up_to_scale_and_reconstructions_and_can_be_undone(rows, variant):
    space = space_of(torch.from_numpy(rows), "standardised")
    z = space.enter(torch.from_numpy(rows))
    assert z.pow(2).sum(1).mean().item() == pytest.approx(1)
    np.testing.assert_allclose(z.std(0, correction=0)[[0, 1, 5]] * space.scale, 1)
    training = begun(z.numpy(), variant=variant)
    for _ in range(20):
        training.advance(z[:64], 0.02, 20, before=lambda step: None)
    inside = training.sae
    with torch.no_grad():
        codes, x_hat = inside.encode(z), inside.decode(inside.encode(z))
        outside = training.standing(space)
        found = outside.encode(torch.from_numpy(rows))
        torch.testing.assert_close(found.values, codes.values * space.scale)
        torch.testing.assert_close(outside.decode(found), x_hat * space.std * space.scale + space.mean[None, None])
        space.come_back(outside)
    for name in inside.convention.tensors:
        torch.testing.assert_close(getattr(outside, name), getattr(inside, name))


def test_rows_begin_at_centroids_or_mixtures_of_points_and_are_of_unit_length(rows):
    def start(kind: str, **changes: object) -> np.ndarray:
        return begun(rows, start=kind, **changes).sae.W_dec.detach().numpy()

    sample = torch.from_numpy(rows)
    shared, own, mixed = (start(kind) for kind in ("kmeans-shared", "kmeans-independent", "mixtures"))
    np.testing.assert_allclose(shared[0], unit_rows(kmeans(sample, 16, seed=0).numpy()))
    np.testing.assert_array_equal(shared[0], shared[1])
    for member, seed in enumerate((0, 4)):
        np.testing.assert_allclose(own[member], unit_rows(kmeans(sample, 16, seed=seed).numpy()))
    assert not np.allclose(mixed[0], mixed[1])
    for made in (start("random"), shared, own, mixed):
        np.testing.assert_allclose(np.linalg.norm(made, axis=-1), 1)
    # A member begins where its seed says, whoever else is trained.
    for kind, made in (("kmeans-independent", own), ("mixtures", mixed)):
        np.testing.assert_array_equal(start(kind, seeds=(4, 7))[0], made[1])


@pytest.mark.parametrize("variant", ARCHETYPAL)
def test_a_random_hull_has_points_of_the_data_and_stochastic_weights_of_each_member_its_own(rows, variant):
    training = begun(rows, variant=variant, centroids="random")
    decoder, made = training.decoder, training.sae.W_dec.detach()
    points = decoder._points.numpy()
    for member in range(2):
        held = {row.tobytes() for row in points[member]}
        assert len(held) == 16
        assert held <= {row.tobytes() for row in rows}
    assert {row.tobytes() for row in points[0]} != {row.tobytes() for row in points[1]}
    assert (decoder.weights > 0).all()
    torch.testing.assert_close(decoder.weights.sum(-1), torch.ones(2, 16, dtype=torch.float64))
    np.testing.assert_allclose(made, np.einsum("mij,mjk->mik", decoder.weights.detach(), points))
    # RA unprojected begins along the same rows.
    free = begun(rows, start="mixtures").sae.W_dec.detach().numpy()
    np.testing.assert_allclose(free, np.stack([unit_rows(each) for each in made.numpy()]))


def test_members_of_a_shared_start_differ_in_their_encoders_and_end_apart(rows):
    training = begun(rows, start="kmeans-shared")
    assert torch.equal(training.sae.W_dec[0], training.sae.W_dec[1])
    assert not torch.allclose(training.sae.W_enc[0], training.sae.W_enc[1])
    trained = train(rows, start="kmeans-shared").W_dec
    assert (trained[0] - trained[1]).abs().max() > 0.01


@pytest.mark.parametrize("preprocessing", ["raw", "standardised"])
def test_without_a_decoder_bias_the_mean_alone_is_added_back(rows, preprocessing):
    own = train(rows, decoder_bias="none", preprocessing=preprocessing)
    np.testing.assert_allclose(own.b_dec.detach(), np.tile(whitened(rows, preprocessing)[1], (2, 1)), atol=1e-12)


def test_only_settings_that_differ_from_the_older_recipe_are_parameters():
    assert as_parameters(replace(CONFIG, start="mixtures")).items() - as_parameters(CONFIG).items() == {
        ("start", "mixtures")
    }
    assert "start" not in TrainConfig(variant="archetypal").uses
    found = as_parameters(TrainConfig(variant="archetypal", preprocessing="centred", decoder_bias="none"))
    assert (found["preprocessing"], found["decoder_bias"]) == ("centred", "none")
    assert not {"preprocessing", "decoder_bias", "start"} & set(as_parameters(TrainConfig(variant="archetypal")))


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({}, False), ({"start": "kmeans-shared"}, True), ({"start": "kmeans-independent"}, False),
        ({"variant": "archetypal"}, True), ({"variant": "relaxed-archetypal", "centroids": "random"}, False),
    ],
)  # fmt: skip
def test_a_trained_ensemble_says_whether_its_start_is_shared_and_keeps_the_units_of_its_space(
    rows, tmp_path, changes, shared
):
    config = replace(CONFIG, preprocessing="standardised", n_tokens=64 * 3, **changes)
    quiet = Progress(quiet=True)
    made = train_once(tmp_path, "e", config, "0", lambda: rows.astype(np.float32), {}, quiet)
    entry = trained_entry(tmp_path, "e", config, "0", made, hookpoint=None)
    assert entry.shared_start == ("yes" if shared else "no")
    folder = tmp_path / entry.folder
    np.testing.assert_allclose(units(folder, 8), whitened(rows, "standardised")[2], rtol=1e-5)
    assert list(load_file(folder / "along" / "space.safetensors")) == ["std"]
    first = kept(folder, config.seeds)[0]
    assert first.step == 0


def test_raw_and_centred_training_leave_no_units(rows, tmp_path):
    for preprocessing in ("raw", "centred"):
        config = replace(CONFIG, preprocessing=preprocessing)
        training_space(rows, config).save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"start": "mixtures"}, {"variant": "archetypal", "centroids": "random"}])
def test_fewer_activations_than_features_are_refused(rows, changes):
    with pytest.raises(ValueError, match="found 10 activations for 16 centroids"):
        begun(rows[:10], **changes)


def test_given_weights_start_a_training_in_a_centred_space_and_not_where_their_rows_are_no_unit_vectors(rows):
    given = train(rows, preprocessing="centred")
    recipe = replace(CONFIG, preprocessing="centred", start="kmeans-shared", lr=1e-12)
    again = train_ensemble(rows, recipe, dtype=torch.float64, start=given)
    torch.testing.assert_close(again.W_dec, given.W_dec)
    torch.testing.assert_close(again.b_dec, given.b_dec)
    with pytest.raises(ValueError, match=r"norms from .* once standardised, expected 1"):
        train_ensemble(rows, replace(recipe, preprocessing="standardised"), dtype=torch.float64, start=given)


# -- the study that comes along ------------------------------------------------------------------------------------


def test_the_embedded_grid_holds_every_place_once_but_those_that_equal_another():
    study = read_study_file(stdlib.HERE / "starts.toml")
    assert study.tokens.source == (stdlib.SOURCE,)
    assert (study.name, study.analyses) == ("pystdlib-starts", ("match", "activity", "trajectory"))
    assert (study.control, study.loss_tokens) == (None, None)
    places, others = [], set()
    for config in (each.config for each in study.ensembles):
        start = config.centroids if config.variant == "relaxed-archetypal" else config.start
        places.append((config.variant, start, config.preprocessing))
        others.add(replace(config, variant="topk", start="random", centroids="shared", preprocessing="raw"))
    assert len(others) == 1  # nothing else differs
    free = ("kmeans-shared", "kmeans-independent", "random", "mixtures")
    wanted = [("topk", start) for start in free]
    wanted += [("relaxed-archetypal", c) for c in ("shared", "independent", "random")]
    spaces = ("raw", "centred", "standardised")
    assert sorted(places) == sorted((*place, space) for place, space in product(wanted, spaces))


def test_an_encoder_begins_as_long_as_the_recipe_says(rows):
    one, short = (begun(rows, encoder_scale=scale).sae for scale in (1, 0.1))
    np.testing.assert_allclose(short.W_enc.detach(), 0.1 * one.W_enc.detach().numpy(), rtol=1e-6)
    np.testing.assert_array_equal(short.W_dec.detach(), one.W_dec.detach())
    np.testing.assert_allclose(one.W_enc.detach().norm(dim=1), 1, rtol=1e-6)
    assert as_parameters(replace(CONFIG, encoder_scale=1)) == as_parameters(CONFIG)
    assert as_parameters(replace(CONFIG, encoder_scale=0.1)) == as_parameters(CONFIG) | {"encoder_scale": 0.1}
    with pytest.raises(ValueError, match=r"encoder_scale is 0.0, expected a number above 0"):
        replace(CONFIG, encoder_scale=0.0)
