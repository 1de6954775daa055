"""The live page: what the server answers, what it refuses, and the whole of it in a browser."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from attn_jax import serve
from attn_jax.search_config import SearchConfig
from tests.test_pictures import SENTENCE, make_translator


@pytest.fixture(scope="module")
def server():
    with serve.Server(make_translator("recurrent"), port=0, title="<tiny>", burst=10_000) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, method="POST", path="/api/translate", body=None, **headers):
    """One request; gives status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=120)
    headers = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def request(**changes):
    return json.dumps({"sentence": SENTENCE, "beam": 2, "temperature": 0, "prefix": []} | changes)


def example(server, **changes):
    status, _, body = ask(server, body=request(**changes))
    assert status == 200, body
    return json.loads(body)["example"]


def test_the_page(server):
    status, headers, body = ask(server, "GET", "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"&lt;tiny&gt;" in body and b"<tiny>" not in body
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; connect-src 'self'; ")
    assert headers["Content-Security-Policy"].endswith("; frame-ancestors 'none'")
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
    assert "Python" not in headers["Server"]


def test_a_translation_and_a_forced_word(server):
    shown = example(server)
    assert shown["text"] == SENTENCE
    best = shown["models"][0]["hypotheses"][0]
    assert shown["models"][0]["tree"]["leaves"][0] is not None
    word = next(token for token, _ in best["alternatives"][1] if token not in (best["tokens"][1], "</s>"))
    (model,) = example(server, prefix=[best["tokens"][0], word])["models"]
    assert all(h["tokens"][:2] == [best["tokens"][0], word] and h["forced"] == 2 for h in model["hypotheses"])


@pytest.mark.parametrize(
    ("status", "call"),
    [
        (404, {"path": "/x"}),
        (404, {"method": "GET", "path": "/../pyproject.toml"}),
        (404, {"method": "GET", "path": "/?x=1"}),
        (405, {"method": "GET"}),
        (405, {"path": "/"}),
        (501, {"method": "PUT"}),
        (403, {"Host": "evil.example"}),
        (403, {"Host": "127.0.0.1"}),  # without the port: another server
        (403, {"Origin": "http://127.0.0.1:1"}),
        (403, {"Origin": "https://evil.example"}),
        (403, {"Origin": "null"}),
        (415, {"Content_Type": "text/plain"}),  # what a form of another page could send
        (411, {"Content_Length": "1e3"}),
        (411, {"Content_Length": "-1"}),
        (413, {"body": b" " * (serve.MAX_BODY + 1)}),
        (413, {"Content_Length": "9" * 40}),
        (400, {"body": b"{"}),
        (400, {"body": b"[" * 9000}),
        (400, {"body": b"\xff"}),
        (400, {"body": b"[]"}),
        (400, {"body": b"{}"}),
        (400, {"body": request(more=1)}),
        (400, {"body": request(sentence=" ")}),
        (400, {"body": request(sentence="a" * (serve.MAX_CHARS + 1))}),
        (400, {"body": request(sentence=["a"])}),
        (400, {"body": request(beam=0)}),
        (400, {"body": request(beam=10**9)}),
        (400, {"body": request(beam=True)}),
        (400, {"body": request(temperature=float("nan"))}),
        (400, {"body": request(temperature=-1)}),
        (400, {"body": request(prefix="ab")}),
        (400, {"body": request(prefix=[1])}),
        (400, {"body": request(prefix=["no such token"])}),
        (400, {"body": request(prefix=["no such token", "</s>"])}),
    ],
)
def test_refused(server, status, call):
    found, headers, body = ask(server, **call)
    assert found == status
    assert set(json.loads(body)) == {"error"} and headers["Content-Security-Policy"]
    assert headers["Allow"] == ({"GET": "POST", "POST": "GET"}[call.get("method", "POST")] if status == 405 else None)


def test_a_port_that_is_taken(server):
    with pytest.raises(ValueError, match=r"cannot listen on 127.0.0.1, port \d+ \(Address already in use\); choose"):
        serve.serve(server.translator, "127.0.0.1", server.server_address[1], "taken")


def test_long_sentences_are_refused(server):
    status, _, body = ask(server, body=request(sentence="a " * 129))
    assert status == 400 and "expected a sentence of at most 128 tokens, found 129" in json.loads(body)["error"]


def test_more_maps_than_fit_are_refused_before_any_search(server, monkeypatch):
    monkeypatch.setattr(serve, "attention_of", lambda *args, **options: pytest.fail("it searched"))
    monkeypatch.setattr(serve, "MAX_MAPS", 3 << 20)
    monkeypatch.setattr(serve, "maps_bytes", lambda model, targets, src_len, tgt_len: targets * src_len * tgt_len << 15)
    status, _, body = ask(server, body=request(beam=4, sentence="a b", prefix=["A"]))  # 4 * 3 * (2 * 3 + 8 + 1) / 32
    assert status == 400 and json.loads(body)["error"] == (
        "expected at most 3 MB of attention maps, and 4 hypotheses of this sentence may have 5 MB; choose a smaller "
        "beam or a shorter sentence"
    )


def test_how_to_search():
    usual = SearchConfig(stop="current")
    assert serve.Request("a", 3, 0.0, ()).config(usual) == SearchConfig(beam=3, n_best=3, stop="current")
    sampled = {"sample": True, "num_samples": 3, "temperature": 1.5}
    assert serve.Request("a", 3, 1.5, ()).config(usual) == SearchConfig(stop="current", **sampled)
    samples = serve.Request("a", 3, 0.0, ()).config(SearchConfig(sample=True, num_samples=2))  # what a folder may say
    assert not samples.sample and samples.beam == samples.n_best == 3


def test_its_own_page_may_ask(server):
    port = server.server_address[1]
    for name in ("localhost", "127.0.0.1", "[::1]"):
        status, *_ = ask(server, body=request(), Host=f"{name}:{port}", Origin=f"http://{name}:{port}")
        assert status == 200


def test_the_names_of_a_server():
    with serve.Server(make_translator("recurrent"), port=0) as near:
        port = near.server_address[1]
        known = [
            name for name in ("localhost", "[::1]", "192.168.0.7", "evil.example") if near.answers_to(f"{name}:{port}")
        ]
        assert known == ["localhost", "[::1]"] and not near.answers_to(None) and not near.answers_to("localhost")
        near.loopback = False
        known = [name for name in ("192.168.0.7", "[fd00::1]", "evil.example") if near.answers_to(f"{name}:{port}")]
        assert known == ["192.168.0.7", "[fd00::1]"]


def test_the_names_of_other_addresses():
    translator = make_translator("recurrent")
    with serve.Server(translator, "127.0.0.2", port=0) as second:
        port = second.server_address[1]
        assert second.url == f"http://127.0.0.2:{port}/" and second.answers_to(f"127.0.0.2:{port}")
        second.server_address = ("127.0.0.2", 80)
        assert second.answers_to("127.0.0.2") and second.answers_to("[::1]") and not second.answers_to("evil.example")
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with serve.Server(translator, "::1", port=0) as third:
        assert third.url.startswith("http://[::1]:") and third.answers_to(third.url.split("/")[2])


def test_no_more_than_a_burst(server, monkeypatch):
    monkeypatch.setattr(server, "bucket", serve.Bucket(2, 0.01))
    found = [ask(server, body=b"{}") for _ in range(4)]
    assert [status for status, *_ in found] == [400, 400, 429, 429] and found[-1][1]["Retry-After"] == "100"
    assert ask(server, "GET", "/")[0] == 200


def test_no_http(server):
    with socket.create_connection(server.server_address, timeout=60) as connection:
        connection.sendall(b"GET / HTTP/9.9\r\n\r\n")
        said = b"".join(iter(lambda: connection.recv(4096), b""))
    assert json.loads(said.split(b"\r\n\r\n")[-1]).keys() == {"error"}
    status, headers, body = ask(server, "HEAD", "/")
    assert (status, body) == (501, b"") and headers["Content-Type"].startswith("application/json")


def test_one_at_a_time(server, monkeypatch):
    """Requests that come together are translated one after the other; one that waits too long is told so."""
    inside, most = [], []

    def attention_of(*args, **kwargs):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        raise ValueError("seen")

    with monkeypatch.context() as patch:
        patch.setattr(serve, "attention_of", attention_of)
        threads = [threading.Thread(target=ask, args=(server,), kwargs={"body": request()}) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1] * 5
    monkeypatch.setattr(serve, "PATIENCE", 0.05)
    with server.turn:
        assert ask(server, body=request())[0] == 503
    assert ask(server, body=request())[0] == 200


def test_a_fault_tells_nothing(server, monkeypatch, capsys):
    def fault(*args, **kwargs):
        raise RuntimeError("a secret")

    monkeypatch.setattr(serve, "attention_of", fault)
    status, _, body = ask(server, body=request())
    assert (status, json.loads(body)) == (500, {"error": "the translation failed"})
    error = capsys.readouterr().err
    assert "RuntimeError" in error and SENTENCE not in error


def test_in_the_browser(server, browser):
    browser("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
    browser.open(server.url)
    assert browser.js("document.getElementById('main').hidden")
    browser("Input.insertText", text=SENTENCE)  # the sentence has the focus
    composing = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true})"
    assert browser.js(f"document.activeElement.dispatchEvent({composing})")  # nobody took it for the end
    assert not browser.js("document.getElementById('ask').hasAttribute('aria-busy')")
    browser.key("Enter")
    browser.until("!document.getElementById('main').hidden")
    assert browser.js("document.getElementById('source').textContent") == SENTENCE
    browser.click("document.querySelectorAll('.looking .token')[1]")
    word = browser.js("document.querySelector('.force bdi').textContent")
    for _ in range(60):  # by the keyboard alone
        browser.key("Tab")
        if browser.js("document.activeElement.matches('.force')"):
            break
    browser.key("Enter")
    browser.until("hypothesisOf(0).forced === 2 && !document.getElementById('ask').hasAttribute('aria-busy')")
    assert browser.js("[document.activeElement.matches('.looking .token'), document.activeElement.textContent]") == [
        True,
        word,
    ]
    assert browser.js("hypothesisOf(0).tokens[1]") == word
    browser("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    assert browser.js("document.documentElement.scrollWidth") == 390  # a phone, form and given words and all
    assert browser.js("Array.from(document.querySelectorAll('.given'), node => node.textContent)[1]") == word
    assert browser.js("document.querySelector('.pinned').textContent") == word
    browser.js("document.getElementById('given').focus()")
    browser.key("Enter")
    browser.until("hypothesisOf(0).forced === 0 && !document.getElementById('ask').hasAttribute('aria-busy')")
    assert browser.js("document.activeElement.id") == "sentence"
    assert browser.trouble() == []
    assert set(browser.requests()) == {server.url, f"{server.url}api/translate"}


def test_touch_on_a_phone(server, browser):
    """A tap translates, pins what pointing shows, and picks in the tree; a second tap on a token lets it go."""
    browser("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    browser("Emulation.setTouchEmulationEnabled", enabled=True)
    browser.open(server.url)
    browser.tap("document.getElementById('sentence')")
    browser("Input.insertText", text=SENTENCE)
    browser.tap("document.querySelector('.go')")
    browser.until("!document.getElementById('main').hidden")
    assert browser.js("document.documentElement.scrollWidth") == 390
    token = "document.querySelectorAll('.looking .token')[1]"
    browser.tap(token)
    browser.until("state.pin?.row === 1")
    word = browser.js(f"{token}.textContent")
    assert browser.js("document.querySelector('.pinned').textContent") == word
    assert browser.js("document.querySelector('#readout h2').textContent") == word
    browser.tap(token)
    browser.until("state.pin === null && !document.querySelector('.token.chosen')")
    browser.js("document.getElementById('search').open = true")
    browser.tap("Array.from(document.querySelectorAll('.node')).find(node => node.textContent.includes('2 ·'))")
    browser.until("state.picks[0].hypothesis === 1")
    browser.js("document.querySelector('input[value=matrix]').click()")
    browser.tap("document.querySelector('.sheet canvas')")
    browser.until("state.pin?.row != null && state.pin.col !== null && !document.querySelector('.tip').hidden")
    browser("Emulation.setTouchEmulationEnabled", enabled=False)
    assert browser.trouble() == []


def test_loopback_and_ctrl_c(tmp_path):
    """The verb listens on loopback, says where, and Ctrl-C ends it with exit code 0 and no traceback."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is deaf to it
    make_translator("recurrent").save(tmp_path / "model")
    process = subprocess.Popen(
        [sys.executable, "-m", "attn_jax.cli", "serve", str(tmp_path / "model"), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:") and line.endswith("(Ctrl-C stops it)\n"), process.communicate()
    signal.signal(signal.SIGINT, before)
    process.send_signal(signal.SIGINT)
    said, error = process.communicate(timeout=60)
    assert (process.returncode, said, error) == (0, "\nstopped\n", "")


def test_ctrl_c_within_a_translation(server, monkeypatch, capsys):
    """The translation in hand reaches whoever asked for it."""
    before, translate, answers, asking = signal.getsignal(signal.SIGINT), serve.attention_of, [], []

    def attention_of(*args, **kwargs):
        time.sleep(0.5)  # the server's thread has this one started, and listens again
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return translate(*args, **kwargs)

    class Asked(serve.Server):
        def __init__(self, *args):
            super().__init__(*args)
            asking.append(threading.Thread(target=lambda: answers.append(ask(self, body=request()))))
            asking[0].start()

    monkeypatch.setattr(serve, "attention_of", attention_of)
    monkeypatch.setattr(serve, "Server", Asked)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        serve.serve(server.translator, "127.0.0.1", 0, "short")
    finally:
        signal.signal(signal.SIGINT, before)
    asking[0].join()
    assert capsys.readouterr().out.endswith("stopped\n")
    ((status, _, body),) = answers
    assert status == 200 and json.loads(body)["example"]["text"] == SENTENCE
