"""What tasks that stand at the same places have in common, worked out once a snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from types import AsyncGeneratorType
from typing import Any, NamedTuple

from .chain import Chain, held_by
from .edges import awaited
from .managers import managers_in
from .model import Frame
from .places import is_library
from .waits import TIMEOUT, Rule, rule_for, timeouts_of

__all__ = ["Reading", "Stack", "Stacks", "kind_at", "read_wait"]

_WRAPPERS = {"sentry_sdk", "ddtrace", "newrelic", "elasticapm", "opentelemetry"}
"""Packages that run a task's coroutine within one of their own."""


class Stack:
    """The places of an await chain and what is known about them.

    ``start``     which link is the task's own coroutine, and no other package's wrapper around it
    ``frames``    innermost first
    ``line``      the innermost of the service's own lines, else the innermost of all
    ``marks``     the links that say something about the wait, outermost first; those without a
                  rule are in an ``async with`` block, which may be a timeout
    ``managing``  the links that are in an ``async with`` block or iterate over an async generator
    ``entering``  whether one more block is about to be entered
    ``phrase``, ``reading``  what the marks say, if it is the same for every task here
    """

    __slots__ = ("_codes", "entering", "frames", "line", "managing", "marks", "phrase", "reading", "start")

    def __init__(self, chain: Chain, depth: int) -> None:
        number = len(chain.frames)
        self._codes = [frame.f_code for frame in chain.frames]  # the key is their ids: they must stay
        self.start = next((i for i in range(number) if _package(chain, i) not in _WRAPPERS), 0)
        self.frames = tuple(chain.place(i) for i in range(number - 1, max(-1, number - depth - 1), -1))
        self.line = _line(chain)
        # An exit stack takes up what it has entered only then.
        names = [frame.f_code.co_name for frame in chain.frames[-3:]]
        self.entering = names[-2:-1] == ["__aenter__"] and names[0] != "enter_async_context"
        self.marks: list[tuple[int, Rule | None]] = []
        self.managing: list[int] = []
        told_for = ""  # the package whose function a rule was last found for
        for index, awaitable in enumerate(chain.awaitables):
            rule, package = rule_for(chain, index), _package(chain, index)
            if rule is not None:
                told_for = package
                self.marks.append((index, rule))
                if rule.final and not rule.idle:
                    break
            held = held_by(awaitable)
            in_block = bool(managers_in(held))
            if in_block or any(type(each) is AsyncGeneratorType for each in held):
                self.managing.append(index)
            if in_block and package != told_for:  # else a timeout is the function's own affair
                self.marks.append((index, None))
        self.phrase = _fixed_phrase(chain, self.marks)
        self.reading = _constant(self.phrase)


def _line(chain: Chain) -> Frame | None:
    innermost_first = range(len(chain.frames) - 1, -1, -1)
    own = (i for i in innermost_first if not is_library(chain.frames[i].f_code.co_filename))
    index = next(own, len(chain.frames) - 1)
    return chain.place(index) if index >= 0 else None


def _package(chain: Chain, index: int) -> str:
    return chain.module(index).partition(".")[0]


