"""Run a model's own chat template: a Jinja program, in a sandbox with bounded time and memory.

A template comes from a file that anyone may have written. It sees plain data (dicts, lists, texts,
numbers), can reach nothing else, and can only make text. jinja2's immutable sandbox keeps it from
everything outside; this module bounds what it may compute:

- Every loop, macro, call, filter and operator costs steps, in proportion to the text it makes.
- No text, list or number grows beyond a limit. Where one call could exceed it (``"a" * 10**9``),
  the size is computed first.
- Filters and methods whose time is not linear in their arguments do not exist here.
- A deadline ends whatever is left.

The settings and helpers are those of transformers' ``apply_chat_template``, and so is the result.
This module needs jinja2, which the extra ``llama2py[chat]`` installs; `llama2py.chat.templates`
imports it on first use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from time import monotonic
from types import BuiltinFunctionType, CodeType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import do_indent, make_attrgetter
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from ..errors import PromptError

MAX_SOURCE = 1 << 16  # characters of a template; the longest real ones have 25,000
_STEPS = 200_000  # for a small dialogue
_SECONDS = 5.0
_CHARACTERS = 1 << 20  # of one text, beyond four times the dialogue
_NODES = 200_000  # of one container, everything inside counted
_DEPTH = 100  # of containers inside containers
_BITS = 256  # of a whole number
_WIDTH = 1000  # of a padded text

# Linear in their arguments, or bounded below.
_FILTERS = (
    *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape"),
    *("first", "float", "groupby", "int", "items", "last", "length", "list", "lower", "map"),
    *("max", "min", "reject", "rejectattr", "reverse", "round", "safe", "select", "selectattr"),
    *("sort", "title", "trim", "truncate", "unique", "upper", "wordcount"),
)
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(
        re.findall(
            r"\w+",
            "capitalize casefold center count endswith find format index isalnum isalpha isascii"
            " isdecimal isdigit isidentifier islower isnumeric isspace istitle isupper join ljust"
            " lower lstrip partition removeprefix removesuffix replace rfind rindex rjust"
            " rpartition rsplit rstrip split splitlines startswith strip swapcase title upper"
            " zfill",
        )
    ),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
}


class Refusal(jinja2.TemplateError):
    """The template's own ``raise_exception``, or a limit of the sandbox."""


class _Budget:
    """What a template may still use up.

    Parameters
    ----------
    size : int
        The size of the dialogue and the other variables, in characters.
    """

    def __init__(self, size: int) -> None:
        self.characters = _CHARACTERS + 4 * size
        self._nodes = _NODES + 4 * size
        self._steps = _STEPS + 16 * size
        self._deadline = monotonic() + _SECONDS

    def step(self, n: int = 1) -> None:
        self._steps -= n
        if self._steps < 0 or monotonic() > self._deadline:
            raise Refusal("it takes too long")

    def length(self, n: int) -> None:
        """Check the length of a text or a list before it is made."""
        if n > self.characters:
            raise Refusal("its text is too long")

    def text(self, value: object) -> str:
        """Return ``str(value)``."""
        if not isinstance(value, str):
            self.checked(value)
        made = str(value)
        self.length(len(made))
        self.step(1 + (len(made) >> 4))
        return made

    def checked(self, value: Any) -> Any:
        """Return a value if it is not too big."""
        if isinstance(value, str):
            self.length(len(value))
            self.step(len(value) >> 6)
        elif isinstance(value, list | tuple | dict | int):
            self._measure(value)
        return value

    def _measure(self, value: object) -> None:
        """Count everything inside a container, as often as a walk through it meets it."""
        stack, count = [(value, 0)], 0
        while stack:
            item, depth = stack.pop()
            count += 1
            if isinstance(item, str):
                count += len(item) >> 6
            elif isinstance(item, int) and item.bit_length() > _BITS:
                raise Refusal("a number is too big")
            elif isinstance(item, list | tuple | dict):
                inside: list[object] = list(item)
                if isinstance(item, dict):
                    inside += item.values()
                if depth > _DEPTH or count + len(inside) > self._nodes:
                    raise Refusal("a list is too big")
                stack += [(each, depth + 1) for each in inside]
        self.step(count >> 2)


