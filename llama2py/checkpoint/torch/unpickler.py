"""A machine for pickles that can build plain containers and what its caller gives it: no more.

A pickle is a program, and Python's own machine runs whatever it names. This one cannot import
anything: a name is looked up in the caller's table, and one that is not there is refused by name.
What a program may build is bounded, too: a small file can ask for much memory.

Source: ``pickletools`` of the standard library, which documents every opcode.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError

MAX_STEPS = 250_000  # a training checkpoint of 80 layers takes about 100,000
MAX_MEMORY = 12 << 20  # bytes
_MAX_NAME = 1000  # characters of a module and a name in it
# Bytes that Python takes for an object or a container, at most, with its place in a list.
_OBJECT, _CONTAINER = 100, 300
_SMALL_CALL = 16  # arguments and items of a call that costs nothing extra


@dataclass(frozen=True, slots=True)
class Function:
    """What a pickle may call, by a name of the caller's table."""

    name: str
    call: Callable[..., object]


@dataclass(slots=True)
class Limits:
    """What several pickles may do together; running one uses it up.

    Attributes
    ----------
    steps : int
        Instructions.
    memory : int
        Bytes that the objects may take, roughly.
    """

    steps: int = MAX_STEPS
    memory: int = MAX_MEMORY


_MARK = object()
_FIXED: dict[int, tuple[struct.Struct, bool]] = {
    # opcode: its argument, and whether that is the length of the bytes that follow
    ord("J"): (struct.Struct("<i"), False),  # BININT
    ord("K"): (struct.Struct("<B"), False),  # BININT1
    ord("M"): (struct.Struct("<H"), False),  # BININT2
    ord("G"): (struct.Struct(">d"), False),  # BINFLOAT
    ord("X"): (struct.Struct("<I"), True),  # BINUNICODE
    0x8C: (struct.Struct("<B"), True),  # SHORT_BINUNICODE
    0x8D: (struct.Struct("<Q"), True),  # BINUNICODE8
    ord("B"): (struct.Struct("<I"), True),  # BINBYTES
    ord("C"): (struct.Struct("<B"), True),  # SHORT_BINBYTES
    0x8A: (struct.Struct("<B"), True),  # LONG1
}
_TEXTS = {ord("X"), 0x8C, 0x8D}
_CONSTANTS: dict[int, object] = {ord("N"): None, 0x88: True, 0x89: False}
_EMPTY: dict[int, Callable[[], object]] = {ord("}"): dict, ord("]"): list, ord(")"): tuple}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_GETS = {ord("h"): struct.Struct("<B"), ord("j"): struct.Struct("<I")}
_PUTS = {ord("q"): struct.Struct("<B"), ord("r"): struct.Struct("<I")}
_MAX_KEY = 1 << 32  # larger numbers can be made to share a hash, which makes a dict slow


def unpickle(
    data: bytes,
    names: Mapping[str, object],
    load: Callable[[object], object],
    limits: Limits | None = None,
) -> object:
    """Run a pickle of protocol 2 to 5.

    Parameters
    ----------
    data : bytes
        The program.
    names : mapping of str to object
        What each ``module.name`` in it stands for. Only a `Function` can be called.
    load : callable
        Makes an object of a persistent id (PyTorch: of a tuple that describes a storage).
    limits : Limits, optional
        What is left for this pickle, where it is one of several. Each takes at most `MAX_STEPS`
        steps and `MAX_MEMORY` bytes of it.

    Returns
    -------
    object
        Made of None, bool, int, float, str, bytes, list, tuple, dict, and the caller's objects.

    Raises
    ------
    CheckpointError
        Without a file's name, for the caller to add: the program is malformed, cut short, does too
        much, or names or calls anything else.
    """
    limits = limits or Limits()
    steps, memory = min(limits.steps, MAX_STEPS), min(limits.memory, MAX_MEMORY)
    machine = _Machine(data, names, load, steps, memory)
    try:
        return machine.run()
    except (struct.error, IndexError):
        raise CheckpointError("the pickle is cut short or damaged") from None
    finally:
        limits.steps -= steps - machine.steps
        limits.memory -= memory - machine.memory