class Stacks:
    """The stacks of one snapshot, by the key of their chains.  ``depth`` frames of each are kept."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._known: dict[tuple[int, ...], Stack] = {}

    def of(self, chain: Chain) -> Stack:
        """The stack of ``chain``."""
        stack = self._known.get(chain.key)
        if stack is None:
            stack = self._known[chain.key] = Stack(chain, self._depth)
        return stack

    def __len__(self) -> int:
        return len(self._known)

    def forget(self) -> None:
        """Forget all stacks: the memory begins anew."""
        self._known.clear()


class Reading(NamedTuple):
    """What a task waits for.

    ``on``        the futures it waits for, one of which is enough if ``any_of``
    ``resource``  the object it waits at
    ``timed``     whether a timeout will end the wait by itself
    """

    kind: str
    detail: str
    on: Sequence[Any]
    resource: Any
    any_of: bool
    timed: bool

    @property
    def innermost(self) -> str:
        """The last of the calls that ``detail`` names."""
        return self.detail.rpartition(" → ")[2]


class _Phrase(NamedTuple):
    """What the rules of a chain say, all but the objects they lead to.

    The outermost rule, or ``async with asyncio.timeout()`` block, gives the kind; all of them
    from there on, down to a final one, begin the detail.
    """

    rules: Sequence[tuple[int, Rule]]
    kind: str | None
    words: str
    final: bool


def _phrase(rules: Sequence[tuple[int, Rule]], chain: Chain) -> _Phrase:
    words = (rule.about(chain.awaitables[i], rule.label) if rule.about else rule.label for i, rule in rules)
    kinds = [rule.kind for _, rule in rules]
    return _Phrase(
        rules,
        kind=kinds[0] if kinds else None,
        words=" → ".join(words),
        final=bool(rules) and rules[-1][1].final,
    )


def _fixed_phrase(chain: Chain, marks: Sequence[tuple[int, Rule | None]]) -> _Phrase | None:
    """The phrase if it is the same for every task at these places."""
    rules = [(index, rule) for index, rule in marks if rule is not None]
    if len(rules) < len(marks) or any(rule.idle or rule.about for _, rule in rules):
        return None
    return _phrase(rules, chain)


def _rules_at(chain: Chain, stack: Stack) -> Iterator[tuple[int, Rule]]:
    """The rules that hold for this very task, whose ``async with`` blocks may or may not be timeouts."""
    for index, rule in stack.marks:
        if rule is None:
            if timeouts_of(chain.awaitables, index):
                yield index, TIMEOUT
        elif not rule.idle or (index == len(chain.frames) - 1 and awaited(chain.leaf).kind == "future"):
            yield index, rule


def kind_at(chain: Chain, stack: Stack) -> str | None:
    """The wait kind as far as the places in the code tell it."""
    if stack.phrase is not None:
        return stack.phrase.kind
    return next((rule.kind for _, rule in _rules_at(chain, stack)), None)


def read_wait(chain: Chain, stack: Stack) -> Reading:
    """What a waiting task waits for."""
    if stack.reading is not None:
        return stack.reading
    phrase = stack.phrase or _phrase(list(_rules_at(chain, stack)), chain)
    on: Sequence[Any] = ()
    resource = None
    timed = any_of = False
    for index, rule in phrase.rules:
        if rule.timed is not None:
            timed = timed or rule.timed(chain.awaitables, index)
        if rule.any_of is not None:
            any_of = any_of or rule.any_of(chain.awaitables, index)
        if rule.awaits is not None:
            on = on or tuple(rule.awaits(chain.awaitables, index))
        if rule.resource is not None:
            found = _local(chain.awaitables[index], rule.resource)
            # Of a pool and the queue within, the pool is meant; a lock within it has holders.
            if resource is None or isinstance(found, (asyncio.Lock, asyncio.Semaphore)):
                resource = found
    if phrase.final and phrase.kind is not None:
        return Reading(phrase.kind, phrase.words, on, resource, any_of, timed)
    leaf = awaited(chain.leaf)
    words = f"{phrase.words} → {leaf.detail}" if phrase.words else leaf.detail
    return Reading(phrase.kind or leaf.kind, words, on or leaf.on, resource, any_of, timed)


def _constant(phrase: _Phrase | None) -> Reading | None:
    """The reading that ``phrase`` gives, if it is the same for every task at these places."""
    if phrase is None or phrase.kind is None or not phrase.final:
        return None
    if any(rule.awaits or rule.resource or rule.timed for _, rule in phrase.rules):
        return None
    return Reading(phrase.kind, phrase.words, (), None, any_of=False, timed=False)


def _local(awaitable: Any, kind: type | str) -> Any:
    if isinstance(kind, str):
        return next((held for held in held_by(awaitable) if _is_named(type(held), kind)), None)
    for held in held_by(awaitable):
        if isinstance(held, kind):
            return held
    return None


def _is_named(type_: type, name: str) -> bool:
    return any(base.__name__ == name for base in type_.__mro__)
