"""The run-time type checker of the tests: beartype, where an int serves as a float, as Python's typing has it."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_beartyped = beartype(conf=BeartypeConf(is_pep484_tower=True))
_known: dict[Any, Callable[..., Any]] = {}


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function without a body that checks what it is called with: of each signature one, as making it takes 1 ms.

    The hook asks for it each time that a `def` is executed, so for one inside of a function at every call of that.
    """
    code, defaults = function.__code__, function.__defaults__ or ()
    form = code.co_varnames, code.co_argcount, code.co_kwonlyargcount, code.co_flags, len(defaults)
    keywords = frozenset(function.__kwdefaults__ or ())
    key = function.__module__, function.__qualname__, form, keywords, tuple(function.__annotations__.items())
    try:
        return _known[key] if key in _known else _known.setdefault(key, _beartyped(function))
    except TypeError:  # an annotation without a hash
        return _beartyped(function)
