"""A user's own task, from a YAML file; no Python to write.

``docs/tasks.md`` has an example of each kind. Texts are templates: ``{column}`` stands for a column's text.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from rankdrift import files, registry
from rankdrift.errors import UserError
from rankdrift.settings import PositiveInt, Section, problems
from rankdrift.tasks import Example, Source, Split, Task
from rankdrift.tasks._fields import chosen, named_label, text, texts
from rankdrift.tasks.kinds import Kind
from rankdrift.tasks.kinds.chat import ASSISTANT, Chat
from rankdrift.tasks.kinds.generation import Generation

NAME = r"^[a-z][a-z0-9_]*$"


class Declaration(Section):
    """What the file says."""

    name: Annotated[str, Field(pattern=NAME)]
    """What the task is called in tables; no name of a task that comes with rankdrift."""
    version: PositiveInt = 1
    """To be raised when prompt or answers change; a change of this file makes scores anew in any case."""
    kind: Literal["classification", "multiple_choice", "generation", "language_modelling", "chat"]
    metrics: tuple[str, ...] = ()
    """Names of metrics; the first is the one that is plotted. By default those usual for the kind."""
    files: dict[Literal["train", "validation", "test"], str] = Field(default_factory=dict)
    """Split -> Parquet, JSON, JSON Lines or CSV file, relative to this one."""
    hub: str = ""
    """Or a hub id, with its ``configuration``."""
    configuration: str | None = None
    splits: dict[Literal["train", "validation", "test"], str] | None = None
    """Our splits -> the hub's."""
    carved: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training rows that select, where there is no split for it."""
    prompt: str = ""
    """Template of the text before the answer."""
    cue: str = ""
    """Text at the end of every prompt, which is kept when the prompt is too long."""
    choices: tuple[str, ...] = ()
    """The answers of a classification task, as they are to be written."""
    labels: tuple[str | int, ...] = ()
    """What the column ``label`` holds for each of them; by default their numbers from 0."""
    label: str = "label"
    """Column of the right answer."""
    options: str = "choices"
    """Column with the list of a row's own choices (multiple choice)."""
    target: str = ""
    """Template of the answer (generation) or of the text (language modelling)."""
    group: str = ""
    """Template of what rows with the same input share: their targets are all right."""
    document: str = ""
    """Template of the name of a text that rows share."""
    messages: str = "messages"
    """Column of the conversation (chat)."""
    stop: tuple[str, ...] = ("\n",)
    """Texts that end a generated answer."""
    max_new_tokens: PositiveInt = 64
    """Longest generated answer."""

    @model_validator(mode="after")
    def _complete(self) -> Declaration:
        needed = {
            "classification": ("prompt", "choices"),
            "multiple_choice": ("prompt",),
            "generation": ("prompt", "target"),
            "language_modelling": ("target",),
            "chat": (),
        }[self.kind]
        missing = [key for key in needed if not getattr(self, key)]
        if missing:
            raise ValueError(f"a {self.kind} task needs {' and '.join(missing)}")
        if bool(self.files) == bool(self.hub):
            raise ValueError("give either files or a hub id")
        if self.labels and len(self.labels) != len(self.choices):
            raise ValueError(f"labels names {len(self.labels)} values for {len(self.choices)} choices")
        return self


USUAL = {
    "classification": ("accuracy", "f1_macro"),
    "multiple_choice": ("accuracy", "accuracy_norm"),
    "generation": ("rouge_l", "exact_match"),
    "language_modelling": ("word_perplexity", "bits_per_byte"),
    "chat": ("rouge_l",),
}


