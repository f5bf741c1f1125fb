"""The first call to another machine, against a server that stands in for Ray's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vla_rl.remote.connection import status_of_call

grpc = pytest.importorskip("grpc", reason="the extra remote is not installed: pip install 'vla-rl[remote]'")

PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy")


def answer(_request: bytes, call: Any) -> bytes:
    if ("authorization", "Bearer the token") not in call.invocation_metadata():
        call.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
    return b""


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    method = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("ray.rpc.RayletDriver", {"ClusterInfo": method})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_a_proxy_is_not_asked(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens
    assert status_of_call(address, "the token") == "OK"
    assert status_of_call(address, "another token") == "UNAUTHENTICATED"
    assert status_of_call(address, "") == "UNAUTHENTICATED"
