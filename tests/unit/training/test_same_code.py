"""Ranks with other code or other versions than rank 0 are named, with what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankdrift.errors import UserError
from rankdrift.hosts import code
from rankdrift.training import checkpointing, same_code

OWN = {"code": "a" * 32, "python": "3.11.7", "torch": "2.9"}


@pytest.mark.parametrize(
    ("other", "part"),
    [
        ({"code": "b" * 32}, r"vm2 \(rank 1\) has other code in .* than vm1 \(digest bbbbbbbbbbbb"),
        ({"torch": "2.8", "code": "b" * 32}, r"vm2 \(rank 1\) has torch 2.8 where vm1 has 2.9; install"),
    ],
)
def test_other_code_is_told(other: dict[str, str], part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_code, "gather", lambda own: [("vm1", OWN), ("vm2", OWN | other)])
    with pytest.raises(UserError, match=part):
        same_code.require_same_code()
    monkeypatch.setattr(same_code, "gather", lambda own: [own, own])
    same_code.require_same_code()


def test_the_digest_is_of_every_source_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked = tmp_path / "elsewhere"
    linked.mkdir()
    (linked / "b.py").write_text("2")
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("1")
    (package / "linked").symlink_to(linked)
    monkeypatch.setattr(code, "PACKAGE", package)
    found = [code.code_digest.__wrapped__()]
    (linked / "b.py").write_text("3")
    found.append(code.code_digest.__wrapped__())
    (package / "a.py").rename(package / "c.py")
    found.append(code.code_digest.__wrapped__())
    (package / "notes.txt").write_text("no source")
    assert len(set(found)) == 3
    assert code.code_digest.__wrapped__() == found[-1]


def test_another_experiment_on_a_host_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [("vm1", {"rows": "a"}), ("vm2", {"rows": "b"})]

    def gathered(own: object) -> list[object]:
        return ["1", "2"] if isinstance(own, str) else list(every)

    monkeypatch.setattr(checkpointing, "gather", gathered)
    with pytest.raises(UserError, match=r"vm2 \(rank 1\) has another experiment than vm1: .*rows"):
        checkpointing.require_same_everywhere({"rows": "a"})
