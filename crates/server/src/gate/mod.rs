//! Framing without doubt: what stands between the (decrypted) stream and the HTTP/1 library.
//!
//! Two parsers in a row that disagree about where a request ends let a stranger's request hide in somebody else's. The gate
//! therefore follows RFC 9112 to the letter, without its leniencies, and passes on bytes, unchanged, only when no parser can
//! read them in two ways: a head when it is whole and well formed, a body as it comes. It never repairs anything.
//!
//! **A head that is refused** must be answered after the requests that came before it on the same connection, once, in the
//! form of every other error, and the connection must end. Writing that answer here would need a second writer beside the
//! library, with its own idea of what is still on its way. Instead the gate ends its input with one well-formed request of
//! its own, which says `Connection: close`, and notes its number in the [`Verdict`] that it shares with the service. The
//! service refuses the request of that number. A client cannot make such a request: numbers are counted on both sides, and
//! nothing that a client sends carries one. Should the two counts ever differ, the gate's request names a host that does not
//! exist, and is refused for that.
//!
//! **A body that is refused** belongs to a request that is already being answered. Reading it fails, so whoever needs the body
//! refuses the request with 400; whoever does not need it answers as it would have. Either way the connection ends.
//!
//! After the last request (`Connection: close`, HTTP/1.0 without `keep-alive`, a refusal) whatever else comes is thrown away,
//! never read as a request. `Upgrade` is not offered: the field means nothing here, and what follows is HTTP/1.1 as before.

mod body;
mod head;
mod pace;
mod target;
#[cfg(test)]
mod tests;

use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use interlock_engine::auth::Origin;
use interlock_engine::security::{self, Event};
use interlock_model::Entropy;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

pub(crate) use head::{MAX_FIELDS, MAX_HEAD};
pub(crate) use pace::{Paced, least};

use body::{Framing, Next};
use head::Head;

/// The request that stands for a refused one. `.invalid` is a name of no host (RFC 2606 section 2).
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nHost: gate.invalid\r\nConnection: close\r\n\r\n";
/// Bytes of a head that are read at once.
const READ: usize = 4 * 1024;
/// Bytes after the last request that are thrown away while it is answered; then they wait.
const MAX_IGNORED: usize = 64 * 1024;
/// How long an ending connection takes in what the client still sends, so that the answer is not lost to a reset (RFC 9112
/// section 9.6), and how much.
const LINGER: Duration = Duration::from_secs(1);
const MAX_LINGERED: usize = 16 * 1024 * 1024;

/// Why bytes are refused. The name goes to the security log, never to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    BareLf,
    BareCr,
    Control,
    Blank,
    RequestLine,
    Method,
    Connect,
    Target,
    TargetTooLong,
    Version,
    Folded,
    FieldName,
    TooManyFields,
    HeadTooLarge,
    HostMissing,
    HostRepeated,
    HostMalformed,
    HostDiffers,
    Connection,
    LengthMalformed,
    LengthRepeated,
    LengthAndCoding,
    Coding,
    CodingRepeated,
    CodingInOldVersion,
    ChunkSize,
    ChunkExtension,
    ChunkEnd,
    Trailer,
    AfterLast,
}

impl Reason {
    /// Its name in the security log.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::BareLf => "bare_line_feed",
            Self::BareCr => "bare_carriage_return",
            Self::Control => "control_character",
            Self::Blank => "blank_lines",
            Self::RequestLine => "request_line",
            Self::Method => "method",
            Self::Connect => "connect",
            Self::Target => "target",
            Self::TargetTooLong => "target_too_long",
            Self::Version => "version",
            Self::Folded => "folded_line",
            Self::FieldName => "field_name",
            Self::TooManyFields => "too_many_fields",
            Self::HeadTooLarge => "head_too_large",
            Self::HostMissing => "host_missing",
            Self::HostRepeated => "host_repeated",
            Self::HostMalformed => "host_malformed",
            Self::HostDiffers => "host_differs",
            Self::Connection => "connection_options",
            Self::LengthMalformed => "length_malformed",
            Self::LengthRepeated => "length_repeated",
            Self::LengthAndCoding => "length_and_coding",
            Self::Coding => "transfer_coding",
            Self::CodingRepeated => "transfer_coding_repeated",
            Self::CodingInOldVersion => "transfer_coding_in_http10",
            Self::ChunkSize => "chunk_size",
            Self::ChunkExtension => "chunk_extension",
            Self::ChunkEnd => "chunk_end",
            Self::Trailer => "trailer_field",
            Self::AfterLast => "bytes_after_last_request",
        }
    }
}

