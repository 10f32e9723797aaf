"""The loop watch: how late the event loop runs, how busy it is, which line blocks it, and why.

A *pulse*, a timer on the loop, measures how late it is and does nothing else.  A *watchdog*, a
thread, sleeps until the pulse is overdue, and then looks at what the loop's thread is doing,
again and again until the pulse is back.  So a loop that waits is never taken for a blocked
one, it costs next to nothing while all is well, and any loop implementation will do.

``watch``       what is installed on a loop, and an application's share in it
``pulse``       the timer on the loop
``watchdog``    the thread that looks while the pulse is overdue
``samples``     what was seen at the looks at one block
``thread``      the loop's thread, seen from another one
``usage``       how much of the time that thread is on a CPU
``clocks``      what tells causes apart: CPU clocks and the time of garbage collections
``throttling``  the time for which a container got no CPU
``cause``       the rules by which a block is explained
``reporting``   who is told: the log, meters and listeners
``bystanders``  the requests that a block kept waiting
"""

from __future__ import annotations

from .bystanders import Bystanders
from .watch import LoopMonitor, LoopWatch

__all__ = ["Bystanders", "LoopMonitor", "LoopWatch"]
