"""A whole search with a training of a known function in the place of the real one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rankdrift import files
from rankdrift.cli.main import main
from rankdrift.errors import Preempted, RankError, UserError
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.spec import Recipe, Spec, parse_spec, recipe_of
from rankdrift.spec.searched import searched_arms
from rankdrift.studies.cells import CONFIGS, cells_of, root_of
from rankdrift.studies.executors import Begun, Outcome, Task
from rankdrift.studies.search import trial_runs
from rankdrift.studies.search.found import Found, read_found, with_found
from rankdrift.studies.search.ledger import Ledger
from rankdrift.studies.search.records import Trial
from rankdrift.studies.search.run import run_search

RATE = "training.learning_rate"
ARMS = {"full": {"method": {"name": "full"}}, "lora": {"method": {"name": "lora"}}}
BEST = {"full": 3e-5, "lora": 5e-4}
"""Arm -> the rate that is the best of the scripted training."""
STEPS = 10


class Training:
    """In the place of ``launch``: logs a loss that is least at a rate of each arm, and stops if asked to."""

    def __init__(self, broken: Callable[[Spec], BaseException | None] = lambda spec: None) -> None:
        self.broken, self.waits = broken, False
        self.trained: list[Spec] = []

    def __call__(self, ranks: int, arguments: Sequence[str]) -> None:
        spec = parse_spec(files.read_json(Path(arguments[-1])))
        run = StudyLayout(spec.study_root).run(spec.run_name)
        if error := self.broken(spec):
            raise error
        self.trained.append(spec)
        (run.checkpoints / "step-000010").mkdir(parents=True)
        rows = []
        for step in range(0, STEPS + 1, 2):
            rows.append({"step": step, "split": "validation", "loss": loss(spec, step)})
            files.write_text(run.metrics, "".join(map(files.json_line, rows)))
            files.write_json(run.status, {"state": "training", "step": step, "steps": STEPS})
            if step < STEPS and self.is_stopped(run):
                raise Preempted("asked to")
        files.write_json(run.status, {"state": "finished", "step": STEPS, "steps": STEPS})

    def is_stopped(self, run: RunLayout) -> bool:
        """Whether it is asked to stop; a run that has lost waits for whoever is to ask it."""
        until = time.monotonic() + 20
        while self.waits and has_lost(run) and not run.stop_request.exists() and time.monotonic() < until:
            time.sleep(0.01)
        return run.stop_request.exists()


def loss(spec: Spec, step: int) -> float:
    """A parabola over the logarithm of the rate, which deepens with the steps; a little of the seed."""
    away = math.log10(spec.training.learning_rate / BEST[spec.arm.split("-")[0]])
    return 3 - step / STEPS * (1 - away**2) + 0.01 * (spec.seed % 7)


def has_lost(run: RunLayout) -> bool:
    arm, number = run.root.name.split("-seed")[0].split("-trial")
    book = files.read_json(run.root.parent.parent / "trials.json")["arms"][arm]["trials"]
    bars = {int(step): bar for step, bar in book[int(number)]["bars"].items()}
    values = {row["step"]: row["loss"] for row in files.read_jsonl(run.metrics)}
    return any(min(list(values.values())[1:]) > bars[step] for step in [max(values)] if step in bars)


class Here:
    """An executor that carries out tasks one after the other, and can be killed before any of them."""

    is_here = True

    def __init__(self, killed_before: int = 10**6, lost: Sequence[str] = (), backwards: bool = False) -> None:
        self.left, self.lost, self.backwards = killed_before, lost, backwards
        self.rounds: list[list[str]] = []

    def carry_out(self, tasks: Sequence[Task], begun: Begun) -> Iterator[Outcome]:
        self.rounds.append([task.name for task in tasks])
        for task in reversed(tasks) if self.backwards else tasks:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            if task.name in self.lost:
                yield Outcome(task, "here", error=RankError("a rank was killed"))
                continue
            try:
                yield Outcome(task, "here", task.function(*task.arguments), seconds=1.0)
            except (UserError, RankError) as error:
                yield Outcome(task, "here", error=error)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    made = Training()
    monkeypatch.setattr(trial_runs, "launch", made)
    monkeypatch.setattr(trial_runs, "PAUSE", 0.005)
    return made


def a_recipe(folder: Path, search: dict[str, Any], **more: Any) -> Recipe:
    tree = {
        **{"model": {"name": "tiny"}, "data": {"tasks": ["topic"]}, "output": str(folder), "study": "s"},
        **{"training": {"steps": STEPS, "warmup_steps": 0}, "arms": ARMS, "seeds": [1, 2], "search": search},
    }
    return recipe_of(tree | more, folder)


def searched(recipe: Recipe, executor: Here) -> Found:
    cells = cells_of(recipe, CONFIGS / "zero2.json", 2)
    return run_search(root_of(recipe), searched_arms(recipe), cells, executor, say=lambda line: None)


def trials_of(recipe: Recipe) -> dict[str, tuple[Trial, ...]]:
    arms = searched_arms(recipe)
    ledger = Ledger(arms)
    return {arm.name: ledger.of(arm).trials for arm in arms}


def timeless(recipe: Recipe) -> dict[str, list[Trial]]:
    """Return what does not depend on the clock, as the steps do after which a lost run is stopped."""
    return {name: [comparable(trial) for trial in trials] for name, trials in trials_of(recipe).items()}


def comparable(trial: Trial) -> Trial:
    steps = 0 if trial.state == "pruned" else trial.steps
    return trial.model_copy(update={"seconds": 0.0, "steps": steps})


@pytest.mark.usefixtures("tiny")
def test_the_optimum_of_each_arm_is_found_with_equal_budgets(tmp_path: Path, training: Training) -> None:
    recipe = a_recipe(tmp_path, {"trials": 24})
    executor = Here()
    found = searched(recipe, executor).groups[""]
    for arm, rate in BEST.items():
        assert abs(math.log10(found[arm].settings[RATE] / rate)) < 0.1
        assert found[arm].value == pytest.approx(2.0, abs=0.01)
        assert (found[arm].trials, found[arm].seeds, found[arm].of) == (24, (7,), "validation/loss")
    trials = trials_of(recipe)
    assert {name: len(of) for name, of in trials.items()} == {"full": 24, "lora": 24}
    assert [trials[arm][0].settings for arm in ARMS] == [{RATE: 2e-5}, {RATE: 2e-4}]
    assert executor.rounds[0] == [f"{arm}-trial00{n}" for arm in ARMS for n in range(4)]
    assert len(executor.rounds) == 6
    later = [abs(math.log10(trial.settings[RATE] / BEST["lora"])) for trial in trials["lora"][12:]]
    assert sum(away < 0.5 for away in later) > len(later) / 2  # where it has learnt that it is good
    assert {spec.seed for spec in training.trained} == {7}
    assert read_found(root_of(recipe).searched) == Found(groups={"": found})
    runs = [StudyLayout(spec.study_root).run(spec.run_name) for spec in training.trained]
    assert not [run for run in runs if run.checkpoints.exists()]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("killed_before", [1, 9, 17])
def test_killed_it_goes_on_to_the_trials_of_an_unbroken_search(
    tmp_path: Path, training: Training, killed_before: int
) -> None:
    unbroken, broken = (a_recipe(tmp_path / name, {"trials": 10}) for name in ("a", "b"))
    searched(unbroken, Here())
    count = len(training.trained)
    with pytest.raises(KeyboardInterrupt):
        searched(broken, Here(killed_before))
    searched(broken, Here())
    assert timeless(broken) == timeless(unbroken)
    assert len(training.trained) == 2 * count == 40  # none was trained twice


@pytest.mark.usefixtures("tiny", "training")
def test_what_is_tried_depends_on_no_order(tmp_path: Path) -> None:
    one, other = (a_recipe(tmp_path / name, {"trials": 12}) for name in ("a", "b"))
    searched(one, Here())
    searched(other, Here(backwards=True))
    assert timeless(one) == timeless(other)


@pytest.mark.usefixtures("tiny")
def test_a_trial_that_is_trained_but_was_not_told_is_not_trained_again(
    tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = a_recipe(tmp_path, {"trials": 2})

    def killed(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "tell", killed)
        with pytest.raises(KeyboardInterrupt):
            searched(recipe, Here())
    assert len(training.trained) == 1
    searched(recipe, Here())
    assert len(training.trained) == 4
    assert [trial.state for trial in trials_of(recipe)["full"]] == ["done", "done"]


@pytest.mark.usefixtures("tiny")
def test_a_trial_below_the_median_is_stopped_and_its_checkpoint_removed(
    tmp_path: Path, training: Training
) -> None:
    training.waits = True
    recipe = a_recipe(tmp_path, {"trials": 10, "at_once": 5}, arms={"lora": ARMS["lora"]})
    searched(recipe, Here())
    trials = trials_of(recipe)["lora"]
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    assert not [trial for trial in trials[:5] if trial.bars or trial.state != "done"]
    for trial in pruned:
        spec = next(spec for spec in training.trained if spec.arm == f"lora-trial{trial.number:03d}")
        (at,) = [step for step in trial.values if step == max(trial.values)]
        assert trial.value == trial.values[at] == loss(spec, at) > trial.bars[at]
        assert trial.steps < STEPS
        run = StudyLayout(spec.study_root).run(spec.run_name)
        assert not run.checkpoints.exists()
        assert not run.stop_request.exists()
    assert all(trial.steps == STEPS for trial in trials if trial.state == "done")


@pytest.mark.usefixtures("tiny")
def test_whether_a_trial_is_pruned_does_not_depend_on_who_looks_when(
    tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends before anybody has looked has lost all the same; only its steps were for nothing."""
    quick, slow = (a_recipe(tmp_path / name, {"trials": 10, "at_once": 5}) for name in ("a", "b"))
    training.waits = True
    searched(quick, Here())
    training.waits = False
    monkeypatch.setattr(trial_runs, "PAUSE", 100.0)
    searched(slow, Here())
    pairs = [*zip(*(trials_of(recipe)["lora"] for recipe in (quick, slow)), strict=True)]
    assert any(trial.state == "pruned" for trial, _ in pairs)
    for one, other in pairs:
        assert comparable(one) == comparable(other)
        assert other.steps == STEPS


