"""The documented import path of the types that a custom sampler or backend uses."""

from .engine.backend import Backend, Cache, Draw, Logits

__all__ = ["Backend", "Cache", "Draw", "Logits"]
