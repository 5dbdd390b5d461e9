"""A feature's exact loss on its page and in its twin: against the same passes made by hand, and what is refused."""

import shutil

import numpy as np
import pytest
from starlette.testclient import TestClient

from seedscope.engine.activations.model import LanguageModel
from seedscope.engine.activations.tokens import TokenSet, load_tokens
from seedscope.engine.features.loss import Splice, masked
from seedscope.engine.saes import sae
from support.reading import answered, browse, text_of

PLACE = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def tokens(study_root) -> TokenSet:
    return load_tokens(study_root / "small" / "parts")


@pytest.fixture(scope="module")
def busy(client, address) -> dict:
    """A feature of seed 1 that fires often."""
    table = client.get(f"{address}/features.json?seed=1&sort=density").json()
    return client.get(f"{address}/1/{table['rows'][0]['feature']}.json").json()


def test_the_twin_holds_what_two_spliced_runs_over_the_same_windows_differ_by(
    client, address, busy, tokens, language_model: LanguageModel, ensemble_saes: sae.SAE
):
    told = answered(client, f"{address}/1/{busy['feature']}/loss.json?tokens=2000").json()
    chosen = tokens.sample(2000)
    splice, member = Splice(language_model, chosen, PLACE), ensemble_saes.only(1)
    with_it, without = (splice.losses(masked(member, np.array(m, np.int64))).double() for m in ([], [busy["feature"]]))
    assert told["n_tokens"] == splice.n_tokens
    assert told["n_windows"] == len(chosen.ids)
    assert told["added_nats"] == pytest.approx(float((without - with_it).mean()), abs=1e-6)
    assert told["added_low"] <= told["added_nats"] <= told["added_high"]
    assert told["added_low"] < told["added_high"]
    assert told["first_order_nats"] == busy["ablation"]["marginal_loss_nats"]
    assert told["added_where_active_nats"] * told["n_active"] == pytest.approx(told["added_nats"] * told["n_tokens"])


def test_on_its_contexts_a_feature_is_active_in_every_window(client, address, busy):
    told = answered(client, f"{address}/1/{busy['feature']}/loss.json?windows=contexts").json()
    places = {(c["document"], c["position"]) for c in busy["contexts"] if c["group"] == 0}
    assert told["n_windows"] == told["n_windows_active"] == len(places) == 20


def test_the_page_says_what_the_twin_says(client, address, busy):
    path = f"{address}/1/{busy['feature']}/loss"
    told, page = answered(client, f"{path}.json").json(), text_of(answered(client, path).text)
    assert f"{1000 * told['added_nats']:+.3f}" in page
    assert f"{told['n_active']:,} of {told['n_tokens']:,} tokens" in page
    feature_page = client.get(f"{address}/1/{busy['feature']}").text
    assert f'hx-get="{path}"' in feature_page


def test_a_feature_that_is_silent_on_these_tokens_is_said_to_be(client, address, tokens):
    rare = client.get(f"{address}/features.json?seed=1&sort=density&dir=asc").json()["rows"]
    rare = next(each for each in rare if each["n_active"] and each["n_active"] < 5)
    page = text_of(answered(client, f"{address}/1/{rare['feature']}/loss?tokens=1").text)
    assert "silent on these" in page or "It is active on" in page
    told = answered(client, f"{address}/1/{rare['feature']}/loss.json?windows=contexts").json()
    assert told["n_active"] >= 1


@pytest.mark.parametrize(
    ("query", "expected"), [("tokens=0", "tokens"), ("tokens=99999999", "tokens"), ("windows=all", "windows")]
)
def test_bad_values_are_refused_by_name(client: TestClient, address, query, expected):
    refused = client.get(f"{address}/1/5/loss.json?{query}")
    assert refused.status_code == 422
    assert refused.json()["problems"][0]["name"] == expected


def test_a_study_without_its_tokens_says_how_to_get_them_back(study_root, tmp_path, address):
    root = tmp_path / "root"
    shutil.copytree(study_root / "small", root / "small")
    (root / "small" / "parts" / "tokens.npz").unlink()
    with browse(root) as client:
        answer = answered(client, f"{address}/1/5/loss.json")
    assert answer.status_code == 422
    assert "seedscope analyze small" in answer.text


def test_with_another_seeds_feature_in_its_place_the_loss_is_that_of_a_pass_made_by_hand(
    client, address, busy, tokens, language_model: LanguageModel, ensemble_saes: sae.SAE
):
    match = busy["matches"][0]
    path = f"{address}/1/{busy['feature']}/loss"
    told = answered(client, f"{path}.json?tokens=2000&by={match['seed']}/{match['partner']}").json()
    chosen = tokens.sample(2000)
    splice, member = Splice(language_model, chosen, PLACE), ensemble_saes.only(1)
    other = ensemble_saes.only(list(ensemble_saes.seeds).index(match["seed"]))
    lacking, row = masked(member, np.array([busy["feature"]])), other.W_dec[0, match["partner"]]

    def exchanged(rows):
        codes = other.encode(rows)
        own = (codes.values * (codes.indices == match["partner"])).sum(-1)  # (tokens, 1)
        return lacking(rows) + own * row

    change = splice.losses(exchanged).double() - splice.spliced(member)
    assert told["replaced_nats"] == pytest.approx(float(change.mean()), abs=1e-6)
    assert told["replaced_low"] <= told["replaced_nats"] <= told["replaced_high"]
    alone = answered(client, f"{path}.json?tokens=2000").json()
    assert told["added_nats"] == pytest.approx(alone["added_nats"], abs=1e-7)
    assert alone["by"] is alone["replaced_nats"] is alone["kept"] is None
    if told["kept"] is not None:
        assert told["kept"] == pytest.approx(1 - told["replaced_nats"] / told["added_nats"])
    page = text_of(answered(client, f"{path}?tokens=2000&by={match['seed']}/{match['partner']}").text)
    assert f"#{match['partner']} of seed {match['seed']}" in page


@pytest.mark.parametrize(("by", "status"), [("1/3", 404), ("77/3", 404), ("0/99999", 404), ("here", 422)])
def test_a_stand_in_that_there_is_not_is_refused(client, address, by, status):
    assert client.get(f"{address}/1/5/loss.json?by={by}").status_code == status
