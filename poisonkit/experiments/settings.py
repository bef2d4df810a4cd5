"""From names and values, as a user types them, to an experiment's frozen configuration."""

import ast
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, Union

from poisonkit.errors import PoisonkitError, unknown
from poisonkit.options import written


def options_of(config: type | object, prefix: str = "") -> dict[str, Any]:
    """Return the type of every option by its name, nested ones as ``recipe.epochs``."""
    hints = typing.get_type_hints(config if isinstance(config, type) else type(config))
    found: dict[str, Any] = {}
    for entry in fields(config):  # type: ignore[arg-type]
        hint = hints[entry.name]
        if is_dataclass(hint) and isinstance(hint, type):
            found |= options_of(hint, f"{prefix}{entry.name}.")
        else:
            found[prefix + entry.name] = hint
    return found


def with_options(config: Any, options: Mapping[str, object]) -> Any:
    """Return a copy of a configuration with options changed, names and types checked.

    Values may be of their type already or text as typed at a shell: ``0.1``,
    ``(3, 4)``, ``none``, ``airplane``.
    """
    known = options_of(config)
    for name, value in options.items():
        if name not in known:
            raise unknown("parameter", name, known)
        config = _replace_nested(config, name.split("."), coerce(value, known[name], name))
    return config


def _replace_nested(config: Any, names: list[str], value: object) -> Any:
    if len(names) > 1:
        value = _replace_nested(getattr(config, names[0]), names[1:], value)
    return replace(config, **{names[0]: value})


def coerce(value: object, hint: Any, name: str) -> Any:
    """Return ``value`` as the annotated type, or raise an error that says what is expected."""
    read: object = value
    if isinstance(value, str) and hint is not str and typing.get_origin(hint) is not Literal:
        read = _read(value)
    found, fits = _convert(read, hint)
    if not fits and isinstance(value, str):
        # A text may look like a number: digits are names of classes.
        found, fits = _convert(value, hint)
    if not fits:
        given = value if read is None else read
        raise PoisonkitError(f"parameter {name!r} must be {describe(hint)}, not {given!r}")
    return found


def _read(text: str) -> object:
    if text.strip().lower() in ("none", "null", "true", "false"):
        return {"none": None, "null": None, "true": True, "false": False}[text.strip().lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convert(value: object, hint: Any) -> tuple[object, bool]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value, value in arguments
    if origin in (Union, types.UnionType):
        attempts = (_convert(value, option) for option in arguments)
        return next(((found, True) for found, fits in attempts if fits), (value, False))
    if origin is tuple:
        return _convert_tuple(value, arguments)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value, False
        return float(value), math.isfinite(value)
    if hint is int:
        # No seed or count needs more; a longer one would overflow somewhere deep inside.
        return value, type(value) is int and abs(value) < 2**53
    if hint is types.NoneType:
        return value, value is None
    return value, isinstance(value, hint)


def _convert_tuple(value: object, arguments: tuple[Any, ...]) -> tuple[object, bool]:
    if not isinstance(value, list | tuple):
        return value, False
    if arguments[-1] is ...:
        pairs = [(entry, arguments[0]) for entry in value]
    elif len(arguments) == len(value):
        pairs = list(zip(value, arguments, strict=True))
    else:
        return value, False
    converted = [_convert(entry, hint) for entry, hint in pairs]
    return tuple(entry for entry, _ in converted), all(fits for _, fits in converted)


def describe(hint: Any) -> str:
    """Return a type in the words of an error message."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin is tuple and arguments[-1] is ...:
        return f"a list of {describe(arguments[0])}"
    if origin is tuple:
        return f"({', '.join(describe(option) for option in arguments)})"
    words = {
        types.NoneType: "none",
        float: "a number",
        int: "a whole number",
        str: "a text",
        bool: "true or false",
    }
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def refuse_repeats(**options: Sequence[object]) -> None:
    """Refuse an option that names a value twice: its trials would count as independent runs."""
    for name, values in options.items():
        if len(set(values)) < len(values):
            raise PoisonkitError(f"{name} names something twice: {list(values)}")


def profiles_over(
    shared_quick: Mapping[str, object],
    shared_small: Mapping[str, object],
    *,
    quick: Mapping[str, object] | None = None,
    small: Mapping[str, object] | None = None,
    paper: Mapping[str, object] | None = None,
) -> Mapping[str, Mapping[str, object]]:
    """Return an experiment's profiles: its own options over those that its chapter shares."""
    stated = paper or {}
    return {
        "quick": {**stated, **shared_quick, **(quick or {})},
        "small": {**stated, **shared_small, **(small or {})},
        "paper": stated,
    }


def as_json(config: Any) -> dict[str, Any]:
    """Return what is written down of a configuration as JSON values (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, tuple | list) else value

    found = plain(written(config))
    assert isinstance(found, dict)
    return found
