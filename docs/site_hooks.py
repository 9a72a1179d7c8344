"""What the documentation site adds to the Markdown that GitHub shows.

- CHANGELOG.md, CONTRIBUTING.md and SECURITY.md become pages of the site.
- Links from docs/ to a file of the repository outside docs/ lead to that file on GitHub.
- Each name listed in docs/api.md becomes the reference entry that its docstring gives.
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
API_NAME = re.compile(r"^- `(llama2py[\w.]*)`(?::.*\n(?:  .*\n)*|\n)", re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie in the repository's root."""
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make the Markdown of GitHub that of the site."""
    path = page.file.src_uri
    if path in ROOT_PAGES.values():
        folder, page.edit_url = "", None
    else:
        folder = posixpath.join("docs", posixpath.dirname(path))
    prose = _FENCE.split(markdown)
    code = _FENCE.findall(markdown)
    prose = [
        _LINK.sub(lambda link: _site_link(link, folder, config["repo_url"]), part) for part in prose
    ]
    code = [re.sub(r"\A```python\n(?=>>>)", "```pycon\n", block) for block in code] + [""]
    text = "".join(part for pair in zip(prose, code, strict=True) for part in pair)
    return API_NAME.sub(r"::: \1\n\n", text) if path == "api.md" else text


def _site_link(link: re.Match[str], folder: str, repository: str) -> str:
    """One link of a page in `folder` of the repository, as the site needs it."""
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
    names = API_NAME.findall((ROOT / "docs" / "api.md").read_text("utf-8"))
    if missing := [name for name in names if f'id="{name}"' not in html]:
        raise PluginError(f"api.html has no entry for {', '.join(missing)}")
