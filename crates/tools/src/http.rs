//! `http.request`: one request to a service that the operator has listed.
//!
//! A request goes where [`Reach`] lets it, over a connection of its own, and at most five redirects of reading requests are
//! followed, each checked like the first. What must not be done twice is never sent twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use interlock_engine::tools::{Call, Done, Failure, Tool, misuse, only};
use interlock_model::pipeline::{Effect, Known, LARGEST_RESULT, Misuse};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Map, Value, json};
use url::Url;

use crate::net::{Guarded, Lookup, Reach, Refused, System};
use crate::provider;

/// Most redirects that are followed.
const MOST_REDIRECTS: usize = 5;
/// Most headers that a step may send.
const MOST_HEADERS: usize = 50;
const LONGEST_HEADER: usize = 8_192;
const LONGEST_URL: usize = 8_192;
/// Names and values together; servers commonly take 16 KiB or more for a whole head.
const MOST_HEADER_BYTES: usize = 12_288;
/// Largest body of an answer, bytes.
const LARGEST_BODY: usize = LARGEST_RESULT / 2;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the connection or the request says itself.
const RESERVED: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "expect",
    "idempotency-key",
    "user-agent",
];

const NAMES: &[&str] =
    &["url", "method", "query", "headers", "json", "body", "accept_status", "idempotent", "max_bytes"];

/// The tool.
pub struct HttpRequest {
    reach: Arc<Reach>,
    client: Client,
}

impl std::fmt::Debug for HttpRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpRequest").field("reach", &self.reach).finish_non_exhaustive()
    }
}

