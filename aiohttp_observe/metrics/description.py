"""What is measured, and where it is served."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import REGISTRY, CollectorRegistry

from ..options import check_flag, check_instance, check_path, check_positive_int
from .labels import MOST_HOSTS, MOST_NAMES, MOST_ROUTES
from .server import ServerMetrics

__all__ = ["Metrics"]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What is measured, and where it is served.

    ``path``           where ``GET`` answers, default ``/metrics``; ``None`` serves nothing
    ``registry``       default: the process-wide ``prometheus_client.REGISTRY``; give an
                       application a ``CollectorRegistry`` of its own to keep it apart
    ``require_token``  whether ``path`` is guarded as ``/_tasks`` is, default ``False``
    ``max_routes``     route templates told apart before ``_other``, default 500
    ``max_hosts``      hosts, and pairs of host and port, of outbound requests told apart, default 100
    ``max_names``      operations, spawned tasks and exception types told apart, default 200 each

    The limits of the first application to use a registry hold for that registry.  A status that
    isn't one of HTTP's, from 100 to 599, is ``_other``: whoever chooses it could make series.
    """

    path: str | None = "/metrics"
    registry: CollectorRegistry | None = None
    require_token: bool = False
    max_routes: int = MOST_ROUTES
    max_hosts: int = MOST_HOSTS
    max_names: int = MOST_NAMES

    def __post_init__(self) -> None:
        if self.path is not None:
            check_path("Metrics(path=...)", self.path)
        check_instance("Metrics(registry=...)", self.registry, (CollectorRegistry, type(None)))
        check_flag("Metrics(require_token=...)", self.require_token)
        check_positive_int("Metrics(max_routes=...)", self.max_routes, "route templates")
        check_positive_int("Metrics(max_hosts=...)", self.max_hosts, "hosts")
        check_positive_int("Metrics(max_names=...)", self.max_names, "names")

    def install(self) -> ServerMetrics:
        """Make the instruments in the registry, or find them there; nothing is served yet."""
        return ServerMetrics(self, REGISTRY if self.registry is None else self.registry)
