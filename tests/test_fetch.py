"""Downloads from a server on loopback: verified, resumed, refused."""

import hashlib
import json
import socketserver
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from attn_jax.convert.fetch import fetch_marian
from attn_jax.storage.download import DownloadError, Expected, download, read_url
from attn_jax.storage.files import IntegrityError
from attn_jax.storage.manifest import verify
from attn_jax.verbs.convert import Fetch

COMMIT = "0123456789abcdef" * 2 + "01234567"
LARGE = ("source.spm", "target.spm", "pytorch_model.bin")
FILES = {
    "config.json": b"{}", "vocab.json": b'{"</s>": 0}', "source.spm": b"s" * 5000, "target.spm": b"t" * 70,
    "pytorch_model.bin": bytes(range(256)) * 4000, "README.md": b"a card", "tf_model.h5": b"not needed",
}  # fmt: skip


def entry(name, content):
    blob = {
        "rfilename": name,
        "size": len(content),
        "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
    }
    large = {"lfs": {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}}
    return blob | (large if name in LARGE else {})


@contextmanager
def hub(stop_after=None, ranges=True, change=None, files=FILES):
    """A hub whose requests are written down; it breaks off the first answer that is longer than ``stop_after``.

    Large files lie elsewhere, as they do on the real one.
    """
    asked, stops = [], [stop_after]
    listing = {"sha": COMMIT, "siblings": [entry(name, content) for name, content in files.items()]}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Range")))
            name = self.path.rsplit("/", 1)[-1]
            if self.path == "/api/models/Helsinki-NLP/opus-mt-en-fr/revision/main?blobs=true":
                return self.answer(json.dumps(listing).encode())
            if self.path.startswith("/api/models/busy"):
                return self.send_error(503)
            if self.path == f"/Helsinki-NLP/opus-mt-en-fr/resolve/{COMMIT}/{name}" and name in LARGE:
                self.send_response(302)
                self.send_header("Location", f"/elsewhere/{name}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if self.path not in (f"/Helsinki-NLP/opus-mt-en-fr/resolve/{COMMIT}/{name}", f"/elsewhere/{name}"):
                return self.send_error(404)
            content = files[name] if change is None else change(name, files[name])
            start = int(self.headers["Range"][6:-1]) if ranges and "Range" in self.headers else 0
            return self.answer(content, start)

        def answer(self, content, start=0):
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if stops[0] is not None and len(content) > stops[0]:
                content, stops[0] = content[: stops[0]], None
                self.close_connection = True
            self.wfile.write(content[start:])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_what_is_needed_comes_verified(tmp_path, capsys):
    with hub() as (url, asked):
        Fetch(name="opus-mt-en-fr", out=tmp_path / "a", hub=url).run()
        assert len(asked) == 10  # the list, and six of the seven files, three of them elsewhere
        Fetch(name="Helsinki-NLP/opus-mt-en-fr", out=tmp_path / "a", hub=url).run()
        assert len(asked) == 11  # all is there: only the list
    wanted = {name: content for name, content in FILES.items() if name != "tf_model.h5"}
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.name != "manifest.json"
    } == wanted
    record = verify(tmp_path / "a")
    assert record["commit"] == COMMIT and record["name"] == "Helsinki-NLP/opus-mt-en-fr"
    assert record["stated"]["source.spm"] == f"sha256 {hashlib.sha256(FILES['source.spm']).hexdigest()}"
    assert record["stated"]["config.json"] == f"git {entry('config.json', b'{}')['blobId']}"
    assert "now: attn-jax convert marian" in capsys.readouterr().out


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(tmp_path, ranges):
    with hub(stop_after=600_000, ranges=ranges) as (url, asked):
        with pytest.raises(DownloadError, match=r"the same command goes on"):
            fetch_marian("opus-mt-en-fr", tmp_path, hub=url)
        assert not (tmp_path / "pytorch_model.bin").exists()
        assert (tmp_path / ".pytorch_model.bin.part").stat().st_size == 600_000
        fetch_marian("opus-mt-en-fr", tmp_path, hub=url)
        assert asked[-1][1] == "bytes=600000-"
    assert (tmp_path / "pytorch_model.bin").read_bytes() == FILES["pytorch_model.bin"]
    assert not list(tmp_path.glob(".*"))


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"no HTTP\r\n", "cannot be reached"),
        (b"", "cannot be reached"),
        (CHUNKED + b"4\r\nabcd\r\nxyz\r\n", "broke off"),
        (CHUNKED + b"9\r\nab", "broke off"),
        (b"HTTP/1.1 429 Too Many Requests\r\n\r\n", "answers 429 Too Many Requests; try again later"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "answers 503 Busy; try again later"),
    ],
)
def test_odd_answers(tmp_path, answer, message):
    class Odd(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(65536)
            self.request.sendall(answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Odd) as server:
        for ask in (read_url, partial(download, path=tmp_path / "a", expected=Expected(99, "sha256", "0"))):
            thread = threading.Thread(target=server.handle_request)
            thread.start()
            with pytest.raises(DownloadError, match=message):
                ask(f"http://127.0.0.1:{server.server_address[1]}/a")
            thread.join()


def other(name, content):
    return content[:-1] + b"!" if name == "vocab.json" else content


def longer(name, content):
    return content + b"!" if name == "source.spm" else content


@pytest.mark.parametrize(("change", "file"), [(other, "vocab.json"), (longer, "source.spm")])
def test_other_content_is_refused(tmp_path, change, file):
    with (
        hub(change=change) as (url, _),
        pytest.raises(IntegrityError, match=f"{file}: expected .* found .*; try again"),
    ):
        fetch_marian("opus-mt-en-fr", tmp_path, hub=url)
    assert (
        not (tmp_path / file).exists() and not list(tmp_path.glob(".*")) and not (tmp_path / "manifest.json").exists()
    )


def test_a_damaged_file_is_fetched_again(tmp_path):
    with hub() as (url, _):
        fetch_marian("opus-mt-en-fr", tmp_path, hub=url)
        (tmp_path / "vocab.json").write_bytes(b'{"</s>": 1}')
        fetch_marian("opus-mt-en-fr", tmp_path, hub=url)
    assert (tmp_path / "vocab.json").read_bytes() == FILES["vocab.json"]


def test_errors(tmp_path):
    with hub() as (url, _):
        with pytest.raises(DownloadError, match=r"the server answers 404 Not Found; check the name"):
            fetch_marian("opus-mt-xx-yy", tmp_path, hub=url)
        with pytest.raises(DownloadError, match=r"the server answers 503 Service Unavailable; try again later"):
            fetch_marian("busy/model", tmp_path, hub=url)
        with pytest.raises(DownloadError, match=r"expected an address that begins with https://"):
            fetch_marian("opus-mt-en-fr", tmp_path, hub="file:///etc")
        for name in ("../secret", "a/b/c", "a b", "", "owner/..", "x?y"):
            with pytest.raises(ValueError, match="expected the name of a model"):
                fetch_marian(name, tmp_path, hub=url)
    with hub(stop_after=10) as (url, _), pytest.raises(DownloadError, match="broke off"):
        fetch_marian("opus-mt-en-fr", tmp_path, hub=url)
    with pytest.raises(DownloadError, match="cannot be reached"):
        download(f"{url}/a", tmp_path / "a", Expected(1, "sha256", "0"))
    few = {name: FILES[name] for name in ("config.json", "vocab.json", "source.spm")}
    message = r"lacks target.spm, model.safetensors or pytorch_model.bin"
    with hub(files=few) as (url, _), pytest.raises(DownloadError, match=message):
        fetch_marian("opus-mt-en-fr", tmp_path, hub=url)
