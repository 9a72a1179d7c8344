"""The compiled extension; cffi generates it from csrc/llama2py.h."""

from typing import Any

ffi: Any
lib: Any