/// A refused request, as the perimeter finds it among the extensions of the one that stands for it.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    /// Why.
    pub(crate) reason: Reason,
    /// Under which id it was logged.
    pub(crate) request_id: String,
}

/// What the gate tells the service of its connection.
#[derive(Debug, Default)]
pub(crate) struct Verdict(OnceLock<(usize, Refused)>);

impl Verdict {
    /// Whether the connection's request of this number, from 1, stands for a refused one.
    pub(crate) fn on(&self, number: usize) -> Option<Refused> {
        self.0.get().filter(|(refused, _)| *refused == number).map(|(_, refused)| refused.clone())
    }
}

/// Writes down what was refused.
pub(crate) struct Log {
    /// Address of the other end of the connection: nothing in a refused head is believed, so behind a proxy it is the proxy's.
    pub(crate) peer: IpAddr,
    /// For the id.
    pub(crate) entropy: Arc<dyn Entropy>,
}

impl Log {
    /// Counts and logs; returns the id under which.
    fn refused(&self, reason: Reason) -> String {
        let request_id = format!("req-{}", interlock_model::id::random_hex(&*self.entropy, 12));
        let origin = Origin {
            client_ip: self.peer,
            request_id: request_id.clone(),
            user_agent: String::new(),
            certificate: None,
            trace: None,
        };
        blocked(&origin, reason.name());
        request_id
    }
}

/// Counts and logs a request that was refused for its framing, in any version of HTTP.
pub(crate) fn blocked(origin: &Origin, reason: &'static str) {
    metrics::counter!("orchestrator_blocked_requests_total", "reason" => "framing").increment(1);
    security::event(
        Event::RequestBlocked,
        None,
        Some(origin),
        json!({ "kind": "framing", "reason": reason }),
    );
}

#[derive(Debug)]
enum State {
    /// Between requests, or in a head.
    Head(Head),
    /// In a body; whether its request is the last.
    Body(Framing, bool),
    /// After the last request.
    Last,
    /// After a refused head: its stand-in is the last.
    Refused,
    /// After a refused body: reading fails.
    Failed,
}

/// The gate of one connection.
pub(crate) struct Gate<S> {
    stream: S,
    state: State,
    /// What was read and not passed on.
    buffer: BytesMut,
    /// So many bytes of it may pass.
    ready: usize,
    /// Heads that passed.
    passed: usize,
    /// Bytes that were thrown away.
    ignored: usize,
    verdict: Arc<Verdict>,
    log: Log,
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<S> Gate<S> {
    /// A gate before `stream`.
    pub(crate) fn new(stream: S, verdict: Arc<Verdict>, log: Log) -> Self {
        Self {
            stream,
            state: State::Head(Head::default()),
            buffer: BytesMut::new(),
            ready: 0,
            passed: 0,
            ignored: 0,
            verdict,
            log,
            lingering: None,
        }
    }

    fn refuse_head(&mut self, reason: Reason) {
        let refused = Refused { reason, request_id: self.log.refused(reason) };
        let _ = self.verdict.0.set((self.passed + 1, refused));
        self.buffer.clear();
        self.buffer.extend_from_slice(STAND_IN);
        self.ready = STAND_IN.len();
        self.state = State::Refused;
    }

    /// Judges what is in the buffer as the start of a head. False: more is needed.
    fn judge_head(&mut self) -> bool {
        let State::Head(head) = &mut self.state else { return true };
        match head.advance(&self.buffer) {
            Ok(None) => return false,
            Ok(Some(complete)) => {
                self.passed += 1;
                self.ready = complete.length;
                self.state = match complete.body {
                    Framing::None => Self::between(complete.last),
                    body => State::Body(body, complete.last),
                };
            }
            Err(reason) => self.refuse_head(reason),
        }
        true
    }

    fn between(last: bool) -> State {
        if last { State::Last } else { State::Head(Head::default()) }
    }

    /// How many of these bytes of a body may pass; moves on when it ends there.
    fn judge_body(state: &mut State, log: &Log, bytes: &[u8]) -> usize {
        let State::Body(framing, last) = state else { return 0 };
        let scan = framing.scan(bytes);
        match scan.next {
            Next::More => {}
            Next::End => *state = Self::between(*last),
            Next::Bad(reason) => {
                log.refused(reason);
                *state = State::Failed;
            }
        }
        scan.used
    }

    /// Notes bytes that come after the last request. Line ends are harmless and some clients send them.
    fn ignore(&mut self, bytes: &[u8]) {
        if self.ignored == 0
            && matches!(self.state, State::Last)
            && bytes.iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
        {
            self.log.refused(Reason::AfterLast);
        }
        self.ignored += bytes.len();
    }

    fn ignore_buffer(&mut self) {
        let left = std::mem::take(&mut self.buffer);
        if !left.is_empty() {
            self.ignore(&left);
        }
    }
}

impl<S: AsyncRead + Unpin> Gate<S> {
    /// Waits until the first head is whole or refused. False if the stream ends before.
    pub(crate) async fn head(&mut self) -> io::Result<bool> {
        std::future::poll_fn(|context| self.poll_head(context)).await
    }

