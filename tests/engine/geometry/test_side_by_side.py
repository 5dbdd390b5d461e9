"""Work side by side: results in order, errors and who waits for it passed on, threads given back."""

import threading

import pytest
import torch

from seedscope.engine.contract.abandon import AbandonedError, abandoned_when, stop_if_abandoned
from seedscope.engine.geometry.side_by_side import side_by_side


def test_results_come_in_order_and_threads_are_given_back():
    before = torch.get_num_threads()
    inside = list(side_by_side(lambda n: (n, torch.get_num_threads(), threading.current_thread().name), range(7)))
    assert [n for n, _, _ in inside] == list(range(7))
    assert all(n_threads <= before for _, n_threads, _ in inside)
    assert threading.current_thread().name not in {name for _, _, name in inside}
    assert torch.get_num_threads() == before
    assert list(side_by_side(str, [])) == []


def test_what_one_raises_is_raised():
    def work(n: int) -> int:
        return 1 // (n - 2)

    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(work, range(5)))
    assert torch.get_num_threads() == before


def test_abandoned_work_ends_in_its_threads_too():
    def work(n: int) -> None:
        stop_if_abandoned()

    with abandoned_when(lambda: True), pytest.raises(AbandonedError):
        list(side_by_side(work, range(3)))
