"""A story in a web handler: a WSGI application that sends each word as soon as it is generated.

    python 01_web_handler.py 8000    # then open http://localhost:8000/?prompt=One+day&seed=7
    python 01_web_handler.py         # sends one request to itself, prints the answer, and exits

One model serves all requests, each in its own thread. When the visitor leaves, the server calls
`close` on the iterator that the application returned. This ends the story and frees its memory.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from urllib.parse import parse_qs
from urllib.request import urlopen
from wsgiref.simple_server import WSGIServer, make_server

import llama2py

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

model = llama2py.load()


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer GET /?prompt=...&seed=... with the prompt and its continuation."""
    query = parse_qs(environ["QUERY_STRING"])
    prompt = query.get("prompt", ["Once upon a time"])[0]
    try:
        seed = int(query["seed"][0]) if "seed" in query else None
        stream = model.stream(prompt, max_tokens=200, temperature=0.7, seed=seed, max_time=30)
    except ValueError as error:  # not a number, or out of range: ParameterError is a ValueError
        start_response("400 Bad Request", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{error}\n".encode()]
    except llama2py.PromptError as error:  # longer than the model's context
        start_response("413 Content Too Large", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{error}\n".encode()]
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return pieces(prompt, stream)


def pieces(prompt: str, stream: llama2py.Stream) -> Iterator[bytes]:
    with stream:
        yield prompt.encode()
        for piece in stream:
            yield piece.encode()
        yield b"\n"


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0  # 0: any free port
    with make_server("localhost", port, application, server_class=Server) as server:
        print(f"http://localhost:{server.server_port}/", flush=True)
        if port:
            server.serve_forever()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with urlopen(f"http://localhost:{server.server_port}/?prompt=One+day&seed=7") as answer:
            print(answer.read().decode())
        server.shutdown()


if __name__ == "__main__":
    main()
