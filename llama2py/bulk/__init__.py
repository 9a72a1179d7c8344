"""Bulk generation: a text for each row of a file, the same bytes on every run."""

from .generator import RowGenerator
from .identity import ModelSpec
from .rows import row_seed

__all__ = ["ModelSpec", "RowGenerator", "row_seed"]