@pytest.mark.usefixtures("tiny", "training")
def test_nothing_is_pruned_unless_asked_for(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, {"trials": 10, "prune": "none"})
    searched(recipe, Here())
    states = [trial.state for trials in trials_of(recipe).values() for trial in trials]
    assert states == ["done"] * 20


@pytest.mark.usefixtures("tiny", "training")
def test_a_trials_value_is_the_mean_over_its_seeds(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, {"trials": 2, "seeds": [3, 5, 6]})
    searched(recipe, Here())
    for trial in trials_of(recipe)["lora"]:
        assert sorted(trial.seeds) == [3, 5, 6]
        least = min(trial.seeds.values())
        assert trial.value == pytest.approx(least + (0 + 0.02 + 0.03) / 3)
        assert trial.stderr == pytest.approx(0.0152753 / 3**0.5, rel=1e-5)  # of 0, 0.02, 0.03
        assert trial.steps == 3 * STEPS


def fails_above(rate: float, kind: type[Exception] = UserError) -> Callable[[Spec], BaseException | None]:
    return lambda spec: kind("the loss is inf") if spec.training.learning_rate > rate else None


@pytest.mark.usefixtures("tiny")
def test_settings_that_cannot_be_trained_with_count_as_tried_and_are_left(
    tmp_path: Path, training: Training
) -> None:
    training.broken = fails_above(4e-4)
    recipe = a_recipe(tmp_path, {"trials": 20}, arms={"lora": ARMS["lora"]})
    found = searched(recipe, Here()).groups[""]["lora"]
    trials = trials_of(recipe)["lora"]
    failed = [trial for trial in trials if trial.state == "failed"]
    assert failed
    assert {trial.error for trial in failed} == {"the loss is inf"}
    assert all(trial.settings[RATE] > 4e-4 for trial in failed)
    assert len(trials) == 20
    assert 1e-4 < found.settings[RATE] <= 4e-4
    rates = [trial.settings[RATE] for trial in trials]
    assert sum(rate > 4e-4 for rate in rates[10:]) < sum(rate <= 4e-4 for rate in rates[10:])


