//! Bodies on their way: requests that must keep coming, answers that must be taken.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::Activity;

/// A request's body arrived too slowly.
#[derive(Debug, thiserror::Error)]
#[error("the body arrives too slowly")]
pub(crate) struct TooSlow;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How the reading of a body went.
#[derive(Debug, Default)]
pub(super) struct Fate {
    /// It was read to its end.
    pub(super) read: AtomicBool,
    /// It broke off.
    pub(super) broken: AtomicBool,
}

/// A request's body: tells whether it was read to its end, and fails when it comes too slowly. Time counts from the first wait
/// for the client; what the server takes to look at it does not.
pub(super) struct Taken {
    body: Incoming,
    fate: Arc<Fate>,
    /// Bytes a second, on average, once `patience` is over.
    least_rate: u64,
    patience: Duration,
    received: u64,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Taken {
    pub(super) fn new(body: Incoming, fate: Arc<Fate>, (least_rate, patience): (u64, Duration)) -> Self {
        Self { body, fate, least_rate, patience, received: 0, waiting: None }
    }

    /// When what has come so far is too little.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let earned = Duration::from_secs(self.received / self.least_rate.max(1));
        let allowed = self.patience.max(earned);
        let (begun, timer) = self.waiting.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(tokio::time::sleep_until(now + allowed)))
        });
        let due = *begun + allowed;
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(context).is_ready()
    }
}

impl http_body::Body for Taken {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.fate.read.store(true, Ordering::Release);
        }
        match polled {
            Poll::Ready(frame) => {
                if matches!(frame, Some(Err(_))) {
                    self.fate.broken.store(true, Ordering::Release);
                }
                if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
                    self.received += data.len() as u64;
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
            }
            Poll::Pending if self.is_late(context) => Poll::Ready(Some(Err(Box::new(TooSlow)))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body over HTTP/2, where a client can be connected and well, and yet take nothing of it.
pub(super) struct Given {
    body: Body,
    activity: Arc<Activity>,
    /// A piece was handed over, and is not on its way yet.
    waits: bool,
}

impl Given {
    pub(super) fn new(body: Body, activity: Arc<Activity>) -> Self {
        activity.answers.fetch_add(1, Ordering::AcqRel);
        Self { body, activity, waits: false }
    }

    fn set_waits(&mut self, waits: bool) {
        if waits != std::mem::replace(&mut self.waits, waits) {
            if waits {
                self.activity.waiting.fetch_add(1, Ordering::AcqRel);
            } else {
                self.activity.waiting.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.set_waits(false);
        self.activity.answers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl http_body::Body for Given {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.activity.pieces.fetch_add(1, Ordering::AcqRel);
        let polled = Pin::new(&mut self.body).poll_frame(context);
        // The library comes back, or drops the body after its last piece, when the client has made room for it.
        self.set_waits(matches!(polled, Poll::Ready(Some(Ok(_)))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
