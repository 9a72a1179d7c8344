"""What the documentation site adds to the Markdown that GitHub shows.

- CHANGELOG.md, CONTRIBUTING.md and SECURITY.md become pages of the site.
- Links from docs/ to a file of the repository outside docs/ lead to that file on GitHub.
- Each name listed in docs/api.md becomes the reference entry that its docstring gives.
- Escaped pipes in the code of a table become pipes (Python's Markdown shows the backslash).
- Examples that begin with ``>>>`` are highlighted as a Python console.
- A build fails when a public name has no entry in the reference.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Files of the repository's root that the site shows, and their pages.
ROOT_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
API_NAME = re.compile(r"^- `(llama2py[\w.]*)`: (.*\n(?:  .*\n)*)", re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_CODE_WITH_PIPE = re.compile(r"`([^`\n]*\\\|[^`\n]*)`")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie in the repository's root."""
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make the Markdown of GitHub that of the site."""
    path: str = page.file.src_uri
    folder = "" if path in ROOT_PAGES.values() else posixpath.join("docs", posixpath.dirname(path))
    repository = config["extra"]["source"]

    def of_the_site(text: str, is_code: bool) -> str:
        if is_code:
            return re.sub(r"\A```python\n(?=>>>)", "```pycon\n", text)
        text = _LINK.sub(lambda link: _site_link(link, folder, repository), text)
        return _CODE_WITH_PIPE.sub(lambda match: _code(match[1].replace("\\|", "|")), text)

    parts = _FENCE.split(markdown)  # prose and code in turns
    text = "".join(of_the_site(part, is_code=n % 2 == 1) for n, part in enumerate(parts))
    return _reference(text) if path == "api.md" else text


def _reference(text: str) -> str:
    """Turn the names of docs/api.md into directives. Types have no docstring: keep their line."""
    parts = re.split(r"(^## Types.*?)(?=^## )", text, flags=re.MULTILINE | re.DOTALL)
    kept = r"::: \1\n\n\2\n", r"::: \1\n\n"
    return "".join(API_NAME.sub(kept[not part.startswith("## Types")], part) for part in parts)


def _code(text: str) -> str:
    """Return HTML of code without characters that Markdown or a table would interpret."""
    entities = "".join(
        char if char.isalnum() or char == " " else f"&#{ord(char)};" for char in text
    )
    return f"<code>{entities}</code>"


def _site_link(link: re.Match[str], folder: str, repository: str) -> str:
    """Return a link of a page in `folder` of the repository, as the site needs it."""
    target, anchor = link[2], link[3] or ""
    if "://" in target:
        return link[0]
    path = posixpath.normpath(posixpath.join(folder, target))
    if path in ROOT_PAGES:
        target = ROOT_PAGES[path]
    elif path.startswith("docs/"):
        target = posixpath.relpath(path, "docs" if folder == "" else folder)
    elif not (ROOT / path).exists():
        raise PluginError(f"{folder or 'the root'}: the link to {target} leads to no file")
    else:
        target = f"{repository}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"
    return f"{link[1]}{target}{anchor})"


def on_post_build(config: Any) -> None:
    """Check that the reference has an entry for each name that docs/api.md lists."""
    html = (Path(config["site_dir"]) / "api.html").read_text("utf-8")
    listed = API_NAME.findall((ROOT / "docs" / "api.md").read_text("utf-8"))
    names = [name for name, _ in listed]
    if missing := [name for name in names if f'id="{name}"' not in html]:
        raise PluginError(f"api.html has no entry for {', '.join(missing)}")
