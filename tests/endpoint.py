"""A chat endpoint in the form of OpenAI's, for tests: an HTTP server in a thread that answers as a function says.

    with Endpoint(lambda call: Reply('{"reason": "good", "score": 5}')) as endpoint:
        endpoint.url            # "http://127.0.0.1:40123/v1"

`calls` holds what came in, `most` the greatest number of requests that were under way at once.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Call:
    """A request: its number from 0, its fields, its headers, and when it came."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]
    time: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        """All that is asked, in one text."""
        return "\n".join(m["content"] for m in self.body["messages"])


@dataclass
class Reply:
    """What is sent back.

    Attributes:
        content: the answer's text, put into a chat completion; `raw` sends bytes as they are.
        delay: seconds before the first byte; `drip` seconds between single bytes of the body.
    """

    content: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    delay: float = 0.0
    drip: float = 0.0
    usage: dict[str, Any] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 20})

    def bytes(self) -> bytes:
        if self.raw is not None:
            return self.raw
        data: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": self.content}}]}
        return json.dumps({**data, "usage": self.usage} if self.usage is not None else data).encode()


class Endpoint:
    """The server; ends with the block."""

    def __init__(self, answer: Callable[[Call], Reply]) -> None:
        self.answer, self.calls, self.most = answer, [], 0
        self._under_way: set[int] = set()
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                endpoint._serve(self)

            def log_message(self, *values: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *values: Any) -> None:  # a client that hung up in time
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        with self._lock:
            call = Call(len(self.calls), json.loads(raw), dict(handler.headers))
            self.calls.append(call)
            self._under_way.add(call.number)
            self.most = max(self.most, len(self._under_way))
        try:
            reply = self.answer(call) if handler.path == "/v1/chat/completions" else Reply(status=404)
            time.sleep(reply.delay)
            body = reply.bytes()
            if not reply.drip:  # the client may have the answer, and ask again, before this thread's next line
                self._done(call)
            handler.send_response(reply.status)
            for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            for i in range(len(body)) if reply.drip else ():
                handler.wfile.write(body[i : i + 1])
                handler.wfile.flush()
                time.sleep(reply.drip)
            if not reply.drip:
                handler.wfile.write(body)
        finally:
            self._done(call)

    def _done(self, call: Call) -> None:
        with self._lock:
            self._under_way.discard(call.number)

    def __enter__(self) -> Endpoint:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.server.shutdown()
        self.server.server_close()


def verdict(score: Any, reason: str = "So it is.") -> str:
    """A judge's answer."""
    return json.dumps({"reason": reason, "score": score})
