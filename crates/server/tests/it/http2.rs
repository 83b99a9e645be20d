//! HTTP/2, frame by frame: the same rules, and floods that end the connection.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::lab::{Lab, PATIENCE};
use crate::wire::{Served, Stream, serve, serve_tls};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// RFC 9113 section 7.
const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame that came.
#[derive(Debug, Clone)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as literals, without tables and without Huffman codes (RFC 7541 section 6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fn text(out: &mut Vec<u8>, text: &str) {
        let mut length = text.len();
        if length < 127 {
            out.push(u8::try_from(length).expect("short"));
        } else {
            out.push(127);
            length -= 127;
            while length >= 128 {
                out.push(u8::try_from(length % 128).expect("seven bits") | 128);
                length /= 128;
            }
            out.push(u8::try_from(length).expect("seven bits"));
        }
        out.extend_from_slice(text.as_bytes());
    }
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        text(&mut out, name);
        text(&mut out, value);
    }
    out
}

/// The status that begins a header block of the server: indexed, or three digits in Huffman's code.
fn status(block: &[u8]) -> u16 {
    match block[0] {
        0x88 => 200,
        0x8c => 400,
        0x8d => 404,
        0x48 => {
            let coded = &block[2..2 + usize::from(block[1] & 0x7f)];
            let bits = coded.iter().fold(String::new(), |bits, byte| bits + &format!("{byte:08b}"));
            let (mut number, mut rest) = (0, bits.as_str());
            for _ in 0..3 {
                let short = rest.starts_with("000");
                let code = u16::from_str_radix(&rest[..if short { 5 } else { 6 }], 2).expect("bits");
                number = number * 10 + if short { code } else { code - 0b01_1001 + 3 };
                rest = &rest[if short { 5 } else { 6 }..];
            }
            number
        }
        other => panic!("{other:#x} is no status that this test can read"),
    }
}

struct Client(Box<dyn Stream>);

impl Client {
    /// A connection with both settings exchanged; `window` is the room for answers.
    async fn open(served: &Served, window: u32) -> Self {
        let mut client = Self(served.connect(b"h2").await);
        let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
        client
            .send(&[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &settings)].concat())
            .await;
        client
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.expect("sent");
    }

    async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// The next frame; `None` when the server has ended the connection.
    async fn next(&mut self) -> Option<Frame> {
        let reading = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).expect("a length")];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("a frame, or the end, in time")
    }

    /// Reads until the first frame of this kind.
    async fn until(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// Reads to the end; the code of the last GOAWAY, if there was one.
    async fn goodbye(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                code = Some(u32::from_be_bytes(frame.payload[4..8].try_into().expect("a code")));
            }
        }
        code
    }
}

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Status(u16),
    /// The stream was reset with this code.
    Reset(u32),
    /// The connection was ended with this code.
    Goaway(u32),
}

/// One request on a connection of its own.
async fn ask(served: &Served, fields: &[(&str, &str)], body: Option<&[u8]>) -> End {
    let mut client = Client::open(served, 65_535).await;
    let flags = END_HEADERS | if body.is_none() { END_STREAM } else { 0 };
    let mut bytes = frame(HEADERS, flags, 1, &block(fields));
    if let Some(body) = body {
        bytes.extend(frame(DATA, END_STREAM, 1, body));
    }
    client.send(&bytes).await;
    loop {
        let frame = client.next().await.expect("an answer");
        match frame.kind {
            HEADERS => return End::Status(status(&frame.payload)),
            RST_STREAM => {
                return End::Reset(u32::from_be_bytes(frame.payload[..4].try_into().expect("a code")));
            }
            GOAWAY => {
                return End::Goaway(u32::from_be_bytes(frame.payload[4..8].try_into().expect("a code")));
            }
            _ => {}
        }
    }
}

const LIVE: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/health/live")];
const LOGIN: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", "/auth/login")];

fn with<'a>(fields: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [fields, more].concat()
}

#[tokio::test]
async fn hosts_and_targets_are_judged_as_in_version_one() {
    let lab = Lab::start().await;
    let served = serve_tls(&lab).await;
    let target = |authority, path| [LIVE[0], LIVE[1], (":authority", authority), (":path", path)];

    for (fields, end) in [
        (LIVE.to_vec(), End::Status(200)),
        (with(&LIVE, &[("host", "localhost")]), End::Status(200)),
        (with(&LIVE, &[("host", "evil.example")]), End::Status(400)),
        (with(&LIVE, &[("host", "localhost"), ("host", "localhost")]), End::Status(400)),
        (target("evil.example", "/health/live").to_vec(), End::Status(400)),
        (target("user@localhost", "/health/live").to_vec(), End::Status(400)),
        (target("localhost", "/health/li ve").to_vec(), End::Reset(PROTOCOL_ERROR)),
        (target("localhost", "").to_vec(), End::Reset(PROTOCOL_ERROR)),
        (target("local host", "/").to_vec(), End::Reset(PROTOCOL_ERROR)),
        (vec![LIVE[0], LIVE[1], LIVE[3]], End::Status(400)),
        (vec![LIVE[0], LIVE[1], LIVE[2]], End::Reset(PROTOCOL_ERROR)),
        (vec![(":method", "CONNECT"), (":authority", "localhost:443")], End::Status(400)),
        (with(&LIVE, &[("expect", "more")]), End::Status(417)),
    ] {
        assert_eq!(ask(&served, &fields, None).await, end, "{fields:?}");
    }
}