    /// Reads on in a head. False at the end of the stream.
    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while !self.judge_head() {
            // Not into the buffer itself: thousands of connections that say nothing must not hold room for what they could say.
            let mut space = [MaybeUninit::uninit(); READ];
            let mut came = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut came))?;
            if came.filled().is_empty() {
                return Poll::Ready(Ok(false));
            }
            self.buffer.extend_from_slice(came.filled());
        }
        Poll::Ready(Ok(true))
    }

    /// Reads a body straight into the reader's buffer. What follows the body stays here.
    fn poll_body(&mut self, context: &mut Context<'_>, target: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = target.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, target))?;
        let read = &target.filled()[before..];
        if read.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let used = Self::judge_body(&mut self.state, &self.log, read);
        if matches!(self.state, State::Failed) {
            if used == 0 {
                target.set_filled(before);
                return Poll::Ready(Err(refused()));
            }
        } else {
            self.buffer.extend_from_slice(&read[used..]);
        }
        target.set_filled(before + used);
        Poll::Ready(Ok(()))
    }

    /// Throws away what comes, up to `most` bytes in all, until the stream ends.
    fn poll_ignore(&mut self, context: &mut Context<'_>, most: usize) -> Poll<io::Result<()>> {
        self.ignore_buffer();
        let mut space = [0_u8; 2048];
        while self.ignored <= most {
            let mut sink = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut sink))?;
            if sink.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.ignore(sink.filled());
        }
        // Nobody wakes the reader for more; the answer under way goes on, and its end is the connection's.
        Poll::Pending
    }

    /// Whether the client may still be sending something that nobody read.
    fn is_unread(&self) -> bool {
        match self.state {
            State::Head(_) => false,
            State::Last => self.ignored > 0,
            State::Body(..) | State::Refused | State::Failed => true,
        }
    }
}

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the framing of the body is not well formed")
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = &mut *self;
        loop {
            if gate.ready > 0 {
                let some = gate.ready.min(target.remaining());
                target.put_slice(&gate.buffer[..some]);
                gate.buffer.advance(some);
                gate.ready -= some;
                return Poll::Ready(Ok(()));
            }
            match &gate.state {
                State::Head(_) => {
                    if !ready!(gate.poll_head(context))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                State::Body(..) if gate.buffer.is_empty() => return gate.poll_body(context, target),
                State::Body(..) => {
                    gate.ready = Self::judge_body(&mut gate.state, &gate.log, &gate.buffer);
                }
                State::Last | State::Refused => return gate.poll_ignore(context, MAX_IGNORED),
                State::Failed => return Poll::Ready(Err(refused())),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = &mut *self;
        if gate.lingering.is_none() {
            ready!(Pin::new(&mut gate.stream).poll_shutdown(context))?;
            gate.ignore_buffer();
            if !gate.is_unread() {
                return Poll::Ready(Ok(()));
            }
            gate.ignored = 0;
            gate.state = State::Refused;
            gate.lingering = Some(Box::pin(tokio::time::sleep(LINGER)));
        }
        if gate.ignored <= MAX_LINGERED && gate.poll_ignore(context, MAX_LINGERED).is_pending() {
            let over = gate.lingering.as_mut().is_none_or(|timer| timer.as_mut().poll(context).is_ready());
            if !over && gate.ignored <= MAX_LINGERED {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}
