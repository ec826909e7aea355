"""Restarts of a run whose ranks fail: how often, on how many, and when not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from rankdrift import files
from rankdrift.errors import IntegrityError, LostRankError, Preempted, RankError, UserError
from rankdrift.layout import RunLayout
from rankdrift.studies import restarts
from rankdrift.studies.restarts import Restarts, launch_to_the_end

Start = Callable[[RunLayout], None]


def lost(step: int, rank: int = 1, error: type[RankError] = LostRankError) -> Start:
    """A start that ends after a step, as its guards tell."""

    def start(run: RunLayout) -> None:
        files.write_json(run.status, {"state": "lost", "step": step, "rank": rank, "time": f"at {step}"})
        raise error("a rank was lost")

    return start


def refused(error: type[BaseException]) -> Start:
    def start(run: RunLayout) -> None:
        raise error("no")

    return start


def finished(run: RunLayout) -> None:
    files.write_json(run.status, {"state": "finished", "step": 20})


def tried(
    folder: Path, monkeypatch: pytest.MonkeyPatch, policy: Restarts, starts: Sequence[Start], ranks: int = 3
) -> tuple[list[tuple[int, str | None]], list[float], list[str]]:
    """Return of each start its ranks and GPUs, the pauses, and what was said."""
    run, left = RunLayout(folder), list(starts)
    made: list[tuple[int, str | None]] = []
    pauses: list[float] = []
    said: list[str] = []

    def launch(ranks: int, arguments: Sequence[str], variables: Mapping[str, str], among: None) -> None:
        assert arguments == ["--config", "x.json"]
        made.append((ranks, variables.get("CUDA_VISIBLE_DEVICES")))
        left.pop(0)(run)

    monkeypatch.setattr(restarts, "launch", launch)
    monkeypatch.setattr(restarts.time, "sleep", pauses.append)
    try:
        launch_to_the_end(ranks, ["--config", "x.json"], run, policy, said.append)
    except BaseException as error:
        said.append(f"{type(error).__name__}: {error}")
    assert left == []
    return made, pauses, said


def test_a_run_goes_on_as_often_as_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, pauses, said = tried(tmp_path, monkeypatch, Restarts(2), [lost(5), lost(9), finished])
    assert made == [(3, None)] * 3
    assert pauses == [2.0, 4.0]
    assert said[-1] == "  restart 2 of 2 on 3 ranks in 4 s, from step 0"


def test_after_that_it_fails_as_the_last_start_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = [lost(5), lost(9, error=RankError)]
    made, _, said = tried(tmp_path, monkeypatch, Restarts(1), starts)
    assert len(made) == 2
    assert said[-1] == "RankError: a rank was lost"


def test_without_restarts_it_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, pauses, said = tried(tmp_path, monkeypatch, Restarts(), [lost(5)])
    assert (len(made), pauses, said) == (1, [], ["LostRankError: a rank was lost"])


@pytest.mark.parametrize("again", [refused(LostRankError), lost(0)], ids=["unsaid", "said"])
def test_a_run_that_makes_no_step_is_not_started_for_ever(
    again: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, said = tried(tmp_path, monkeypatch, Restarts(9), [lost(5), again])
    assert len(made) == 2
    assert said[-1].startswith("LostRankError: ")
    assert said[-1].endswith("; it has made no step since it was started again, and is not once more")


def test_a_first_start_that_makes_no_step_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, _ = tried(tmp_path, monkeypatch, Restarts(1), [refused(RankError), finished])
    assert len(made) == 2


@pytest.mark.parametrize("error", [UserError, IntegrityError, Preempted, KeyboardInterrupt])
def test_what_cannot_go_on_is_not_tried_again(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, pauses, said = tried(tmp_path, monkeypatch, Restarts(5), [refused(error)])
    assert (len(made), pauses) == (1, [])
    assert said == [f"{error.__name__}: no"]


def test_elastic_restarts_leave_out_the_rank_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    starts = [lost(5, rank=1), lost(9, rank=0), lost(12, rank=0), finished]
    made, _, _ = tried(tmp_path, monkeypatch, Restarts(5, elastic=True), starts)
    assert made == [(3, None), (2, "4,7"), (1, "7"), (1, "7")]


def test_without_a_choice_of_gpus_all_that_had_ranks_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made, _, _ = tried(tmp_path, monkeypatch, Restarts(1, elastic=True), [lost(5, rank=0), finished])
    assert made == [(3, None), (2, "1,2")]
