"""A shim for tools that still ask for it: the metadata is in setup.cfg."""

from setuptools import setup

setup()
