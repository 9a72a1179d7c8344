"""The documented import path of what runs on Ray: see `llama2py.bulk.ray`."""

from .bulk.ray import Generator, generate

__all__ = ["Generator", "generate"]
