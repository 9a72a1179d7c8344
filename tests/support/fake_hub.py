"""A server that speaks the part of the Hugging Face hub's protocol that a download needs.

As on the hub, the etag of a small file is the SHA-1 of its git blob. A large file (LFS) is
redirected to another address, and its etag is its SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TINYLLAMAS = "karpathy/tinyllamas"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".bin", ".safetensors", ".gguf", ".pth")


@dataclass
class FakeHub:
    """The contents of the server, and the requests it received.

    Attributes
    ----------
    repos : dict
        Repository to path to content.
    damaged : set of str
        Paths that are sent with one byte changed.
    cut : dict of str to int
        Paths whose next transfer breaks off, and after how many bytes.
    held : dict of str to int
        Paths whose transfers stop after that many bytes, until ``resumed`` is set.
    gated : set of str
        Repositories that need a token.
    requests : list of (str, str, str)
        Method, path and range of every request.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    resumed: threading.Event = field(default_factory=threading.Event)
    gated: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def fetched(self) -> list[tuple[str, str]]:
        """Return the file and the range of every transfer so far."""
        return [
            (path.partition("/resolve/main/")[2] or path.partition("/lfs/")[2], part)
            for method, path, part in self.requests
            if method == "GET" and not path.startswith("/api/")
        ]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may be killed
            super().handle_error(request, client_address)


@contextmanager
def serve(hub: FakeHub) -> Iterator[str]:
    """Run the server in a thread; yield its address, for ``HF_ENDPOINT``."""

    class Handler(_Handler):
        served = hub

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub.url
    finally:
        hub.resumed.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = self.path.partition("?")[0]
        self.served.requests.append((self.command, path, self.headers.get("Range", "")))
        parts = path.lstrip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._list("/".join(parts[2:4]))
        elif parts[2:4] == ["resolve", "main"]:
            self._resolve("/".join(parts[:2]), "/".join(parts[4:]))
        elif parts[2:3] == ["lfs"]:  # the target of redirections
            file = "/".join(parts[3:])
            self._send(file, self.served.repos["/".join(parts[:2])][file], {"ETag": '"md5-of-it"'})
        else:
            self._answer(404, {}, b"not found")

    def _list(self, repo: str) -> None:
        if self._refused(repo):
            return
        siblings = [{"rfilename": file} for file in self.served.repos[repo]]
        facts = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
        body = json.dumps(facts).encode()
        self._answer(200, {"Content-Type": "application/json"}, body)

    def _resolve(self, repo: str, file: str) -> None:
        if self._refused(repo):
            return
        content = self.served.repos[repo].get(file)
        headers = {"X-Repo-Commit": COMMIT}
        if content is None:
            self._answer(404, {**headers, "X-Error-Code": "EntryNotFound"}, b"Entry not found")
        elif file.endswith(LARGE):
            # On another host, as on the hub: a client reads the headers here.
            storage = self.served.url.replace("127.0.0.1", "localhost")
            headers["Location"] = f"{storage}/{repo}/lfs/{file}"
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
            self._answer(302, headers, b"")
        else:
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self._send(file, content, {**headers, "ETag": f'"{git}"'})

    def _refused(self, repo: str) -> bool:
        if repo in self.served.gated:
            self._answer(403, {"X-Error-Code": "GatedRepo"}, b"Access to it is restricted")
            return True
        if repo not in self.served.repos:  # the hub does not say whether it is private
            self._answer(401, {"X-Error-Code": "RepoNotFound"}, b"Repository not found")
            return True
        return False

    def _send(self, file: str, content: bytes, headers: dict[str, str]) -> None:
        if file in self.served.damaged:
            content = bytes([content[0] ^ 1]) + content[1:]
        part = self.headers.get("Range")
        status, total = 200, len(content)
        if part is not None:
            begin = int(part.removeprefix("bytes=").partition("-")[0])
            content = content[begin:]
            headers = {**headers, "Content-Range": f"bytes {begin}-{total - 1}/{total}"}
            status = 206
        self._answer(status, {**headers, "Accept-Ranges": "bytes"}, content, file)

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, file: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = self.served.cut.pop(file, None) if file is not None else None
        held = self.served.held.get(file or "")
        if held is not None:
            begin = int(headers.get("Content-Range", "bytes 0-").split()[1].split("-")[0])
            first, content = content[: max(0, held - begin)], content[max(0, held - begin) :]
            self.wfile.write(first)
            self.wfile.flush()
            self.served.resumed.wait(60)
        with contextlib.suppress(OSError):  # the client may have gone away
            self.wfile.write(content[:end])
        if end is not None:
            self.close_connection = True
