"""Which settings make a run another run: every key of the spec, in code, in the docs and in effect."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rankdrift.spec import Spec, parse_spec
from rankdrift.spec.identity import KEYS, LATER, SECTIONS, differences, digest, flattened, identity, role

EVERY_KEY = sorted(flattened(Spec()))
OTHER: dict[str, Any] = {
    "seed": 7,
    "storage": "s3://elsewhere",
    "model.name": "tiny",
    "model.revision": "main",
    "model.head": "classifier",
    "model.heads": "shared",
    "model.attention": "eager",
    "data.tasks": ["describe"],
    "data.mixture": {"temperature": 2.0},
    "data.root": "/elsewhere",
    "data.carve": ["mrpc"],
    "scoring.tasks": ["retention"],
    "scoring.splits": ["validation"],
    "scoring.precision": "bf16",
    "data.general_text": "builtin",
    "method.name": "full",
    "method.alpha": 3.0,
    "training.beta1": 0.5,
    "training.beta2": 0.5,
    "method.dropout": 0.5,
    "method.targets": "qv",
    "method.schedule": "both->mlp",
    "method.layers": [0, 1],
    "method.rank_pattern": {"q_proj": 2},
    "method.alpha_pattern": {"q_proj": 2.0},
    "method.modules_to_save": ["embed_tokens"],
    "method.trainable_token_indices": [3],
    "training.schedule": "cosine",
    "training.minimum_rate": 0.1,
    "training.warmup_ratio": 0.2,
    "training.precision": "bf16",
    "training.packing": "off",
    "training.save_steps": [1],
    "training.probe_conflict": True,
    "training.deterministic": True,
    "training.epochs": 2.0,
    "training.tokens": 1000,
    "training.eval_steps": [2],
    "training.best": "validation/topic/loss",
    "training.patience": 3,
    "training.min_delta": 0.1,
    "training.mirrors": ["wandb"],
    "training.profile": [3],
    "training.clip": 0.5,
}
"""Another valid value, for keys where one more is none."""


def changed(key: str) -> Spec:
    """The default experiment with one key changed."""
    now = flattened(Spec())[key]
    value = OTHER.get(key)
    if value is None:
        value = (not now) if isinstance(now, bool) else f"{now}x" if isinstance(now, str) else (now or 4) * 2
        value = int(value) if isinstance(now, int) and not isinstance(now, bool) else value
    value = int(value) if now is None and isinstance(value, float) and key != "method.alpha" else value
    assert value != now
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return parse_spec(tree)


def identity_of(spec: Spec, **other: Any) -> dict[str, Any]:
    precision = "fp32" if spec.training.precision == "auto" else spec.training.precision
    facts = {"precision": precision, "versions": {"topic": 1}, "rows": "a" * 64, "base": "b" * 64}
    return identity(spec, **(facts | other))


def test_every_key_has_one_role() -> None:
    assert set(EVERY_KEY) == set(KEYS) | {key for key in EVERY_KEY if key.split(".")[0] in SECTIONS}
    assert not {key for key in KEYS if key.split(".")[0] in SECTIONS}


@pytest.mark.parametrize("key", [key for key in EVERY_KEY if key != "method.restart"])
def test_a_key_changes_the_identity_where_it_can_change_a_weight(key: str) -> None:
    before, after = identity_of(Spec()), identity_of(changed(key))
    assert (digest(before) != digest(after)) == (role(key) == "identity")


def test_how_what_has_rested_begins_counts_where_something_rests() -> None:
    def of(**method: Any) -> dict[str, Any]:
        return identity_of(parse_spec({"method": method}))

    assert of(restart=True) == of()
    assert of(restart=True, schedule="both->mlp") != of(schedule="both->mlp")


EVERY_METHODS = ("method.name", "method.schedule", "method.restart")


@pytest.mark.parametrize(
    "key", [key for key in EVERY_KEY if key.startswith("method.") and key not in EVERY_METHODS]
)
def test_settings_of_lora_are_no_part_of_a_full_run(key: str) -> None:
    tree = changed(key).as_dict()
    tree["method"]["name"] = "full"
    del tree["training"]["learning_rate"]
    full = parse_spec({"method": {"name": "full"}})
    assert identity_of(parse_spec(tree)) == identity_of(full)
    assert "method.rank" not in identity_of(full)


def test_settings_that_came_later_leave_earlier_runs_what_they_were() -> None:
    found = set(identity_of(Spec()))
    assert not found & set(LATER)
    own = {key for key in found if key.startswith("method.")}
    assert own == {f"method.{key}" for key in ("name", "rank", "alpha", "dropout", "targets")}


def test_alpha_counts_as_what_is_in_force() -> None:
    explicit = parse_spec({"method": {"rank": 8, "alpha": 16.0}})
    assert identity_of(explicit) == identity_of(parse_spec({"method": {"rank": 8}}))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"versions": {"topic": 2}}, r"task versions was {'topic': 1}, is {'topic': 2}"),
        ({"rows": "c" * 64}, r"training rows was aaaaaaaaaaaa, is cccccccccccc"),
        ({"base": "c" * 64}, r"base model was bbbbbbbbbbbb, is cccccccccccc"),
        ({"precision": "bf16"}, r"training.precision was fp32, is bf16"),
    ],
)
def test_content_counts_and_is_named(other: dict[str, Any], named: str) -> None:
    before, after = identity_of(Spec()), identity_of(Spec(), **other)
    assert digest(before) != digest(after)
    assert differences(before, after) == [named]


def test_the_docs_give_every_key_its_role(root: Path) -> None:
    table = (root / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (.+?) \| .+ \|$", table, flags=re.MULTILINE)
    stated = {key: name for name, keys in rows for key in re.findall(r"`([\w.*]+)`", keys)}
    stated = {key: name for key, name in stated.items() if not key.isupper()}
    expected = {**KEYS, **{f"{section}.*": name for section, name in SECTIONS.items()}}
    assert stated == expected
