"""A text run through model and members: against plain NumPy, against the stored contexts, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seedscope.app.store.studies import Studies
from seedscope.engine.activations.harvest import LanguageModel, load_model
from seedscope.engine.contract.queries import MAX_TEXT, LiveAnswer, LiveQuery
from seedscope.engine.contract.recipe import StudyConfig
from seedscope.engine.demo import stdlib
from seedscope.engine.live.active import active_features
from seedscope.engine.live.residents import Residents
from seedscope.engine.live.text import answer, find_place, load_reader, read
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.sae import SAE, load
from seedscope.engine.store import catalogue
from support.golden import normalised_forward, topk_codes
from support.tiny_models import CONTEXT, WIDTH, save, tiny, tokenizer

TEXT = 'def parse(self, text):\n    """Parse a text."""\n    return [int(part) for part in text.split(",")]\n'
SEEDS = (2, 5, 7)


@pytest.fixture(scope="module")
def query(study_root: Path, study_config: StudyConfig) -> LiveQuery:
    study, ensemble = study_config.name, study_config.ensemble
    (folder,) = (study_root / study / "sae" / ensemble).iterdir()
    folder = str(folder.relative_to(study_root / study))
    return LiveQuery("try", study, ensemble, folder, study_config.train.seeds, text=TEXT)


@pytest.fixture(scope="module")
def residents(study_root: Path) -> Residents:
    return Residents(study_root, "cpu")


def answered(residents: Residents, query: LiveQuery) -> LiveAnswer:
    (answer,) = residents.answer([query])
    assert answer.error is None
    return answer


def dense(answer: LiveAnswer, d_sae: int) -> np.ndarray:
    """(members, tokens, d_sae) activations."""
    count = answer.arrays["count"]
    found = np.zeros((count.size, d_sae), np.float32)
    found[np.repeat(np.arange(count.size), count.ravel()), answer.arrays["feature"]] = answer.arrays["activation"]
    return found.reshape(*count.shape, d_sae)


def hidden_states(model: LanguageModel, ids: list[int], layer: int) -> np.ndarray:
    """What transformers itself says of a layer's output, in float64."""
    with torch.no_grad():
        found = model.network(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1]
    return found[0].double().numpy()