/// The client cannot be made: this machine trusts no certificate authority, or a certificate cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("set up requests over HTTPS")]
pub struct SetupError(#[from] reqwest::Error);

/// A client that goes only where it may, follows nothing by itself and keeps no connection.
pub(crate) fn client(
    reach: &Arc<Reach>,
    lookup: Arc<dyn Lookup>,
    ca_pem: Option<&[u8]>,
) -> Result<Client, SetupError> {
    provider();
    let mut builder = Client::builder()
        .user_agent(concat!("interlock/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .no_proxy()
        // A connection that a server closes while it is idle makes a request that may or may not have arrived.
        .pool_max_idle_per_host(0)
        .connect_timeout(CONNECT_TIMEOUT)
        .retry(reqwest::retry::never())
        .dns_resolver(Arc::new(Guarded { reach: Arc::clone(reach), lookup }));
    if let Some(pem) = ca_pem {
        builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
    }
    Ok(builder.build()?)
}

impl HttpRequest {
    /// A tool for these hosts. `ca_pem`: certificate authorities beside those of this machine.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(reach: Arc<Reach>, ca_pem: Option<&[u8]>) -> Result<Self, SetupError> {
        Self::resolving(reach, ca_pem, Arc::new(System))
    }

    /// The same with another resolver.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn resolving(
        reach: Arc<Reach>,
        ca_pem: Option<&[u8]>,
        lookup: Arc<dyn Lookup>,
    ) -> Result<Self, SetupError> {
        let client = client(&reach, lookup, ca_pem)?;
        Ok(Self { reach, client })
    }
}

fn method(input: &Map<String, Value>) -> Result<Method, Misuse> {
    match input.get("method").map(|method| method.as_str().map(str::to_ascii_uppercase)) {
        None => Ok(Method::GET),
        Some(Some(name)) if matches!(name.as_str(), "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE") => {
            Ok(Method::from_bytes(name.as_bytes()).unwrap_or(Method::GET))
        }
        Some(_) => misuse("method", "method is GET, HEAD, POST, PUT, PATCH or DELETE"),
    }
}

fn effect(method: &Method, idempotent: bool) -> Effect {
    match method.as_str() {
        "GET" | "HEAD" => Effect::None,
        "PUT" | "DELETE" => Effect::Idempotent,
        _ if idempotent => Effect::Idempotent,
        _ => Effect::Once,
    }
}

fn url(text: &str, query: Option<&Value>) -> Result<Url, Misuse> {
    if text.len() > LONGEST_URL {
        return misuse("url", format!("a URL has at most {LONGEST_URL} bytes"));
    }
    let Ok(mut url) = Url::parse(text) else {
        return misuse("url", "url is a whole address such as https://api.example.org/v1/plates");
    };
    match query {
        None => {}
        Some(Value::Object(query)) => {
            let mut pairs = url.query_pairs_mut();
            for (name, value) in query {
                match value {
                    Value::String(text) => pairs.append_pair(name, text),
                    Value::Null => continue,
                    other => pairs.append_pair(name, &other.to_string()),
                };
            }
        }
        Some(_) => return misuse("query", "query is an object of names and values"),
    }
    url.set_fragment(None);
    // What stands in it for what was given may be longer: three bytes for one.
    if url.as_str().len() > LONGEST_URL {
        return misuse(
            "url",
            format!("a URL has at most {LONGEST_URL} bytes, with its query and percent-encoded"),
        );
    }
    Ok(url)
}

fn headers(given: Option<&Value>) -> Result<HeaderMap, Misuse> {
    let mut headers = HeaderMap::new();
    let given = match given {
        None => return Ok(headers),
        Some(Value::Object(given)) if given.len() <= MOST_HEADERS => given,
        Some(_) => {
            return misuse(
                "headers",
                format!("headers is an object of at most {MOST_HEADERS} names and texts"),
            );
        }
    };
    for (name, value) in given {
        let lower = name.to_ascii_lowercase();
        if RESERVED.contains(&lower.as_str()) {
            return misuse("headers", format!("the header {lower:?} is set by the request itself"));
        }
        let value = value.as_str().filter(|value| value.len() <= LONGEST_HEADER);
        let (Ok(name), Some(Ok(value))) =
            (HeaderName::from_bytes(lower.as_bytes()), value.map(HeaderValue::from_str))
        else {
            return misuse("headers", "a header is a name and a text without line breaks");
        };
        headers.insert(name, value);
    }
    if headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>()
        > MOST_HEADER_BYTES
    {
        return misuse("headers", format!("headers have at most {MOST_HEADER_BYTES} bytes together"));
    }
    Ok(headers)
}

fn statuses(given: Option<&Value>) -> Result<Vec<u16>, Misuse> {
    let wrong = || misuse("accept_status", "accept_status is a list of up to 20 numbers from 200 to 599");
    match given {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= 20 => {
            let read = |status: &Value| status.as_u64().and_then(|status| u16::try_from(status).ok());
            let all = list.iter().map(read).map(|status| status.filter(|status| (200..600).contains(status)));
            all.collect::<Option<_>>().map_or_else(wrong, Ok)
        }
        Some(_) => wrong(),
    }
}

/// A request as it will be sent.
struct Plan {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Option<Vec<u8>>,
    accept: Vec<u16>,
    most: usize,
    effect: Effect,
}

fn flag(input: &Map<String, Value>, name: &str) -> Result<bool, Misuse> {
    match input.get(name) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => misuse(name, format!("{name} is true or false")),
    }
}

impl Plan {
    fn read(input: &Map<String, Value>) -> Result<Self, Misuse> {
        let method = method(input)?;
        let idempotent = flag(input, "idempotent")?;
        let Some(Value::String(text)) = input.get("url") else { return misuse("url", "url is a text") };
        let url = url(text, input.get("query"))?;
        let mut headers = headers(input.get("headers"))?;
        let body = match (input.get("json"), input.get("body")) {
            (None, None) => None,
            (Some(_), Some(_)) => return misuse("body", "json and body exclude each other"),
            (Some(json), None) => {
                headers.entry("content-type").or_insert(HeaderValue::from_static("application/json"));
                Some(json.to_string().into_bytes())
            }
            (None, Some(Value::String(text))) => Some(text.clone().into_bytes()),
            (None, Some(_)) => return misuse("body", "body is a text; use json for anything else"),
        };
        if body.is_some() && matches!(method, Method::GET | Method::HEAD) {
            return misuse("method", "GET and HEAD carry no body: choose POST or another method");
        }
        let most = match input.get("max_bytes") {
            None => LARGEST_BODY,
            Some(most) => match most.as_u64().and_then(|most| usize::try_from(most).ok()) {
                Some(most) if (1..=LARGEST_BODY).contains(&most) => most,
                _ => {
                    return misuse(
                        "max_bytes",
                        format!("max_bytes is a whole number from 1 to {LARGEST_BODY}"),
                    );
                }
            },
        };
        let effect = effect(&method, idempotent);
        Ok(Self { method, url, headers, body, accept: statuses(input.get("accept_status"))?, most, effect })
    }
}

