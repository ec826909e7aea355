"""Schedules as they are written, what trains in their phases, and schedules that make no sense."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rankdrift.errors import UserError
from rankdrift.spec import parse_spec
from rankdrift.training.active_phases import ActivePhases

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{layer}.{part}.weight" for layer in range(5)
      for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")),
    "model.norm.weight",
    "score.weight",
]  # fmt: skip


def spec_of(schedule: Any, steps: int = 12) -> Any:
    return parse_spec({"method": {"schedule": schedule}, "training": {"steps": steps, "warmup_steps": 0}})


def active(schedule: Any, step: int, always: tuple[str, ...] = ()) -> set[str]:
    spec = spec_of(schedule)
    phases = ActivePhases(spec.method.schedule, spec.training.steps, NAMES, always)
    number = phases.at(step).number
    return {re.sub(r"model\.|layers\.|self_attn\.|mlp\.|\.weight", "", name)
            for name in NAMES if phases.of(name)[number]}  # fmt: skip


def ends(schedule: Any, steps: int = 12) -> list[int]:
    spec = spec_of(schedule, steps)
    return [phase.last for phase in ActivePhases(spec.method.schedule, steps, NAMES).phases]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("both->mlp->attn", [4, 8, 12]),
        ("both -> mlp@6 -> attn", None),
        ("both@3->mlp@0.5->attn", [3, 6, 12]),
        ([{"train": "mlp", "until": 0.25}, {"train": "both"}], [3, 12]),
        ([{"train": "mlp", "until": 5}, {"train": "both", "until": 12}], [5, 12]),
        ("mlp", [12]),
    ],
)
def test_phases_end_where_they_are_said_to_or_are_equally_long(schedule: Any, expected: Any) -> None:
    if expected is None:
        with pytest.raises(UserError, match=r"phase 0 \('both'\) has no end, others have"):
            spec_of(schedule)
    else:
        assert ends(schedule) == expected


def test_thirds_of_steps_that_three_does_not_divide() -> None:
    assert ends("both->mlp->attn", steps=10) == [3, 6, 10]


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("mlp->attn", 6, {f"{n}.up_proj" for n in range(5)}),
        ("mlp->attn", 7, {f"{n}.q_proj" for n in range(5)}),
        ("early->late", 1, {f"{n}.{m}" for n in (0, 1) for m in ("up_proj", "q_proj")}),
        ("early->late", 12, {f"{n}.{m}" for n in (2, 3, 4) for m in ("up_proj", "q_proj")}),
        ([{"train": "mlp", "layers": [1, 2]}], 1, {"1.up_proj", "2.up_proj"}),
        ([{"train": "all", "layers": [4, 4]}], 1, {"4.up_proj", "4.q_proj", "4.input_layernorm"}),
    ],
)
def test_what_trains_in_a_phase(schedule: Any, step: int, expected: set[str]) -> None:
    assert active(schedule, step) == expected


def test_all_is_all_and_a_new_head_trains_in_every_phase() -> None:
    assert len(active("mlp->all", 12)) == len(NAMES)
    assert active("mlp->attn", 1, always=("score",)) == {"score", *(f"{n}.up_proj" for n in range(5))}


def test_without_a_schedule_everything_trains_at_every_step() -> None:
    phases = ActivePhases((), 12, NAMES)
    assert not phases.scheduled
    assert {phases.of(name) for name in NAMES} == {(True,)}
    assert phases.at(12).number == 0


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("both->mpl", r"'mpl' in 'both->mpl' is no group that a phase can train: did you mean 'mlp'"),
        ("both@x->mlp", "'@x' is neither a step nor a fraction"),
        (
            "both@8->mlp@4->attn",
            r"phase 1 \('mlp'\) would end at step 4, before its first, 9: phases overlap",
        ),
        ("both@4->mlp@9", r"last phase ends at step 9 of training.steps=12, which leaves a gap"),
        ("both@4->mlp@20", r"last phase ends at step 20 of training.steps=12, behind it"),
        ([{"train": "everything"}], "method.schedule.0.train='everything'"),
        ([{"train": "mlp", "layers": [3, 1]}], r"layers=\[3, 1\] begin behind their end"),
        ([{"train": "mlp", "util": 3}], r"'method.schedule.0.util'"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(schedule: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec_of(schedule)


@pytest.mark.parametrize(
    ("schedule", "names", "message"),
    [
        ([{"train": "mlp", "layers": [3, 7]}], NAMES, "names block 7; the model's last trained one is 4"),
        ("mlp->attn", [name for name in NAMES if "mlp" not in name], r"phase 0 \('mlp'\) trains nothing"),
    ],
)
def test_phases_that_the_model_cannot_have_are_refused(schedule: Any, names: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ActivePhases(spec_of(schedule).method.schedule, 12, names)
