"""What pyproject.toml cannot say: the C extension, and tokenizer.bin's place in a wheel."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithTokenizer(build_py):
    """Put tokenizer.bin beside the modules; a source tree reads it where it stands."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            source = Path(__file__).resolve().parent / "tokenizer.bin"
            self.copy_file(str(source), str(Path(self.build_lib) / "llama2py" / "tokenizer.bin"))


setup(
    cffi_modules=["csrc/build_ffi.py:ffibuilder"],
    cmdclass={"build_py": BuildWithTokenizer},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
