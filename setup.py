"""What pyproject.toml cannot say: the C extension, tokenizer.bin in a wheel, the README's links."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildOnAllCores(build_ext):
    """Compile the sources of an extension in parallel: each instruction set takes a while."""

    def build_extension(self, ext: Extension) -> None:
        compile_in_turn = self.compiler.compile

        def compile_at_once(sources: list[str], **how: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                compiled = pool.map(lambda source: compile_in_turn([source], **how), sources)
                return [path for paths in compiled for path in paths]

        self.compiler.compile = compile_at_once
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_in_turn


class BuildWithTokenizer(build_py):
    """Copy tokenizer.bin into the package; a source tree reads it from the root."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            source = ROOT / "tokenizer.bin"
            self.copy_file(
                str(source), str(Path(self.build_lib) / "llama2py" / "_data" / "tokenizer.bin")
            )


def long_description() -> str:
    """Return README.md with absolute links: a package index does not know the repository."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (source,) = re.findall(r'^Source = "(.+)"$', project, re.MULTILINE)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!\w+:|#)", f"]({source}/blob/main/", readme)


setup(
    long_description=long_description(),
    long_description_content_type="text/markdown",
    cffi_modules=["csrc/build_ffi.py:ffibuilder"],
    cmdclass={"build_ext": BuildOnAllCores, "build_py": BuildWithTokenizer},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
