"""Sentences about the behaviour of aiohttp_observe, each checked on real servers and sockets."""