def doubled(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


# -- what it computes ----------------------------------------------------------------------------------------------


def test_activations_are_those_of_plain_numpy(
    residents: Residents, query: LiveQuery, language_model: LanguageModel, ensemble_saes: SAE
):
    found = answered(residents, query)
    ids = [
        language_model.tokenizer.bos_token_id,
        *language_model.tokenizer(TEXT, add_special_tokens=False)["input_ids"],
    ]
    rows = hidden_states(language_model, ids, 2)[1:]
    tensors = [doubled(t) for t in (ensemble_saes.W_enc, ensemble_saes.b_enc, ensemble_saes.b_dec)]
    norms = np.linalg.norm(doubled(ensemble_saes.W_dec), axis=2)
    expected = [topk_codes(rows, *(t[m] for t in tensors), ensemble_saes.k) * norms[m] for m in range(len(query.seeds))]
    np.testing.assert_allclose(dense(found, ensemble_saes.d_sae), expected, rtol=1e-4, atol=1e-4)
    assert found.arrays["id"].tolist() == ids[1:]
    assert "".join(found.texts) == TEXT
    assert found.arrays["extent"].tolist() == [len(ids) - 1] * 2
    assert found.arrays["counts"].all()


def test_features_of_a_token_come_strongest_first(residents: Residents, query: LiveQuery):
    found = answered(residents, query)
    ends = found.arrays["count"].ravel().cumsum()
    for part in np.split(found.arrays["activation"], ends[:-1]):
        assert (np.diff(part) <= 0).all()
        assert (part > 0).all()


def test_a_document_of_the_evaluation_tokens_has_the_activations_of_its_stored_contexts(
    residents: Residents, query: LiveQuery, study_root: Path, corpus: stdlib.Corpus, ensemble_saes: SAE
):
    store = Studies(study_root).get(query.study)
    documents = dict(corpus.held_out)
    activations = {
        name: dense(answered(residents, replace(query, text=text)), ensemble_saes.d_sae)
        for name, text in documents.items()
    }
    n_compared = 0
    for member, seed in enumerate(query.seeds):
        for feature in range(ensemble_saes.d_sae):
            for context in store.contexts(query.ensemble, seed, feature):
                found = activations[store.documents[context.document]][member]
                first = context.position - context.peak
                if first + len(context.token_ids) > len(found):
                    continue  # beyond the first window, which is all that is read of a text
                here = found[first : first + len(context.token_ids), feature]
                stored = np.array(context.activations)
                # A token may change sides where the k-th and the next feature are equal but for float16.
                both = (here > 0) & (stored > 0)
                assert ((here > 0) == (stored > 0)).mean() > 0.9
                # Stored ones come from float16 rows: each of their numbers is off by up to 5e-4 of itself.
                np.testing.assert_allclose(here[both], stored[both], rtol=1e-3, atol=5e-3)
                n_compared += both.sum()
    assert n_compared > 100


CONVENTIONS = [
    Convention("relu"),
    Convention("topk", k=3, rescale_by_decoder_norm=True),
    Convention("groupmax", k=4),
    Convention("jumprelu", normalize="layer_norm"),
    Convention("gated", normalize="constant_norm_rescale", subtract_b_dec=False),
]


@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda c: c.architecture)
def test_every_architecture_is_encoded_as_written_out(convention: Convention):
    rng = np.random.default_rng(1)
    d_in, d_sae = 6, 20
    tensors = {"W_enc": rng.normal(size=(d_in, d_sae)), "b_enc": rng.normal(size=d_sae), "b_dec": rng.normal(size=d_in),
               "W_dec": rng.normal(size=(d_sae, d_in)) * rng.uniform(0.1, 3, (d_sae, 1))}  # fmt: skip
    more = {name: rng.normal(size=d_sae) ** 2 for name in convention.tensors if name not in tensors}
    tensors |= more
    stacked = {name: torch.from_numpy(tensor)[None] for name, tensor in tensors.items()}
    sae = SAE(**{n: t for n, t in stacked.items() if n not in more}, more={n: stacked[n] for n in more}, seeds=(0,),
              convention=convention)  # fmt: skip
    x = rng.normal(size=(9, d_in))
    counts = np.arange(9) != 4
    codes, _ = normalised_forward(x, tensors, convention)
    norms = 1 if convention.rescale_by_decoder_norm else np.linalg.norm(tensors["W_dec"], axis=1)
    expected = codes * norms * counts[:, None]
    found = np.zeros_like(expected)
    active = active_features(sae, sae.encode(torch.from_numpy(x)), counts)
    found[np.repeat(np.arange(9), active.n_active), active.feature] = active.activation
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert active.n_active.tolist() == (expected > 0).sum(1).tolist()


def test_rows_without_a_direction_and_activations_that_are_no_numbers_are_not_active(make_sae: Callable[..., SAE]):
    sae = make_sae(members=1, k=20)
    x = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_dec[0, 3] = 0
        sae.W_dec[0, 4, 1] = torch.nan
        sae.W_enc[0, :, 5] = torch.inf
    active = active_features(sae, sae.encode(x), np.ones(50, bool))
    assert set(range(20)) - {3, 4, 5} == set(active.feature.tolist())
    assert np.isfinite(active.activation).all()


# -- how a text is read --------------------------------------------------------------------------------------------


def test_a_text_is_cut_where_the_study_cuts_its_windows(
    residents: Residents, query: LiveQuery, study_config: StudyConfig, language_model: LanguageModel
):
    found = answered(residents, replace(query, text=TEXT * 4))
    n_all = len(language_model.tokenizer(TEXT * 4)["input_ids"])
    n_read = study_config.n_ctx - 1  # behind BOS
    assert found.arrays["extent"].tolist() == [n_read, n_all]
    assert len(found.texts) == n_read < n_all
    assert (TEXT * 4).startswith("".join(found.texts))
    short = answered(residents, query).arrays
    n = min(len(short["id"]), n_read)  # what comes behind does not change what is in front
    assert found.arrays["count"][:, :n].tolist() == short["count"][:, :n].tolist()


