"""What is said of shared spans beside their controls."""

from dataclasses import replace

import pytest

from seedscope.app.findings.shared_span_claim import control_sentence, loss_sentence
from seedscope.engine.contract.tables.shared_spans import SharedSpan, SharedSpanSummary

CONTROL = SharedSpanSummary(
    ensemble="topk-control", remark=None, n_features=900, n_edges=300, k_max=4, n_draws=199, level=0.01, n_candidates=31, n_kept=0,
    failures=["living"], failure_counts=[31], n_members=0, stability=None, weighted=True, shared=0.0, shared_low=0.0,
    shared_high=0.0, member_share=0.0, chance_share=0.0,
)  # fmt: skip
SPAN = SharedSpan(
    ensemble="topk", span="0" * 12, number=1, kept=True, failed=None, rank=4, n_features=20, n_seeds=5, n_sharing=5, energy=0.9,
    living_energy=0.2, density_energy=None, rotated_energy=0.1, second_moment_energy=0.1, p_value=0.005, p_living=0.005,
    p_density=None, p_rotated=0.005, p_second_moment=0.005, found_again=5, n_left_out=5, stability=1.0, energy_share=0.1, ev=0.6,
    ev_control=0.7, ev_control_sd=0.01, ev_whole=0.8, loss=3.5, loss_control=3.4, loss_control_sd=0.01, loss_whole=3.3,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "On the model with random weights the same search finds 31 candidates and keeps none."),
        (
            {"n_kept": 2, "shared": 0.2, "shared_low": 0.15, "shared_high": 0.25, "chance_share": 0.01},
            "finds 31 candidates and keeps 2, which hold 20 % [15, 25] of the energy that unstable features carry; random spans of "
            "the same ranks hold 1.0 %.",
        ),
        ({"n_candidates": 0}, "On the model with random weights the same search finds no candidate."),
        ({"remark": "found 2 seeds"}, "On the model with random weights nothing was searched: found 2 seeds."),
    ],
)
def test_the_control_is_told_by_what_the_same_search_keeps_of_it(changes, expected):
    assert expected in control_sentence(replace(CONTROL, **changes)).replace("\xa0", " ")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "the span costs more than they do"),
        ({"loss": 3.41}, "the span costs about as much as they do"),
        ({"loss": 3.3}, "the span costs less than they do"),
    ],
)
def test_a_span_costs_more_where_its_loss_lies_beyond_two_deviations_of_its_controls(changes, says):
    text = loss_sentence(replace(SPAN, **changes), 4096)
    assert says in text
    assert "instead of 3.300, on 4,096 tokens" in text.replace("\xa0", " ")


def test_an_unknown_loss_is_not_told():
    assert loss_sentence(replace(SPAN, loss=None), None) is None
    assert "others" not in loss_sentence(replace(SPAN, loss_control=None), None)
