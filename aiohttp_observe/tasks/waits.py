"""The kinds of waiting: which functions mean which, and how to add to them.

A function is known by its module and qualified name, so that a library needn't be imported,
or even installed, to be recognised.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import AsyncGeneratorType
from typing import Any, NamedTuple

from .chain import Chain, held_by
from .edges import (
    first_is_enough,
    grouped,
    next_completed,
    next_is_enough,
    next_is_timed,
    task_of_wait_for,
    wait_is_timed,
    waited_set,
)
from .managers import entered_by

__all__ = [
    "TIMEOUT",
    "Rule",
    "forget_when_rules_change",
    "register_wait_kind",
    "registered_state",
    "rule_for",
    "timeouts_of",
]


class Rule(NamedTuple):
    """What it means that a task is suspended in a function.

    ``label``     the function's name in the detail
    ``final``     what it awaits in turn is its own affair, and differs between versions
    ``idle``      holds only while the function awaits a plain future, not a task or coroutine
    ``awaits``    finds the futures it waits for, given the chain's awaitables and its own place
    ``timed``     tells, of the same, whether it waits with a timeout
    ``any_of``    tells, of the same, whether one of the futures is enough
    ``resource``  type, or name of the class, of the object at which tasks meet there, a local
    ``about``     adds to the label from what the function holds
    """

    kind: str
    label: str
    final: bool = True
    idle: bool = False
    awaits: Callable[[Sequence[Any], int], Iterable[Any]] | None = None
    timed: Callable[[Sequence[Any], int], bool] | None = None
    any_of: Callable[[Sequence[Any], int], bool] | None = None
    resource: type | str | None = None
    about: Callable[[Any, str], str] | None = None


def register_wait_kind(
    kind: str, *functions: str | Callable[..., Any], state: Callable[[Any], str] | None = None
) -> None:
    """Show tasks that are suspended in one of ``functions`` as waiting for ``kind``.

    ``functions`` are coroutine functions, or names as ``"module:qualname"`` of some that
    needn't be imported.  Tasks that wait in a method are shown to meet at its object::

        register_wait_kind("db_pool", "asyncpg.pool:Pool._acquire", state=lambda pool:
                           f"{pool.get_size() - pool.get_idle_size()} of {pool.get_max_size()}")
        register_wait_kind("redis_pool", "redis.asyncio.connection:BlockingConnectionPool.get_connection")

    ``kind`` becomes a metric label: lower-case words joined by ``_``.  ``state`` says of that
    object how much of it is taken, in any thread; what it raises is ignored.  The latest
    registration of a function wins, over the built-in ones too.

    Raises ``ValueError`` for a kind or a name of another form, ``TypeError`` for what is no
    coroutine function.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", kind):
        raise ValueError(f"register_wait_kind(kind) takes lower-case words joined by '_', got {kind!r}")
    if not functions:
        raise TypeError(f"register_wait_kind({kind!r}, ...) takes the functions that wait: name at least one")
    for module, qualname in [_name_of(function) for function in functions]:
        owner = _owner(qualname)
        _rules[module, qualname] = Rule(kind, _public(qualname), final=False, resource=owner)
        if owner is not None and state is not None:
            _states[module, owner] = state
    for forget in _memories:
        forget()


def forget_when_rules_change(forget: Callable[[], None]) -> None:
    """Call ``forget``, of a memory of what the rules have said, at every registration."""
    _memories.append(forget)


def _name_of(function: str | Callable[..., Any]) -> tuple[str, str]:
    if isinstance(function, str):
        module, _, qualname = function.partition(":")
        if not (module and qualname):
            raise ValueError(f"register_wait_kind() takes names as 'module:qualname', got {function!r}")
        return module, qualname
    function = inspect.unwrap(function)
    if not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        raise TypeError(f"register_wait_kind() takes coroutine functions or their names, got {function!r}")
    return function.__module__, function.__qualname__


def _owner(qualname: str) -> str | None:
    """The class whose method is named ``qualname``: tasks that wait in it meet at its object."""
    return qualname.rpartition("<locals>.")[2].rpartition(".")[0].rpartition(".")[2] or None


def registered_state(resource: Any) -> str | None:
    """How much of a pool is taken, by what is registered for its class; raises what that raises."""
    states = (_states.get((base.__module__, base.__name__)) for base in type(resource).__mro__)
    state = next(filter(None, states), None)
    return None if state is None else str(state(resource))


