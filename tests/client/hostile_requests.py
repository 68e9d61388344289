"""What a hostile caller may write to the trainer's socket that is no task: by name, with what it must get.

``said`` are the statuses of the fixed pages in their order; none where the connection is closed without a
word.
"""

from __future__ import annotations

from dataclasses import dataclass

CANARY = "Jane-Doe-1961"
"""Stands in many a request, and may come back in none, nor be kept."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Bytes for the socket; ``cut`` says that nothing follows them, though something should."""

    name: str
    sent: bytes
    said: tuple[int, ...]
    cut: bool = False


def _head(line: bytes, *headers: bytes) -> bytes:
    every = (b"host: trainer", b"connection: close", *headers)
    return b"\r\n".join([line, *every, b"", b""])


def _asks(line: str, *headers: bytes) -> bytes:
    return _head(f"{line} HTTP/1.1".encode("latin-1"), *headers)


def _posts(*headers: bytes, body: bytes = b"") -> bytes:
    return _asks("POST /v1/task", *headers) + body


TARGETS = [
    *("/", "/v1", "/v1/", "/v1/task/", "//v1/task", "/v1//task", "/v1/./task", "/v1/x/../task"),
    *("/v1/../../etc/passwd", "/v1/%2e%2e/%2e%2e/etc/passwd", "/%2e%2e%2f%2e%2e%2fetc/shadow"),
    *("/v1/task%00", "/v1/task%2f", "/v1/task;x=1", "/v1/task?x=1", "/v1/task??", "/v1/task#f"),
    *("/V1/TASK", "/v1/tasks", "/%76%31/task", "/v1%2ftask", "/v1/task%20", "/v1/task%0d%0aX:1"),
    *("http://trainer/v1/task", "file:///etc/passwd", "https://example.org/v1/task", "*"),
    *("/openapi.json", "/docs", "/redoc", "/metrics", "/health", "/v1/task/status", "/.git/config"),
    *("/spool", "/v1/spool/0001.reply", "/trainer/ledger.sqlite", "\\v1\\task", "/..\\..\\etc"),
    f"/v1/{CANARY}",
    "/" + "a" * 12_000,
    "/" + "../" * 3000,
]
METHODS = [
    *("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "post", "Post"),
    *("POSTX", "X" * 2000, CANARY),
]
NO_HTTP = {
    "HTTP 0.9": b"GET /v1/task\r\n\r\n",
    "HTTP 2 as a version": _head(b"POST /v1/task HTTP/2"),
    "a version that is none": _head(b"POST /v1/task HTTP/one.one"),
    "no version": _head(b"POST /v1/task"),
    "two spaces": _head(b"POST  /v1/task HTTP/1.1"),
    "a tab for a space": _head(b"POST\t/v1/task HTTP/1.1"),
    "a space in the target": _head(b"POST /v1/task /etc/passwd HTTP/1.1"),
    "NUL in the target": _head(b"POST /v1/task\x00 HTTP/1.1"),
    "bytes beyond ASCII in the target": _head("POST /v1/täsk HTTP/1.1".encode()),
    "no host": b"POST /v1/task HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
    "two hosts": _posts(b"host: other"),
    "a header without a colon": _posts(b"nonsense"),
    "a space before the colon": _posts(b"content-length : 0"),
    "an empty header name": _posts(b": x"),
    "NUL in a header": _posts(b"x: a\x00b"),
    "CR in a header": _posts(b"x: a\rb"),
    "a header name beyond ASCII": _posts("naïve: 1".encode()),
    "a header of 400 KB": _posts(b"x: " + b"a" * 400_000),
    "twenty thousand headers": _posts(*(b"x-%d: %b" % (n, b"a" * 9) for n in range(20_000))),
    "a header that goes on in a first line": b"POST /v1/task HTTP/1.1\r\n folded: x\r\n\r\n",
    "a negative length": _posts(b"content-length: -1"),
    "a length that is no number": _posts(b"content-length: ten"),
    "a length in hex": _posts(b"content-length: 0x10"),
    "a length with a plus": _posts(b"content-length: +4", body=b"task"),
    "a length of thirty digits": _posts(b"content-length: " + b"9" * 30),
    "two lengths": _posts(b"content-length: 4", b"content-length: 5", body=b"tasks"),
    "two lengths in one": _posts(b"content-length: 4, 5", body=b"tasks"),
    "an unknown transfer coding": _posts(b"transfer-encoding: gzip"),
    "two transfer codings": _posts(b"transfer-encoding: gzip, chunked"),
    "a coding that looks like chunked": _posts(b"transfer-encoding: xchunked"),
    "two chunked codings": _posts(b"transfer-encoding: chunked", b"transfer-encoding: chunked"),
    "a chunk without a size": _posts(b"transfer-encoding: chunked", body=b"\r\ntask\r\n0\r\n\r\n"),
    "a chunk of negative size": _posts(b"transfer-encoding: chunked", body=b"-4\r\ntask\r\n"),
    "a chunk of endless size": _posts(b"transfer-encoding: chunked", body=b"f" * 21 + b"\r\n"),
    "a chunk longer than it says": _posts(b"transfer-encoding: chunked", body=b"1\r\ntask\r\n"),
    "a chunk's endless note": _posts(b"transfer-encoding: chunked", body=b"1;" + b"a" * 20_000),
    "a greeting of TLS": bytes.fromhex("16030100c8010000c40303") + b"\r\n\r\n",
    "the header of a proxy": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "SMTP": f"EHLO {CANARY}\r\n\r\n".encode(),
    "lines without end": b"a" * 40_000,
    "NULs": bytes(20_000),
}
CUT = {
    "nothing at all": b"",
    "half a first line": b"POST /v1/ta",
    "half a header": b"POST /v1/task HTTP/1.1\r\nhost: trai",
    "headers without their end": b"POST /v1/task HTTP/1.1\r\nhost: trainer\r\n",
    "no body though there should be one": _posts(b"content-length: 100"),
    "half a body": _posts(b"content-length: 100", body=b"OFD1" + bytes(40)),
    "a length beyond all memory": _posts(b"content-length: 9000000000000000000", body=b"OFD1"),
    "half a chunk": _posts(b"transfer-encoding: chunked", body=b"ffff\r\nOFD1"),
    "a chunk beyond all memory": _posts(
        b"transfer-encoding: chunked", body=b"7fffffffffffffff\r\nOFD1"
    ),
    "chunks without their end": _posts(b"transfer-encoding: chunked", body=b"4\r\nOFD1\r\n"),
    "who waits to be asked for the body": _posts(b"expect: 100-nothing", b"content-length: 9"),
}

REQUESTS = [
    *(Request(name=f"POST {target[:60]}", sent=_asks(f"POST {target}"), said=(404,)) for target in TARGETS),
    *(Request(name=f"GET {target[:60]}", sent=_asks(f"GET {target}"), said=(404,)) for target in TARGETS),
    *(
        Request(name=f"method {method[:20]}", sent=_asks(f"{method} /v1/task"), said=(404,))
        for method in METHODS
    ),
    Request(name="CONNECT", sent=_asks("CONNECT /v1/task"), said=(404,)),
    Request(name="an upgrade to a websocket", sent=_asks("GET /v1/task", b"upgrade: websocket"), said=(404,)),
    Request(
        name="the preface of HTTP 2",
        sent=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        said=(404, 400),
    ),
    Request(
        name="garbage behind a request",
        sent=b"GET / HTTP/1.1\r\nhost: x\r\n\r\n\x00\x00\x00\r\n\r\n",
        said=(404, 400),
    ),
    Request(
        name="a length shorter than the body",
        sent=b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nOFD1\r\n\r\n",
        said=(404, 400),
    ),
    Request(
        name="twenty requests in one breath",
        sent=b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n" * 19 + _asks("GET /x"),
        said=(404,) * 20,
    ),
    Request(name="HTTP 1.0", sent=_head(b"GET /v1/task HTTP/1.0"), said=(404,)),
    Request(
        name="length and chunks, to smuggle a second request",
        sent=_asks("GET /x", b"content-length: 5", b"transfer-encoding: chunked")
        + b"0\r\n\r\n"
        + _asks(f"POST /v1/{CANARY}"),
        said=(404,),
    ),
    Request(
        name="a forwarded path",
        sent=_asks("GET /", b"x-original-url: /v1/task", b"x-forwarded-prefix: /v1/task"),
        said=(404,),
    ),
    Request(
        name="another method by a header",
        sent=_asks("GET /v1/task", b"x-http-method-override: POST"),
        said=(404,),
    ),
    *(Request(name=name, sent=sent, said=(400,)) for name, sent in NO_HTTP.items()),
    *(Request(name=name, sent=sent, said=(), cut=True) for name, sent in CUT.items()),
]  # fmt: skip
