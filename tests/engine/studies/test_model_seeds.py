"""An SAE per language model in one space: models of other seeds, small ones of the families that the product reads."""

from dataclasses import replace

import numpy as np
import pytest

from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.contract.sources import MODELS, OF_MODELS, cause_of, settings_of
from seedscope.engine.progress import Progress
from seedscope.engine.store import catalogue
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.model_seeds import OWN_MODELS, train_on_models, trained_models
from support.tiny_models import VOCABULARY, tiny, tokenizer

HOOKPOINT = "blocks.1.hook_resid_post"
CONFIG = TrainConfig(d_sae=16, k=2, seeds=(0, 1), n_tokens=32 * 40, batch=32, lr=1e-2, **settings_of(OF_MODELS, 2))


@pytest.fixture(scope="module")
def tokens() -> TokenSet:
    ids = np.random.default_rng(0).integers(2, VOCABULARY, size=(130, 48)).astype(np.int32)
    ids[:, 0] = 0
    return TokenSet(ids, np.arange(130), np.zeros(130, np.int64), [str(i) for i in range(130)], 0)


def train(folder, models, tokens):
    config = replace(CONFIG, n_tokens=32 * 180)  # rows enough to leave some out of the fit
    return train_on_models(folder, "by-model", config, models, HOOKPOINT, models[0], tokens, Progress(quiet=True))


def test_a_model_laid_over_itself_is_the_same(tmp_path, tokens):
    one = tiny("llama")
    entry = train(tmp_path, [one, one._replace(name="twin")], tokens)
    (remark,) = entry.remarks
    assert "R2 = 1.000 " in remark
    assert cause_of(entry.recipe) == "model"


def test_other_models_are_laid_over_the_first_and_nothing_is_measured_on_the_study_s_own(tmp_path, tokens):
    models = [tiny("llama"), tiny("llama", seed=1)]
    entry = train(tmp_path, models, tokens)
    assert entry.hookpoint is None
    assert (entry.recipe or {})[MODELS] == [model.digest for model in models]
    assert OWN_MODELS in entry.remarks[0]
    assert HOOKPOINT in entry.remarks[0]
    again = train(tmp_path, models, tokens)
    assert [member.digest for member in again.members] == [member.digest for member in entry.members]
    catalogue.write(catalogue.StudyPlan("s").with_ensemble(entry), tmp_path)
    analyse(tmp_path, only=("match",), progress=Progress(quiet=True))
    assert (tmp_path / "parts" / "by-model").exists()


def test_models_with_other_tokenizers_are_refused(tmp_path, tokens):
    other = tiny("llama", seed=1)._replace(tokenizer=tokenizer(bos=False))
    other.tokenizer.add_tokens(["more"])
    with pytest.raises(ValueError, match=r"tokenizers of .* differ, expected one"):
        train(tmp_path, [tiny("llama"), other], tokens)


@pytest.mark.slow
def test_models_of_other_seeds_are_trained_once_and_differ(tmp_path):
    quiet = Progress(quiet=True)
    first, second = trained_models(tmp_path, 2, 1, quiet)
    weights = [(place / "model.safetensors").read_bytes() for place in (first, second)]
    assert weights[0] != weights[1]
    before = [(place / "model.safetensors").stat().st_mtime_ns for place in (first, second)]
    assert trained_models(tmp_path, 2, 1, quiet) == [first, second]
    assert [(place / "model.safetensors").stat().st_mtime_ns for place in (first, second)] == before
