"""The documentation is complete and true: every command, flag, format and name; no dead link.

``python tests/test_docs.py`` rewrites the tables of docs/cli.md from the parsers.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

import llama2py
from llama2py import config
from llama2py.chat.dialogue import ChatOverflow
from llama2py.chat.templates import TEMPLATES
from llama2py.checkpoint.export import FileDtype
from llama2py.checkpoint.gguf.blocks import FORMATS
from llama2py.checkpoint.gguf.files import MAX_PARTS
from llama2py.checkpoint.huggingface.reader import MAX_FILES
from llama2py.checkpoint.meta import MAX_SHARDS
from llama2py.cli import build_parser
from llama2py.config import Dtype
from llama2py.conversion import _HOLDS
from llama2py.engine.isa import isa_names
from llama2py.generation.job import Overflow
from llama2py.generation.options import Options
from llama2py.hub import STORIES
from llama2py.tokenizers import bpe, huggingface, llama2c, sentencepiece, tiktoken
from llama2py.tokenizers.tokenizer import MAX_SPECIAL_LENGTH

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
CLI = DOCS / "cli.md"
PAGES = sorted(DOCS.glob("*.md"))
ROOT_PAGES = sorted(ROOT.glob("*.md"))
EVERY_PAGE = pytest.mark.parametrize(
    "page", [*PAGES, *ROOT_PAGES], ids=lambda page: page.parent.name + page.stem
)
# The public import paths that are not simply names of llama2py.__all__: they keep working.
DOCUMENTED_IMPORTS = [
    "llama2py.__version__",
    "llama2py.checkpoint.open_checkpoint",
    "llama2py.errors",
    *(f"llama2py.backend.{name}" for name in ("Backend", "Cache", "Draw", "Logits")),
    "llama2py.meta.Llama",
    *(f"llama2py.bulk.{name}" for name in ("ModelSpec", "RowGenerator", "row_seed")),
    "llama2py.ray.Generator",
    "llama2py.ray.generate",
    *(f"llama2py.errors.{name}" for name in vars(llama2py.errors) if name[0].isupper()),
    *(f"llama2py.{name}" for name in llama2py.__all__),
]
_TABLE = re.compile(r"^\| argument \| meaning \|\n(?:\|.*\n)+", re.MULTILINE)


# ---- cli.md ----


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    (subparsers,) = (
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(subparsers.choices)


def table(parser: argparse.ArgumentParser) -> str:
    """Return a table of a command's arguments, except -h, with their help."""
    rows = ["| argument | meaning |", "| --- | --- |"]
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    for action in shown:
        if isinstance(action, argparse._HelpAction):
            continue
        value = action.metavar or ("{" + ",".join(map(str, action.choices or ())) + "}")
        value = "" if action.nargs == 0 else f" {value}"
        same = [other for other in parser._actions if other.dest == action.dest]  # other spellings
        options = [name for other in same for name in other.option_strings]
        names = [f"`{name}{value}`" for name in options] or [f"`{value.strip()}`"]
        meaning = " ".join((action.help or "").replace("%%", "%").replace("|", "\\|").split())
        rows.append(f"| {', '.join(names)} | {meaning} |")
    return "\n".join(rows) + "\n"