#[tokio::test]
async fn fields_that_belong_to_a_connection_reset_the_stream() {
    let lab = Lab::start().await;
    let served = serve_tls(&lab).await;

    for field in [
        ("connection", "close"),
        ("connection", "keep-alive"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("X-Upper", "y"),
        (":unknown", "y"),
        ("", "y"),
        ("x y", "z"),
        ("x", "a\r\nb: c"),
        ("x", "a\0b"),
    ] {
        let end = ask(&served, &with(&LIVE, &[field]), None).await;
        let refused = matches!(end, End::Reset(PROTOCOL_ERROR) | End::Goaway(PROTOCOL_ERROR));
        assert!(refused, "{field:?}: {end:?}");
    }
    assert_eq!(ask(&served, &with(&LIVE, &[("te", "trailers")]), None).await, End::Status(200));
    let early = [&[("x", "y")], &LIVE[..]].concat();
    assert_eq!(ask(&served, &early, None).await, End::Reset(PROTOCOL_ERROR));
}

#[tokio::test]
async fn a_length_that_is_not_the_body_s_is_refused() {
    let lab = Lab::start().await;
    let served = serve_tls(&lab).await;

    for (lengths, end) in [
        (&["2"][..], &[End::Status(422)][..]),
        (&[], &[End::Status(422)]),
        (&["1"], &[End::Reset(PROTOCOL_ERROR), End::Status(400)]),
        (&["3"], &[End::Reset(PROTOCOL_ERROR), End::Status(400)]),
        (&["2", "2"], &[End::Status(400)]),
        (&["2", "0"], &[End::Status(400), End::Reset(PROTOCOL_ERROR)]),
        (&["+2"], &[End::Reset(PROTOCOL_ERROR)]),
        (&["2, 2"], &[End::Reset(PROTOCOL_ERROR)]),
    ] {
        let fields: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
        let seen = ask(&served, &with(&LOGIN, &fields), Some(b"{}")).await;
        assert!(end.contains(&seen), "{lengths:?}: {seen:?}");
    }
}

#[tokio::test]
async fn header_lists_have_the_bounds_of_version_one() {
    let lab = Lab::start().await;
    let served = serve_tls(&lab).await;
    let (fits, long) = ("y".repeat(12_000), "y".repeat(16_200));
    let many = |count| std::iter::repeat_n(("x", "y"), count).collect::<Vec<_>>();

    assert_eq!(ask(&served, &with(&LIVE, &[("x", &fits)]), None).await, End::Status(200));
    assert_eq!(ask(&served, &with(&LIVE, &[("x", &long)]), None).await, End::Status(431));
    assert_eq!(ask(&served, &with(&LIVE, &many(100)), None).await, End::Status(200));
    assert_eq!(ask(&served, &with(&LIVE, &many(101)), None).await, End::Status(431));
}

#[tokio::test]
async fn the_server_tells_its_limits() {
    let lab = Lab::start().await;
    let served = serve_tls(&lab).await;
    let mut client = Client::open(&served, 65_535).await;

    let settings = client.until(SETTINGS).await.expect("settings").payload;

    let told = |id: u8| {
        let found = settings.chunks(6).find(|setting| setting[..2] == [0, id]);
        found.map(|setting| u32::from_be_bytes(setting[2..].try_into().expect("a value")))
    };
    assert_eq!((told(3), told(4), told(6)), (Some(100), Some(256 * 1024), Some(16 * 1024)));
    // Neither pushes nor tunnels.
    assert_eq!(told(8).unwrap_or(0), 0);
}

/// Sends what `next` makes until the server ends the connection; the code of its GOAWAY.
async fn flood(client: &mut Client, mut next: impl FnMut(u32) -> Vec<u8>) -> Option<u32> {
    let sending = async {
        let mut number = 0;
        loop {
            let batch: Vec<u8> = (number..number + 50).flat_map(&mut next).collect();
            number += 50;
            if client.try_send(&batch).await.is_err() || number > 200_000 {
                return number;
            }
        }
    };
    let sent = tokio::time::timeout(PATIENCE, sending).await.expect("the server ends the connection");
    assert!(sent < 200_000, "the server takes everything");
    client.goodbye().await
}

#[tokio::test]
async fn floods_end_the_connection_and_nobody_else_s() {
    let lab = Lab::start().await;
    let served = serve_tls(&lab).await;
    let live = block(&LIVE);
    let open = frame(HEADERS, END_HEADERS, 1, &block(&LOGIN));
    let begun = frame(HEADERS, 0, 1, &live);

    // Rapid reset.
    let mut client = Client::open(&served, 65_535).await;
    let code = flood(&mut client, |number| {
        let stream = number * 2 + 1;
        [frame(HEADERS, END_HEADERS | END_STREAM, stream, &live), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
            .concat()
    });
    assert!(matches!(code.await, None | Some(ENHANCE_YOUR_CALM)));

    // A header block that never ends.
    let mut client = Client::open(&served, 65_535).await;
    client.send(&begun).await;
    let code = flood(&mut client, |_| frame(CONTINUATION, 0, 1, b""));
    assert!(matches!(code.await, None | Some(ENHANCE_YOUR_CALM)));

    // Data without data.
    let mut client = Client::open(&served, 65_535).await;
    client.send(&open).await;
    let code = flood(&mut client, |_| frame(DATA, 0, 1, b""));
    assert!(matches!(code.await, None | Some(ENHANCE_YOUR_CALM)));

    assert_eq!(ask(&served, &LIVE, None).await, End::Status(200));
}

#[tokio::test]
async fn whoever_cancels_nearly_everything_is_cut_off() {
    let lab = Lab::start().await;
    let served = serve_tls(&lab).await;
    let mut client = Client::open(&served, 65_535).await;
    let login = block(&LOGIN);
    let mut cancelled = 0;

    // Slowly enough for every request to begin: the pong comes after the server has looked at it.
    for number in 0..400_u32 {
        let stream = (number * 2 + 1).to_be_bytes();
        let opened = frame(HEADERS, END_HEADERS, number * 2 + 1, &login);
        let question = frame(PING, 0, 0, &[&stream[..], &stream[..]].concat());
        if client.try_send(&[opened, question].concat()).await.is_err() {
            break;
        }
        let Some(pong) = client.until(PING).await else { break };
        assert_eq!(pong.flags & ACK, ACK);
        if client.try_send(&frame(RST_STREAM, 0, number * 2 + 1, &[0, 0, 0, 8])).await.is_err() {
            break;
        }
        cancelled += 1;
    }

    assert!((100..400).contains(&cancelled), "{cancelled}");
    assert_eq!(ask(&served, &LIVE, None).await, End::Status(200));
}

#[tokio::test]
async fn a_connection_that_asks_nothing_ends() {
    let lab = Lab::with(|config| {
        config.connections.head = Duration::from_millis(100);
        config.connections.idle = Duration::from_millis(100);
    })
    .await;
    let served = serve_tls(&lab).await;

    let mut silent = Client(served.connect(b"h2").await);
    assert!(silent.next().await.is_none_or(|frame| frame.kind == SETTINGS));
    silent.goodbye().await;

    let mut polite = Client::open(&served, 65_535).await;
    polite.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&LIVE))).await;
    let answer = polite.until(HEADERS).await.expect("an answer");
    assert_eq!((status(&answer.payload), answer.stream), (200, 1));
    assert_eq!(polite.goodbye().await, Some(0));
}

