"""The attention page live on this machine: type a sentence, see its translation, force a word and go on from there.

One model, one translation at a time. The server listens on the loopback interface, answers two routes, knows its own
names alone (another ``Host`` is refused, which keeps rebound DNS names out; another ``Origin`` too, which keeps other
pages out), reads no more than `MAX_BODY` bytes, and writes no sentence anywhere.
"""

from __future__ import annotations

import ipaddress
import json
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from attn_jax.hub import Translator
from attn_jax.pictures import attention_of, maps_bytes
from attn_jax.search_config import SearchConfig
from attn_jax.viz.examples import example_data
from attn_jax.viz.viewer import live_page

MAX_BODY = 16_384  # [bytes]
MAX_CHARS = 2_000
MAX_BEAM = 10
MAX_TOKENS = 128  # of a sentence: maps of all heads grow with its square, and with that of the answer
MAX_PREFIX = 128  # tokens; without a limit of the model's, an answer has at most 2 * MAX_TOKENS + 10 more
MAX_MAPS = 256 << 20  # [bytes] of all layers' and heads' maps of all hypotheses, were each as long as it may be
MAX_TEMPERATURE = 5.0
BURST, PER_SECOND = 20, 4.0  # requests at once, and those that come back a second
PATIENCE = 60.0  # [s] that a request waits for the one before it
TIMEOUT = 10.0  # [s] of silence after which a connection is closed


class Refused(Exception):
    """A request that is not answered, with the status and the reason for whoever asked."""

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


class Request(NamedTuple):
    """What may be asked for: a sentence, hypotheses, a temperature (0: search), and tokens to begin with."""

    sentence: str
    beam: int
    temperature: float
    prefix: tuple[str, ...]

    def config(self, usual: SearchConfig) -> SearchConfig:
        """How to search: samples with a temperature, else a beam; otherwise as usual."""
        if self.temperature:
            return replace(usual, sample=True, num_samples=self.beam, temperature=self.temperature)
        return replace(usual, sample=False, beam=self.beam, n_best=self.beam)


class Bucket:
    """A token bucket: ``burst`` requests at once, ``per_second`` of them coming back."""

    def __init__(self, burst: int, per_second: float, clock: Callable[[], float] = time.monotonic):
        self.burst, self.per_second, self.clock = burst, per_second, clock
        self.left, self.last, self.lock = float(burst), clock(), threading.Lock()

    def take(self) -> bool:
        """Takes one if there is one.

        >>> bucket = Bucket(1, 2.0, clock=iter([0.0, 0.0, 0.1, 0.6]).__next__)
        >>> bucket.take(), bucket.take(), bucket.take()
        (True, False, True)
        """
        with self.lock:
            now = self.clock()
            self.left = min(self.burst, self.left + self.per_second * (now - self.last))
            self.last = now
            if self.left < 1:
                return False
            self.left -= 1
            return True


