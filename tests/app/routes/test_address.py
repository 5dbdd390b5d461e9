"""Queries of addresses: their types name what the contract names, and they are resolved against an ensemble."""

from typing import get_args

import pytest

from seedscope.app.findings.bucket_comparison import METRICS, MetricName
from seedscope.app.routes.address import EnsembleJudgement, Filter, Rule, Trigger, address_reader
from seedscope.app.routes.feature.exact_loss import Windows
from seedscope.app.store.studies import Studies
from seedscope.app.store.truth import DOWNLOADS, TruthTable
from seedscope.engine.contract.queries import WINDOWS
from seedscope.engine.contract.schema import RULES, TRIGGERS
from support.studies import ENSEMBLE, STUDY


@pytest.fixture(scope="module")
def row(study_root):
    return Studies(study_root).get(STUDY).ensemble(ENSEMBLE)


@pytest.mark.parametrize(
    ("type_", "names"),
    [
        (Rule, RULES),
        (Trigger, TRIGGERS),
        (Windows, WINDOWS),
        (MetricName, tuple(METRICS)),
        (TruthTable, tuple(DOWNLOADS)),
    ],
)
def test_types_of_addresses_name_what_the_contract_names(type_, names):
    assert get_args(type_) == names


def test_what_an_address_leaves_open_is_the_ensembles_own_and_stands_in_no_link(row):
    address_class = get_args(address_reader(Filter).__annotations__["address"])[0]
    assert address_class().theta is None
    query = Filter.resolved(row, address_class(seed=1, epsilon=row.epsilon, q="#117"))
    assert (query.theta, query.epsilon) == (row.theta, row.epsilon)
    assert query.parameters() == {"seed": 1, "id": 117}
    assert Filter.resolved(row, address_class(theta=0.5)).parameters() == {"theta": 0.5}
    assert EnsembleJudgement.resolved(row).query(ENSEMBLE).theta == row.theta