class _Machine:
    def __init__(
        self,
        data: bytes,
        names: Mapping[str, object],
        load: Callable[[object], object],
        steps: int,
        memory: int,
    ) -> None:
        self.data, self.names, self.load = data, names, load
        self.steps, self.memory = steps, memory  # left
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        while self.steps > 0:
            self.steps -= 1
            opcode = self.argument(1)[0]
            if opcode == ord("."):
                result = self.pop()
                if self.stack:
                    raise CheckpointError("the pickle leaves more than one object")
                return result
            self.step(opcode)
        raise CheckpointError("the pickle takes more steps than that of any checkpoint")

    def step(self, opcode: int) -> None:
        if opcode in _FIXED:
            self.push(self.literal(opcode))
        elif opcode in _CONSTANTS:
            self.push(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            self.push(_EMPTY[opcode](), _CONTAINER)
        elif opcode in _GETS:
            index = self.number(_GETS[opcode])
            if index not in self.memo:
                raise CheckpointError(f"the pickle recalls object {index}, which it never stored")
            self.push(self.memo[index])
        elif opcode in _PUTS:
            self.remember(self.number(_PUTS[opcode]))
        elif opcode in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[opcode])]
            self.push(tuple(reversed(items)), _CONTAINER)
        elif opcode in _STEPS:
            _STEPS[opcode](self)
        else:
            raise CheckpointError(
                f"the pickle has the instruction 0x{opcode:02x} at its byte {self.at - 1},"
                " which tensors and plain containers do not need"
            )

    # ---- the program ----

    def argument(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise CheckpointError("the pickle is cut short")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.argument(form.size))[0]

    def literal(self, opcode: int) -> object:
        form, is_length = _FIXED[opcode]
        value = self.number(form)
        if not is_length:
            return value
        self.spend(4 * min(value, len(self.data)))  # a character takes up to four bytes
        content = self.argument(value)
        if opcode == 0x8A:
            return int.from_bytes(content, "little", signed=True)
        return self.text(content) if opcode in _TEXTS else content

    def text(self, content: bytes) -> str:
        try:
            return content.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise CheckpointError("a string in the pickle is not UTF-8") from None

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            raise CheckpointError("a name in the pickle does not end")
        return self.text(self.argument(end + 1 - self.at)[:-1])

    # ---- the stack and the memo ----

    def spend(self, cost: int) -> None:
        self.memory -= cost
        if self.memory < 0:
            raise CheckpointError("the pickle builds far more than a checkpoint's tensors")

    def push(self, value: object, cost: int = _OBJECT) -> None:
        self.spend(cost)
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise CheckpointError("the pickle takes an object that it did not put on the stack")
        return value

    def pop_to_mark(self) -> list[Any]:
        items = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        items.reverse()
        return items

    def top(self, kind: type, what: str) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise CheckpointError(f"the pickle adds to an object that is not a {what}")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        self.spend(_OBJECT)
        if self.stack[-1] is _MARK:
            raise CheckpointError("the pickle stores a mark as an object")
        self.memo[index] = self.stack[-1]

    # ---- instructions ----

    def protocol(self) -> None:
        (protocol,) = self.argument(1)
        if not 2 <= protocol <= 5:
            raise CheckpointError(f"the pickle is of protocol {protocol}, expected 2 to 5")

    def append(self) -> None:
        item = self.pop()
        self.top(list, "list").append(item)

    def append_all(self) -> None:
        items = self.pop_to_mark()
        self.top(list, "list").extend(items)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def set_marked(self) -> None:
        self.set_items(self.pop_to_mark())

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise CheckpointError("the pickle sets a key without a value")
        self.spend(_OBJECT * len(items))
        fill(self.top(dict, "dict"), list(zip(items[::2], items[1::2], strict=True)))

    def find_global(self) -> None:
        module = self.line()
        self.push(self.find(module, self.line()))

    def find_stacked(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise CheckpointError("the pickle names an object by something that is not a string")
        self.push(self.find(module, name))

    def find(self, module: str, name: str) -> object:
        # A long name costs its length at each use, and a pickle can use it again and again.
        full = f"{module[:_MAX_NAME]}.{name[:_MAX_NAME]}"
        if full not in self.names:
            raise CheckpointError(
                f"the pickle names {full[:120]!r}, which is never run: only tensors and plain"
                " containers are read"
            )
        return self.names[full]

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise CheckpointError("the pickle calls an object that is not a function")
        # A call looks at each argument and at the items of each, and a pickle can call a function
        # with the same long list again and again.
        sizes = [len(each) for each in arguments[:8] if isinstance(each, list | tuple | dict)]
        self.spend(_OBJECT * max(0, len(arguments) + sum(sizes) - _SMALL_CALL))
        try:
            result = function.call(*arguments)
        except (TypeError, ValueError):  # too few arguments, too many, or others
            raise CheckpointError(
                f"the pickle calls {function.name} with wrong arguments"
            ) from None
        self.push(result, _CONTAINER)

    def build(self) -> None:
        """Drop the attributes of an object: state_dict() gives its dict one that nothing needs."""
        self.pop()
        self.top(dict, "dict")

    def load_persistent(self) -> None:
        self.push(self.load(self.pop()), _CONTAINER)


_STEPS: dict[int, Callable[[_Machine], object]] = {
    0x80: _Machine.protocol,
    0x95: lambda machine: machine.argument(8),  # FRAME: how the writer buffered
    ord("("): lambda machine: machine.push(_MARK),
    ord("0"): _Machine.pop,
    ord("1"): _Machine.pop_to_mark,
    ord("t"): lambda machine: machine.push(tuple(machine.pop_to_mark()), _CONTAINER),
    ord("a"): _Machine.append,
    ord("e"): _Machine.append_all,
    ord("s"): _Machine.set_item,
    ord("u"): _Machine.set_marked,
    ord("c"): _Machine.find_global,
    0x93: _Machine.find_stacked,
    0x94: lambda machine: machine.remember(len(machine.memo)),  # MEMOIZE
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.load_persistent,
}


def fill(target: dict[Any, Any], pairs: list[tuple[Any, Any]]) -> None:
    """Set items of a dict. Keys may only be strings, None and small whole numbers.

    Raises
    ------
    CheckpointError
        A key is anything else.
    """
    for key, value in pairs:
        is_small = isinstance(key, int) and abs(key) < _MAX_KEY
        if not (is_small or key is None or isinstance(key, str)):
            raise CheckpointError("a key in the pickle is neither a string nor a small number")
        target[key] = value