def _connections(connector: Any) -> str:
    """How many connections of aiohttp's client are in use, of how many it may have."""
    limits = f"{len(connector._acquired)} of {connector.limit or 'unlimited'}"
    return f"{limits}, {connector.limit_per_host} a host" if connector.limit_per_host else limits


_states: dict[tuple[str, str], Callable[[Any], str]] = {
    ("aiohttp.connector", "BaseConnector"): _connections,
}


def _public(qualname: str) -> str:
    """``Pool._acquire`` as ``Pool.acquire``, ``outer.<locals>.inner`` as ``inner``."""
    owner, dot, name = qualname.rpartition("<locals>.")[2].rpartition(".")
    return f"{owner}{dot}{name.lstrip('_')}"


def rule_for(chain: Chain, index: int) -> Rule | None:
    """The rule of the function that a link of the chain is suspended in."""
    rule = _rules.get((chain.module(index), _qualname(chain, index)))
    if rule is None and type(chain.awaitables[index]) is AsyncGeneratorType:
        # For an @asynccontextmanager the generator is only the way it is written.
        return None if index and chain.module(index - 1) == "contextlib" else _ASYNC_GENERATOR
    return rule


def _qualname(chain: Chain, index: int) -> str:
    """The qualified name of a link's function, that of its code where it has one.

    It has from Python 3.11 on, and not where Cython compiled it.  The coroutine has one too,
    but if its function wraps another that is the other one's.
    """
    code = chain.frames[index].f_code
    claimed: str = getattr(chain.awaitables[index], "__qualname__", "")
    if "." not in getattr(code, "co_qualname", "") and claimed.rpartition(".")[2] == code.co_name:
        return claimed
    known: str = getattr(code, "co_qualname", code.co_name)
    return known


def timeouts_of(awaitables: Sequence[Any], index: int) -> list[Any]:
    """The timeouts in whose blocks a link of the chain is, those entered on its behalf too."""
    return [manager for manager in entered_by(awaitables[index], awaitables) if _is_timeout(manager)]


def _is_timeout(manager: Any) -> bool:
    """Whether an entered context manager is ``asyncio.timeout()`` or one of the async_timeout package."""
    return type(manager).__name__ == "Timeout" and type(manager).__module__ in (
        "asyncio.timeouts",
        "async_timeout",
    )


def _pooled_host(wait: Any, label: str) -> str:
    """Add to ``label`` the host that a connection of aiohttp's pool is wanted for."""
    for held in held_by(wait):
        if type(held).__name__ == "ConnectionKey":
            return f"{label} to {held.host}"
    return label


def _ends(awaitables: Sequence[Any], index: int) -> bool:
    """Whether one of the timeouts around has a deadline, which ``timeout(None)`` hasn't."""
    return any(map(_deadline, timeouts_of(awaitables, index)))


def _deadline(timeout: Any) -> float | None:
    when: float | None = timeout.when() if hasattr(timeout, "when") else timeout.deadline
    return when


TIMEOUT = Rule("timeout", "timeout", final=False, timed=_ends)
_ASYNC_GENERATOR = Rule("async_generator", "async_generator", final=False)


def _builtin_rules() -> Iterator[tuple[tuple[str, str], Rule]]:
    """The rules that differ in nothing but their names, from the table below."""
    for line in _TABLE.strip().splitlines():
        kind, module, owner, *methods = line.split()
        for method in methods:
            qualname = method if owner == "-" else f"{owner}.{method}"
            label = f"loop.{method}" if owner.endswith("Loop") else _public(qualname)
            yield (module, qualname), Rule(kind, label)
    for kind, resource, method in _MEETING_POINTS:
        qualname = f"{resource.__name__}.{method}"
        yield (resource.__module__, qualname), Rule(kind, qualname, resource=resource)