def sections(text: str) -> dict[str, str]:
    """Return the text under each ``## name``."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def with_tables(text: str) -> str:
    """Return the page with its tables made anew from the parsers."""
    head = re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]
    written = sections(text)
    pages = [head]
    for name, parser in commands().items():
        section = written.get(name, f"\n```sh\nllama2py {name}\n```\n")
        section = _TABLE.sub("", section).rstrip("\n") + "\n"
        pages.append(f"## {name}\n{section}\n{table(parser)}\n")
    return "".join(pages).rstrip("\n") + "\n"


def test_cli_page_has_one_section_per_command() -> None:
    assert sections(CLI.read_text(encoding="utf-8")).keys() == commands().keys()


@pytest.mark.parametrize("name", commands())
def test_cli_page_lists_exactly_the_flags_of_a_command(name: str) -> None:
    parser = commands()[name]
    section = sections(CLI.read_text(encoding="utf-8"))[name]
    assert table(parser) in section, "run: python tests/test_docs.py"
    known = {option for action in parser._actions for option in action.option_strings}
    # in the examples, too: flags follow the name of their command
    for line in re.findall(rf"^(?:.*\| )?llama2py {name}\b(.*)$", section, re.MULTILINE):
        plain = re.sub(r'"[^"]*"|>.*', "", line)
        used = set(re.findall(r"(?<!\S)--?[a-z][\w-]*", plain))
        assert used <= known, line
    rows = _TABLE.search(section)
    assert rows
    documented = set(re.findall(r"`(--?\w[\w-]*)", rows[0]))
    assert documented == known - {"-h", "--help"}


def test_a_parser_becomes_a_table() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", metavar="MODEL", help="which")
    parser.add_argument("-n", "--count", metavar="N", help="50%% of them")
    parser.add_argument("--mode", choices=("a", "b"))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--JSON", action="store_true", dest="json", help=argparse.SUPPRESS)
    assert table(parser).splitlines()[2:] == [
        "| `MODEL` | which |",
        "| `-n N`, `--count N` | 50% of them |",
        "| `--mode {a,b}` |  |",
        "| `--json`, `--JSON` | print JSON |",
    ]


# ---- the others ----


def table_of(text: str, head: str) -> list[list[str]]:
    """Return the cells of the table whose first head cell is this one."""
    (found,) = re.findall(rf"^\| {head} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [re.split(r"(?<!\\)\|", row)[1:-1] for row in found.splitlines()]
    return [[cell.strip() for cell in row] for row in rows]


def test_formats_page_says_what_each_format_holds() -> None:
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    (head,) = re.findall(r"^\| format \| (.*) \| OUT \|$", text, re.MULTILINE)
    dtypes = head.split(" | ")
    documented = {
        row[0]: tuple(dtype for dtype, cell in zip(dtypes, row[1:], strict=False) if cell == "yes")
        for row in table_of(text, "format")
    }
    assert documented == _HOLDS
    assert set(dtypes) == set(get_args(FileDtype))


def test_formats_page_lists_every_short_name_of_a_model() -> None:
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(stories\w+)`", table_of(text, "name")[0][0])) == STORIES.keys()


def test_chat_page_lists_every_template() -> None:
    text = (DOCS / "chat.md").read_text(encoding="utf-8")
    rows = table_of(text, "template")
    assert [row[0].strip("`") for row in rows] == list(TEMPLATES)
    for name, _, turn in rows:
        plain = turn.replace("\\", "")
        template = TEMPLATES[name.strip("`")]
        assert any(marker.strip() in plain for marker in template.markers), name


@pytest.mark.parametrize(("page", "policies"), [("generate", Overflow), ("chat", ChatOverflow)])
def test_pages_list_every_overflow_policy(page: str, policies: Any) -> None:
    rows = table_of((DOCS / f"{page}.md").read_text(encoding="utf-8"), "`overflow`")
    assert {row[0].split('"')[1] for row in rows} == set(get_args(policies))


def shown(text: str) -> list[str]:
    """Return the command lines that a page shows, without prompts, pipes and comments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    shell = "".join(block for language, block in blocks if language in ("sh", "console"))
    start = r"(?:\S*python -m )?llama2py (?!-|COMMAND)"
    found = re.findall(rf"^(?:\$ |.*\| )?{start}(.+)$", shell, re.MULTILINE)
    found += re.findall(rf"`{start}([^`\n]+)`", text)
    rows = re.findall(r"^\| command \|.*\n.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    found += [line for table in rows for row in table.split("\n") for line in _first_code(row)]
    return [re.sub(r"\s+(#|>|\\?\|).*| \.\.\.$", "", line) for line in found]


def _first_code(row: str) -> list[str]:
    return re.findall(r"`([^`]+)`", row.split(" | ")[0])


@EVERY_PAGE
def test_shown_command_lines_can_be_parsed(page: Path) -> None:
    """A single word is the name of a command."""
    for line in shown(page.read_text(encoding="utf-8")):
        words = shlex.split(line)
        if len(words) > 1:
            build_parser().parse_args(words)
        else:
            assert words[0] in commands()


def test_the_readmes_command_lines_are_found() -> None:
    lines = shown(README.read_text(encoding="utf-8"))
    assert {line.split()[0] for line in lines} == commands().keys()
    assert len(lines) > 15


def test_the_readme_names_every_command_and_links_every_page() -> None:
    text = README.read_text(encoding="utf-8")
    for name in commands():
        assert re.search(rf"`(?:llama2py )?{name}\b", text), name
    linked = set(re.findall(r"\]\(docs/(\w[\w-]*\.md)\)", text))
    assert linked >= {page.name for page in PAGES} - {"README.md"}


def test_formats_page_lists_every_gguf_type_and_every_dtype() -> None:
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z]+\d\w*)`", text))
    assert named == {format.name for format in FORMATS.values()}
    assert set(re.findall(r"^\| `(\w+)` \| [\d.]+", text, re.MULTILINE)) == set(get_args(Dtype))


def test_generate_page_lists_every_option() -> None:
    text = (DOCS / "generate.md").read_text(encoding="utf-8")
    for option in Options.__annotations__:
        assert re.search(rf"`{option}(=[^`]*)?`|\b{option}=", text), option


def test_formats_page_gives_the_bounds_of_the_readers() -> None:
    from tests.fuzz.bounds import MAX_BYTES, MAX_SECONDS
    from tests.tokenizers.test_limits import PER_MERGE, PER_TOKEN

    rows = dict(table_of((DOCS / "formats.md").read_text(encoding="utf-8"), "what"))
    numbers = {
        what: [int(n) for n in re.findall(r"(?<!\^)\b\d+", text.replace(",", ""))]
        for what, text in rows.items()
    }
    assert numbers["refusing a file"] == [MAX_SECONDS, MAX_BYTES >> 20]
    assert numbers["loading a vocabulary"] == [PER_TOKEN, PER_MERGE]
    assert numbers["size of a vocabulary"] == [bpe.MAX_TOKENS, bpe.MAX_MERGES, MAX_SPECIAL_LENGTH]
    readers = llama2c, sentencepiece, tiktoken, huggingface
    first, second, third, fourth = (reader.MAX_FILE_SIZE >> 20 for reader in readers)
    assert numbers["size of a tokenizer file"] == [first, second, 3, third, fourth]
    assert (config.MAX_WIDTH, config.MAX_VOCAB, config.MAX_SEQ_LEN) == (1 << 20, 1 << 24, 1 << 24)
    assert numbers["shape of a model"] == [2, config.MAX_LAYERS, 2]
    assert numbers["files of a model"] == [MAX_SHARDS, MAX_FILES, MAX_PARTS]


def test_numerics_page_lists_every_instruction_set() -> None:
    (listed,) = re.findall(r"LLAMA2PY_ISA=([\w|]+\|[\w|]+)", (DOCS / "numerics.md").read_text())
    assert set(listed.split("|")) >= set(isa_names())


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


@EVERY_PAGE
def test_no_link_is_dead(page: Path) -> None:
    text = without_code(page.read_text("utf-8"))
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
        if "://" not in target:
            other = page.parent / target if target else page
            assert other.exists(), target
            assert not anchor or anchor in anchors(other.read_text(encoding="utf-8")), anchor


def anchors(text: str) -> set[str]:
    """Return GitHub's anchors of the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_index_and_the_site_list_every_page() -> None:
    pages = {page.name for page in PAGES} - {"README.md"}
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w[\w-]*\.md)\)", index)) == pages
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", nav, re.MULTILINE)
    made_from_the_root = {"changelog.md", "contributing.md", "security.md"}
    assert sorted(listed) == sorted({*pages, "README.md", *made_from_the_root})


@EVERY_PAGE
def test_prose_wraps_at_120_columns(page: Path) -> None:
    lines = without_code(page.read_text(encoding="utf-8")).splitlines()
    assert [n for n in lines if len(n) > 120 and n[0] not in "|>" and " " in n.strip()] == []


PATH = re.compile(r"`((?:llama2py|csrc|tests|docs|benchmarks|\.ci)/[\w./*]*)`")


@EVERY_PAGE
def test_paths_that_a_page_names_exist(page: Path) -> None:
    for path in PATH.findall(without_code(page.read_text(encoding="utf-8"))):
        assert any(ROOT.glob(path.rstrip("/"))) or "NAME" in path, path


def test_architecture_shows_the_layers_that_are_tested() -> None:
    from tests.test_layers import LAYERS  # not for `python tests/test_docs.py`

    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```text\n(errors.*?)^```$", text, re.MULTILINE | re.DOTALL)
    shown = [set(line.split(", ")) for line in block.splitlines()]
    assert [*shown, {"__init__", "__main__"}] == LAYERS


# ---- names ----


def api_names() -> list[str]:
    """Return the names that the API reference lists."""
    return re.findall(r"^- `([\w.]+)`", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE)


def named(path: str) -> object:
    """Import an object by its dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def test_the_api_reference_lists_every_public_name() -> None:
    listed = api_names()
    assert sorted(listed) == sorted(set(listed))
    public = {f"llama2py.{name}" for name in llama2py.__all__}
    modules = {"llama2py.checkpoint", "llama2py.meta", "llama2py.bulk", "llama2py.ray"}
    public |= {name for name in DOCUMENTED_IMPORTS if name.rpartition(".")[0] in modules}
    assert set(listed) == public


@pytest.mark.parametrize("path", DOCUMENTED_IMPORTS)
def test_a_documented_import_path_works(path: str) -> None:
    assert named(path) is not None


def shown_imports(text: str) -> set[str]:
    """Return the dotted paths below llama2py that a page's code imports or uses."""
    found = {
        f"{module}.{name}"
        for module, names in re.findall(r"\bfrom (llama2py[\w.]*) import ([\w, ]+)", text)
        for name in re.findall(r"\w+", names)
    }
    code = "\n".join(re.findall(r"```(?:py\w*)\n(.*?)```", text, re.DOTALL))
    return found | set(re.findall(r"(?<![\w./])(?<!from )llama2py(?:\.\w+)+", code))


@EVERY_PAGE
def test_documented_imports_hold_every_import_that_a_page_shows(page: Path) -> None:
    for path in shown_imports(page.read_text(encoding="utf-8")):
        parts = path.split(".")  # llama2py.Llama.build is a use of llama2py.Llama
        known = {".".join(parts[:n]) for n in range(2, len(parts) + 1)}
        assert known & {*DOCUMENTED_IMPORTS, "llama2py.meta"}, path


def test_shown_imports_are_found() -> None:
    text = "```py\nfrom llama2py.a import b, c\nx = llama2py.d.e()\n```\n`llama2py.z`\n"
    assert shown_imports(text) == {"llama2py.a.b", "llama2py.a.c", "llama2py.d.e"}


# ---- the package ----


def test_no_link_of_the_long_description_is_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: given.update(options))
    runpy.run_path(str(ROOT / "setup.py"))
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(given["long_description"]))
    assert len(targets) > 20
    assert [link for link in targets if not link.startswith(("https://", "#"))] == []
    assert any(link.endswith("/blob/main/docs/generate.md") for link in targets)
    assert given["long_description_content_type"] == "text/markdown"


def test_the_numpy_reference_is_as_short_as_the_readme_says() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (limit, path) = re.findall(r"\[in under (\d+) lines of NumPy\]\((.*?)\)", text)[0]
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) < int(limit)


def test_contributing_names_targets_of_the_makefile() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert named <= set(targets)
    assert {"story", "test", "lint", "sanitize", "docs"} <= named


if __name__ == "__main__":
    CLI.write_text(with_tables(CLI.read_text(encoding="utf-8")), encoding="utf-8")
