"""``setup_observability()``: the only place where the pillars meet."""

from __future__ import annotations

import asyncio
import atexit
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from inspect import iscoroutinefunction
from typing import Any

from aiohttp import web
from aiohttp.web_app import (
    Application,  # web.Application is what an active OpenTelemetry instrumentor replaces
)

from .admin import Admin, AdminPages, Gate, TakenError
from .background import Worker, drain, tell_left_out, workers_of
from .client import CLIENT_SESSION, Client, client_session
from .documents import Documents
from .exchange import SCOPE, Scope
from .failures import Failures, FailureWatch
from .flightrecorder import FlightRecorder
from .incidents import Incidents
from .logs import Logs, ServerLogs
from .loopwatch import Bystanders, LoopMonitor, LoopWatch
from .metrics import Metrics, ServerMetrics
from .middleware import Recorder, user_observers
from .options import check_instance
from .tasks import Snapshot, Tasks, count_as_own, count_tasks
from .tracing import ServerTracer, Tracing, instrumentors_place, is_instrumented, without_instrumentor

__all__ = ["OBSERVABILITY", "Observability", "setup_observability"]

logger = logging.getLogger("aiohttp_observe")

_Receiver = Callable[[web.Application], Awaitable[object]]
_TICK_INTERVAL = 0.25
"""Seconds between looks for clients that have left, and the like."""


@dataclass(frozen=True, kw_only=True)
class _Pillars:
    metrics: Metrics | None
    logs: Logs | None
    tracing: Tracing | None
    failures: Failures | None
    tasks: Tasks | None
    loop_watch: LoopWatch | None
    client: Client | None
    admin: Admin | None

    def __post_init__(self) -> None:
        kinds = (Metrics, Logs, Tracing, Failures, Tasks, LoopWatch, Client, Admin)
        for name, kind in zip(self.__dataclass_fields__, kinds, strict=True):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise TypeError(
                    f"setup_observability({name}=...) takes {kind.__name__}(...), or None to turn it off, "
                    f"got {value!r} ({type(value).__name__})"
                )
        if self.metrics is not None:
            self._check_page(self.metrics)

    def _check_page(self, metrics: Metrics) -> None:
        if metrics.require_token and self.admin is None:
            raise ValueError("Metrics(require_token=True) needs the token of admin=Admin(token=...)")
        if self.admin is not None and self.admin.path == metrics.path:
            raise ValueError(
                f"Metrics(path=...) and Admin(path=...) are both {metrics.path!r}: give each its own"
            )


def setup_observability(
    app: web.Application,
    *,
    metrics: Metrics | None = Metrics(),
    logs: Logs | None = Logs(),
    tracing: Tracing | None = Tracing(),
    failures: Failures | None = Failures(),
    tasks: Tasks | None = Tasks(),
    loop_watch: LoopWatch | None = LoopWatch(),
    client: Client | None = Client(),
    admin: Admin | None = Admin(),
    observers: Iterable[object] = (),
) -> Observability:
    """Make everything ``app`` does observable: requests, outbound calls, logs, failures, tasks.

    Call it once, on the root application, before it runs; sub-applications are covered.
    Each pillar is described by an object of options; ``None`` turns it off.  ``observers``
    hear of every request: see `Observer`.  What it starts, it starts with the application,
    and after clean-up everything is as it was before.

    Returns the running state, also found as ``app[OBSERVABILITY]``.

    Raises ``TypeError`` or ``ValueError`` for options that can't be, and ``RuntimeError`` for
    a second call, a path that is taken, an application that is frozen, a sub-application, or
    one that covers another one already set up.
    """
    pillars = _Pillars(
        metrics=metrics,
        logs=logs,
        tracing=tracing,
        failures=failures,
        tasks=tasks,
        loop_watch=loop_watch,
        client=client,
        admin=admin,
    )
    _check_application(app)
    _check_paths(app, [pillar.path for pillar in (metrics, admin) if pillar is not None and pillar.path])
    _check_guard(metrics, admin)
    app[OBSERVABILITY] = observability = Observability(app, pillars, _checked(observers))
    return observability


