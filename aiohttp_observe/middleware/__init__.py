"""The one middleware: it times a request, drives its handler, tells the truth about its end.

A request has two ends.  The middleware sees its handler return or raise; later, after the
last byte, it is known which status was really sent (504 for an escaped ``TimeoutError``, 500
for a crash) and whether the client was still there.  aiohttp tells that to the access logger,
which is ours if logs are on; else, and where it may not be told, a done-callback on the request's
own task learns it.  Observers hear ``finished`` from there.

The context variables set here are never reset: aiohttp writes its "Error handling request"
line in the same task after the middlewares have returned, and a reset would strip the ids
from exactly that line.  Nothing leaks, because every request has a context of its own.

``recorder``    the middleware, the signals and the access logger's end of it; who is told
``flight``      a request on its way, which is its `Exchange`, too
``ending``      how it ended
``websockets``  the messages of one

A flight *lands* when its own task has ended; it is then *told*, once, by `Recorder.end`.  Who
hears of the end is *answered*, the access logger, or *landed*, the done-callback.  What the
pillars leave for later is *flushed*.
"""

from __future__ import annotations

from .recorder import Recorder, user_observers

__all__ = ["Recorder", "user_observers"]
