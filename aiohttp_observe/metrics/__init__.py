"""Metrics: what Prometheus scrapes, and the timer for any coroutine function.

``description``  `Metrics`: the options
``instruments``  the metrics of one registry
``server``       the requests of one application, observed a few at once
``outbound``     its outbound calls, likewise
``labels``       their values, of which there are only so many
``tally``        many observations of one series, told to its histogram together
``scraped``      the gauges computed when somebody scrapes
``page``         what answers a scrape
``pieces``       a registry collected in pieces, for the loop's sake
``timer``        `timeit`
"""

from .description import Metrics
from .page import MetricsPage
from .server import ServerMetrics
from .timer import timeit

__all__ = ["Metrics", "MetricsPage", "ServerMetrics", "timeit"]
