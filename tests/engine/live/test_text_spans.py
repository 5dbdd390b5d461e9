"""Shared spans on a text: against plain NumPy, against the stored contexts, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seedscope.app.store.studies import Studies
from seedscope.engine.contract.queries import MAX_TEXT_SPANS, LiveQuery, span_id
from seedscope.engine.contract.tables.shared_spans import (
    SharedSpan,
    SharedSpanContext,
    SharedSpanDirection,
    SharedSpanFeature,
)
from seedscope.engine.live.active import active_features
from seedscope.engine.live.residents import Residents
from seedscope.engine.live.text_spans import SpanStrengths, TextSpan, read_spans
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.sae import SAE
from support.golden import topk_codes
from support.span_study import N_SEEDS, SPAN_ENSEMBLE, SPAN_STUDY

TEXT = 'def parse(self, text):\n    """Parse a text."""\n    return [int(part) for part in text.split(",")]\n'


@pytest.fixture(scope="module")
def root(span_root) -> Path:
    return span_root[0]


@pytest.fixture(scope="module")
def store(root):
    return Studies(root).get(SPAN_STUDY)


@pytest.fixture(scope="module")
def residents(root) -> Residents:
    return Residents(root, "cpu")


@pytest.fixture(scope="module")
def query(store) -> LiveQuery:
    folder = store.ensemble(SPAN_ENSEMBLE).folder
    return LiveQuery("try", SPAN_STUDY, SPAN_ENSEMBLE, folder, tuple(range(N_SEEDS)), text=TEXT, span="all")


def answered(residents, query):
    (answer,) = residents.answer([query])
    assert answer.error is None
    return answer.arrays


def doubled(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def hidden(model, text: str) -> np.ndarray:
    """What transformers itself says of the hook point, BOS left out, in float64."""
    ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        found = model.network(torch.tensor([ids]), output_hidden_states=True).hidden_states[3]
    return found[0, 1:].double().numpy()


def basis_of(store, span: str) -> np.ndarray:
    axes = store.rows(SharedSpanDirection, "span = ? AND basis = -1", [span])
    return np.array([axis.vector for axis in sorted(axes, key=lambda axis: axis.axis)], float)


def test_strengths_and_raw_projections_are_those_of_plain_numpy(residents, query, store, span_root, language_model):
    saes, x = span_root[1], hidden(language_model, TEXT)
    W_enc, b_enc, W_dec, b_dec = map(doubled, (saes.W_enc, saes.b_enc, saes.W_dec, saes.b_dec))
    found = answered(residents, query)
    kept = store.rows(SharedSpan, "kept")
    assert {span_id(number) for number in found["span"].tolist()} == {row.span for row in kept}
    assert "raw" not in found
    assert found["strength"].shape == (2, N_SEEDS, len(x))
    for number, strength in zip(found["span"].tolist(), found["strength"], strict=True):
        basis, members = basis_of(store, span_id(number)), store.rows(SharedSpanFeature, "span = ?", [span_id(number)])
        alone = answered(residents, replace(query, span=span_id(number)))
        np.testing.assert_array_equal(alone["span"], [number])
        np.testing.assert_array_equal(alone["strength"], strength[None])
        for seed in range(N_SEEDS):
            norms = np.linalg.norm(W_dec[seed], axis=1)
            codes = topk_codes(x, W_enc[seed], b_enc[seed], b_dec[seed], saes.k) * norms
            mine = [row.feature for row in members if row.seed == seed]
            unit = W_dec[seed, mine] / norms[mine, None]
            inside = (codes[:, mine] @ unit) @ basis.T @ basis
            np.testing.assert_allclose(strength[seed], np.linalg.norm(inside, axis=1), rtol=1e-3, atol=1e-3)
            raw = np.linalg.norm((x - b_dec[seed]) @ basis.T @ basis, axis=1)
            np.testing.assert_allclose(alone["raw"][seed], raw, rtol=1e-3, atol=1e-3)


def test_the_strongest_span_on_the_text_comes_first(residents, query):
    for text in (TEXT, "x = 1", "class A:\n    pass\n"):
        strength = answered(residents, replace(query, text=text))["strength"].astype(float)
        energy = (strength**2).sum((1, 2))
        assert (np.diff(energy) <= 0).all()


def test_a_document_has_the_strengths_of_its_stored_contexts(residents, query, store, corpus, study_config):
    """Within the first window: the text is cut as the evaluation tokens were."""
    texts, n_compared = dict(corpus.held_out), 0
    on_text = {name: answered(residents, replace(query, text=text)) for name, text in texts.items()}
    for row in store.rows(SharedSpanContext):
        found = on_text[store.documents[row.document]]
        first = row.position - row.peak
        here = found["strength"][found["span"].tolist().index(int(row.span, 16)), row.seed]
        if first + len(row.token_ids) > len(here):
            continue
        assert found["id"][first : first + len(row.token_ids)].tolist() == row.token_ids
        np.testing.assert_allclose(here[first : first + len(row.token_ids)], row.norms, rtol=2e-3, atol=2e-2)
        n_compared += len(row.token_ids)
    assert n_compared > 20


def test_features_are_the_same_whether_or_not_spans_are_measured(residents, query):
    found, without = answered(residents, query), answered(residents, replace(query, span=""))
    assert set(found) - set(without) == {"span", "strength"}
    for name, array in without.items():
        np.testing.assert_array_equal(found[name], array)


def test_an_ensemble_without_kept_spans_has_none_on_a_text(study_root, study_config):
    (folder,) = (study_root / study_config.name / "sae" / study_config.ensemble).iterdir()
    place = str(folder.relative_to(study_root / study_config.name))
    query = LiveQuery(
        "try", study_config.name, study_config.ensemble, place, study_config.train.seeds, text=TEXT, span="all"
    )
    residents = Residents(study_root, "cpu")
    assert not {"span", "strength", "raw"} & set(answered(residents, query))
    (answer,) = residents.answer([replace(query, span="0" * 12)])
    assert "none, for no span was kept" in answer.error


@pytest.mark.parametrize("span", ["0" * 12, "x", "' OR 1", "../.."])
def test_a_span_that_was_not_kept_is_refused_and_others_in_the_batch_are_not(residents, query, store, span):
    bad, good = residents.answer([replace(query, span=span), query])
    assert bad.cause == "query"
    assert all(row.span in bad.error for row in store.rows(SharedSpan, "kept"))
    assert good.error is None
    assert len(good.arrays["span"]) == 2


def test_what_is_resident_names_the_spans(residents, query):
    answered(residents, query)
    assert any(name.endswith("shared spans") for name in residents.status()["resident"])


def test_spans_are_read_in_the_order_of_their_numbers_with_members_by_seed(root, store):
    (spans,) = read_spans(store.path, SPAN_ENSEMBLE)
    kept = sorted(store.rows(SharedSpan, "kept"), key=lambda row: row.number)
    assert [(one.id, len(one.basis)) for one in spans] == [(row.span, row.rank) for row in kept]
    for one in spans:
        rows = store.rows(SharedSpanFeature, "span = ?", [one.id])
        assert {(s, f) for s, fs in one.features.items() for f in fs.tolist()} == {(r.seed, r.feature) for r in rows}
    assert read_spans(store.path, "none").spans == []


# -- any number of spans, and SAEs of other conventions ------------------------------------------------------------


def made(convention: Convention, *, d_out: int = 12, seed: int = 0) -> SAE:
    rng = np.random.default_rng(seed)
    shapes = [(1, 8, 30), (1, 30), (1, 30, d_out), (1, d_out)]
    return SAE(
        *(torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for shape in shapes),
        seeds=(3,),
        convention=convention,
    )


def spans_of(n: int, d_out: int, *, per_span: int = 1) -> list[TextSpan]:
    rng = np.random.default_rng(1)
    bases = [np.linalg.qr(rng.standard_normal((d_out, 2)))[0].T.astype(np.float32) for _ in range(n)]
    places = np.arange(n * per_span).reshape(n, per_span)
    return [TextSpan(f"{i:012x}", basis, {3: places[i]}) for i, basis in enumerate(bases)]


def measured(sae: SAE, spans: list[TextSpan], asked: str = "all") -> dict[str, np.ndarray]:
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((9, 8)).astype(np.float32)) * 3 + 1
    with torch.no_grad():
        codes = sae.encode(x)
        on_text = SpanStrengths(spans, asked)
        on_text.add(3, sae, x, codes, active_features(sae, codes, np.ones(9, bool)))
    return on_text.arrays(7) | {"x": x.double().numpy()}


def test_an_answer_holds_the_strongest_spans_alone_and_the_first_tokens(make_sae):
    sae = made(Convention("topk", k=20, subtract_b_dec=False), d_out=8)
    found = measured(sae, spans_of(24, 8))
    assert found["strength"].shape == (MAX_TEXT_SPANS, 1, 7)
    assert found["span"].dtype == np.int64
    every = np.stack([measured(sae, spans_of(24, 8), f"{i:012x}")["strength"][0] for i in range(24)])
    energy = (every.astype(float) ** 2).sum((1, 2))
    np.testing.assert_array_equal(found["span"], np.argsort(-energy, kind="stable")[:MAX_TEXT_SPANS])


def test_a_span_without_members_in_a_seed_is_silent_there():
    sae = made(Convention("topk", k=20), d_out=8)
    (one,) = spans_of(1, 8)
    assert not measured(sae, [one._replace(features={5: np.arange(4)})])["strength"].any()


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale", "centre"])
@pytest.mark.parametrize("input_scale", [1.0, 0.25])
def test_raw_projections_are_in_the_saes_own_units(normalize, input_scale):
    sae = made(Convention("topk", k=20, normalize=normalize, input_scale=input_scale), d_out=8)
    (one,) = spans_of(1, 8)
    found = measured(sae, [one], one.id)
    x = found["x"] * input_scale
    if normalize in ("layer_norm", "centre"):
        x = x - x.mean(1, keepdims=True)
    if normalize == "layer_norm":
        x = x / (x.std(1, ddof=1, keepdims=True) + 1e-5)
    if normalize == "constant_norm_rescale":
        x = x / np.linalg.norm(x, axis=1, keepdims=True) * 8**0.5
    expected = np.linalg.norm((x - doubled(sae.b_dec)[0]) @ one.basis.T.astype(float), axis=1)
    np.testing.assert_allclose(found["raw"], expected[None, :7], rtol=1e-3)


def test_a_transcoder_has_strengths_and_no_raw_projection():
    """What it reads is not where its decoder rows are directions."""
    sae = made(Convention("topk", k=20, subtract_b_dec=False, transcoder=True))
    (one,) = spans_of(1, 12, per_span=5)
    found = measured(sae, [one], one.id)
    assert found["strength"].any()
    assert "raw" not in found