_TABLE = """
sleep       asyncio.tasks            -                      sleep
executor    asyncio.threads          -                      to_thread
stream      asyncio.streams          StreamReader           read readline readexactly readuntil
stream      asyncio.streams          StreamWriter           drain wait_closed start_tls
stream      asyncio.selector_events  BaseSelectorEventLoop  sock_recv sock_recv_into sock_sendall sock_accept
stream      asyncio.selector_events  BaseSelectorEventLoop  sock_recvfrom sock_recvfrom_into sock_sendto
stream      asyncio.proactor_events  BaseProactorEventLoop  sock_recv sock_recv_into sock_sendall sock_accept
stream      asyncio.proactor_events  BaseProactorEventLoop  sock_recvfrom sock_recvfrom_into sock_sendto
stream      uvloop.loop              Loop                   sock_recv sock_recv_into sock_sendall sock_accept
stream      uvloop.loop              Loop                   sock_recvfrom sock_recvfrom_into sock_sendto
connect     asyncio.streams          -                      open_connection open_unix_connection
connect     asyncio.base_events      BaseEventLoop          create_connection start_tls
connect     asyncio.base_events      BaseEventLoop          create_datagram_endpoint
connect     asyncio.unix_events      _UnixSelectorEventLoop create_unix_connection
connect     asyncio.selector_events  BaseSelectorEventLoop  sock_connect
connect     asyncio.proactor_events  BaseProactorEventLoop  sock_connect
connect     uvloop.loop              Loop                   create_connection create_unix_connection
connect     uvloop.loop              Loop                   create_datagram_endpoint start_tls sock_connect
dns         asyncio.base_events      BaseEventLoop          getaddrinfo getnameinfo
dns         uvloop.loop              Loop                   getaddrinfo getnameinfo
subprocess  asyncio.subprocess       Process                wait communicate
subprocess  asyncio.subprocess       -                      create_subprocess_exec create_subprocess_shell
http_client aiohttp.client_reqrep    ClientResponse         start read text json wait_for_close
connect     aiohttp.connector        TCPConnector           _wrap_create_connection
connect     aiohttp.connector        UnixConnector          _create_connection
dns         aiohttp.connector        TCPConnector           _resolve_host _resolve_host_with_throttle
dns         aiohttp.resolver         ThreadedResolver       resolve
dns         aiohttp.resolver         AsyncResolver          resolve
stream      aiohttp.streams          StreamReader           read readany readchunk readexactly
stream      aiohttp.streams          StreamReader           readline readuntil
stream      aiohttp.base_protocol    BaseProtocol           _drain_helper
websocket   aiohttp.web_ws           WebSocketResponse      receive close ping pong send_frame
websocket   aiohttp.web_ws           WebSocketResponse      send_str send_bytes send_json
websocket   aiohttp.client_ws        ClientWebSocketResponse receive close ping pong send_frame
websocket   aiohttp.client_ws        ClientWebSocketResponse send_str send_bytes send_json
"""
"""Kind, module, class or ``-``, functions."""

_MEETING_POINTS: list[tuple[str, type, str]] = [
    ("lock", asyncio.Lock, "acquire"),
    ("semaphore", asyncio.Semaphore, "acquire"),
    ("event", asyncio.Event, "wait"),
    ("condition", asyncio.Condition, "wait"),
    ("condition", asyncio.Condition, "wait_for"),
    ("queue_get", asyncio.Queue, "get"),
    ("queue_put", asyncio.Queue, "put"),
    ("event", asyncio.Queue, "join"),
]
if sys.version_info >= (3, 11):
    _MEETING_POINTS.append(("barrier", asyncio.Barrier, "wait"))

_TASK = task_of_wait_for if sys.version_info < (3, 12) else None
_NEXT_COMPLETED = Rule(
    "wait", "as_completed", awaits=next_completed, timed=next_is_timed, any_of=next_is_enough
)

_memories: list[Callable[[], None]] = []
_rules: dict[tuple[str, str], Rule] = {
    **dict(_builtin_rules()),
    ("asyncio.tasks", "wait"): Rule(
        "wait", "wait", awaits=waited_set, timed=wait_is_timed, any_of=first_is_enough
    ),
    ("asyncio.tasks", "wait_for"): Rule(
        "wait_for", "wait_for", final=False, awaits=_TASK, timed=wait_is_timed
    ),
    ("asyncio.tasks", "as_completed.<locals>._wait_for_one"): _NEXT_COMPLETED,  # up to Python 3.12
    ("asyncio.tasks", "_AsCompletedIterator._wait_for_one"): _NEXT_COMPLETED,
    ("asyncio.taskgroups", "TaskGroup.__aexit__"): Rule("task_group", "TaskGroup", awaits=grouped),
    # Within a request of aiohttp's client, what that waits for is told too.
    ("aiohttp.client", "ClientSession._request"): Rule("http_client", "ClientSession.request", final=False),
    ("aiohttp.connector", "BaseConnector._wait_for_available_connection"): Rule(
        "http_client", "waiting for a pooled connection", about=_pooled_host, resource="BaseConnector"
    ),
    ("aiohttp.web_protocol", "RequestHandler.start"): Rule("http_server_idle", "next request", idle=True),
}
