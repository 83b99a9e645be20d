//! Spans on their way out: requests, runs, steps. Off unless somebody takes them; never waits; bounded.
//!
//! One way out for the whole process, as for metrics: what was done is told from everywhere, and nobody decides by it.

use std::sync::OnceLock;

use interlock_model::task::TaskRunId;
use interlock_model::trace::{Span, TraceContext};
use tokio::sync::mpsc;

/// Spans that wait for the exporter at most; what does not fit is counted.
const CAPACITY: usize = 4_096;

static OUT: OnceLock<mpsc::Sender<Span>> = OnceLock::new();

/// Begins to keep spans. `None` if somebody takes them already.
pub fn take() -> Option<mpsc::Receiver<Span>> {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    OUT.set(sender).ok().map(|()| receiver)
}

/// Whether anybody takes spans.
pub fn is_on() -> bool {
    OUT.get().is_some()
}

/// Tells of something that has ended.
pub fn ended(span: Span) {
    if let Some(out) = OUT.get()
        && out.try_send(span).is_err()
    {
        metrics::counter!("interlock_spans_dropped_total").increment(1);
    }
}

/// The place of a task's run: its id is the trace, so that whoever knows the run finds the trace.
pub fn run(run: TaskRunId) -> TraceContext {
    TraceContext::of(*run.as_bytes(), b"")
}

/// The place of a step in it.
pub fn step(run: TaskRunId, index: u32) -> TraceContext {
    TraceContext::of(*run.as_bytes(), &index.to_be_bytes())
}
