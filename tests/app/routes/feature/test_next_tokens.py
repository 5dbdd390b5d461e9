"""A feature's direct logits over the whole vocabulary: against plain NumPy on the model's own weights, and what is refused."""

import shutil

import numpy as np
import pytest

from seedscope.engine.activations.model import LanguageModel
from seedscope.engine.contract.queries import LOGIT_BINS
from seedscope.engine.saes import sae
from support.reading import answered, assert_valid_plotly, browse, figures_of, text_of


@pytest.fixture(scope="module")
def living(client, address) -> int:
    return client.get(f"{address}/features.json?seed=1&sort=density").json()["rows"][0]["feature"]


def test_counts_and_moments_are_those_of_decoder_row_gain_and_unembedding(
    client, address, living, language_model: LanguageModel, ensemble_saes: sae.SAE
):
    shown = answered(client, f"{address}/1/{living}/logits.json").json()
    weights = {name: tensor.double().numpy() for name, tensor in language_model.network.state_dict().items()}
    (gain,) = [array for name, array in weights.items() if name.endswith(("ln_f.weight", "model.norm.weight"))]
    row = ensemble_saes.only(1).W_dec[0, living].double().detach().numpy()
    if any(name.endswith("ln_f.bias") for name in weights):  # a norm that subtracts the mean
        row = row - row.mean()
    logits = weights["lm_head.weight"] @ (row * gain)
    assert shown["n_tokens"] == len(logits) == sum(shown["counts"])
    assert len(shown["counts"]) == LOGIT_BINS == len(shown["edges"]) - 1
    size = np.abs(logits).max()
    assert (shown["edges"][0], shown["edges"][-1]) == pytest.approx((logits.min(), logits.max()), abs=2e-3 * size)
    # A token that lies on an edge may fall to either side: what lies below every edge may differ by these alone.
    below = np.cumsum(shown["counts"])
    low, high = ((logits[:, None] < np.array(shown["edges"][1:]) + e * size).sum(0) for e in (-2e-3, 2e-3))
    assert (low <= below).all()
    assert (below <= high).all()
    assert (shown["mean"], shown["sd"]) == pytest.approx((logits.mean(), logits.std()), abs=2e-3 * size)
    standard = (logits - logits.mean()) / logits.std()
    assert shown["skewness"] == pytest.approx((standard**3).mean(), abs=0.05)
    assert shown["excess_kurtosis"] == pytest.approx((standard**4).mean() - 3, abs=0.1)
    # The ends are the stored tokens at both ends.
    ends = [shown["negative_logits"][0]["logit"], shown["positive_logits"][0]["logit"]]
    assert ends == pytest.approx([shown["edges"][0], shown["edges"][-1]], rel=1e-4)
    assert len(shown["positive_logits"]) == len(shown["negative_logits"]) == 10


def test_the_page_has_a_figure_with_its_table_and_the_feature_opens_it(client, address, living):
    path = f"{address}/1/{living}/logits"
    page, shown = answered(client, path).text, client.get(f"{path}.json").json()
    (figure,) = figures_of(page).values()
    assert_valid_plotly(figure)
    bars, lowered, raised = figure["data"]
    assert bars["y"] == shown["counts"]
    assert raised["x"] == [each["logit"] for each in shown["positive_logits"]]
    assert lowered["x"] == [each["logit"] for each in shown["negative_logits"]]
    assert page.count("<tr>") == LOGIT_BINS + 1
    assert f"over {shown['n_tokens']:,} tokens" in text_of(page)
    assert f'hx-get="{path}"' in client.get(f"{address}/1/{living}").text


def test_a_study_without_its_model_says_what_is_missing(study_root, tmp_path, address, living):
    root = tmp_path / "root"
    shutil.copytree(study_root / "small", root / "small")
    plan = root / "small" / "study.json"
    plan.unlink()
    with browse(root) as client:
        answer = answered(client, f"{address}/1/{living}/logits.json")
    assert answer.status_code == 422
    assert "which says where its model lies" in answer.text
