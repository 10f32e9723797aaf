"""Options that can't be are refused when they are written down, with the value and what to do."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from aiohttp_observe import (
    OBSERVABILITY,
    Admin,
    Client,
    Failures,
    Logs,
    LoopWatch,
    Metrics,
    Tasks,
    Tracing,
    setup_observability,
)

KINDS: tuple[Any, ...] = (Admin, Client, Failures, Logs, LoopWatch, Metrics, Tasks, Tracing)
FIELDS = [(kind, field.name) for kind in KINDS for field in dataclasses.fields(kind)]
PILLARS = {
    "metrics": Metrics,
    "logs": Logs,
    "tracing": Tracing,
    "failures": Failures,
    "tasks": Tasks,
    "loop_watch": LoopWatch,
    "client": Client,
    "admin": Admin,
}


class Nonsense:
    """No option takes this."""


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_option_is_checked(kind: Any, name: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        kind(**{name: Nonsense()})
    assert f"{kind.__name__}({name}=...)" in str(caught.value)
    assert "Nonsense" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options", "error", "words"),
    [
        (Metrics, {"path": "metrics"}, ValueError, "takes an absolute path, got 'metrics': write '/metrics'"),
        (Metrics, {"path": "/"}, ValueError, "takes a plain path such as '/metrics', got '/'"),
        (Metrics, {"path": "/metrics/"}, ValueError, "takes a plain path"),
        (Metrics, {"path": "/{name}"}, ValueError, "takes a plain path"),
        (Metrics, {"path": "/metrics?x=1"}, ValueError, "takes a plain path"),
        (Metrics, {"path": b"/metrics"}, TypeError, "takes str, got b'/metrics' (bytes)"),
        (Metrics, {"registry": {}}, TypeError, "takes CollectorRegistry or None, got {} (dict)"),
        (Metrics, {"require_token": 1}, TypeError, "takes bool, got 1 (int)"),
        (Metrics, {"max_routes": 0}, ValueError, "takes a whole number of route templates above 0, got 0"),
        (Metrics, {"max_routes": 1.5}, TypeError, "takes a whole number of route templates, got 1.5"),
        (Metrics, {"max_hosts": -1}, ValueError, "takes a whole number of hosts above 0, got -1"),
        (Metrics, {"max_names": True}, TypeError, "takes a whole number of names, got True"),
        (Logs, {"level": "loud"}, ValueError, "takes one of 'DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL'"),
        (Logs, {"level": 20}, ValueError, "got 20"),
        (Logs, {"format": "yaml"}, ValueError, "takes one of 'json', 'text', got 'yaml'"),
        (Logs, {"stream": "log.txt"}, TypeError, "takes a text stream such as sys.stderr, got 'log.txt'"),
        (
            Logs,
            {"stream": io.BytesIO()},
            TypeError,
            "takes a text stream such as sys.stderr, got <_io",
        ),
        (Logs, {"queue_size": 0}, ValueError, "takes a whole number of lines above 0, got 0"),
        (Tracing, {"provider": "otlp"}, TypeError, "takes TracerProvider or None, got 'otlp' (str)"),
        (Tracing, {"provider": TracerProvider}, TypeError, "takes TracerProvider or None"),
        (
            Tracing,
            {"service_name": "shop", "provider": TracerProvider()},
            ValueError,
            "goes without a provider: yours has the name already",
        ),
        (Failures, {"shutdown_timeout": 0}, ValueError, "takes a number of seconds above 0, got 0"),
        (Failures, {"shutdown_timeout": math.nan}, ValueError, "takes a number of seconds above 0, got nan"),
        (Failures, {"shutdown_timeout": math.inf}, ValueError, "takes a number of seconds above 0, got inf"),
        (Failures, {"shutdown_timeout": "10"}, TypeError, "takes a number of seconds, got '10' (str)"),
        (LoopWatch, {"threshold": -1}, ValueError, "takes a number of seconds above 0, got -1"),
        (LoopWatch, {"threshold": "0.1"}, TypeError, "takes a number of seconds, got '0.1' (str)"),
        (Admin, {"token": " "}, ValueError, "takes a secret, got an empty one"),
        (Admin, {"token": 7}, TypeError, "takes str or None, got 7 (int)"),
        (Admin, {"path": "_tasks"}, ValueError, "takes an absolute path, got '_tasks': write '/_tasks'"),
    ],
)
def test_what_is_wrong_is_said(kind: Any, options: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error) as caught:
        kind(**options)
    name, *_ = options
    assert str(caught.value).startswith(f"{kind.__name__}({name}=...) ")
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_descriptions_have_defaults_and_are_frozen(kind: Any) -> None:
    description = kind()
    assert description == kind()
    assert hash(description) == hash(kind())
    with pytest.raises(dataclasses.FrozenInstanceError):
        description.anything = 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_options_are_given_by_name_and_a_typo_is_told(kind: Any) -> None:
    with pytest.raises(TypeError, match="positional"):
        kind("value")
    with pytest.raises(TypeError, match="unexpected keyword argument 'tresholt'"):
        kind(tresholt=1)


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_option_is_documented(kind: Any, name: str) -> None:
    assert f"``{name}``" in (kind.__doc__ or "")


@pytest.mark.parametrize("value", [True, "yes", 7, {}], ids=repr)
@pytest.mark.parametrize("pillar", PILLARS)
def test_a_pillar_is_described_or_none(pillar: str, value: object) -> None:
    app, options = web.Application(), {pillar: value}
    with pytest.raises(TypeError) as caught:
        setup_observability(app, **options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(
        f"setup_observability({pillar}=...) takes {PILLARS[pillar].__name__}(...), or None to turn it off, "
        f"got {value!r}"
    )
    assert OBSERVABILITY not in app


@pytest.mark.parametrize("pillar", PILLARS)
def test_a_description_of_another_pillar_is_told(pillar: str) -> None:
    options = {pillar: Client() if pillar != "client" else Tasks()}
    with pytest.raises(TypeError, match=rf"setup_observability\({pillar}=\.\.\.\) takes"):
        setup_observability(web.Application(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("pillar", PILLARS)
def test_a_class_in_the_place_of_its_description_is_told(pillar: str) -> None:
    options = {pillar: PILLARS[pillar]}
    with pytest.raises(TypeError, match=rf"setup_observability\({pillar}=\.\.\.\) takes"):
        setup_observability(web.Application(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"AIOHTTP_OBSERVE_LOG_LEVEL": "loud"}, "AIOHTTP_OBSERVE_LOG_LEVEL takes one of 'DEBUG'"),
        ({"AIOHTTP_OBSERVE_LOG_FORMAT": "yaml"}, "AIOHTTP_OBSERVE_LOG_FORMAT takes one of 'json'"),
        (
            {"OTEL_TRACES_EXPORTER": "zipkin"},
            "OTEL_TRACES_EXPORTER takes otlp, console or none, got 'zipkin'",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc isn't built in: use http/protobuf",
        ),
    ],
    ids=["log level", "log format", "exporter", "protocol"],
)
def test_a_wrong_environment_is_told_at_set_up(
    variables: dict[str, str], words: str, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    app = web.Application()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        setup_observability(app, metrics=Metrics(registry=registry))
    assert words in str(caught.value)
    assert OBSERVABILITY not in app


@pytest.mark.parametrize("name", ["AIOHTTP_OBSERVE_LOG_LEVEL", "AIOHTTP_OBSERVE_LOG_FORMAT"])
def test_an_argument_wins_over_the_environment(
    name: str, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So far that a wrong variable doesn't matter where it isn't asked for."""
    monkeypatch.setenv(name, "nonsense")
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry), logs=Logs(level="ERROR", format="text"))
    assert OBSERVABILITY in app


