"""Background work: tasks that are referenced, whose outcome is told, and that end with the service.

============  ==================================================================
``task``      `spawn`
``worker``    `Worker`: one that goes on, and is started again
``outcome``   how a task ended; `supervised`, for tasks that somebody else starts
``shutdown``  `drain`
============  ==================================================================
"""

from .outcome import supervised, tell_left_out
from .shutdown import drain
from .task import spawn
from .worker import Worker, workers_of

__all__ = ["Worker", "drain", "spawn", "supervised", "tell_left_out", "workers_of"]
