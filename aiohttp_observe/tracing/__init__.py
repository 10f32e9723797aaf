"""Tracing: a span for each request, outbound call and costly await, and whose context they share.

``server``        the tracing of one application's requests
``serverspan``    the server span of each
``facts``         what it tells: its attributes, made when they are read
``outbound``      the client span of each outbound call
``span``          what both are made of
``blocks``        stretches in which the loop was held
``operation``     manual spans
``provider``      where spans go
``variables``     what the environment asks of spans
``instrumentor``  living with the official instrumentor
"""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry import trace

from ..exchange import Meter
from ..options import check_flag, check_instance, check_names
from .instrumentor import instrumentors_place, is_instrumented, without_instrumentor
from .operation import operation
from .outbound import ClientTracer, OutboundSpan, global_client_tracer
from .provider import check_exporters, global_provider
from .server import ServerTracer

__all__ = [
    "ClientTracer",
    "OutboundSpan",
    "ServerTracer",
    "Tracing",
    "global_client_tracer",
    "instrumentors_place",
    "is_instrumented",
    "operation",
    "without_instrumentor",
]


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """Where spans go.

    ``provider``      a tracer provider to use; default: the global one if the service has set
                      one by start-up, else one built from the ``OTEL_*`` variables, which sends
                      nothing anywhere unless ``OTEL_TRACES_EXPORTER`` or an OTLP endpoint is set
    ``service_name``  of a provider built here, default ``OTEL_SERVICE_NAME``
    ``set_global``    whether a provider built here becomes the global one, for the service's
                      other instrumentations to join in, default ``False``.  OpenTelemetry lets
                      the global provider be set once in a process and never taken back.
    ``baggage``       keys of the ``baggage`` header whose values go on a request's log lines, and
                      on every span made for it, under the key's own name: a tuple such as
                      ``("tenant.id",)``, default none.  A client can send any value it likes.

    Honoured variables: ``OTEL_SDK_DISABLED``, ``OTEL_TRACES_EXPORTER`` (``otlp``, ``console``,
    ``none``), ``OTEL_EXPORTER_OTLP_*`` (protocol ``http/protobuf``), ``OTEL_TRACES_SAMPLER*``,
    ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_PROPAGATORS``, ``OTEL_BSP_*``,
    ``OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS``, ``OTEL_PYTHON_AIOHTTP_CLIENT_EXCLUDED_URLS``,
    ``OTEL_PYTHON_EXCLUDED_URLS`` and
    ``OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_*``.
    """

    provider: trace.TracerProvider | None = None
    service_name: str | None = None
    set_global: bool = False
    baggage: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_instance("Tracing(provider=...)", self.provider, (trace.TracerProvider, type(None)))
        check_instance("Tracing(service_name=...)", self.service_name, (str, type(None)))
        if self.service_name is not None and self.provider is not None:
            raise ValueError("Tracing(service_name=...) goes without a provider: yours has the name already")
        check_flag("Tracing(set_global=...)", self.set_global)
        check_names("Tracing(baggage=...)", self.baggage, "('tenant.id',)")

    def install(self, meter: Meter) -> ServerTracer:
        """Check now what the environment asks of us; the provider is chosen when the tracer is opened."""
        if self.provider is None and global_provider() is None:  # theirs may export by other means
            check_exporters()
        return ServerTracer(
            self.provider, meter, self.service_name, set_global=self.set_global, carries=self.baggage
        )
