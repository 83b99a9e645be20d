//! What comes over the wire and how it must end: name, bytes, verdict.

/// How a vector ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    /// Answered with these, and the connection goes on: what follows is answered too.
    Goes(&'static [u16]),
    /// Answered with these, the last of them saying that the connection ends; what follows is not read.
    Ends(&'static [u16]),
    /// Refused by the gate with this status, in the form of every error.
    Refused(u16),
}

use Verdict::{Ends, Goes, Refused};

/// A vector: what it is, what is sent, how it ends.
pub(crate) type Vector = (&'static str, &'static [u8], Verdict);

macro_rules! get {
    ($fields:literal) => {
        concat!("GET /health/live HTTP/1.1\r\n", $fields, "\r\n").as_bytes()
    };
}

/// A request with `Host` whose body `/auth/login` reads to its end; 422 says that it did.
macro_rules! post {
    ($fields:literal, $body:literal) => {
        concat!(
            "POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n",
            $fields,
            "\r\n",
            $body
        )
        .as_bytes()
    };
}

macro_rules! chunked {
    ($body:literal) => {
        post!("Transfer-Encoding: chunked\r\n", $body)
    };
}

/// Request lines and targets.
pub(crate) const LINES: &[Vector] = &[
    ("a plain request", get!("Host: localhost\r\n"), Goes(&[200])),
    ("one empty line before it", b"\r\nGET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", Goes(&[200])),
    (
        "two empty lines before it",
        b"\r\n\r\nGET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
        Refused(400),
    ),
    ("a bare line feed before it", b"\nGET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("a space before the method", b" GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("two spaces before the target", b"GET  /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("two spaces before the version", b"GET /health/live  HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("a tab before the target", b"GET\t/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("a space after the version", b"GET /health/live HTTP/1.1 \r\nHost: localhost\r\n\r\n", Refused(400)),
    ("a space in the target", b"GET /health /live HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("no target", b"GET HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("no version", b"GET /health/live\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("no method", b"/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("a method that is no token", b"GE(T /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("a method with a colon", b"GET: /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    (
        "a very long method",
        b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
        Refused(400),
    ),
    ("a method in lower case", b"get /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", Goes(&[405])),
    ("a method that nobody knows", b"BREW /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", Goes(&[405])),
    ("connect", b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n", Refused(400)),
    ("connect with a path", b"CONNECT /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("options of everything", b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", Goes(&[404])),
    ("get of everything", b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("the preface of http/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Refused(400)),
    ("version 2.0", b"GET /health/live HTTP/2.0\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("version 1.2", b"GET /health/live HTTP/1.2\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("version 0.9", b"GET /health/live HTTP/0.9\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("version 1.10", b"GET /health/live HTTP/1.10\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("version without a minor", b"GET /health/live HTTP/1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("version with a comma", b"GET /health/live HTTP/1,1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("version in lower case", b"GET /health/live http/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("version of another protocol", b"GET /health/live ICAP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("a fragment", b"GET /health/live#x HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("bytes beyond ascii in the target", b"GET /h\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    (
        "a control character in the target",
        b"GET /health\x01 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        Refused(400),
    ),
    ("a nul in the target", b"GET /health\0 HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("a delete in the target", b"GET /health\x7f HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("half a percent-encoding", b"GET /health%2 HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    ("a percent-encoding of no byte", b"GET /health%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    (
        "half a percent-encoding in the query",
        b"GET /health/live?a=% HTTP/1.1\r\nHost: localhost\r\n\r\n",
        Refused(400),
    ),
    ("a backslash in the path", b"GET \\health\\live HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    (
        "brackets in the query",
        b"GET /health/live?a[b]={c|d} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        Goes(&[200]),
    ),
    ("a relative path", b"GET health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    (
        "the whole address",
        b"GET http://localhost/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
        Goes(&[200]),
    ),
    (
        "the whole address in capitals",
        b"GET HTTP://LOCALHOST/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
        Goes(&[200]),
    ),
    (
        "another host in the address",
        b"GET http://evil.example/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
        Refused(400),
    ),
    (
        "another port in the address",
        b"GET http://localhost:81/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
        Refused(400),
    ),
    (
        "a user in the address",
        b"GET http://user@localhost/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
        Refused(400),
    ),
    ("another scheme", b"GET ftp://localhost/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", Refused(400)),
    (
        "an address without a host",
        b"GET http:///health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
        Refused(400),
    ),
    ("noise", b"\x80\x81\x82\r\n\r\n", Refused(400)),
    ("a tls hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Refused(400)),
];

/// Fields and host.
pub(crate) const FIELDS: &[Vector] = &[
    ("no host", get!(""), Refused(400)),
    ("two hosts", get!("Host: localhost\r\nHost: localhost\r\n"), Refused(400)),
    ("two different hosts", get!("Host: localhost\r\nHost: evil.example\r\n"), Refused(400)),
    ("an empty host", get!("Host:\r\n"), Refused(400)),
    ("a list of hosts", get!("Host: localhost, evil.example\r\n"), Refused(400)),
    ("a host with a user", get!("Host: user@localhost\r\n"), Refused(400)),
    ("a host with a path", get!("Host: localhost/evil\r\n"), Refused(400)),
    ("a host with a space", get!("Host: local host\r\n"), Refused(400)),
    ("a host with a port beyond all", get!("Host: localhost:65536\r\n"), Refused(400)),
    ("a host with a port that is no number", get!("Host: localhost:http\r\n"), Refused(400)),
    ("a host that is half an address", get!("Host: [::1\r\n"), Refused(400)),
    ("a host that is an address", get!("Host: [::1]:8000\r\n"), Goes(&[200])),
    ("a foreign host", get!("Host: evil.example\r\n"), Goes(&[400])),
    ("a line that ends bare", b"GET /health/live HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n", Refused(400)),
    ("a head that ends bare", b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\n", Refused(400)),
    ("nothing but bare line ends", b"GET /health/live HTTP/1.1\nHost: localhost\n\n", Refused(400)),
    ("a bare carriage return", get!("Host: localhost\r\nX: a\rb\r\n"), Refused(400)),
    ("carriage returns only", b"GET /health/live HTTP/1.1\rHost: localhost\r\r", Refused(400)),
    ("two carriage returns", get!("Host: localhost\r\r\n"), Refused(400)),
    ("a folded line", get!("Host: localhost\r\nX: a\r\n b\r\n"), Refused(400)),
    ("a line folded with a tab", get!("Host: localhost\r\nX: a\r\n\tb\r\n"), Refused(400)),
    ("a space before the first field", get!(" Host: localhost\r\n"), Refused(400)),
    ("a space before the colon", get!("Host : localhost\r\n"), Refused(400)),
    ("a tab before the colon", get!("Host: localhost\r\nX\t: y\r\n"), Refused(400)),
    ("no colon", get!("Host: localhost\r\nX\r\n"), Refused(400)),
    ("no name", get!("Host: localhost\r\n: y\r\n"), Refused(400)),
    ("a name with a space", get!("Host: localhost\r\nX Y: z\r\n"), Refused(400)),
    ("a name with a bracket", get!("Host: localhost\r\nX[]: z\r\n"), Refused(400)),
    ("a name beyond ascii", get!("Host: localhost\r\nXé: z\r\n"), Refused(400)),
    ("a nul in a name", get!("Host: localhost\r\nX\0: z\r\n"), Refused(400)),
    ("a nul in a value", get!("Host: localhost\r\nX: a\0b\r\n"), Refused(400)),
    ("a control character in a value", get!("Host: localhost\r\nX: a\x0bb\r\n"), Refused(400)),
    ("a delete in a value", get!("Host: localhost\r\nX: a\x7fb\r\n"), Refused(400)),
    ("white space round a value", get!("Host:\t localhost \t\r\nX:\r\n"), Goes(&[200])),
    ("bytes beyond ascii in a value", get!("Host: localhost\r\nX: é\r\n"), Goes(&[200])),
    (
        "options of the connection that are no tokens",
        get!("Host: localhost\r\nConnection: a b\r\n"),
        Refused(400),
    ),
    ("an expectation that nobody knows", get!("Host: localhost\r\nExpect: the-unexpected\r\n"), Goes(&[417])),
    ("two expectations", get!("Host: localhost\r\nExpect: 100-continue\r\nExpect: more\r\n"), Goes(&[417])),
];

/// Lengths, codings and what comes after.
pub(crate) const BODIES: &[Vector] = &[
    ("a length", post!("Content-Length: 2\r\n", "{}"), Goes(&[422])),
    ("a length of nothing", post!("Content-Length: 0\r\n", ""), Goes(&[422])),
    ("a length with spaces round it", post!("Content-Length:  2 \r\n", "{}"), Goes(&[422])),
    (
        "a length and a coding",
        post!("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        Refused(400),
    ),
    (
        "a coding and a length",
        post!("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
        Refused(400),
    ),
    ("two equal lengths", post!("Content-Length: 2\r\nContent-Length: 2\r\n", "{}"), Refused(400)),
    ("two different lengths", post!("Content-Length: 2\r\nContent-Length: 0\r\n", "{}"), Refused(400)),
    ("a list of lengths", post!("Content-Length: 2, 2\r\n", "{}"), Refused(400)),
    ("a length with a plus", post!("Content-Length: +2\r\n", "{}"), Refused(400)),
    ("a length with a minus", post!("Content-Length: -2\r\n", "{}"), Refused(400)),
    ("a length with a space", post!("Content-Length: 1 0\r\n", "{}"), Refused(400)),
    ("a length after a tab", post!("Content-Length:\t2\r\n", "{}"), Refused(400)),
    ("a length with a leading zero", post!("Content-Length: 02\r\n", "{}"), Refused(400)),
    ("a length in hexadecimal", post!("Content-Length: 0x2\r\n", "{}"), Refused(400)),
    ("a length with a point", post!("Content-Length: 2.0\r\n", "{}"), Refused(400)),
    ("a length with an exponent", post!("Content-Length: 2e0\r\n", "{}"), Refused(400)),
    ("a length with a comma", post!("Content-Length: 2,\r\n", "{}"), Refused(400)),
    ("a length with a quote", post!("Content-Length: \"2\"\r\n", "{}"), Refused(400)),
    ("a length in other digits", post!("Content-Length: ２\r\n", "{}"), Refused(400)),
    ("an empty length", post!("Content-Length:\r\n", ""), Refused(400)),
    ("a huge length", post!("Content-Length: 18446744073709551618\r\n", "{}"), Refused(400)),
    ("a length beyond the bound", post!("Content-Length: 999999999999999999\r\n", ""), Ends(&[413])),
    ("a coding", chunked!("2\r\n{}\r\n0\r\n\r\n"), Goes(&[422])),
    ("a coding in capitals", post!("TRANSFER-ENCODING: CHUNKED\r\n", "2\r\n{}\r\n0\r\n\r\n"), Goes(&[422])),
    ("an unknown coding", post!("Transfer-Encoding: gzip\r\n", "0\r\n\r\n"), Refused(400)),
    ("the coding that is none", post!("Transfer-Encoding: identity\r\n", "0\r\n\r\n"), Refused(400)),
    ("two codings", post!("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), Refused(400)),
    ("chunked first", post!("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), Refused(400)),
    ("chunked twice", post!("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"), Refused(400)),
    (
        "chunked in two fields",
        post!("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        Refused(400),
    ),
    (
        "chunked and another",
        post!("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", "0\r\n\r\n"),
        Refused(400),
    ),
    ("chunked with a comma", post!("Transfer-Encoding: ,chunked\r\n", "0\r\n\r\n"), Refused(400)),
    ("chunked after a tab", post!("Transfer-Encoding:\tchunked\r\n", "0\r\n\r\n"), Refused(400)),
    ("chunked with a parameter", post!("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"), Refused(400)),
    ("chunked in quotes", post!("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"), Refused(400)),
    ("nearly chunked", post!("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), Refused(400)),
    ("an empty coding", post!("Transfer-Encoding:\r\n", "0\r\n\r\n"), Refused(400)),
    ("a coding hidden by a space", post!("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), Refused(400)),
    (
        "a coding hidden by a fold",
        post!("X: y\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        Refused(400),
    ),
    (
        "a coding in version 1.0",
        b"POST /auth/login HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    ("a plain chunk extension", chunked!("2;a;b=c;d=\"e f\"\r\n{}\r\n0;z\r\n\r\n"), Goes(&[422])),
    ("zeros before a chunk's size", chunked!("0002\r\n{}\r\n000\r\n\r\n"), Goes(&[422])),
    ("an empty chunk size", chunked!("\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk size with a plus", chunked!("+2\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk size with a minus", chunked!("-2\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk size with 0x", chunked!("0x2\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk size that is no number", chunked!("zz\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a space before a chunk's size", chunked!(" 2\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a space after a chunk's size", chunked!("2 \r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a tab after a chunk's size", chunked!("2\t\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk size of seventeen digits", chunked!("10000000000000002\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk size with an underscore", chunked!("2_0\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk size that ends bare", chunked!("2\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk size that ends with a return", chunked!("2\r{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk longer than it says", chunked!("2\r\n{}x\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk that ends bare", chunked!("2\r\n{}\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk shorter than it says", chunked!("3\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk extension that ends bare", chunked!("2;a\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk extension without a name", chunked!("2;\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk extension with a space", chunked!("2; a\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk extension with an open quote", chunked!("2;a=\"b\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a chunk extension with a nul", chunked!("2;a\0\r\n{}\r\n0\r\n\r\n"), Ends(&[400])),
    ("a trailer field", chunked!("2\r\n{}\r\n0\r\nX: y\r\n\r\n"), Ends(&[400])),
    ("a length in the trailer", chunked!("2\r\n{}\r\n0\r\nContent-Length: 40\r\n\r\n"), Ends(&[400])),
    ("a last chunk that ends bare", chunked!("2\r\n{}\r\n0\r\n\n"), Ends(&[400])),
    (
        "a body that nobody reads",
        b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n",
        Ends(&[404]),
    ),
    ("a connection that is to close", get!("Host: localhost\r\nConnection: close\r\n"), Ends(&[200])),
    (
        "a connection that is to close, among others",
        get!("Host: localhost\r\nConnection: keep-alive\r\nConnection: x, CLOSE\r\n"),
        Ends(&[200]),
    ),
    ("version 1.0", b"GET /health/live HTTP/1.0\r\nHost: localhost\r\n\r\n", Ends(&[200])),
    (
        "version 1.0 that is kept",
        b"GET /health/live HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
        Goes(&[200]),
    ),
    ("version 1.0 without a host", b"GET /health/live HTTP/1.0\r\n\r\n", Ends(&[400])),
    (
        "an upgrade to websocket",
        get!(
            "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        ),
        Goes(&[200]),
    ),
    (
        "an upgrade to http/2",
        get!(
            "Host: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        ),
        Goes(&[200]),
    ),
    (
        "an upgrade with a body",
        post!("Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n", "{}"),
        Goes(&[422]),
    ),
];
