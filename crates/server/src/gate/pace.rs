//! Clients that do not take their answers.
//!
//! Sits on the socket itself, below TLS, so that it counts what the network takes. While a write waits, the other end must take
//! at least so many bytes a second, on average over a stretch; else the connection ends. A connection that has nothing to
//! write is not looked at.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A stream whose other end must keep reading.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    stream: S,
    stretch: Duration,
    /// Bytes that must be taken in a stretch.
    least: u64,
    /// Bytes that were taken.
    taken: Arc<AtomicU64>,
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    over: Pin<Box<Sleep>>,
    taken: u64,
}

/// Bytes in a stretch at a rate a second.
pub(crate) fn least(rate: u64, stretch: Duration) -> u64 {
    u64::try_from(stretch.as_millis()).unwrap_or(u64::MAX).saturating_mul(rate) / 1000
}

impl<S> Paced<S> {
    /// Asks for `rate` bytes a second over each `stretch`, and counts what was taken.
    pub(crate) fn new(stream: S, rate: u64, stretch: Duration, taken: Arc<AtomicU64>) -> Self {
        Self { stream, stretch, least: least(rate, stretch), taken, waiting: None }
    }

    /// Notes how a write of `wanted` bytes went.
    fn note(
        &mut self,
        context: &mut Context<'_>,
        wanted: usize,
        polled: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(taken)) = &polled {
            self.taken.fetch_add(*taken as u64, Ordering::Relaxed);
            if *taken >= wanted {
                self.waiting = None;
            } else if let Some(waiting) = &mut self.waiting {
                waiting.taken += *taken as u64;
            }
            return polled;
        }
        if polled.is_ready() {
            return polled;
        }
        let stretch = self.stretch;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Waiting { over: Box::pin(tokio::time::sleep(stretch)), taken: 0 });
        while waiting.over.as_mut().poll(context).is_ready() {
            if waiting.taken < self.least {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            waiting.taken = 0;
            waiting.over.as_mut().reset(Instant::now() + stretch);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, target)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(context, bytes.len(), polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(context, slices.iter().map(|slice| slice.len()).sum(), polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
