"""How quantities are written: formats, and templates that name them.

A template is a text with fields ``{quantity:format}`` of some rows: of the first of them, or
``{quantity.median:format}`` of all, by any aggregate that pandas knows. Several quantities share a format in
``{value,stderr:with_error}``; digits follow its name (``{nll:number 4}``). Without one it stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from string import Formatter
from typing import Any

import pandas as pd

from rankdrift.analysis.sources.observations import GENERAL_TEXT, RETENTION, TRAINED_TASKS

MISSING = "–"  # noqa: RUF001 - an en dash is what a table shows where nothing was measured
Form = Callable[..., str]
AVERAGED = {
    GENERAL_TEXT: "NLL of general text (nats a token)",
    RETENTION: "mean accuracy on retention tasks",
    TRAINED_TASKS: "macro average over the trained tasks",
}
"""What is scored beside tasks -> what its score is called."""
ROUNDING = 1e-12
"""Changes of scores below this are sums of scores that cancel."""


def filled(template: str, rows: pd.DataFrame) -> str:
    """Return the template with the rows' quantities; MISSING where it names some and none of them is known.

    >>> rows = pd.DataFrame({"left": [3.0, 4.0], "right": float("nan")})
    >>> filled("{left:count} of {left.sum:count} / {right:count}", rows)
    '3 of 7 / –'
    """
    parts = list(Formatter().parse(template))
    texts = [_written(field, form or "plain", rows) if field else "" for _, field, form, _ in parts]
    if {text for text in texts if text} == {MISSING}:
        return MISSING
    return "".join(literal + text for (literal, *_), text in zip(parts, texts, strict=True))


def named_in(template: str) -> list[str]:
    """Return the quantities that a template names."""
    return [field for _, field, _, _ in Formatter().parse(template) if field]


def _written(quantities: str, form: str, rows: pd.DataFrame) -> str:
    name, *digits = form.split()
    settings = {"digits": int(digits[0])} if digits else {}
    return FORMATS[name](*(_value(quantity, rows) for quantity in quantities.split(",")), **settings)


def _value(quantity: str, rows: pd.DataFrame) -> Any:
    name, _, aggregate = quantity.partition(".")
    return rows[name].agg(aggregate) if aggregate else rows[name].iloc[0]


def number(value: float | None, digits: int = 3) -> str:
    """Return a number to so many significant digits, without an exponent where that reads well.

    >>> number(0.01234), number(123456.0), number(0.0000123), number(float("nan"))
    ('0.0123', '123456', '1.23e-05', '–')
    """
    if value is None or value != value:
        return MISSING
    if value == 0:
        return "0"  # whatever its sign
    if abs(value) >= 10**digits:
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.{digits - 1}e}"


def plain(value: Any) -> str:
    """Return what needs no format: a name, a whole number."""
    return MISSING if value != value else str(value)


def general(value: float) -> str:
    """Return a setting as Python's ``g`` does: 0.5, 10."""
    return f"{value:g}"


def verdict(holds: float) -> str:
    """Return whether something is shown.

    >>> verdict(1.0), verdict(0.0), verdict(float("nan"))
    ('yes', 'no', '–')
    """
    return MISSING if holds != holds else ("yes" if holds else "no")


def listed(values: Iterable[Any]) -> str:
    """Return the values one after another."""
    return ", ".join(map(str, values))


def count(value: float) -> str:
    """Return a number of things; a dash where it is undefined.

    >>> count(7.0), count(float("nan"))
    ('7', '–')
    """
    return MISSING if value != value else f"{value:.0f}"


def signed(value: float) -> str:
    """Return a change with its sign, to three significant digits; what only rounding left is 0.

    >>> signed(0.5), signed(-0.25), signed(-5.6e-17)
    ('+0.500', '-0.250', '0')
    """
    if abs(value) < ROUNDING:
        return number(0.0)
    return ("+" if value > 0 else "") + number(value)


def with_error(value: float | None, stderr: float | None, digits: int = 3) -> str:
    """Return ``value ± stderr``; the value alone where no standard error is known."""
    text = number(value, digits)
    return text if text == MISSING or stderr is None or stderr != stderr else f"{text} ± {number(stderr, 2)}"


def percent(share: float) -> str:
    """Return a share in per cent, to three significant digits."""
    return MISSING if share != share else f"{number(100 * share)} %"


def interval(low: float, high: float, digits: int = 3) -> str:
    """Return the ends of a 95 % interval."""
    if low != low or high != high:
        return MISSING
    return f"[{number(low, digits)}, {number(high, digits)}]"


def change(value: float, low: float, high: float, reason: str = "", written: Form = signed) -> str:
    """Return a change with its 95 % interval, or with the reason why there is none.

    >>> change(0.5, 0.25, 0.75), change(0.5, float("nan"), float("nan"), "one seed")
    ('+0.500 [0.250, 0.750]', '+0.500 (one seed)')
    """
    if value != value:
        return f"{MISSING} ({reason})" if reason else MISSING
    ends = interval(low, high)
    return f"{written(value)} {ends}" if ends != MISSING else f"{written(value)} ({reason or 'no interval'})"


def estimate(value: float, low: float, high: float, reason: str = "", digits: int = 3) -> str:
    """Return a value as :func:`change` does a change, without a sign."""
    return change(value, low, high, reason, lambda found: number(found, digits))


def score_name(task: str, metric: str, higher_is_better: bool = True) -> str:
    """Return what a score is called; of general text it is always the NLL, of averages the average.

    >>> score_name("topic", "accuracy"), score_name("mt", "ter", False)
    ('accuracy on topic', 'ter on mt (lower is better)')
    """
    if task in AVERAGED:
        return AVERAGED[task]
    return f"{metric} on {task}" + ("" if higher_is_better else " (lower is better)")


_COUNTS = (plain, general, verdict, listed, count)
_AMOUNTS = (number, signed, percent, with_error, interval, change, estimate)
FORMATS: Mapping[str, Form] = {form.__name__: form for form in (*_COUNTS, *_AMOUNTS)}
"""Name -> format; NaN is MISSING in all of them."""
