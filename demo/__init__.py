"""Two services to look at: ``python -m demo``.

``hello``      the smallest service, ten lines
``shop``       orders, and a background worker that packs them
``inventory``  what the shop asks over HTTP
``mischief``   the shop's switches that misbehave on purpose
``traffic``    customers, in a process of their own
``serving``    an application on a port
``app``        both services for aiohttp-devtools: ``adev runserver demo``
"""
