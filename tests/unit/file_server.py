"""A real HTTP server on this machine that serves files well, or badly in the ways that servers do."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BLOCK = 1 << 14


@dataclass
class FileServer:
    """Attributes that a test sets, and what it finds out.

    Attributes:
        url: of the server, without a slash at its end.
        files: path → content.
        statuses: answers to give first, before any file.
        cuts: bytes of the body after which to hang up, one answer each; None: all of it.
        ranges: answers Range requests; without, the whole file comes.
        lie: added to every Content-Length.
        headers: further headers of every file.
        etag: of every file.
        window: bytes of a range that are sent at most.
        shift: added to the start of every range that is sent.
        pace: called before each block of a body.
        asked: the Range header of every request, in order.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    cuts: list[int | None] = field(default_factory=list)
    ranges: bool = True
    lie: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    etag: str = '"one"'
    window: int | None = None
    shift: int = 0
    pace: Callable[[], object] = lambda: None
    asked: list[str | None] = field(default_factory=list)


@contextmanager
def running() -> Iterator[FileServer]:
    """A server while the block lasts."""
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.headers["Range"])
            content = state.files.get(self.path.split("?")[0])
            if state.statuses:
                self.send_error(state.statuses.pop(0))
            elif content is None:
                self.send_error(404)
            else:
                self.send_file(content)

        do_HEAD = do_GET

        def send_file(self, content: bytes) -> None:
            start = self.start_of_range()
            if start is not None and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200 if start is None else 206)
            body = content
            if start is not None:
                first = start + state.shift
                body = content[first:][: state.window]
                self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(body) + state.lie))
            for name, value in {"ETag": state.etag, **state.headers}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            body = body[: state.cuts.pop(0) if state.cuts else None]
            for first in range(0, len(body), BLOCK):
                state.pace()
                try:
                    self.wfile.write(body[first : first + BLOCK])
                except OSError:  # the client hung up
                    return

        def start_of_range(self) -> int | None:
            match = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            changed = self.headers["If-Range"] not in (None, state.etag, state.headers.get("Last-Modified"))
            return int(match[1]) if match and state.ranges and not changed else None

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
