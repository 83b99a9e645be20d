//! Spans to a collector: OTLP over HTTP as JSON (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>), in batches.
//!
//! Nothing waits for the collector. One that is away loses spans, which is counted; it never gets a span twice.

use std::time::Duration;

use interlock_engine::spans;
use interlock_model::id::hexadecimal;
use interlock_model::trace::{Span, SpanKind};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Url};
use serde_json::{Value, json};

use crate::http::SetupError;
use crate::provider;

/// Spans in one request at most.
const BATCH: usize = 512;
/// How long spans wait for each other.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Where spans go.
#[derive(Debug, Clone)]
pub struct Collector {
    url: Url,
    /// Sensitive, so they are not shown.
    headers: HeaderMap,
    service: String,
}

/// Why spans can go nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadCollector {
    /// The address.
    #[error("must be an https address, or one of plain http on this machine, such as http://127.0.0.1:4318")]
    Endpoint,
    /// The headers.
    #[error("must be headers as name=value,name=value")]
    Headers,
}

impl Collector {
    /// The collector at `endpoint`, to which `/v1/traces` is added; `headers` as `name=value,name=value`; what this server is called
    /// there.
    ///
    /// # Errors
    /// [`BadCollector`].
    pub fn new(endpoint: &str, headers: &str, service: &str) -> Result<Self, BadCollector> {
        let url = Url::parse(&format!("{}/v1/traces", endpoint.trim_end_matches('/')));
        let url = url.map_err(|_| BadCollector::Endpoint)?;
        let here = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let fits = url.scheme() == "https" || url.scheme() == "http" && here;
        if !fits || !url.username().is_empty() || url.query().is_some() {
            return Err(BadCollector::Endpoint);
        }
        let pairs = headers.split(',').filter(|pair| !pair.trim().is_empty());
        let headers = pairs.map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let mut value = HeaderValue::from_str(value.trim()).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_bytes(name.trim().as_bytes()).ok()?, value))
        });
        let headers = headers.collect::<Option<HeaderMap>>().ok_or(BadCollector::Headers)?;
        Ok(Self { url, headers, service: service.to_owned() })
    }
}

/// Begins to send what this process tells of; the future goes on until it is dropped. `None`: somebody else sends it already.
///
/// # Errors
/// [`SetupError`].
pub fn export(collector: Collector) -> Result<Option<impl Future<Output = ()> + Send>, SetupError> {
    provider();
    let client = Client::builder()
        .user_agent(concat!("interlock/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(ANSWER)
        .build()?;
    let Some(mut spans) = spans::take() else { return Ok(None) };
    Ok(Some(async move {
        let mut batch = Vec::with_capacity(BATCH);
        let mut away = false;
        while spans.recv_many(&mut batch, BATCH).await > 0 {
            let body = encoded(&collector.service, &batch);
            let sent = client
                .post(collector.url.clone())
                .headers(collector.headers.clone())
                .json(&body)
                .send()
                .await;
            let taken = sent.is_ok_and(|answer| answer.status().is_success());
            if !taken {
                metrics::counter!("interlock_spans_dropped_total").increment(batch.len() as u64);
            }
            // Said once, not for each batch.
            if taken == away {
                away = !taken;
                if away {
                    tracing::warn!(target: "tools", "the collector of traces does not take spans; they are lost until it does");
                } else {
                    tracing::info!(target: "tools", "the collector of traces takes spans again");
                }
            }
            batch.clear();
            if spans.len() < BATCH {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }))
}

/// `ExportTraceServiceRequest` in the JSON form of OTLP: ids are hexadecimal, times are nanoseconds as text.
fn encoded(service: &str, spans: &[Span]) -> Value {
    let spans: Vec<Value> = spans.iter().map(span).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": [
            attribute("service.name", &json!(service)),
            attribute("service.version", &json!(env!("CARGO_PKG_VERSION"))),
        ] },
        "scopeSpans": [{ "scope": { "name": "interlock" }, "spans": spans }],
    }] })
}

fn span(span: &Span) -> Value {
    let nanos = |time: interlock_model::Timestamp| format!("{}000", time.micros());
    let kind = match span.kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
    };
    let attributes: Vec<Value> = span.attributes.iter().map(|(name, value)| attribute(name, value)).collect();
    let mut encoded = json!({
        "traceId": hexadecimal(&span.context.trace), "spanId": hexadecimal(&span.context.span), "name": span.name, "kind": kind,
        "startTimeUnixNano": nanos(span.began), "endTimeUnixNano": nanos(span.ended), "attributes": attributes,
        "status": if span.failed { json!({ "code": 2 }) } else { json!({}) },
    });
    if let Some(parent) = span.parent {
        encoded["parentSpanId"] = json!(hexadecimal(&parent));
    }
    encoded
}

fn attribute(name: &str, value: &Value) -> Value {
    let value = match value {
        Value::String(text) => json!({ "stringValue": text }),
        Value::Bool(flag) => json!({ "boolValue": flag }),
        // Whole numbers are texts in JSON, for those who read numbers as doubles.
        Value::Number(number) if number.is_i64() || number.is_u64() => {
            json!({ "intValue": number.to_string() })
        }
        Value::Number(number) => json!({ "doubleValue": number }),
        other => json!({ "stringValue": other.to_string() }),
    };
    json!({ "key": name, "value": value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_goes_to_this_machine_only() {
        for good in [
            "https://otel.lab.example:4318",
            "http://127.0.0.1:4318/",
            "http://localhost:1/otel",
            "http://[::1]:4318",
        ] {
            let collector =
                Collector::new(good, "a=b, c=d=e", "x").unwrap_or_else(|error| panic!("{good}: {error}"));
            assert!(collector.url.path().ends_with("/v1/traces"), "{}", collector.url);
            assert_eq!(collector.headers["c"], "d=e");
            assert!(!format!("{collector:?}").contains("d=e"), "a header is shown");
        }
        for bad in [
            "",
            "otel.lab.example",
            "http://otel.lab.example:4318",
            "ftp://127.0.0.1",
            "https://user@otel.lab.example",
        ] {
            assert_eq!(Collector::new(bad, "", "x").err(), Some(BadCollector::Endpoint), "{bad}");
        }
        for bad in ["a", "a b=c", "a=\u{7f}"] {
            assert_eq!(Collector::new("https://a", bad, "x").err(), Some(BadCollector::Headers), "{bad}");
        }
    }
}