#[tokio::test]
async fn a_client_that_makes_no_room_for_its_answer_is_cut_off() {
    let lab = Lab::with(|config| config.connections.patience = Duration::from_millis(100)).await;
    let served = serve_tls(&lab).await;
    let mut client = Client::open(&served, 0).await;
    client.send(&frame(SETTINGS, ACK, 0, b"")).await;
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&LIVE))).await;

    let answer = client.until(HEADERS).await.expect("a head needs no room");

    assert_eq!((status(&answer.payload), answer.flags & END_STREAM), (200, 0));
    client.goodbye().await;
}

#[tokio::test]
async fn a_body_that_trickles_is_refused_too() {
    let lab = Lab::with(|config| config.connections.patience = Duration::from_millis(100)).await;
    let served = serve_tls(&lab).await;
    let mut client = Client::open(&served, 65_535).await;

    client.send(&frame(HEADERS, END_HEADERS, 1, &block(&LOGIN))).await;
    let answer = client.until(HEADERS).await.expect("an answer");

    assert_eq!(status(&answer.payload), 408);
}

#[tokio::test]
async fn without_tls_there_is_no_http2() {
    let lab = Lab::start().await;
    let served = serve(&lab).await;

    let replies = served.exchange(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"]).await;

    assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), [400]);
}