@pytest.mark.usefixtures("tiny")
def test_where_nothing_can_be_trained_the_search_ends_and_can_go_on(
    tmp_path: Path, training: Training
) -> None:
    training.broken = fails_above(0.0)
    recipe = a_recipe(tmp_path, {"trials": 4})
    with pytest.raises(UserError, match=r"^the loss is inf$"):
        searched(recipe, Here())
    assert {trial.state for trials in trials_of(recipe).values() for trial in trials} == {"open"}
    assert not root_of(recipe).searched.exists()
    training.broken = lambda spec: None
    searched(recipe, Here())
    assert {trial.state for trials in trials_of(recipe).values() for trial in trials} == {"done"}


@pytest.mark.usefixtures("tiny", "training")
def test_a_trial_that_was_lost_is_taken_up_and_counted_once(tmp_path: Path) -> None:
    lost, other = (a_recipe(tmp_path / name, {"trials": 6}) for name in ("a", "b"))
    with pytest.raises(RankError, match="a rank was killed"):
        searched(lost, Here(lost=["lora-trial002"]))
    assert [trial.state for trial in trials_of(lost)["lora"]] == ["done", "done", "open", "done"]
    again = Here()
    searched(lost, again)
    assert again.rounds[0] == ["full-trial004", "full-trial005", "lora-trial002"]
    searched(other, Here())
    assert timeless(lost) == timeless(other)