@pytest.mark.parametrize("name", ["AIOHTTP_OBSERVE_LOG_LEVEL", "OTEL_TRACES_EXPORTER"])
def test_a_blank_variable_is_an_unset_one(
    name: str, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, " ")
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry))
    assert OBSERVABILITY in app


def test_a_required_token_needs_somebody_who_keeps_it(registry: CollectorRegistry) -> None:
    app = web.Application()
    with pytest.raises(
        ValueError, match=r"Metrics\(require_token=True\) needs the token of admin=Admin\(token=\.\.\.\)"
    ):
        setup_observability(app, metrics=Metrics(registry=registry, require_token=True), admin=None)


def test_two_pages_on_one_path_are_told(registry: CollectorRegistry) -> None:
    app = web.Application()
    with pytest.raises(ValueError, match=r"Metrics\(path=...\) and Admin\(path=...\) are both '/same'"):
        setup_observability(app, metrics=Metrics(registry=registry, path="/same"), admin=Admin(path="/same"))


async def test_a_path_with_a_route_of_the_service_is_told(registry: CollectorRegistry) -> None:
    async def own_metrics(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/metrics", own_metrics)
    with pytest.raises(RuntimeError, match=r"/metrics .*choose another"):
        setup_observability(app, metrics=Metrics(registry=registry))


def test_a_set_up_that_fails_leaves_no_route(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = web.Application()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "pigeon")
    with pytest.raises(ValueError, match="pigeon"):
        setup_observability(app, metrics=Metrics(registry=registry))
    assert not list(app.router.resources())
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    setup_observability(app, metrics=Metrics(registry=registry))