def test_texts_of_one_batch_are_answered_as_alone_and_a_bad_one_spoils_none(residents: Residents, query: LiveQuery):
    texts = [TEXT, "", "x", TEXT * 9, " ", "y" * (MAX_TEXT + 1), "import os"]
    queries = [replace(query, text=text) for text in texts]
    assert len({each.shared_key() for each in queries}) == 1
    together = residents.answer(queries)
    assert [found.error is None for found in together] == [True, False, True, True, True, False, True]
    assert together[1].error == f"the text has 0 characters, expected 1 to {MAX_TEXT:,}"
    assert f"the text has {MAX_TEXT + 1:,} characters" in together[5].error
    for each, found in zip(queries, together, strict=True):
        if found.error is None:
            alone = answered(residents, each)
            assert found.texts == alone.texts
            for name in ("id", "count", "extent"):
                assert found.arrays[name].tolist() == alone.arrays[name].tolist()
            np.testing.assert_allclose(dense(found, 96), dense(alone, 96), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "   ",
        "\0\a\x1b[31m",
        "שלום עולם",
        "مرحبا",
        "😀👩\u200d👩\u200d👧",
        "\u202egnirts",
        "\ud800",
        "\n\n\t",
        "<script>",
    ],
)
def test_any_characters_can_be_read(residents: Residents, query: LiveQuery, text: str):
    found = answered(residents, replace(query, text=text))
    assert len(found.texts) == len(found.arrays["id"]) > 0
    whole = "".join(found.texts).encode(errors="surrogatepass").decode("latin-1")
    assert all(f"<0x{byte:02X}>" in whole or chr(byte) in whole for byte in text.encode(errors="replace"))


@pytest.mark.parametrize("bos", ["exclude", "include"])
def test_bos_counts_only_where_the_study_counts_it(bos: str):
    model = tiny("gpt2")
    window = read(model, "w5 w6 <s> w7", catalogue.Tokens((), bos=bos))
    assert window.ids.tolist() == [0, 5, 6, 0, 7]
    assert (window.n_read, window.n_all) == (4, 4)
    shown = window.ids[window.shown :].tolist()
    assert shown == ([5, 6, 0, 7] if bos == "exclude" else [0, 5, 6, 0, 7])
    assert window.counts.tolist() == [bos == "include" or each != 0 for each in shown]


def test_a_text_without_tokens_and_one_that_ends_the_window_exactly():
    model = tiny("gpt2")
    with pytest.raises(ValueError, match="makes no token of this text"):
        read(model, "   ", catalogue.Tokens(()))
    words = " ".join(["w9"] * (CONTEXT - 1))
    assert read(model, words, catalogue.Tokens(()))[3:] == (CONTEXT - 1, CONTEXT - 1)
    assert read(model, words + " w9", catalogue.Tokens(()))[3:] == (CONTEXT - 1, CONTEXT)
    assert read(model, words, catalogue.Tokens((), n_ctx=8))[3:] == (7, CONTEXT - 1)


# -- studies of any model --------------------------------------------------------------------------------------------


def make_study(root: Path, saes: SAE, family: str, **plan: object) -> LiveQuery:
    """A study as far as the engine looks at one, with a tiny model; returns a query of it."""
    study = root / "tiny"
    saes.save(study / "sae")
    (study / "study-1.duckdb").touch()
    (study / "CURRENT").write_text("study-1.duckdb\ntests\n")
    ensemble = catalogue.EnsemblePlan(
        "some",
        "imported",
        "sae",
        tuple(catalogue.MemberPlan(s, "0") for s in saes.seeds),
        hookpoint="blocks.1.hook_resid_post",
    )
    held = {"model": str(root / "model"), "tokens": catalogue.Tokens(()), "ensembles": (ensemble,)} | plan
    catalogue.write(catalogue.StudyPlan("tiny", **held), study)
    if not (root / "model").exists():
        save(root / "model", family)
    return LiveQuery("try", "tiny", "some", "sae", saes.seeds, text="w5 w6 w7")


@pytest.fixture
def saes(make_sae: Callable[..., SAE]) -> SAE:
    made = make_sae(d_in=WIDTH, dtype=np.float64)
    made.seeds = SEEDS
    return made


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_causal_and_encoder_models_are_read_alike(tmp_path: Path, saes: SAE, family: str):
    query = make_study(tmp_path, saes, family)
    found = answered(Residents(tmp_path, "cpu"), query)
    model = load_model(str(tmp_path / "model"))
    with torch.no_grad():
        rows = model.network(torch.tensor([[0, 5, 6, 7]]), output_hidden_states=True).hidden_states[2][0, 1:].double()
    norms = np.linalg.norm(doubled(saes.W_dec), axis=2)
    expected = [
        topk_codes(rows.numpy(), doubled(saes.W_enc[m]), doubled(saes.b_enc[m]), doubled(saes.b_dec[m]), saes.k)
        * norms[m]
        for m in range(3)
    ]
    np.testing.assert_allclose(dense(found, saes.d_sae), expected, rtol=1e-3, atol=1e-4)
    assert found.texts == ["w5", "w6", "w7"]


