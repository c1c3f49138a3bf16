"""Short texts of a config that name a function and its arguments, read without `eval`.

A config field holds "petals(modes=10)" or "rotate(swiss_roll(), angle=0.5)"; `build` turns it
into the value that the named function returns. Only the names it is given can be called, with
literals, tuples, lists and further such calls as arguments.
"""

import ast
import difflib
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import NoReturn

MAX_LENGTH = 500
MAX_DEPTH = 20


class SpecError(ValueError):
    """A text of the config that cannot be built; the message is one line that names the field."""


def build(text: str, known: Mapping[str, Callable[..., object]], what: str) -> object:
    """The value of a call written as text, such as "step(factor=0.1, epochs=(50, 1000))".

    A name without parentheses, "gan", is a call without arguments, also inside another call.

    Args:
        text: the call, at most 500 characters.
        known: the functions that may be called, by name.
        what: the config field that the text comes from, named in every error.

    Returns:
        What the outermost function returns.

    Raises:
        SpecError: the text is not such a call, names an unknown function, or its arguments do
            not fit; or a called function failed, its exception is then the cause.
    """
    if len(text) > MAX_LENGTH:
        _fail(what, f"{len(text)} characters, more than {MAX_LENGTH}: {_quote(text)}")
    root = _parse(text, what)
    if not isinstance(root, ast.Call | ast.Name):
        _fail(what, f"{_quote(text)} names no function; {_allowed(known)}")
    return _value(root, text, known, what, depth=0)


def _parse(text: str, what: str) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in strings
            return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        _fail(what, f"cannot read {_quote(text)}: {error.msg}", error)
    # Null characters and lone surrogates; nesting too deep for the parser.
    except (ValueError, MemoryError, RecursionError) as error:
        _fail(what, f"cannot read {_quote(text)}: {error or 'too deeply nested'}", error)


def _value(
    node: ast.expr, text: str, known: Mapping[str, Callable[..., object]], what: str, depth: int
) -> object:
    if depth > MAX_DEPTH:
        _fail(what, f"{_quote(text)} is nested more than {MAX_DEPTH} deep")

    def value(inner: ast.expr) -> object:
        return _value(inner, text, known, what, depth + 1)

    match node:
        case ast.Constant(value=constant) if _is_literal(constant):
            return constant
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)) if (
            _is_literal(number) and not isinstance(number, bool)
        ):
            return -number
        case ast.Tuple(elts=items):
            return tuple(value(item) for item in items)
        case ast.List(elts=items):
            return [value(item) for item in items]
        case ast.Name(id=name):
            return _call(name, [], {}, text, known, what)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            _refuse_repeated(keywords, name, text, what)
            named = {k.arg: value(k.value) for k in keywords if k.arg is not None}
            return _call(name, [value(arg) for arg in args], named, text, known, what)
    part = ast.get_source_segment(text.strip(), node) or type(node).__name__
    _fail(what, f"{_quote(part)} is not a call, number, string, tuple or list, in {_quote(text)}")


def _is_literal(constant: object) -> bool:
    if isinstance(constant, float):
        return math.isfinite(constant)  # 1e999 reads as infinity
    return constant is None or isinstance(constant, bool | int | str)


def _refuse_repeated(keywords: list[ast.keyword], name: str, text: str, what: str) -> None:
    arguments = [keyword.arg for keyword in keywords]
    if None in arguments:
        _fail(what, f"** is not allowed, in {_quote(text)}")
    # The parser lets these pass; a dictionary would silently keep the last.
    for argument in arguments:
        if arguments.count(argument) > 1:
            _fail(what, f"{name} is given {argument} more than once, in {_quote(text)}")


def _call(
    name: str,
    args: list[object],
    named: dict[str, object],
    text: str,
    known: Mapping[str, Callable[..., object]],
    what: str,
) -> object:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        _fail(what, f"unknown name {_quote(name)} in {_quote(text)}; {hint}{_allowed(known)}")
    signature = _signature(known[name])
    try:
        if signature is not None:
            signature.bind(*args, **named)
    except TypeError as error:
        _fail(what, f"{error} in {_quote(text)}; it is {name}{_plain(signature)}", error)
    try:
        return known[name](*args, **named)
    except ValueError as error:
        _fail(what, f"{name} in {_quote(text)}: {error}", error)
    # Arguments of a wrong kind surface as any exception; all are this text's fault, and named.
    except Exception as error:
        _fail(what, f"{name} in {_quote(text)}: {type(error).__name__}: {error}", error)


def _signature(function: Callable[..., object]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):  # some functions written in C have none
        return None


def _plain(signature: inspect.Signature | None) -> str:
    if signature is None:
        return "(...)"
    parameters = signature.parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(bare))


def _allowed(known: Mapping[str, object]) -> str:
    return f"allowed: {', '.join(sorted(known))}"


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _fail(what: str, message: str, cause: BaseException | None = None) -> NoReturn:
    line = " ".join(f"{what}: {message}".split())
    raise SpecError(line if len(line) <= 1000 else line[:997] + "...") from cause