class Observability:
    """The running state of one application: ``app[OBSERVABILITY]``.

    ``metrics``, ``logs`` and ``tracer`` are its running pillars, ``monitor`` its loop watch
    between start-up and clean-up; each is ``None`` when turned off.  What else is here is how
    they work together, and may change.
    """

    def __init__(self, app: web.Application, pillars: _Pillars, observers: tuple[object, ...]) -> None:
        self.scope = Scope()
        self.recorder = Recorder(self.scope)
        self.metrics: ServerMetrics | None = None
        self.tracer: ServerTracer | None = None
        self.logs: ServerLogs | None = None
        self.monitor: LoopMonitor | None = None
        self.admin: AdminPages | None = None
        self.failures: FailureWatch | None = None
        self.flights = FlightRecorder(lambda: list(self.recorder.in_flight.values()))
        self.incidents = Incidents()
        self.documents = Documents(self.recorder, self.flights, self.incidents)
        self._pillars = pillars
        self._closing = AsyncExitStack()
        self._install_pillars(app)
        self._add_observers(observers)
        self._wire(app)

    def snapshot(self, **filters: Any) -> Snapshot:
        """The tasks of the application's loop: `take_snapshot` with what the loop watch knows.

        Works from any thread.  Raises ``RuntimeError`` while the application isn't running.
        """
        return self.documents.snapshot(**filters)

    def workers(self) -> list[Worker]:
        """The health of the workers that ``spawn(..., restart=...)`` has started, oldest first.

        Ended ones stay, the latest of each name, so that a readiness handler sees what is
        missing.  Works from any thread.
        """
        return workers_of(self.scope)

    def _install_pillars(self, app: web.Application) -> None:
        """What may refuse its options comes before what adds routes: a set-up that fails leaves none."""
        pillars, scope = self._pillars, self.scope
        if pillars.metrics is not None:
            self.metrics = pillars.metrics.install()
            scope.meter = self.metrics.instruments
        if pillars.tracing is not None:
            self.tracer = scope.tracer = pillars.tracing.install(scope.meter)
        if pillars.logs is not None:
            self.logs = pillars.logs.install(app, scope.meter, self.recorder.answered)
        if pillars.client is not None:
            pillars.client.install(app, scope)
        if pillars.admin is not None:
            self.admin = pillars.admin.install(app, self.documents)
        self._add_metrics(app, None if self.admin is None else self.admin.gate)

    def _add_metrics(self, app: web.Application, gate: Gate | None) -> None:
        if self.metrics is not None:
            self.metrics.serve(app, gate)

    def _add_observers(self, observers: tuple[object, ...]) -> None:
        """In the order they hear: the trace first, so that the others know its ids."""
        add = self.recorder.add
        if self.tracer is not None:
            add("tracing", self.tracer)
        if self.metrics is not None:
            add("metrics", self.metrics)
        if self._pillars.admin is not None:
            add("flightrecorder", self.flights)
        for name, observer in user_observers(observers):
            add(name, observer)
        if self.logs is not None and self.logs.lines is not None:
            add("logs", self.logs.lines)

    def _wire(self, app: web.Application) -> None:
        # Outermost, but within the official instrumentor's, whose span is used then.
        app.middlewares.insert(instrumentors_place(app), self.recorder.middleware())
        app.on_response_prepare.append(self.recorder.prepare)
        app.on_shutdown.append(self.recorder.stop)
        app.cleanup_ctx.insert(0, self._run)
        # Background tasks use what the service's own clean-up takes away: they end before it.
        app.on_cleanup.insert(0, self._drain)

    async def _drain(self, app: web.Application) -> None:
        failures = self._pillars.failures or Failures()
        await drain(self.scope, failures.shutdown_timeout)

    async def _run(self, app: web.Application) -> AsyncIterator[None]:
        """Start-up of everything; clean-up, in the opposite order, here if no other follows."""
        _refuse_nested(app)
        apps = (app, *_nested(app))
        self.recorder.others_prepare = sum(len(each.on_response_prepare) for each in apps) > 1
        async with AsyncExitStack() as stack:
            loop = asyncio.get_running_loop()
            SCOPE.set(self.scope)
            self.recorder.stopping = False
            if self.logs is not None:
                self.logs.open()
                stack.push_async_callback(self.logs.close)
            if self.tracer is not None:
                self._open_tracer(app, self.tracer)
                stack.push_async_callback(self.tracer.close)
            self._flush_in_time(stack)
            self._know_own_code(app)
            self._watch_loop(stack, loop)
            self.documents.open(loop, self.monitor, self.logs)
            stack.callback(self.documents.close)
            stack.callback(tell_left_out, at_once=True)
            stack.callback(self._tick_often(loop))
            await self._serve_apart(stack)
            if self._pillars.client is not None and self._pillars.client.session:
                app[CLIENT_SESSION] = await stack.enter_async_context(client_session(app))
            if not app.on_cleanup.frozen and self._close not in app.on_cleanup:
                app.on_cleanup[:] = [_Guarded(receiver, self._close) for receiver in app.on_cleanup]
                app.on_cleanup.append(self._close)
            self._closing = stack.pop_all()
        another_follows = False
        try:
            yield
            await self._drain(app)  # what the service's own clean-up has spawned
            another_follows = app.on_cleanup.frozen and self._close in app.on_cleanup
        finally:
            if not another_follows:
                await self._end()

    async def _close(self, app: web.Application) -> None:
        """After the last ``on_cleanup`` of the service, whose lines and failures are told of, too."""
        try:
            await self._drain(app)
        finally:
            await self._end()

    async def _end(self) -> None:
        """Close all that start-up has opened; a second call has no effect."""
        await self._closing.aclose()
        SCOPE.set(None)

    async def _serve_apart(self, stack: AsyncExitStack) -> None:
        """The console on a loop of its own; a service whose port for it is taken runs without."""
        if self.admin is None:
            return
        for server in self.admin.own_servers(self._add_metrics):
            try:
                logger.info("task console at %s", await server.start())
            except TakenError as exc:  # as each worker but one finds it, and gets it when that has gone
                logger.warning("the task console isn't served apart: %s", exc)
            except (OSError, asyncio.TimeoutError) as exc:
                logger.error("the task console isn't served apart: %s", str(exc) or "it didn't start in time")
            stack.push_async_callback(server.stop)

    def _flush_in_time(self, stack: AsyncExitStack) -> None:
        """What was left for later is done before a scrape, at clean-up, and at an exit without one."""
        flush = self.recorder.flush
        atexit.register(flush)
        stack.callback(atexit.unregister, flush)
        stack.callback(flush)
        stack.callback(self.recorder.close)
        if self.metrics is not None:
            in_flight = self.recorder.in_flight
            stack.callback(self.metrics.read_active(lambda: list(in_flight.values())))
            stack.callback(self.metrics.flush_at_scrape(flush))

    def _know_own_code(self, app: web.Application) -> None:
        """The service's own is what its handlers are in, even if it is installed."""
        for each in (app, *_nested(app)):
            for route in each.router.routes():
                handler = getattr(route.handler, "func", route.handler)  # of a partial
                count_as_own(getattr(handler, "__module__", None) or "")

    def _open_tracer(self, app: web.Application, tracer: ServerTracer) -> None:
        tracer.open(app)
        if any(is_instrumented(each) for each in (app, *_nested(app))):
            self.recorder.adapt = without_instrumentor

    def _watch_loop(self, stack: AsyncExitStack, loop: asyncio.AbstractEventLoop) -> None:
        pillars, meter = self._pillars, self.scope.meter
        if pillars.failures is not None:
            self.failures = pillars.failures.install(loop, self.scope, self.incidents)
            stack.callback(self._stop_hearing, self.failures)
        if pillars.tasks is not None:
            stack.callback(pillars.tasks.install(loop).uninstall)
            if self.metrics is not None:
                stack.callback(self.metrics.count_tasks(loop, lambda: count_tasks(loop)))
        if pillars.loop_watch is not None:
            also = None if self.admin is None else self.documents.bundle_after
            flush = partial(self.recorder.flush, wait=False)
            in_flight = self.recorder.in_flight.values()
            bystanders = Bystanders(self.scope, in_flight, self.incidents, flush, also)
            self.monitor = monitor = pillars.loop_watch.install(loop, meter, bystanders)
            self.scope.stalled_since, self.scope.held = monitor.stalled_since, monitor.held
            stack.callback(self._stop_watching, monitor)
            if self.metrics is not None:
                stack.callback(self.metrics.read_utilization(monitor.utilization))

    def _stop_hearing(self, failures: FailureWatch) -> None:
        self.failures = None
        failures.close()

    def _stop_watching(self, monitor: LoopMonitor) -> None:
        self.monitor = self.scope.stalled_since = self.scope.held = None
        monitor.close()

    def _tick_often(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        """Do, several times a second, what no event announces; returns how to stop."""
        timer: asyncio.TimerHandle

        def tick() -> None:
            nonlocal timer
            timer = loop.call_later(_TICK_INTERVAL, tick)  # first: whatever fails below, it goes on
            self.recorder.tick()
            self.documents.note()
            tell_left_out()
            if self.failures is not None:
                self.failures.tick()
            if self.metrics is not None:
                self.metrics.tick(self.recorder.left)

        timer = loop.call_later(_TICK_INTERVAL, tick)
        return lambda: timer.cancel()


class _Guarded:
    """A receiver of ``on_cleanup``, which ends with the first that raises: ours is called then.

    It equals the receiver, which the service may still look for and take away.
    """

    def __init__(self, receiver: _Receiver, close: _Receiver) -> None:
        self._receiver = receiver
        self._close = close

    async def __call__(self, app: web.Application) -> None:
        try:
            await self._receiver(app)
        except BaseException:
            await self._close(app)
            raise

    def __eq__(self, other: object) -> bool:
        return self._receiver == (other._receiver if isinstance(other, _Guarded) else other)

    def __hash__(self) -> int:
        return hash(self._receiver)


OBSERVABILITY: web.AppKey[Observability] = web.AppKey("OBSERVABILITY", Observability)
"""Where an application keeps its `Observability`."""


def _check_application(app: web.Application) -> None:
    check_instance("setup_observability(app)", app, Application)
    if OBSERVABILITY in app:
        raise RuntimeError("setup_observability() was called for this application before: call it once")
    if app.frozen:
        raise RuntimeError("this application has been started: call setup_observability() before it is run")
    if app.pre_frozen:
        raise RuntimeError(
            "this application is part of another one, which covers it: "
            "call setup_observability() on the root application only"
        )
    _refuse_nested(app)


def _check_paths(app: web.Application, paths: list[str]) -> None:
    taken = [resource.canonical for resource in app.router.resources()]
    for path in paths:
        if path in taken:
            raise RuntimeError(
                f"the path {path} is taken: choose another with Metrics(path=...) or Admin(path=...)"
            )


def _check_guard(metrics: Metrics | None, admin: Admin | None) -> None:
    if metrics is None or admin is None or metrics.path is None:
        return
    if metrics.path.startswith(f"{admin.path}/"):
        raise RuntimeError(
            f"the path {metrics.path} is below Admin's, which says who may look there: "
            "choose another with Metrics(path=...) or Admin(path=...)"
        )


def _refuse_nested(app: web.Application) -> None:
    for nested in _nested(app):
        if OBSERVABILITY in nested:
            raise RuntimeError(
                "a sub-application of this one has been set up too, which would observe its requests twice: "
                "call setup_observability() on the root application only"
            )


def _nested(app: web.Application) -> Iterator[web.Application]:
    """The sub-applications of ``app``, at any depth."""
    for resource in app.router.resources():
        nested = resource.get_info().get("app")
        if nested is not None:
            yield nested
            yield from _nested(nested)


def _checked(observers: Iterable[object]) -> tuple[object, ...]:
    if not isinstance(observers, Iterable):
        raise TypeError(f"setup_observability(observers=...) takes a list of observers, got {observers!r}")
    checked = tuple(observers)
    for observer in checked:
        _check_observer(observer)
    return checked


def _check_observer(observer: object) -> None:
    if isinstance(observer, type):
        raise TypeError(f"setup_observability(observers=...) takes instances, got {observer!r}: call it")
    hooks = [hook for name in ("started", "finished") if callable(hook := getattr(observer, name, None))]
    if not hooks:
        raise TypeError(
            f"setup_observability(observers=...) takes objects with started(exchange) or "
            f"finished(exchange), got {observer!r}"
        )
    for hook in hooks:
        if iscoroutinefunction(hook):
            raise TypeError(
                f"setup_observability(observers=...) takes hooks that are plain functions, got the "
                f"coroutine function {hook!r}: write 'def', and spawn() what has to wait"
            )
