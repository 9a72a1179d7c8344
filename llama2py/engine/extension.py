"""The compiled C engine, `ffi` and `lib`: built in place, or installed elsewhere.

In a clone, the source folder shadows the installed package and lacks the compiled module. The one
that is installed then serves.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from ..errors import EngineError

API_VERSION = 4  # L2P_API_VERSION of csrc/llama2py.h
_NAME = f"{__package__}._engine"


def _load() -> tuple[Any, Any]:
    """Import `ffi` and `lib`.

    Raises
    ------
    EngineError
        If there is no compiled module, or if it was compiled from another version of the header.
    """
    try:
        from ._engine import ffi, lib
    except ImportError as error:
        installed = _installed()
        if installed is None:
            raise EngineError(
                f"the C engine is not built ({error}): run pip install -e . or use backend='numpy'"
            ) from error
        module = _load_file(installed)
        ffi, lib = module.ffi, module.lib
    found = getattr(lib, "L2P_API_VERSION", "none")
    if found != API_VERSION:
        raise EngineError(
            f"{sys.modules[_NAME].__file__} was compiled from another version of llama2py (API"
            f" version {found}, not {API_VERSION}): rebuild it with pip install ."
        )
    return ffi, lib


def _installed() -> Path | None:
    """The compiled module of an installed llama2py."""
    from importlib import metadata  # slow to import, and seldom needed

    for distribution in metadata.distributions(name="llama2py"):
        for file in distribution.files or ():
            if file.match("llama2py/engine/_engine.*") and file.suffix in (".so", ".pyd"):
                path = Path(str(distribution.locate_file(file)))
                if path.is_file():
                    return path
    return None


def _load_file(path: Path) -> Any:
    """Load a compiled module as this package's own."""
    spec = importlib.util.spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None:
        raise EngineError(f"{path} is not an extension module of this Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise EngineError(f"the C engine {path} does not load: {error}") from error
    sys.modules[_NAME] = module
    return module


ffi, lib = _load()
