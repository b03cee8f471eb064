"""Chat templates: the model's own Jinja2 text, rendered where it can reach and exhaust nothing.

A template comes with a model file, so it is as untrusted as the file. It runs in Jinja2's
immutable sandbox; beyond that every loop pass and call is counted, and whatever could make a
small text large (repetition, padding, formatting, replacement) is bounded before it happens.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from mobillama.core.errors import UserError

Message = Mapping[str, Any]

LONGEST_TEMPLATE = 200_000
LARGEST_VALUE = 20_000_000
MOST_STEPS = 200_000

FILTERS = frozenset(
    {
        "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
        "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max",
        "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr",
        "sort", "string", "sum", "title", "trim", "unique", "upper",
    }
)  # fmt: skip
FORMATTERS = frozenset({"format", "format_map"})


class TemplateRefusedError(TemplateError):
    """The template wants more than its limits allow, or itself refuses the messages."""


class GenerationBlock(Extension):
    """Reads ``{% generation %}``, which marks answers in training templates, as the text inside it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the block's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Accounting(NodeTransformer):
    """Puts a count into every loop and macro, and a bound on every ``~``."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        parts = [self.visit(part) for part in node.nodes]
        return nodes.Call(
            nodes.EnvironmentAttribute("concatenate"), parts, [], None, None, lineno=node.lineno
        )

    def _counted(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with a budget of steps and a bound on what any single operation can make."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock])
        self.steps = 0
        self.filters = {name: bounded(function) for name, function in self.filters.items() if name in FILTERS}
        self.filters["tojson"] = to_json

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return _Accounting().visit(tree)

    def tick(self) -> None:
        """Count one loop pass or call."""
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise TemplateRefusedError(f"it takes more than {MOST_STEPS} steps")

    def concatenate(self, *parts: Any) -> str:
        """Return the parts as one text: the operator ``~``."""
        require_small(sum(map(weight, parts)))
        return "".join(map(str, parts))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator that could make something large, if it does not."""
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise TemplateRefusedError(f"the operator {operator} is not available")
        require_small(weight(left) * weight(right) if operator == "*" else weight(left) + weight(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a function or method, counted, if its arguments cannot make something large."""
        __self.tick()
        if getattr(__obj, "__name__", "") in FORMATTERS:
            raise TemplateRefusedError("str.format is not available")
        if isinstance(owner := getattr(__obj, "__self__", None), str):
            require_small(math.prod(map(weight, (owner, *args, *kwargs.values()))))
        return super().call(__context, __obj, *args, **kwargs)


def bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that refuses arguments from which it could make something large."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        require_small(math.prod(map(weight, (*args, *kwargs.values()))))
        return function(*args, **kwargs)

    return wrapper


def weight(value: Any) -> int:
    """Return how much a value can multiply a text by: its length, or an integer itself; at least 1."""
    if isinstance(value, int):
        return max(abs(value), 1)
    if isinstance(value, str | bytes | Sequence | Mapping):
        return max(len(value), 1)  # pyright: ignore[reportUnknownArgumentType]
    return 1


def require_small(size: int) -> None:
    """Refuse an operation whose result could have more than `LARGEST_VALUE` characters."""
    if size > LARGEST_VALUE:
        raise TemplateRefusedError(f"a value could exceed {LARGEST_VALUE} characters")


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **rest: Any) -> str:
    """Return JSON text without HTML escapes, as transformers' templates expect."""
    require_small(indent or 0)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **rest)


def raise_exception(message: str) -> NoReturn:
    """Let a template refuse the messages it is given."""
    raise TemplateRefusedError(message)


def strftime_now(pattern: str) -> str:
    """Return the present moment in a template's own format."""
    return datetime.now().strftime(pattern[:100])


FUNCTIONS: dict[str, Any] = {"raise_exception": raise_exception, "strftime_now": strftime_now}


def render(template: str, messages: Sequence[Message], **values: Any) -> str:
    """Return the text of a conversation as ``template`` lays it out, ready for the model's answer.

    Arguments:
        messages: each with ``role`` and ``content``, oldest first.
        values: more names for the template, such as ``bos_token``.

    Raises:
        UserError: the template is no valid Jinja2, reaches for what it must not, exceeds its
            limits, or refuses these messages.
    """
    if len(template) > LONGEST_TEMPLATE:
        raise UserError(f"the chat template has {len(template)} characters; {LONGEST_TEMPLATE} are allowed")
    try:
        compiled = LimitedEnvironment().from_string(template, globals=FUNCTIONS)
        text: list[str] = []
        size = 0
        for piece in compiled.generate(messages=messages, add_generation_prompt=True, **values):
            size += len(piece)
            require_small(size)
            text.append(piece)
    except Exception as error:  # a template from anywhere can raise anything
        reason = str(error) or type(error).__name__
        raise UserError(f"the model's chat template cannot be used: {reason}; give another one") from None
    return "".join(text)