def test_a_text_with_too_many_active_features_is_cut_where_they_no_longer_fit(tmp_path: Path, saes: SAE):
    query = replace(make_study(tmp_path, saes, "gpt2"), text=" ".join(["w5", "w6"] * 10))
    reader = load_reader(str(tmp_path / "model"), digest="", device=torch.device("cpu"))
    place = find_place(tmp_path / "tiny", query)

    def tried(most: int) -> LiveAnswer:
        with torch.inference_mode():
            (found,) = answer([query], reader, place, lambda seed: load(tmp_path / "tiny" / "sae", (seed,)), most=most)
        return found

    whole = tried(10**6)
    totals = whole.arrays["count"].sum(0).cumsum()
    cut = tried(int(totals[6]))
    assert cut.arrays["extent"].tolist() == [7, 20]
    assert len(cut.texts) == len(cut.arrays["id"]) == len(cut.arrays["counts"]) == 7
    np.testing.assert_array_equal(dense(cut, 20), dense(whole, 20)[:, :7])
    assert tried(int(totals[6]) - 1).arrays["extent"].tolist() == [6, 20]
    assert tried(1).arrays["extent"].tolist() == [1, 20]  # never none


def without_tokenizer(root: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (root / "model" / name).unlink()


REFUSALS = [
    ({"model": None}, {}, "study tiny has no model to read a text; give one: seedscope analyze tiny --model"),
    ({}, {"ensemble": "other"}, "study tiny has no ensemble 'other', it has some"),
    ({}, {"folder": "elsewhere"}, "ensemble some was replaced after these pages were published"),
    ({}, {"folder": "../.."}, "expected a folder inside the study"),
    ({}, {"model": "1234"}, "the study was measured with 1234; put that model back"),
    ({}, {"seeds": (2, 5, 9)}, "SAE files cannot be read"),
    ({}, {"seeds": ()}, "seeds is ()"),
    ({}, {"study": "none"}, "found no published study 'none'"),
    ({"model": "/nowhere/at/all"}, {}, "found no model folder at '/nowhere/at/all'"),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "asked", "says"), REFUSALS)
def test_what_a_study_lacks_is_told(tmp_path: Path, saes: SAE, plan: dict, asked: dict, says: str):
    query = replace(make_study(tmp_path, saes, "gpt2", **plan), **asked)
    residents = Residents(tmp_path, "cpu")
    if asked.get("study"):
        with pytest.raises(ValueError, match=says):
            residents.version(query)
        return
    (found,) = residents.answer([query])
    assert says in found.error
    assert found.cause == "query"


def test_a_missing_catalogue_hook_point_or_tokenizer_is_told(tmp_path: Path, saes: SAE):
    query = make_study(tmp_path, saes, "gpt2")
    plan = catalogue.read(tmp_path / "tiny")
    without_tokenizer(tmp_path)
    assert "has no tokenizer" in Residents(tmp_path, "cpu").answer([query])[0].error
    ensembles = {
        hookpoint: (replace(plan.ensembles[0], hookpoint=hookpoint),) for hookpoint in (None, "blocks.77.hook_mlp_out")
    }
    tokenizer().save_pretrained(tmp_path / "model")
    for hookpoint, says in ((None, "hook point of ensemble some is not known"), ("blocks.77.hook_mlp_out", "77")):
        catalogue.write(replace(plan, ensembles=ensembles[hookpoint]), tmp_path / "tiny")
        assert says in Residents(tmp_path, "cpu").answer([query])[0].error
    (tmp_path / "tiny" / "study.json").unlink()
    assert "found no study.json" in Residents(tmp_path, "cpu").answer([query])[0].error


def test_saes_of_another_width_are_refused(tmp_path: Path, make_sae: Callable[..., SAE]):
    query = make_study(tmp_path, make_sae(d_in=WIDTH + 1), "gpt2")
    (found,) = Residents(tmp_path, "cpu").answer([query])
    assert f"gpt2 has {WIDTH} numbers per token, the SAEs read {WIDTH + 1}" in found.error.replace(
        "model has", "gpt2 has"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_text_on_a_gpu_sets_off_the_same(tmp_path: Path, saes: SAE):
    query = make_study(tmp_path, saes, "gpt2")
    on_cpu, on_gpu = (answered(Residents(tmp_path, device), query) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(dense(on_gpu, saes.d_sae), dense(on_cpu, saes.d_sae), rtol=1e-3, atol=1e-3)