def read_task(path: Path) -> Task:
    """Return the task that a YAML file declares; raise UserError that names file, key and value."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no task can be read from it ({error}); see docs/tasks.md") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a task is a mapping of keys, got {type(tree).__name__}; see docs/tasks.md")
    try:
        declared = Declaration.model_validate(tree)
    except ValidationError as error:
        lines = problems(error, lambda _: list(Declaration.model_fields))
        raise UserError("\n  ".join([f"{path}: the task is not valid:", *lines])) from None
    if declared.name in registry.names("task"):
        raise UserError(f"{path}: name={declared.name!r} is a task of rankdrift's own; choose another name")
    try:
        return _task(declared, path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _task(declared: Declaration, path: Path) -> Task:
    metrics = declared.metrics or USUAL[declared.kind]
    for metric in metrics:
        registry.require("metric", metric)
    return Task(
        name=declared.name,
        version=declared.version,
        kind=_kind(declared),
        metrics=metrics,
        columns=_columns(declared),
        example=_EXAMPLES[declared.kind](declared),
        choices=_spaced(declared.choices),
        cue=declared.cue,
        source=_source(declared, path),
        content=files.digest_file(path),
    )


def _kind(declared: Declaration) -> Kind:
    if declared.kind == "generation":
        return Generation(declared.stop, declared.max_new_tokens)
    if declared.kind == "chat":
        return Chat(declared.max_new_tokens)
    kind: Kind = registry.load("kind", declared.kind)
    return kind


def _source(declared: Declaration, path: Path) -> Source:
    own: dict[Split, str] = {split: str(path.parent / name) for split, name in declared.files.items()}
    splits: dict[Split, str] | None = dict(declared.splits) if declared.splits is not None else None
    return Source(declared.hub, declared.configuration, "", splits, declared.carved, own or None)


def _columns(declared: Declaration) -> tuple[str, ...]:
    templates = (declared.prompt, declared.target, declared.group, declared.document)
    found = [column for template in templates for column in _placeholders(template)]
    extra = {
        "classification": [declared.label],
        "multiple_choice": [declared.label, declared.options],
        "chat": [declared.messages],
    }.get(declared.kind, [])
    return tuple(dict.fromkeys([*found, *extra]))


def _placeholders(template: str) -> list[str]:
    """Return the columns that a template names; raise UserError where it asks for anything else."""
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"template {template!r}: {error}; write {{{{ and }}}} for braces") from None
    for _, name, form, conversion in parts:
        if not name or form or conversion or set(".[") & set(name):
            raise UserError(f"template {template!r}: '{{{name}}}' is no column; write {{column}}")
    return [str(name) for _, name, _, _ in parts]


def _filled(template: str, row: Mapping[str, Any]) -> str:
    return template.format_map({column: text(row, column) for column in _placeholders(template)})


def _spaced(choices: tuple[str, ...]) -> tuple[str, ...]:
    """Return choices each with the space that parts it from its prompt."""
    return tuple(choice if choice.startswith(" ") else f" {choice}" for choice in choices)


_Make = Callable[[Mapping[str, Any]], Example]


def _classification(declared: Declaration) -> _Make:
    choices, names = _spaced(declared.choices), declared.labels or tuple(range(len(declared.choices)))

    def example(row: Mapping[str, Any]) -> Example:
        index = named_label(row, declared.label, names)
        prompt = _filled(declared.prompt, row) + declared.cue
        return Example(prompt, choices[index], index, document=_filled(declared.document, row))

    return example


def _multiple_choice(declared: Declaration) -> _Make:
    def example(row: Mapping[str, Any]) -> Example:
        options = texts(row, declared.options)
        names = declared.labels or tuple(range(len(options)))
        right = named_label(row, declared.label, names)
        return chosen(_filled(declared.prompt, row) + declared.cue, options, right)

    return example


def _generation(declared: Declaration) -> _Make:
    def example(row: Mapping[str, Any]) -> Example:
        target = _filled(declared.target, row)
        return Example(
            prompt=_filled(declared.prompt, row) + declared.cue,
            target=f" {target}",
            references=(target,),
            group=_filled(declared.group, row),
            document=_filled(declared.document, row),
        )

    return example


def _language_modelling(declared: Declaration) -> _Make:
    def example(row: Mapping[str, Any]) -> Example:
        written = _filled(declared.target, row)
        return Example("", written, references=(written,), document=_filled(declared.document, row))

    return example


def _chat(declared: Declaration) -> _Make:
    def example(row: Mapping[str, Any]) -> Example:
        messages = _messages(row, declared.messages)
        spoken = messages[-1]["content"]
        return Example("", spoken, references=(spoken,), messages=messages)

    return example


def _messages(row: Mapping[str, Any], column: str) -> tuple[Mapping[str, str], ...]:
    value = row[column]
    turns = list(value) if isinstance(value, (list, tuple)) else []
    whole = all(
        isinstance(turn, Mapping)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
        for turn in turns
    )
    if not turns or not whole:
        raise UserError(
            f"column '{column}' must hold turns with role and content, got {value!r}; correct the row"
        )
    if turns[-1]["role"] != ASSISTANT or not turns[-1]["content"].strip():
        raise UserError(
            f"column '{column}' must end with a turn of the {ASSISTANT}'s, got {turns[-1]['role']!r}; "
            "correct the row"
        )
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)


_EXAMPLES: dict[str, Callable[[Declaration], _Make]] = {
    "classification": _classification,
    "multiple_choice": _multiple_choice,
    "generation": _generation,
    "language_modelling": _language_modelling,
    "chat": _chat,
}