def parse_request(body: bytes) -> Request:
    """The request in a body of JSON.

    Raises:
      Refused: with what was expected and found.

    >>> parse_request(b'{"sentence": "i am", "beam": 2, "temperature": 0, "prefix": ["je"]}')
    Request(sentence='i am', beam=2, temperature=0.0, prefix=('je',))
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(HTTPStatus.BAD_REQUEST, "expected a body of JSON") from None
    if not isinstance(data, dict) or set(data) != set(Request._fields):
        raise Refused(HTTPStatus.BAD_REQUEST, f"expected an object with {', '.join(Request._fields)}")
    sentence, beam, temperature, prefix = (data[name] for name in Request._fields)
    if not isinstance(sentence, str) or not 0 < len(sentence.strip()) <= len(sentence) <= MAX_CHARS:
        raise Refused(HTTPStatus.BAD_REQUEST, f"expected a sentence of 1 to {MAX_CHARS} characters")
    if type(beam) is not int or not 1 <= beam <= MAX_BEAM:
        raise Refused(HTTPStatus.BAD_REQUEST, f"expected a beam from 1 to {MAX_BEAM}")
    if type(temperature) not in (int, float) or not 0 <= temperature <= MAX_TEMPERATURE:  # refuses NaN too
        raise Refused(HTTPStatus.BAD_REQUEST, f"expected a temperature from 0 to {MAX_TEMPERATURE:g}")
    if not isinstance(prefix, list) or len(prefix) > MAX_PREFIX or not all(isinstance(t, str) for t in prefix):
        raise Refused(HTTPStatus.BAD_REQUEST, f"expected a prefix of at most {MAX_PREFIX} tokens")
    return Request(sentence, beam, float(temperature), tuple(prefix))


class Server(ThreadingHTTPServer):
    """A page and the model behind it.

    Args:
      translator: the model.
      host: the interface to listen on.
      port: 0 takes a free one.
      title: of the page.
      burst, per_second: how many requests are translated.

    Attributes:
      url: where it answers.
    """

    daemon_threads = True

    def __init__(
        self,
        translator: Translator,
        host: str = "127.0.0.1",
        port: int = 8000,
        title: str = "Attention",
        *,
        burst: int = BURST,
        per_second: float = PER_SECOND,
    ):
        self.translator, self.bucket, self.turn = translator, Bucket(burst, per_second), threading.Lock()
        self.page, self.policy = live_page(title, max_beam=MAX_BEAM, max_chars=MAX_CHARS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)
        self.loopback, self.name = _is_loopback(host), f"[{host}]" if ":" in host else host
        self.url = f"http://{self.name}:{self.server_address[1]}/"

    def answers_to(self, host: str | None) -> bool:
        """Whether a ``Host`` names this server. A name of someone else's, rebound to this address, does not.

        On loopback those are its own and the usual three; beyond, any address, which no DNS can rebind, and this
        machine's name. Browsers leave the port 80 out.
        """
        name, _, port = (host or "").rpartition(":")
        if not name or port.endswith("]"):
            name, port = host or "", "80"
        if port != str(self.server_address[1]):
            return False
        if self.loopback:
            return name in (self.name, "localhost", "127.0.0.1", "[::1]")
        return name == socket.gethostname() or _address(name.strip("[]")) is not None

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Waits until nobody else is served.

        Raises:
          Refused: after `PATIENCE`.
        """
        if not self.turn.acquire(timeout=PATIENCE):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "others are being served; try again")
        try:
            yield
        finally:
            self.turn.release()

    def translate(self, request: Request) -> dict[str, Any]:
        """The answer to a request."""
        started = time.perf_counter()
        try:
            tokens = len(self.translator.src_vocab.encode(request.sentence))
            if tokens > MAX_TOKENS:
                raise ValueError(f"expected a sentence of at most {MAX_TOKENS} tokens, found {tokens}; shorten it")
            config = request.config(self.translator.search)
            src_len = tokens + 1  # with the end of sentence
            tgt_len = max(config.max_len or 2 * src_len + 8 + len(request.prefix), config.min_len)
            size = maps_bytes(self.translator.model, request.beam, src_len, tgt_len)
            if size > MAX_MAPS:
                raise ValueError(
                    f"expected at most {MAX_MAPS >> 20} MB of attention maps, and {request.beam} hypotheses of this "
                    f"sentence may have {size >> 20} MB; choose a smaller beam or a shorter sentence"
                )
            data = example_data(attention_of(self.translator, request.sentence, config, prefix=request.prefix))
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        return {"example": data, "seconds": round(time.perf_counter() - started, 3)}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is nobody's business; anything else is told on standard error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection: checks first, then the page or a translation."""

    server: Server
    server_version, sys_version = "attn_jax", ""
    timeout = TIMEOUT
    routes = {"/": "GET", "/api/translate": "POST"}  # noqa: RUF012 (read only)

    def do_GET(self) -> None:
        """The page."""
        self.answer(lambda: self.reply(HTTPStatus.OK, "text/html", self.server.page.encode()))

    def do_POST(self) -> None:
        """A translation."""
        self.answer(self.translation)

    def answer(self, route: Callable[[], None]) -> None:
        """Runs a route, or says why not."""
        try:
            self.check()
            route()
        except Refused as refused:
            self.tell(refused.status, str(refused))
        except OSError:
            raise
        except Exception as error:
            print(f"attn-jax: {type(error).__name__} while translating", file=sys.stderr)
            self.tell(HTTPStatus.INTERNAL_SERVER_ERROR, "the translation failed")

    def check(self) -> None:
        """Host, route, method and origin.

        Raises:
          Refused: with the status that says which.
        """
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if not self.server.answers_to(host):
            raise Refused(HTTPStatus.FORBIDDEN, "unknown host name")
        if origin is not None and origin != f"http://{host}":
            raise Refused(HTTPStatus.FORBIDDEN, "requests from other pages are refused")
        method = self.routes.get(self.path)
        if method is None:
            raise Refused(HTTPStatus.NOT_FOUND, "no such page")
        if method != self.command:
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"expected {method}")

    def translation(self) -> None:
        """Reads, translates, replies."""
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        if len(length) > 9 or int(length) > MAX_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {MAX_BODY} bytes")
        if not self.server.bucket.take():
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "too many requests; wait a moment")
        request = parse_request(self.rfile.read(int(length)))
        with self.server.in_turn():  # the reply too: Ctrl-C waits for the turn, and cuts nothing
            self.reply(HTTPStatus.OK, "application/json", json.dumps(self.server.translate(request)).encode())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses (a method that no route has, a line that is no HTTP), told as all else."""
        self.close_connection = True
        self.tell(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def tell(self, status: HTTPStatus, reason: str) -> None:
        """Replies with a reason in JSON."""
        self.reply(status, "application/json", json.dumps({"error": reason}).encode())

    def reply(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        """A whole reply; the connection is closed after it."""
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"{self.server.policy}; frame-ancestors 'none'",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
        }.items():
            self.send_header(name, value)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self.send_header("Retry-After", str(math.ceil(1 / self.server.bucket.per_second)))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", self.routes[self.path])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: what people type is theirs."""


def serve(translator: Translator, host: str, port: int, title: str) -> None:
    """Serves until Ctrl-C.

    Args:
      translator: the model.
      host: the interface to listen on.
      port: 0 takes a free one.
      title: of the page.

    Raises:
      ValueError: where it cannot listen.
    """
    try:
        server = Server(translator, host, port, title)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host}, port {port} ({error.strerror}); choose another --port (0: a free one) or --host"
        ) from error
    with server:
        if not server.loopback:
            print(f"attn-jax: warning: {host} can be reached from other machines", file=sys.stderr)
        try:
            print(f"{server.url}  (Ctrl-C stops it)", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            server.turn.acquire(timeout=PATIENCE)  # the translation in hand is finished first
            print("\nstopped")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback
