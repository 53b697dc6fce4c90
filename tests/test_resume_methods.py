"""Ranking and score methods: a run that was interrupted twice ends with the bytes of one that was not."""

from __future__ import annotations

import pytest

from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from test_contract import SMALL
from test_train import final_bytes, run_values, stop_after

CASES = {
    "cpd": {},
    "cpd, own lists every other epoch": {"guide": "student", "refresh": 2},
    "dcd": {},
    "dcd, every other epoch": {"refresh": 2},
    "freqd": {},
    "ir-rrd": {},
    "mkd": {},
    "nkd": {},
    "rce-kd": {},
    "rce-kd, every third epoch": {"refresh": 3},
    "score-matching": {},
    "sld": {},
    "unkd": {},
}


@pytest.fixture(scope="module")
def teacher(toy_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "teacher"
    values = run_values(toy_path, epochs=4)
    values["model"]["dim"] = 8
    execute(resolve(values), out)
    return out


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_with_the_same_bytes(case, toy_path, teacher, tmp_path):
    method = case.partition(",")[0]
    values = run_values(toy_path, epochs=5)
    values["distill"] = [{"method": method, "teacher": str(teacher), "weight": 0.1, **SMALL[method], **CASES[case]}]
    config = resolve(values)
    execute(config, tmp_path / "whole")
    for epoch in (0, 2):  # after the first epoch, then after two more and one
        execute(config, tmp_path / "parts", should_stop=stop_after(epoch), resume=epoch > 0)
    execute(config, tmp_path / "parts", resume=True)
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")
