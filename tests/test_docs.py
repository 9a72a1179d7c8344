"""The pages of docs/ say what is there: every command and flag, every format, no dead link.

``python tests/test_docs.py`` writes the tables of docs/cli.md anew, from the parsers.
"""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest

from llama2py.chat.templates import TEMPLATES
from llama2py.checkpoint.gguf.blocks import FORMATS
from llama2py.checkpoint.write_numbers import FileDtype
from llama2py.cli import build_parser
from llama2py.config import Dtype
from llama2py.conversion import _HOLDS
from llama2py.engine.isa import isa_names
from llama2py.engine.session import SessionOverflow
from llama2py.generation.job import Overflow
from llama2py.generation.options import Options
from llama2py.hub import STORIES

DOCS = Path(__file__).resolve().parent.parent / "docs"
README = DOCS.parent / "README.md"
CLI = DOCS / "cli.md"
PAGES = sorted(DOCS.glob("*.md"))
_TABLE = re.compile(r"^\| argument \| meaning \|\n(?:\|.*\n)+", re.MULTILINE)


# ---- cli.md ----


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    (subparsers,) = (
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(subparsers.choices)


def table(parser: argparse.ArgumentParser) -> str:
    """All arguments of a command but -h, with the help that it gives."""
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
    """What stands under each ``## name``."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def with_tables(text: str) -> str:
    """The page with each command's description and table as they are now."""
    head = re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]
    written = sections(text)
    pages = [head]
    for name, parser in commands().items():
        section = written.get(name, f"\n```sh\nllama2py {name}\n```\n")
        section = _TABLE.sub("", section).rstrip("\n") + "\n"
        pages.append(f"## {name}\n{section}\n{table(parser)}\n")
    return "".join(pages).rstrip("\n") + "\n"


def test_every_command_has_its_section_and_no_other() -> None:
    assert sections(CLI.read_text(encoding="utf-8")).keys() == commands().keys()


@pytest.mark.parametrize("name", commands())
def test_every_flag_of_a_command_stands_there_and_no_other(name: str) -> None:
    parser = commands()[name]
    section = sections(CLI.read_text(encoding="utf-8"))[name]
    assert table(parser) in section, "run: python tests/test_docs.py"
    known = {option for action in parser._actions for option in action.option_strings}
    # in the examples, too: any command's flags stand behind its name
    for line in re.findall(rf"^(?:.*\| )?llama2py {name}\b(.*)$", section, re.MULTILINE):
        plain = re.sub(r'"[^"]*"|>.*', "", line)
        used = set(re.findall(r"(?<!\S)--?[a-z][\w-]*", plain))
        assert used <= known, line
    rows = _TABLE.search(section)
    assert rows
    documented = set(re.findall(r"`(--?\w[\w-]*)", rows[0]))
    assert documented == known - {"-h", "--help"}


def test_the_table_of_a_parser() -> None:
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
    """The cells of the table that begins with this cell."""
    (found,) = re.findall(rf"^\| {head} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [re.split(r"(?<!\\)\|", row)[1:-1] for row in found.splitlines()]
    return [[cell.strip() for cell in row] for row in rows]


def test_formats_says_what_is_written() -> None:
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    (head,) = re.findall(r"^\| format \| (.*) \| OUT \|$", text, re.MULTILINE)
    dtypes = head.split(" | ")
    told = {
        row[0]: tuple(dtype for dtype, cell in zip(dtypes, row[1:], strict=False) if cell == "yes")
        for row in table_of(text, "format")
    }
    assert told == _HOLDS
    assert set(dtypes) == set(get_args(FileDtype))


def test_formats_names_every_model_that_has_a_short_name() -> None:
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(stories\w+)`", table_of(text, "name")[0][0])) == STORIES.keys()


def test_chat_names_every_template() -> None:
    text = (DOCS / "chat.md").read_text(encoding="utf-8")
    rows = table_of(text, "template")
    assert [row[0].strip("`") for row in rows] == list(TEMPLATES)
    for name, _, turn in rows:
        plain = turn.replace("\\", "")
        template = TEMPLATES[name.strip("`")]
        assert any(marker.strip() in plain for marker in template.markers), name


@pytest.mark.parametrize(("page", "policies"), [("generate", Overflow), ("chat", SessionOverflow)])
def test_a_full_contexts_policies(page: str, policies: Any) -> None:
    rows = table_of((DOCS / f"{page}.md").read_text(encoding="utf-8"), "`overflow`")
    assert {row[0].split('"')[1] for row in rows} == set(get_args(policies))


def shown(text: str) -> list[str]:
    """The command lines that a page shows, without what is in front and behind."""
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


@pytest.mark.parametrize("page", [*PAGES, README], ids=lambda page: page.parent.name + page.stem)
def test_commands_that_are_shown_are_commands(page: Path) -> None:
    """Each is at least one that the parser takes (a word alone is its name)."""
    for line in shown(page.read_text(encoding="utf-8")):
        words = shlex.split(line)
        if len(words) > 1:
            build_parser().parse_args(words)
        else:
            assert words[0] in commands()


def test_what_the_readme_shows_is_found() -> None:
    lines = shown(README.read_text(encoding="utf-8"))
    assert {line.split()[0] for line in lines} == commands().keys()
    assert len(lines) > 15


def test_the_readme_names_every_command_and_every_page() -> None:
    text = README.read_text(encoding="utf-8")
    for name in commands():
        assert re.search(rf"`(?:llama2py )?{name}\b", text), name
    linked = set(re.findall(r"\]\(docs/(\w[\w-]*\.md)\)", text))
    assert linked >= {page.name for page in PAGES} - {"README.md"}


def test_formats_names_every_type_of_gguf_and_every_dtype() -> None:
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z]+\d\w*)`", text))
    assert named == {format.name for format in FORMATS.values()}
    assert set(re.findall(r"^\| `(\w+)` \| [\d.]+", text, re.MULTILINE)) == set(get_args(Dtype))


def test_generate_names_every_option() -> None:
    text = (DOCS / "generate.md").read_text(encoding="utf-8")
    for option in Options.__annotations__:
        assert re.search(rf"`{option}(=[^`]*)?`|\b{option}=", text), option


def test_numerics_names_every_instruction_set() -> None:
    (listed,) = re.findall(r"LLAMA2PY_ISA=([\w|]+\|[\w|]+)", (DOCS / "numerics.md").read_text())
    assert set(listed.split("|")) >= set(isa_names())


@pytest.mark.parametrize("page", [*PAGES, README], ids=lambda page: page.parent.name + page.stem)
def test_no_link_is_dead(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
        if "://" not in target:
            other = page.parent / target if target else page
            assert other.exists(), target
            assert not anchor or anchor in anchors(other.read_text(encoding="utf-8")), anchor


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_list() -> None:
    listed = re.findall(r"\]\((\S+)\)", (DOCS / "README.md").read_text(encoding="utf-8"))
    assert sorted([*listed, "README.md"]) == [page.name for page in PAGES]


if __name__ == "__main__":
    CLI.write_text(with_tables(CLI.read_text(encoding="utf-8")), encoding="utf-8")