class _Namespace(Namespace):
    """jinja2's, without underscored names, as in transformers, and with a short repr."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # a template may name an attribute ``self``
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise Refusal(f"it sets the attribute {name!r} of a namespace")


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's text for training. Its body is rendered."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's interface

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("render_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def render_body(self, caller: Macro) -> str:
        """Return the text of the body."""
        return str(caller())


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of one rendering."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, budget: _Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=_finalize,
            optimized=False,  # nothing is computed before the budget counts
        )
        self.budget = budget
        known: dict[str, Any] = {name: self.filters[name] for name in _FILTERS}
        known |= {
            "format": self._format,
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "string": budget.text,
            "tojson": self._tojson,
        }
        self.filters = {name: self._bounded(function) for name, function in known.items()}
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: self._bounded(function) for name, function in tests.items()}
        del self.globals["lipsum"]
        self.globals.update(
            dict=lambda *args, **kwargs: dict(*args, **kwargs),
            namespace=_Namespace,
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
        )

    def _bounded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # with the mark that says what jinja2 passes to it
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.budget.step()
            for value in (*args, *kwargs.values()):
                if type(value) is int and abs(value) > 1 << 32:
                    raise Refusal("a number is too big")
            return self.budget.checked(function(*args, **kwargs))

        return bounded

    # ---- what the instrumented program calls ----

    def each(self, values: Iterable[Any]) -> Iterator[Any]:
        """Yield the values of a loop."""
        for value in values:
            self.budget.step()
            yield value

    def step(self) -> str:
        """Count one round of a loop, or one call of a macro."""
        return ""  # `call` has counted it

    def concat_texts(self, *values: object) -> str:
        """The operator ``~``."""
        texts = [self.budget.text(value) for value in values]
        self.budget.length(sum(map(len, texts)))
        return "".join(texts)

    def container(self, value: Any) -> Any:
        """A list, tuple or dict that the program spells out; `call` has measured it."""
        return value

    # ---- what jinja2 calls ----

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.budget.step()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.budget.step()
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = self.budget
        budget.step()
        if operator == "*":
            for some, n in ((left, right), (right, left)):
                if isinstance(some, str | list | tuple) and isinstance(n, int):
                    budget.length(len(some) * n)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > _BITS:
                raise Refusal("a number is too big")
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, right if isinstance(right, tuple) else (right,))
        return budget.checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.budget.step()
        if type(function) is BuiltinFunctionType:
            self._check_method(function, args)
            if isinstance(function.__self__, str) and function.__name__ == "join" and args:
                return self._join(args[0], function.__self__)  # takes generators, too
        return self.budget.checked(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatter = super().wrap_str_format(value)
        if formatter is None:
            return None
        template = value.__self__

        def bounded(*args: Any, **kwargs: Any) -> str:
            self._check_format(template, (*args, *kwargs.values()))
            return formatter(*args, **kwargs)

        return bounded

    # ---- checks ----

    def _check_method(self, method: BuiltinFunctionType, args: tuple[Any, ...]) -> None:
        """Allow only known methods of plain data, and bound the size of what they return."""
        owner, name = method.__self__, method.__name__
        known = next((names for kind, names in _METHODS.items() if isinstance(owner, kind)), ())
        if name not in known:
            raise Refusal(f"it calls {name}()")
        if not isinstance(owner, str):
            return
        if any(isinstance(arg, int) and arg > _WIDTH for arg in args[:1]):
            raise Refusal("a text is padded too far")
        if name == "replace" and len(args) >= 2:
            self._check_replaced(owner, *map(str, args[:2]))

    def _check_replaced(self, text: str, old: str, new: str) -> None:
        self.budget.length(len(text) + text.count(old) * len(new))

    def _check_format(self, template: str, values: tuple[Any, ...]) -> None:
        """Check a format: ``{}`` or ``%``. Each field may hold every value."""
        if re.search(r"\d{4}|\{[^}]*\{|%[^a-zA-Z%]*\*", template):
            raise Refusal("a text is padded too far")
        longest = max((len(self.budget.text(value)) for value in values), default=0)
        fields = template.count("{") + template.count("%")
        self.budget.length(len(template) + fields * (longest + _WIDTH))

    # ---- filters ----

    def _format(self, value: object, *args: Any, **kwargs: Any) -> str:
        if args and kwargs:
            raise Refusal("the filter format has both positional and keyword arguments")
        template = self.budget.text(value)
        self._check_format(template, args or tuple(kwargs.values()))
        return template % (kwargs or args)

    def _indent(
        self, value: str, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        n = len(width) if isinstance(width, str) else width
        self.budget.length(len(value) + (value.count("\n") + 1) * n)
        return do_indent(value, width, first, blank)

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            value = map(make_attrgetter(self, attribute), value)
        between, texts, length = self.budget.text(d), [], 0
        for item in self.each(value):
            texts.append(self.budget.text(item))
            length += len(texts[-1]) + len(between)
            self.budget.length(length)
        return between.join(texts)

    def _replace(self, value: object, old: object, new: object, count: int | None = None) -> str:
        text, before, after = map(self.budget.text, (value, old, new))
        self._check_replaced(text, before, after)
        return text.replace(before, after, -1 if count is None else count)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        self.budget.checked(value)
        if isinstance(indent, int) and indent > _WIDTH:
            raise Refusal("a text is padded too far")
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        pieces, length = [], 0
        for piece in encoder.iterencode(value):
            pieces.append(piece)
            length += len(piece)
            self.budget.length(length)
        return "".join(pieces)


@pass_context
def _finalize(context: Context, value: object) -> str:
    environment = context.environment
    assert isinstance(environment, _Environment)
    return environment.budget.text(value)


def _raise_exception(message: object) -> None:
    raise Refusal(str(message))


def _strftime_now(format: str) -> str:
    if len(format) > _WIDTH:
        raise Refusal("the format of a date is too long")
    return datetime.now().strftime(format)


class _Instrument(NodeTransformer):
    """Make a program count its steps: see the methods of `_Environment` that it calls."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _call(node, "each", node.iter)
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        return self._counted(node)

    def _counted(self, node: Any) -> nodes.Node:
        step = nodes.ExprStmt(_call(node, "step"), lineno=node.lineno)
        node.body.insert(0, step)  # a recursive loop has no `each` for its inner rounds
        result: nodes.Node = node
        return result

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call(node, "concat_texts", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _call(node, "container", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call(node, "container", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call(node, "container", node) if node.ctx == "load" else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)  # passes through `_finalize`


def _call(node: nodes.Node, method: str, *args: Any) -> nodes.Call:
    """Return the call of a method of the environment, which no template can name itself."""
    line = node.lineno
    function = nodes.EnvironmentAttribute(method, lineno=line)
    return nodes.Call(function, list(args), [], None, None, lineno=line)


@lru_cache(maxsize=16)
def compile_template(source: str) -> CodeType:
    """Compile a template, with every step counted.

    Raises
    ------
    PromptError
        If it is not a Jinja program, or too long.
    """
    if len(source) > MAX_SOURCE:
        raise PromptError(
            f"the chat template has {len(source):,} characters, expected at most {MAX_SOURCE:,}"
        )
    environment = _Environment(_Budget(0))
    try:
        tree = _Instrument().visit(environment.parse(source)).set_environment(environment)
        code: CodeType = environment.compile(tree, filename="<chat template>")
    except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
        raise PromptError(f"the chat template cannot be compiled: {_shown(error)}") from None
    return code


def render(source: str, variables: Mapping[str, Any]) -> str:
    """Return the text that a template makes.

    Parameters
    ----------
    source : str
        The Jinja program.
    variables : mapping of str to value
        What it sees: plain data, as `plain_data` makes it.

    Raises
    ------
    PromptError
        If the program is malformed, refuses the dialogue, fails, or exceeds a limit.
    """
    code = compile_template(source)
    budget = _Budget(size_of(variables))
    environment = _Environment(budget)
    template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
    pieces, length = [], 0
    try:
        for piece in template.generate(variables):
            pieces.append(piece)
            length += len(piece)
            budget.length(length)
    except Refusal as error:
        raise PromptError(f"the model's chat template refuses the dialogue: {error}") from None
    except Exception as error:  # whatever the program did
        raise PromptError(f"the model's chat template fails: {_shown(error)}") from None
    return "".join(pieces)


def size_of(value: object) -> int:
    """Return the size of plain data: its characters, and one for each number and container."""
    if isinstance(value, str):
        return len(value) + 1
    if isinstance(value, Mapping):
        return 1 + sum(size_of(key) + size_of(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return 1 + sum(map(size_of, value))
    return 1


def _shown(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join((str(error) or type(error).__name__).split())[:300]