#[async_trait]
impl Tool for HttpRequest {
    fn description(&self) -> String {
        "Sends an HTTP request to a service that the operator has listed".to_owned()
    }

    fn check(&self, known: Known<'_>) -> Result<Effect, Misuse> {
        only(&known, NAMES)?;
        if !known.has("url") {
            return Err(Misuse::Input(None, "url is missing".to_owned()));
        }
        if self.reach.is_empty() {
            return misuse("url", "no host may be reached: the operator lists them in HTTP_TOOL_HOSTS");
        }
        if known.open.is_empty() {
            let plan = Plan::read(known.fixed)?;
            self.reach.check(&plan.url).or_else(|refused| misuse("url", refused.nameless()))?;
            return Ok(plan.effect);
        }
        // What is there already is checked; the rest when the step runs.
        let worst =
            if known.open.iter().any(|name| name == "method") { Method::POST } else { method(known.fixed)? };
        let idempotent = flag(known.fixed, "idempotent")?;
        headers(known.fixed.get("headers"))?;
        statuses(known.fixed.get("accept_status"))?;
        if let Some(fixed) = known.fixed.get("url") {
            let Some(text) = fixed.as_str() else { return misuse("url", "url is a text") };
            self.reach.check(&url(text, None)?).or_else(|refused| misuse("url", refused.nameless()))?;
        }
        Ok(effect(&worst, idempotent))
    }

    async fn call(&self, call: Call<'_>) -> Result<Done, Failure> {
        let mut plan = Plan::read(&call.input).map_err(|misuse| match misuse {
            Misuse::Input(Some(name), message) => Failure::Refused(format!("with.{name}: {message}")),
            Misuse::Input(None, message) => Failure::Refused(message),
            Misuse::Unknown => Failure::Refused("the tool is gone".to_owned()),
        })?;
        let begun = tokio::time::Instant::now();
        let ended = self.follow(&mut plan, &call.key, call.traceparent().as_deref()).await;
        let status =
            ended.as_ref().map_or("none".to_owned(), |(response, _)| response.status().as_u16().to_string());
        metrics::counter!("orchestrator_external_tool_calls_total", "tool_address" => "http.request", "status_code" => status)
            .increment(1);
        let (response, redirects) = ended?;
        let result = finish(&plan, response, redirects).await;
        metrics::histogram!("orchestrator_external_tool_duration_seconds", "tool_address" => "http.request")
            .record(begun.elapsed().as_secs_f64());
        result.map(Done::Value)
    }
}

impl HttpRequest {
    async fn follow(
        &self,
        plan: &mut Plan,
        key: &str,
        trace: Option<&str>,
    ) -> Result<(Response, usize), Failure> {
        let mut redirects = 0;
        loop {
            self.reach.check(&plan.url).map_err(|refused| Failure::Refused(refused.to_string()))?;
            let mut request =
                self.client.request(plan.method.clone(), plan.url.clone()).headers(plan.headers.clone());
            if plan.effect != Effect::None {
                request = request.header("idempotency-key", key);
            }
            if let Some(trace) = trace {
                request = request.header("traceparent", trace);
            }
            if let Some(body) = &plan.body {
                request = request.body(body.clone());
            }
            let response = request.send().await.map_err(|error| broken(&plan.url, &error))?;
            let status = response.status();
            let reading = plan.effect == Effect::None;
            let target = response.headers().get(LOCATION).filter(|_| reading && status.is_redirection());
            let Some(target) = target else { return Ok((response, redirects)) };
            if plan.accept.contains(&status.as_u16()) {
                return Ok((response, redirects));
            }
            redirects += 1;
            if redirects > MOST_REDIRECTS {
                return Err(certain(format!("it was redirected more than {MOST_REDIRECTS} times"), false));
            }
            let next = target.to_str().ok().and_then(|target| plan.url.join(target).ok());
            let next = next.filter(|next| next.as_str().len() <= LONGEST_URL).ok_or_else(|| {
                certain("it was redirected to something that is no address, or too long".to_owned(), false)
            })?;
            if plan.url.scheme() == "https" && next.scheme() == "http" {
                return Err(certain("it was redirected from HTTPS to plain HTTP".to_owned(), false));
            }
            if next.origin() != plan.url.origin() {
                // What was meant for one service is not told another.
                plan.headers = HeaderMap::new();
            }
            plan.url = next;
        }
    }
}

