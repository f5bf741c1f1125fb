"""The interface of the Hugging Face hub, as far as an upload needs it; its repositories are dictionaries."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a-secret-that-nobody-may-see"
LARGE = (".safetensors", ".pt", ".bin")


@dataclass
class Repository:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)  # messages


@dataclass
class Hub:
    """State of the stand-in, and what it does wrong if it is told to."""

    user: str = "ann"
    role: str = "write"
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256
    requests: list[str] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)  # status by part of a path
    bad_licences: tuple[str, ...] = ("gratis",)
    url: str = ""


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """Serve a hub on loopback."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        path, hub = urlsplit(self.path).path, self.hub
        body = self._body()
        hub.requests.append(f"{method} {path}")
        for part, status in hub.refuse.items():
            if part in f"{method} {path}":
                return self._answer(status, {"error": "refused by the stand-in"})
        if method == "PUT":  # an upload has an address of its own instead of a token
            hub.stored[path.rpartition("/")[2]] = body
            return self._answer(200, {})
        if path != "/api/validate-yaml" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        return self._answer(*self._result(path, method, body))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            whole = b""
            while size := int(self.rfile.readline(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(content)

    def _result(self, path: str, method: str, body: bytes) -> tuple[int, object]:
        hub, parts = self.hub, [unquote(part) for part in path.strip("/").split("/")]
        match parts:
            case ["api", "whoami-v2"]:
                token = {"displayName": "laptop", "role": hub.role}
                return 200, {"type": "user", "name": hub.user, "orgs": [], "auth": {"accessToken": token}}
            case ["api", "validate-yaml"]:
                content = json.loads(body)["content"]
                wrong = [name for name in hub.bad_licences if f"\nlicense: {name}\n" in content]
                errors = [{"message": f'"license" must be one of the list, not {name}'} for name in wrong]
                return (400 if wrong else 200), {"errors": errors, "warnings": []}
            case ["api", "repos", "create"]:
                return self._create(json.loads(body))
        name = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2]).removesuffix(".git")
        if name not in hub.repositories:
            return 404, {"error": "Repository not found"}
        return self._in_repository(hub.repositories[name], name, parts, method, body)

    def _create(self, asked: dict) -> tuple[int, object]:
        name = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        if not name.startswith(f"{self.hub.user}/"):
            return 403, {"error": f"You don't have the rights to create a model under the namespace {name}"}
        if name in self.hub.repositories:
            return 409, {"error": "You already created this model repo"}
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private)
        return 200, {"url": f"{self.hub.url}/{name}", "id": name, "name": name}

    def _in_repository(
        self, repository: Repository, name: str, parts: list[str], method: str, body: bytes
    ) -> tuple[int, object]:
        match parts[4:] if parts[0] == "api" else parts[2:]:
            case []:
                return 200, {"id": name, "private": repository.private, "sha": "0" * 40, "siblings": []}
            case ["branch", branch]:
                if branch in repository.branches:
                    return 409, {"error": "Reference already exists"}
                repository.branches[branch] = dict(repository.branches["main"])
                return 200, {}
            case ["preupload", branch] if branch in repository.branches:
                files = json.loads(body)["files"]
                return 200, {"files": [
                    {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                     "shouldIgnore": False, "oid": None}
                    for file in files
                ]}  # fmt: skip
            case ["info", "lfs", "objects", "batch"]:
                return 200, {"transfer": "basic", "objects": [
                    {**one, "actions": {"upload": {"href": f"{self.hub.url}/store/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]}  # fmt: skip
            case ["commit", branch] if branch in repository.branches:
                self._commit(repository, branch, body)
                oid = hashlib.sha1(body, usedforsecurity=False).hexdigest()
                return 200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid}
        return 404, {"error": f"nothing at {method} {'/'.join(parts)}"}

    def _commit(self, repository: Repository, branch: str, body: bytes) -> None:
        for line in body.splitlines():
            match json.loads(line):
                case {"key": "header", "value": {"summary": summary}}:
                    repository.commits.append(summary)
                case {"key": "file", "value": {"path": path, "content": content}}:
                    repository.branches[branch][path] = base64.b64decode(content)
                case {"key": "lfsFile", "value": {"path": path, "oid": oid}}:
                    repository.branches[branch][path] = self.hub.stored[oid]
                case other:
                    raise AssertionError(f"unknown: {other}")
