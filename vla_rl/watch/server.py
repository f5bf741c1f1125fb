"""Server of the live page: plain HTTP on the loopback interface, GET alone, nothing is written.

    /                                       the page, with its style and scripts
    /api/page                               what to draw: panels, metrics, names of the runs
    /api/runs                               states of all runs
    /api/curves?run=0&generation=G&points=N the points that the page lacks
    /api/log?run=0&file=F                   the end of a log
    /api/video?run=0&file=F                 a video, or the asked part of it

A web page of another site could have the browser ask a server on this machine. The answers carry no permission for it
to read them, and a request must name this machine as its host: otherwise a site could give its own name the address of
this machine and read everything.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import ipaddress
import json
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from vla_rl import __version__
from vla_rl.errors import UserError
from vla_rl.reporting.catalogue import CATALOGUE
from vla_rl.reporting.html import STYLE
from vla_rl.reporting.panels import CLOCK_LABELS, FIGURES
from vla_rl.watch.run_feed import SHOWN, RunFeed

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGE = "index.html"
SHARED_STYLE = "report.css"  # of the report, made from its source
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
IDLE_S = 30.0  # how long a connection may be silent
BLOCK = 1 << 16
SMALLEST_PACKED = 1 << 10  # bytes; a tunnel is often slow, and JSON packs well


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine itself, by name or by address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class WatchServer(ThreadingHTTPServer):
    """Server of the page of some runs.

    with WatchServer(feeds, host="127.0.0.1", port=0) as server:
        print(server.address)
        server.serve_forever()
    """

    daemon_threads = True
    allow_reuse_port = False  # or a second server would share the port, and get every other request

    def __init__(self, feeds: Sequence[RunFeed], *, host: str, port: int) -> None:
        """Listen.

        Args:
            feeds: the runs.
            host: `localhost`, or an address of the loopback interface.
            port: the port; 0 for any that is free.

        Raises:
            UserError: the host is another interface, or the port cannot be had.
        """
        if not is_loopback(host):
            raise UserError(
                f"--host: the page is served to this machine alone, found {host}; allowed are localhost, 127.0.0.1 and "
                "::1. To see it from another machine: ssh -L PORT:localhost:PORT THIS_MACHINE"
            )
        self.feeds = tuple(feeds)
        address = "127.0.0.1" if host == "localhost" else host
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            raise UserError(_refusal(error, host, port)) from error

    @property
    def port(self) -> int:
        """Return the port that is listened on."""
        return int(self.server_address[1])

    @property
    def address(self) -> str:
        """Return the address for a browser on this machine."""
        host = str(self.server_address[0])
        names = {"127.0.0.1": "localhost"}
        return f"http://{names.get(host, f'[{host}]' if ':' in host else host)}:{self.port}/"

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """Return the files of the page by name; there are no others."""
        folder = resources.files("vla_rl.watch") / "page"
        found = {file.name: file.read_bytes() for file in folder.iterdir() if _suffix(file.name) in TYPES}
        return found | {SHARED_STYLE: STYLE.encode()}

    def server_bind(self) -> None:
        """Bind, without the look-up of this machine's name, which may ask a name server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the signature of socketserver
        """Pass over a browser that went away; any other error is a bug, and keeps its traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


def _refusal(error: OSError, host: str, port: int) -> str:
    reasons = {
        errno.EADDRINUSE: f"port {port} is in use, perhaps by another watch",
        errno.EACCES: f"port {port} is only for the system",
        errno.EADDRNOTAVAIL: f"this machine has no address {host}",
    }
    option = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
    fix = "leave --host out" if option == "--host" else "--port 0 takes any that is free"
    return f"{option}: {reasons.get(error.errno or 0, f'port {port} of {host}: {error.strerror}')}; {fix}"


class _RefusalError(Exception):
    """Answer that is no page."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vla-rl", ""
    timeout = IDLE_S

    def do_GET(self) -> None:
        """Answer a request."""
        try:
            self._check_host()
            parts = urlsplit(self.path)
            self._answer(parts.path, parse_qs(parts.query))
        except _RefusalError as refusal:
            self._send_json({"error": refusal.reason}, status=refusal.status)
        except ValueError:  # of a request's path
            self._send_json({"error": "no such address"}, status=HTTPStatus.BAD_REQUEST)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def _check_host(self) -> None:
        """Refuse a request that names another host, as one that was led here by a foreign name does."""
        named = self.headers.get_all("Host") or []
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(:\d{1,5})?", named[0]) if len(named) == 1 else None
        if match is None or not is_loopback(match[1].strip("[]").lower()):
            raise _RefusalError(
                HTTPStatus.FORBIDDEN,
                "this page is served to this machine alone: open it as localhost, through a tunnel if need be "
                f"(ssh -L {self.server.port}:localhost:{self.server.port} THIS_MACHINE)",
            )

    def _answer(self, path: str, query: Mapping[str, list[str]]) -> None:
        match path:
            case "/api/page":
                self._send_json(_page(self.server.feeds))
            case "/api/runs":
                self._send_json([feed.state() for feed in self.server.feeds])
            case "/api/curves":
                points = _number(query, "points")
                self._send_json(self._feed(query).curves(_text(query, "generation"), points))
            case "/api/log":
                with _missing_is_refused():
                    self._send_json({"text": self._feed(query).log(_file(query))})
            case "/api/video":
                with _missing_is_refused():
                    stream = self._feed(query).video(_file(query))
                with stream:
                    self._send_video(stream)
            case _:
                name = path.removeprefix("/") or PAGE
                if name not in self.server.files:
                    raise _RefusalError(HTTPStatus.NOT_FOUND, "no such address")
                self._send(self.server.files[name], f"{TYPES[_suffix(name)]}; charset=utf-8")

    def _feed(self, query: Mapping[str, list[str]]) -> RunFeed:
        index = _number(query, "run")
        if index >= len(self.server.feeds):
            raise _RefusalError(HTTPStatus.NOT_FOUND, "no such run")
        return self.server.feeds[index]

    def _send_json(self, value: object, *, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value, allow_nan=False).encode(), "application/json", status=status)

    def _send(self, body: bytes, kind: str, *, status: HTTPStatus = HTTPStatus.OK) -> None:
        is_packed = len(body) >= SMALLEST_PACKED and "gzip" in self.headers.get("Accept-Encoding", "")
        if is_packed:
            body = gzip.compress(body, compresslevel=1)
        self._send_head(status, {"Content-Type": kind, "Content-Length": str(len(body))}
                        | ({"Content-Encoding": "gzip"} if is_packed else {}))  # fmt: skip
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_head(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in (HEADERS | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()

    def _send_video(self, stream: BinaryIO) -> None:
        """Send a video, or the part that the browser asks for; without parts it cannot wind to a place."""
        size = stream.seek(0, 2)
        part = _part(self.headers.get("Range"), size)
        first, last = part or (0, size - 1)
        headers = {"Content-Type": "video/mp4", "Accept-Ranges": "bytes", "Content-Length": str(last - first + 1)}
        if part is not None:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._send_head(HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT, headers)
        if self.command == "HEAD":
            return
        stream.seek(first)
        left = last - first + 1
        while left > 0:
            block = stream.read(min(BLOCK, left))
            if not block:  # it has become shorter: without the promised length the connection is of no more use
                self.close_connection = True
                return
            self.wfile.write(block)
            left -= len(block)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a line for each request would bury the address of the page."""


def _part(asked: str | None, size: int) -> tuple[int, int] | None:
    """Return first and last byte of the asked part (RFC 9110, 14.1.2); None if no single part is asked for.

    Raises:
        _RefusalError: the part lies outside.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if match is None or not any(match.groups()):
        return None
    if not match[1]:
        first, last = max(0, size - int(match[2])), size - 1
    else:
        first, last = int(match[1]), min(int(match[2] or size), size - 1)
    if first > last or first >= size:
        raise _RefusalError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"the video has {size} bytes")
    return first, last


@contextlib.contextmanager
def _missing_is_refused() -> Any:  # noqa: ANN401 - an iterator of nothing
    try:
        yield
    except OSError as error:
        raise _RefusalError(HTTPStatus.NOT_FOUND, "no such file") from error


def _text(query: Mapping[str, list[str]], name: str) -> str:
    return query.get(name, [""])[0]


def _number(query: Mapping[str, list[str]], name: str) -> int:
    text = _text(query, name)
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise _RefusalError(HTTPStatus.BAD_REQUEST, f"{name}: expected a number")
    return int(text)


def _file(query: Mapping[str, list[str]]) -> str:
    """Return the name of a file, which is asked for by the hexadecimal digits of its bytes."""
    try:
        return bytes.fromhex(_text(query, "file")).decode("utf-8", "surrogateescape")
    except ValueError as error:
        raise _RefusalError(HTTPStatus.BAD_REQUEST, "file: expected hexadecimal digits") from error


def _page(feeds: Sequence[RunFeed]) -> dict[str, Any]:
    """Return what the page draws."""
    return {
        "version": __version__,
        "runs": [feed.name for feed in feeds],
        "clocks": CLOCK_LABELS,
        "figures": [
            asdict(figure) | {"panels": [asdict(panel) | {"labels": panel.labels} for panel in figure.panels]}
            for figure in FIGURES
        ],
        "metrics": {name: {"unit": CATALOGUE[name].unit, "meaning": CATALOGUE[name].meaning} for name in SHOWN},
    }
