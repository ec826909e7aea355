"""Pickles read as data: equal to Python's own reading where they hold data, refused where they act."""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import random
from typing import Any

import pytest

from rankdrift.zero_checkpoint import pickled
from rankdrift.zero_checkpoint.pickled import Constructor, Inert, Names, read_pickle

NAMES: Names = {
    ("listed", "make"): Constructor(lambda *arguments: list(arguments)),
    ("listed", "Thing"): Constructor(Inert),
    ("listed", "value"): 7,
}


def read(data: bytes) -> Any:
    return read_pickle(data, NAMES, lambda identity: ("stored", identity))


def any_value(draw: random.Random, depth: int = 0) -> Any:
    leaves = [
        None,
        True,
        False,
        draw.randint(-(2**63), 2**64 - 1),
        draw.randint(0, 300),
        draw.random(),
        "é\n",
    ]
    if depth == 4 or draw.random() < 0.3:
        return draw.choice(leaves)
    children = [any_value(draw, depth + 1) for _ in range(draw.randint(0, 5))]
    return draw.choice([children, tuple(children), {f"key {i}": child for i, child in enumerate(children)}])


@pytest.mark.parametrize("seed", range(50))
def test_data_is_what_python_reads(seed: int) -> None:
    value = any_value(random.Random(seed))
    data = pickle.dumps([value, value, {0: value}], protocol=2)
    assert read(data) == pickle.loads(data)


def test_listed_names_are_called_and_their_attributes_dropped() -> None:
    assert read(b"\x80\x02clisted\nmake\nK\x01K\x02\x86R.") == [1, 2]
    assert read(b"\x80\x02clisted\nvalue\n.") == 7
    made = read(b"\x80\x02clisted\nThing\n)\x81}X\x01\x00\x00\x00aK\x01sb.")
    assert isinstance(made, Inert)
    assert not vars(made)
    assert read(b"\x80\x02K\x05Q.") == ("stored", 5)


class Hostile:
    """Pickled so that reading it calls a function with arguments of its choice."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class WithState:
    """Pickled so that reading it sets its state."""

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("this ran")

    def __getstate__(self) -> Any:
        return {"inner": Hostile(os.mkdir, "never")}


FUNCTIONS = {
    "posix.system": os.system,
    "posix.mkdir": os.mkdir,
    "__builtin__.eval": eval,
    "__builtin__.exec": exec,
    "__builtin__.getattr": getattr,
    "importlib.import_module": importlib.import_module,
    "functools.partial": functools.partial,
    "pickle.loads": pickle.loads,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"it names '{name}'.*nothing was run"):
        read(pickle.dumps(Hostile(FUNCTIONS[name], "x"), protocol=2))


def test_state_is_not_set() -> None:
    with pytest.raises(ValueError, match="WithState'"):
        read(pickle.dumps(WithState(), protocol=2))


OPCODES = {
    "an INST": (b"\x80\x02(ios\nsystem\n.", "INST"),
    "an OBJ": (b"\x80\x02(clisted\nmake\no.", "OBJ"),
    "an extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "a name from the stack": (b"\x80\x02\x8c\x02os\x8c\x06system\x93.", "SHORT_BINUNICODE"),
    "an id as text": (b"\x80\x02Pabc\n.", "PERSID"),
    "text of protocol 0": (b"\x80\x02I5\n.", "INT"),
    "bytes of protocol 5": (b"\x80\x05\x96\x00\x00\x00\x00\x00\x00\x00\x00.", "protocol 5"),
    "a duplicate": (b"\x80\x02K\x012\x86.", "DUP"),
    "an unknown byte": (b"\x80\x02\xff.", "opcode"),
}
ACTIONS = {
    "calling a value": (b"\x80\x02K\x05)R.", "calls a int"),
    "calling what is inert": (b"\x80\x02clisted\nThing\n)R)R.", "calls a Inert"),
    "calling with a list": (b"\x80\x02clisted\nmake\n]R.", "calls a Constructor"),
    "state of a constructor": (b"\x80\x02clisted\nmake\n}b.", "sets attributes of a Constructor"),
    "items of what is inert": (b"\x80\x02clisted\nThing\n)RK\x01K\x02s.", "fills a Inert"),
    "appending to a tuple": (b"\x80\x02)K\x01a.", "fills a tuple"),
    "a tuple as key": (b"\x80\x02})K\x01s.", "a key"),
    "a control character in a key": (b"\x80\x02}X\x01\x00\x00\x00\x1bK\x01s.", "a key"),
    "a key without value": (b"\x80\x02}(K\x01u.", "zip"),
    "a lone surrogate": (b"\x80\x02X\x03\x00\x00\x00\xed\xa0\x80.", "surrogate"),
    "an integer of 72 bits": (b"\x80\x02\x8a\x09" + b"\xff" * 8 + b"\x7f.", "bits"),
    "nothing left": (b"\x80\x02.", "0 values"),
    "two values": (b"\x80\x02K\x01K\x02.", "2 values"),
    "an empty stack": (b"\x80\x02a.", "malformed"),
    "a mark as value": (b"\x80\x02(.", "malformed"),
    "a mark that is remembered": (b"\x80\x02(q\x00h\x00\x85.", "malformed"),
    "an unknown reference": (b"\x80\x02h\x07.", "malformed"),
    "a cut pickle": (b"\x80\x02}(X\x10", "not enough data|expected|exhausted"),
    "no end": (b"\x80\x02K\x01", "exhausted"),
}


@pytest.mark.parametrize(
    ("data", "message"), [*OPCODES.values(), *ACTIONS.values()], ids=[*OPCODES, *ACTIONS]
)
def test_what_no_checkpoint_does_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(data)


def doubling() -> bytes:
    value: list[Any] = []
    for _ in range(50):
        value = [value, value]
    return pickle.dumps(value, protocol=2)


def cycle() -> bytes:
    value: list[Any] = []
    value.append(value)
    return pickle.dumps(value, protocol=2)


BOMBS = {
    "deep tuples": b"\x80\x02)" + b"\x85" * 10**5 + b".",
    "deep lists": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "doubling": doubling(),
    "cycle": cycle(),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_pickle_of_a_huge_value_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="containers"):
        read(BOMBS[name])


def test_a_pickle_larger_than_any_checkpoints_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "MAX_BYTES", 10)
    assert read(b"\x80\x02K\x05.") == 5
    with pytest.raises(ValueError, match="it has 11 bytes"):
        read(b"\x80\x02X\x03\x00\x00\x00abc.")
