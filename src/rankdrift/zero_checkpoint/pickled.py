"""Read a pickle as data: an interpreter of the instructions that ``torch.save`` writes, and of no other.

Python's own unpickler calls, indexes and sets attributes on whatever a pickle asks for. This one makes plain
containers, numbers and text; a name stands for something only if the caller lists it, and only what is
listed can be called. So there is nothing that a hostile pickle could run, alter or make recurse.
Format: the instructions of protocol 2 (PEP 307; the comments of Python's ``pickletools``).
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_BYTES = 32 * 2**20  # of a pickle; one of a model of 400 billion parameters has a few
_MAX_DEPTH = 64  # containers in containers
_MAX_VALUES = 10**7  # values, each shared one counted as often as it is met
_INTEGERS = range(-(2**63), 2**64)

Names = Mapping[tuple[str, str], Any]


class Inert:
    """Stands for an object of no interest, such as a loss scaler; what it was made of is dropped."""

    def __init__(self, *arguments: Any) -> None:
        pass


@dataclass(frozen=True)
class Constructor:
    """A name of a pickle that may be called: ``build`` takes untrusted values and must check them."""

    build: Callable[..., Any]


class _Mark:
    """Where a group of values begins on the stack."""


def read_pickle(data: bytes, names: Names, persistent: Callable[[Any], Any]) -> Any:
    """Return the value of a pickle of protocol 2.

    Parameters
    ----------
    data
        The pickle.
    names
        What each (module, name) that may occur stands for: a :class:`Constructor`, or a value.
    persistent
        Turns the identity of an object that is stored outside of the pickle into that object.

    Raises
    ------
    ValueError
        With what is wrong, for a name that is not listed, an instruction ``torch.save`` does not write, a
        value that is too large or too deep, and for anything malformed.

    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data)} bytes, more than any checkpoint's")
    machine = _Machine(names, persistent)
    try:
        for instruction, argument, _ in pickletools.genops(data):
            machine.execute(instruction.name, argument)
        value = machine.result()
    except (TypeError, LookupError) as error:  # wrong number of arguments, empty stack, unknown reference
        raise ValueError(f"it is malformed ({error!r})") from error
    _measure(value, 0, {})
    return value


class _Machine:
    """A stack of values and a memo of those that are met again."""

    def __init__(self, names: Names, persistent: Callable[[Any], Any]) -> None:
        self._names = names
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def execute(self, instruction: str, argument: Any) -> None:
        if instruction in _CONSTANTS:
            self._stack.append(_CONSTANTS[instruction]())
        elif instruction in _LITERALS:
            self._stack.append(_checked(argument))
        elif instruction in _TUPLES:
            self._stack.append(tuple([self._pop() for _ in range(_TUPLES[instruction])][::-1]))
        elif instruction in _METHODS:
            _METHODS[instruction](self, argument)
        else:
            raise ValueError(f"it has the instruction {instruction}, which torch.save does not write")

    def result(self) -> Any:
        if len(self._stack) != 1:
            raise ValueError(f"it leaves {len(self._stack)} values instead of one")
        return self._pop()

    def _pop(self) -> Any:
        value = self._stack.pop()
        if isinstance(value, _Mark):
            raise ValueError("a group of values is malformed")
        return value

    def _pop_group(self) -> list[Any]:
        values = []
        while not isinstance(value := self._stack.pop(), _Mark):
            values.append(value)
        return values[::-1]

    def _container(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"it fills a {type(self._stack[-1]).__name__} as if it were a {kind.__name__}")
        return self._stack[-1]

    def protocol(self, number: int) -> None:
        if number != 2:
            raise ValueError(f"it is of protocol {number}; torch.save writes 2")

    def stop(self, _: None) -> None:
        pass

    def tuple_of_group(self, _: None) -> None:
        self._stack.append(tuple(self._pop_group()))

    def append(self, _: None) -> None:
        value = self._pop()
        self._container(list).append(value)

    def append_group(self, _: None) -> None:
        values = self._pop_group()
        self._container(list).extend(values)

    def set_item(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._fill([key, value])

    def set_group(self, _: None) -> None:
        self._fill(self._pop_group())

    def _fill(self, pairs: list[Any]) -> None:
        target = self._container(dict)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            _check_key(key)
            target[key] = value

    def remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def recall(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def name(self, dotted: str) -> None:
        module, _, name = dotted.partition(" ")
        if (module, name) not in self._names:
            raise ValueError(f"it names {module + '.' + name!r}, which no checkpoint needs; nothing was run")
        self._stack.append(self._names[module, name])

    def stored_object(self, _: None) -> None:
        self._stack.append(self._persistent(self._pop()))

    def call(self, _: None) -> None:
        arguments, function = self._pop(), self._pop()
        self._stack.append(construct(function, arguments))

    def set_state(self, _: None) -> None:
        # attributes of an ordered dictionary (``_metadata`` of a module's state) or of something inert
        self._pop()
        if not isinstance(self._stack[-1], dict | Inert):
            raise ValueError(f"it sets attributes of a {type(self._stack[-1]).__name__}")


def construct(function: Any, arguments: Any) -> Any:
    """Call a listed constructor; raise ValueError for anything else."""
    if not isinstance(function, Constructor) or not isinstance(arguments, tuple):
        raise ValueError(f"it calls a {type(function).__name__}; nothing was run")
    return function.build(*arguments)


def _checked(value: Any) -> Any:
    if isinstance(value, str):
        value.encode()  # a lone surrogate, which could not be printed, is a ValueError
    elif isinstance(value, int) and value not in _INTEGERS:
        raise ValueError(f"an integer has {value.bit_length()} bits")
    return value


def _check_key(key: Any) -> None:
    # To hash a nested tuple recurses without bound; keys are the names that messages print.
    if not isinstance(key, str | int) or (isinstance(key, str) and not key.isprintable()):
        raise ValueError("it has a key of a kind that no checkpoint has")


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values a value has, and how deep it goes; raise ValueError beyond the limits.

    A few bytes can describe lists of lists of the same list, which to walk through takes for ever.
    """
    if not isinstance(value, dict | list | tuple):
        return 1, 0
    if id(value) not in known:
        if depth > _MAX_DEPTH:
            raise ValueError(f"its values go deeper than {_MAX_DEPTH} containers")
        children = value.values() if isinstance(value, dict) else value
        measures = [_measure(child, depth + 1, known) for child in children]
        count = 1 + sum(count for count, _ in measures)
        height = 1 + max((height for _, height in measures), default=0)
        if count > _MAX_VALUES or height > _MAX_DEPTH:
            raise ValueError(f"it has {count} values, {height} containers deep")
        known[id(value)] = count, height
    return known[id(value)]


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": _Mark,
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_METHODS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "STOP": _Machine.stop,
    "TUPLE": _Machine.tuple_of_group,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_group,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_group,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": _Machine.name,
    "BINPERSID": _Machine.stored_object,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.set_state,
}
