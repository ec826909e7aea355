"""Mirrors are shown what TensorBoard is; what is missing is said before anything is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.spec import parse_spec
from rankdrift.training.journal import Journal
from rankdrift.training.mirrors import kinds, trackio, wandb

NAMES = ("wandb", "trackio")


class Service(ModuleType):
    """Stands for either package: it keeps what it is told."""

    def __init__(self, name: str, logged_in: bool = True) -> None:
        super().__init__(name)
        self.__spec__: Any = SimpleNamespace(name=name)
        self.told: list[tuple[int, dict[str, float]]] = []
        self.settings: dict[str, Any] = {}
        self.ended, self.logged_in = False, logged_in

    def init(self, **settings: Any) -> Service:
        self.settings = settings
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.ended = True

    def login(self, prompt: bool) -> bool:
        assert not prompt, "nobody is there to answer"
        return self.logged_in

    Settings = dict


@pytest.mark.parametrize("name", NAMES)
def test_a_mirror_is_shown_every_scalar(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(name)
    monkeypatch.setitem(sys.modules, name, service)
    run, spec = RunLayout(tmp_path), parse_spec({"study": "s", "arm": "a"})
    (kind,) = kinds([name])
    kind.require()
    journal = Journal(run, 2, 0, [kind(run, spec)])
    for step in (1, 2):
        journal.metrics(step, "train", {"loss": 1.0 * step, "learning_rate": 0.1})
        journal.metrics(step, "validation", {"loss": 2.0 * step})
        journal.metrics(step, "validation/topic", {"accuracy": 0.5})
    journal.close()
    together: dict[int, dict[str, float]] = {}
    for step, values in service.told:
        together.setdefault(step, {}).update(values)
    assert together == {
        step: {
            "train/loss": step,
            "train/learning_rate": 0.1,
            "validation/loss": 2.0 * step,
            "validation/topic/accuracy": 0.5,
        }
        for step in (1, 2)
    }
    assert [step for step, _ in service.told] == sorted(step for step, _ in service.told)
    assert service.ended
    assert (service.settings["project"], service.settings["name"]) == ("s", "a-seed42")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'rankdrift\[{name}\]'"):
        kinds([name])[0].require()


def test_wandb_without_a_login_is_refused_unless_it_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Service("wandb", logged_in=False))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        wandb.MIRROR.require()
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.MIRROR.require()


def test_wandb_itself_keeps_a_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    mirror = wandb.MIRROR(RunLayout(tmp_path), parse_spec({}))
    mirror.log(1, {"train/loss": 1.0})
    mirror.log(2, {"train/loss": 0.5})
    mirror.close()
    (kept,) = tmp_path.rglob("*.wandb")
    assert kept.stat().st_size > 0


def test_trackio_itself_keeps_a_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio")
    mirror = trackio.MIRROR(RunLayout(tmp_path), parse_spec({}))
    mirror.log(1, {"train/loss": 1.0})
    mirror.close()
    assert list(tmp_path.glob("*.db"))
