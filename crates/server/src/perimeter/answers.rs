//! The metrics of answers: one pair of series for each method, route and status, looked up once.
//!
//! Labels are a known method, a route template and a status: nothing that a caller can invent, so the number of series is
//! bounded.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use axum::http::StatusCode;
use metrics::{Counter, Histogram};

/// The series that have been needed so far.
#[derive(Default)]
pub(crate) struct Answers(RwLock<HashMap<(&'static str, StatusCode), Routes>>);

/// Series by route template.
type Routes = HashMap<String, Series>;

struct Series {
    requests: Counter,
    duration: Histogram,
}

impl Series {
    fn register(method: &'static str, template: &str, status: StatusCode) -> Self {
        let requests = metrics::counter!(
            "orchestrator_http_requests_total",
            "method" => method, "endpoint" => template.to_owned(), "status_code" => status.as_str().to_owned()
        );
        let duration = metrics::histogram!(
            "orchestrator_http_request_duration_seconds", "method" => method, "endpoint" => template.to_owned()
        );
        Self { requests, duration }
    }

    fn count(&self, elapsed: Duration) {
        self.requests.increment(1);
        self.duration.record(elapsed.as_secs_f64());
    }
}

impl Answers {
    /// Counts an answer.
    pub(super) fn count(&self, method: &'static str, template: &str, status: StatusCode, elapsed: Duration) {
        {
            let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(series) = known.get(&(method, status)).and_then(|routes| routes.get(template)) {
                return series.count(elapsed);
            }
        }
        let series = Series::register(method, template, status);
        series.count(elapsed);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.entry((method, status)).or_default().insert(template.to_owned(), series);
    }
}