@pytest.mark.usefixtures("tiny", "training")
def test_more_trials_are_added_and_another_search_is_refused(tmp_path: Path) -> None:
    first, more = (a_recipe(tmp_path, {"trials": trials}) for trials in (4, 8))
    searched(first, Here())
    before = trials_of(first)
    again = Here()
    searched(first, again)
    assert again.rounds == []
    searched(more, again)
    after = trials_of(more)
    assert {name: trials[:4] for name, trials in after.items()} == before
    assert {len(trials) for trials in after.values()} == {8}
    other = a_recipe(tmp_path, {"trials": 8, "seeds": [9]})
    with pytest.raises(UserError, match="holds another search of 'full'"):
        searched(other, Here())


@pytest.mark.usefixtures("tiny", "training")
def test_runs_without_their_book_are_refused(tmp_path: Path) -> None:
    first = a_recipe(tmp_path, {"trials": 2})
    searched(first, Here())
    root_of(first).trials.unlink()
    with pytest.raises(UserError, match="holds a trial of another search"):
        searched(a_recipe(tmp_path, {"trials": 2, "steps": 5}), Here())


@pytest.mark.usefixtures("training")
def test_a_value_that_is_never_logged_is_refused_before_anything_trains(tmp_path: Path) -> None:
    for value, part in (("validation/topic/accuracy", "eval_items above 0"), ("validation/rte/loss", "")):
        recipe = a_recipe(tmp_path, {"value": value})
        executor = Here()
        with pytest.raises(UserError, match=rf"search\.value={value}: no such value is logged.*{part}"):
            searched(recipe, executor)
        assert executor.rounds == []
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("tiny", "training")
def test_what_was_found_is_in_the_place_of_the_recipes_own(tmp_path: Path) -> None:
    data = {"data.tasks": {"one": ["topic"], "two": ["describe"]}}
    recipe = a_recipe(tmp_path, {"trials": 3}, grid=data)
    found = searched(recipe, Here())
    path = root_of(recipe).searched
    assert path == tmp_path / "s" / "search" / "best.yaml"
    given = with_found(recipe, path)
    for group in ("one", "two"):
        for arm in ARMS:
            expected = found.groups[group][arm].settings[RATE]
            assert given.spec(arm, group=group).training.learning_rate == expected
    assert {spec.seed for spec in given.runs()} == {1, 2}
    own = given.model_copy(update={"overrides": (f"{RATE}=0.5",)})
    assert {spec.training.learning_rate for spec in own.runs()} == {0.5}


@pytest.mark.usefixtures("tiny", "training")
def test_what_was_found_of_another_search_is_refused(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, {"trials": 2})
    searched(recipe, Here())
    path = root_of(recipe).searched
    for other, message in (
        ({"search": {"trials": 2, "seeds": [9]}}, "is of another search of 'full'"),
        ({"training": {"steps": STEPS, "warmup_steps": 0, "clip": 0.5}}, "is of another search of 'full'"),
        ({"arms": ARMS | {"third": {"method": {"name": "lora", "rank": 2}}}}, "has nothing for 'third'"),
    ):
        with pytest.raises(UserError, match=message):
            with_found(a_recipe(tmp_path, **({"search": {"trials": 2}} | other)), path)
    with_found(a_recipe(tmp_path, {"trials": 9}, scoring={"limit": 2}), path)
    path.write_text("groups: 3\n")
    with pytest.raises(UserError, match="not what a search found"):
        with_found(recipe, path)
    with pytest.raises(UserError, match="'rankdrift search' writes it"):
        with_found(recipe, tmp_path / "none.yaml")


@pytest.mark.usefixtures("tiny", "training")
def test_the_command_and_the_study_that_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = a_recipe(tmp_path, {"trials": 3})
    file = tmp_path / "recipe.yaml"
    tree = recipe.shared | {"arms": recipe.arms, "seeds": [1, 2], "search": {"trials": 3}}
    files.write_json(file, tree)
    given = ["--experiment", str(file), "--ranks", "2"]
    seen: list[Recipe] = []
    monkeypatch.setattr(
        "rankdrift.studies.pipeline.run_study", lambda root, recipe, *rest, **more: seen.append(recipe)
    )
    assert main(["study", "run", *given]) == 0
    assert "nothing was searched yet" in capsys.readouterr().err
    assert main(["search", *given, "--slots", "2"]) == 0
    shown = capsys.readouterr().out
    assert f"found: {root_of(recipe).searched}" in shown
    assert shown.count(" 3/3 ") == 2
    assert main(["search", *given, "--show", "--trials", "5"]) == 0
    assert capsys.readouterr().out.count(" 3/5 ") == 2
    assert main(["study", "run", *given]) == 0
    assert seen[0].found == {}
    assert set(seen[1].found[""]) == set(ARMS)
    assert main(["search", *given, "--trials", "1"]) == 2
    assert "one trial is no search" in capsys.readouterr().err
    assert main(["search", *given, f"{RATE}=0.1"]) == 2
    assert "is searched" in capsys.readouterr().err
