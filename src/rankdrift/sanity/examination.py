"""The checks in their order, made by every rank of a group; rank 0 notes what they come to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rankdrift.errors import Preempted, UserError
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.models.base import hidden_size, resolve
from rankdrift.sanity import observing
from rankdrift.sanity.loaded_model import check_model
from rankdrift.sanity.loaded_rows import check_data
from rankdrift.sanity.logged_losses import check_log
from rankdrift.sanity.observing import Closing, Enough, Gradients, LearningByHeart, Losses
from rankdrift.sanity.prepared_method import check_method
from rankdrift.sanity.rates import rate_of
from rankdrift.sanity.reloaded_export import check_export
from rankdrift.sanity.results import EVERY_ARM, OF_ARM, Record
from rankdrift.sanity.small_runs import small
from rankdrift.spec import Spec
from rankdrift.training import collectives
from rankdrift.training.callbacks import Callback
from rankdrift.training.run import train

REPEATED = 2
"""Steps that are repeated: in the second the loss depends on what a method drew, B = 0 or not."""


@dataclass(frozen=True)
class Trial:
    """How experiments are tried."""

    folder: Path
    """Temporary; the small runs go below it."""
    config: Path
    """DeepSpeed JSON."""
    steps: int
    """Within which rows are to be learnt by heart."""
    rate: float | None = None
    """Learning rate; None is one by the method and the model's width."""