fn certain(message: String, again: bool) -> Failure {
    Failure::Failed { message, again }
}

/// A request that brought no answer.
fn broken(url: &Url, error: &reqwest::Error) -> Failure {
    let host = url.host_str().unwrap_or("the host");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<Refused>() {
            return Failure::Refused(refused.to_string());
        }
        cause = inner.source();
    }
    if error.is_connect() {
        return Failure::Unreached(format!("there is no connection to {host}"));
    }
    if error.is_builder() {
        return Failure::Refused("the request cannot be made".to_owned());
    }
    Failure::Unknown(format!("the connection to {host} broke before an answer came"))
}

async fn finish(plan: &Plan, response: Response, redirects: usize) -> Result<Value, Failure> {
    let status = response.status();
    let accepted =
        if plan.accept.is_empty() { status.is_success() } else { plan.accept.contains(&status.as_u16()) };
    if !accepted {
        return Err(refused_by(status, plan));
    }
    let headers: BTreeMap<String, String> = response
        .headers()
        .iter()
        .filter(|(name, _)| *name != "set-cookie")
        .map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect();
    let json = headers.get("content-type").is_some_and(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
    });
    let bytes = match read(response, plan.most).await {
        Ok(bytes) => bytes,
        Err(problem) if plan.effect == Effect::Once => {
            // It was done: the service has answered so.
            return Err(certain(format!("it was answered with {}, and {problem}", status.as_u16()), false));
        }
        Err(problem) => return Err(certain(problem, true)),
    };
    let body = if json && !bytes.is_empty() {
        match interlock_model::strict_json::parse(&bytes) {
            Ok(value) => value,
            Err(error) => {
                return Err(certain(
                    format!("the answer is not the JSON that it says it is: {error}"),
                    false,
                ));
            }
        }
    } else {
        match String::from_utf8(bytes) {
            Ok(text) => Value::String(text),
            Err(error) => {
                json!({ "base64": base64::engine::general_purpose::STANDARD.encode(error.as_bytes()) })
            }
        }
    };
    Ok(json!({ "status": status.as_u16(), "headers": headers, "body": body, "redirects": redirects }))
}

/// The body, up to its greatest size.
pub(crate) async fn read(mut response: Response, most: usize) -> Result<Vec<u8>, String> {
    let too_large = || format!("the answer has more than {most} bytes");
    if response
        .content_length()
        .is_some_and(|length| usize::try_from(length).map_or(true, |length| length > most))
    {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if bytes.len() + chunk.len() > most => return Err(too_large()),
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return Ok(bytes),
            Err(_) => return Err("the answer broke off".to_owned()),
        }
    }
}

fn refused_by(status: StatusCode, plan: &Plan) -> Failure {
    let host = plan.url.host_str().unwrap_or("the host");
    let message = match status.canonical_reason() {
        Some(reason) => format!("{host} answered {} {reason}", status.as_u16()),
        None => format!("{host} answered {}", status.as_u16()),
    };
    match status.as_u16() {
        // Not taken up, whatever it was (RFC 6585).
        429 => Failure::Unreached(message),
        // A proxy says so that may have passed the request on (RFC 9110 sections 15.6.3 and 15.6.5).
        502 | 504 => Failure::Unknown(message),
        408 | 425 | 500 | 503 => certain(message, true),
        300..400 => certain(format!("{message}: redirects are followed for GET and HEAD only"), false),
        _ => certain(message, false),
    }
}

#[cfg(test)]
mod tests;