class Examination:
    """The checks of an experiment and of its arms; every rank of a process group must call them.

    Parameters
    ----------
    trial
        How.
    record
        Where results go.

    """

    def __init__(self, trial: Trial, record: Record) -> None:
        self.trial, self.record = trial, record

    def of_experiment(self, spec: Spec) -> bool:
        """Check what is the same for all arms; return whether these can be tried."""
        if not self._on_first("model", EVERY_ARM, lambda: check_model(spec)):
            self._leave_out(EVERY_ARM, ("data",), "the model failed")
            return False
        return self._everywhere("data", EVERY_ARM, lambda: check_data(spec))

    def of_arm(self, spec: Spec) -> None:
        """Check one arm; what cannot be, because something before it failed, is noted as not run."""
        if not self._on_first("method", spec.arm, lambda: check_method(spec)):
            self._leave_out(spec.arm, OF_ARM[1:], "the method failed")
            return
        small_run, heart = self._small(spec, "heart"), LearningByHeart()
        if self._learn(small_run, spec.arm, heart):
            run = _layout(small_run)
            self._on_first("logging", spec.arm, lambda: check_log(run, heart.losses))
            self._everywhere("seeds", spec.arm, lambda: self._repeat(spec, heart.losses[:REPEATED]))
            self._on_first("reload", spec.arm, lambda: check_export(small_run, run, heart.answer))
        if collectives.rank() == 0:
            shutil.rmtree(self.trial.folder / small_run.study, ignore_errors=True)

    def _learn(self, small_run: Spec, arm: str, heart: LearningByHeart) -> bool:
        """Train until the rows are known by heart; return whether the run came to an end of its own."""
        gradients = Gradients(lambda wrong, seen: self._gradients_known(arm, wrong, seen))
        self.record.begin("gradients", arm)
        ended = None
        try:
            self._train(small_run, gradients, heart)
        except UserError as error:
            ended = self._said(error)
        if ended and not gradients.known:
            gradients.conclude(ended, "")
        if ended and gradients.wrong:
            self.record.end("overfit", arm, "not run", "gradients failed, the run ended")
        elif ended:
            self.record.end("overfit", arm, "failed", ended)
        else:
            self.record.end("overfit", arm, *self._learnt(small_run, heart))
        if ended:
            self._leave_out(arm, OF_ARM[3:], "the run ended before its last step")
        return ended is None

    def _gradients_known(self, arm: str, wrong: str | None, seen: str) -> None:
        self.record.end("gradients", arm, "failed" if wrong else "passed", wrong or seen)
        self.record.begin("overfit", arm)

    def _learnt(self, small_run: Spec, heart: LearningByHeart) -> tuple[Literal["passed", "failed"], str]:
        """Return what the run to learn by heart came to."""
        rate = f"learning rate {small_run.training.learning_rate:.2g}"
        if heart.learnt_at:
            return (
                "passed",
                f"{heart.rows} rows, loss below {observing.LEARNT} after {heart.learnt_at} steps, {rate}",
            )
        return "failed", (
            f"{heart.rows} rows: loss {heart.mean:.3g} after {len(heart.losses)} steps, not below "
            f"{observing.LEARNT} ({rate}); if it fell to the end, raise --steps or --learning-rate; or look "
            "for rows that contradict each other, or a method that cannot learn them"
        )

    def _repeat(self, spec: Spec, expected: Sequence[float]) -> str:
        """Return what the first steps of the same seed and of another one gave; raise UserError if amiss."""
        again, other = Losses(len(expected)), Losses(len(expected))
        self._train(self._small(spec, "again"), again)
        for step, (found, before) in enumerate(zip(again.losses, expected, strict=True), start=1):
            if found != before:
                raise UserError(
                    f"seed {spec.seed} a second time: loss {found!r} at step {step}, it was {before!r}; "
                    "something is drawn without the seed, or the device adds up in no fixed order"
                )
        seed = spec.seed + 1
        self._train(self._small(spec.model_copy(update={"seed": seed}), "other"), other)
        if other.losses == list(expected):
            raise UserError(
                f"seed {seed} gives the losses of seed {spec.seed} to the bit: nothing depends on the seed"
            )
        return f"seed {spec.seed} twice: {len(expected)} losses equal to the bit; seed {seed}: others"

    def _small(self, spec: Spec, name: str) -> Spec:
        base = resolve(spec.model.name, spec.model.revision)
        rate = self.trial.rate or rate_of(spec.method.name, hidden_size(base))
        run_name = f"{spec.arm}-{name}"
        return small(spec, run_name, self.trial.folder, collectives.world_size(), self.trial.steps, rate)

    def _train(self, small_run: Spec, *further: Callback) -> None:
        """Train until the end, or until one of the callbacks has seen enough."""
        closing = Closing()
        try:
            train(small_run, self.trial.config, further=(*further, closing))
        except (Preempted, Enough):
            pass
        finally:
            closing.close()

    def _on_first(self, check: str, arm: str, find: Callable[[], str]) -> bool:
        """Check something on rank 0 while the others wait; return whether it is well.

        Ranks exchange nothing within, so that whatever is raised can be told to all.
        """
        self.record.begin(check, arm)
        wrong, what = None, ""
        if collectives.rank() == 0:
            try:
                what = find()
            except UserError as error:
                wrong = self._said(error)
            except Exception as error:  # a damaged file makes libraries raise anything
                wrong = f"{type(error).__name__}: {self._said(error)}"
        return self._agreed(check, arm, wrong, what)

    def _everywhere(self, check: str, arm: str, find: Callable[[], str]) -> bool:
        """Check something on all ranks, each of which meets the same errors; return whether it is well."""
        self.record.begin(check, arm)
        wrong, what = None, ""
        try:
            what = find()
        except UserError as error:
            wrong = self._said(error)
        return self._agreed(check, arm, wrong, what)

    def _agreed(self, check: str, arm: str, wrong: str | None, what: str) -> bool:
        failures = [failure for failure in collectives.gather(wrong) if failure]
        self.record.end(check, arm, "failed" if failures else "passed", failures[0] if failures else what)
        return not failures

    def _leave_out(self, arm: str, checks: Sequence[str], why: str) -> None:
        for check in checks:
            self.record.end(check, arm, "not run", why)

    def _said(self, error: Exception) -> str:
        """Return an error's text without the temporary folder, in one line."""
        return " ".join(str(error).replace(f"{self.trial.folder}/", "").split())


def _layout(spec: Spec) -> RunLayout:
    return StudyLayout(spec.study_root).run(spec.run_name)
