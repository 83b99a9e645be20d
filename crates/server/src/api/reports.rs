//! What browsers report of our pages: that one tried what its policy forbids (Content Security Policy Level 3 section 5).
//!
//! Anybody can send a report. So it is small, counted apart from everything else of its address, changes nothing, and of its
//! texts only words of closed lists and the host of an address get into the log.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use interlock_engine::auth::Origin;
use interlock_engine::security::{self, Event};
use interlock_model::strict_json;
use serde_json::{Value, json};

use crate::body;
use crate::error::ApiError;
use crate::routes::{ApiRouter, PublicReason};
use crate::state::AppState;

/// Where reports go.
pub(crate) const PATH: &str = "/page-reports";
/// The header that names the place (Reporting API section 3.2).
pub(super) const ENDPOINTS: HeaderName = HeaderName::from_static("reporting-endpoints");
/// Its value; the policy of pages has the same name.
pub(super) const PLACE: &str = "pages=\"/page-reports\"";

/// Longest body in bytes.
const LONGEST: usize = 16 * 1024;
/// Longest time for it to arrive.
const PATIENCE: Duration = Duration::from_secs(5);
/// Reports of one body that are looked at.
const MOST: usize = 8;
/// Longest name of a host, in bytes.
const LONGEST_HOST: usize = 253;

/// Our pages.
const PAGES: [&str; 3] = ["/docs", "/panel", "/device-code"];
/// The parts of a policy that can be violated.
const DIRECTIVES: [&str; 20] = [
    "base-uri",
    "child-src",
    "connect-src",
    "default-src",
    "font-src",
    "form-action",
    "frame-ancestors",
    "frame-src",
    "img-src",
    "manifest-src",
    "media-src",
    "object-src",
    "require-trusted-types-for",
    "script-src",
    "script-src-attr",
    "script-src-elem",
    "style-src",
    "style-src-attr",
    "style-src-elem",
    "worker-src",
];
/// What can be blocked that has no address.
const WORDS: [&str; 9] = [
    "blob",
    "data",
    "eval",
    "filesystem",
    "inline",
    "self",
    "trusted-types-policy",
    "trusted-types-sink",
    "wasm-eval",
];

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.public(Method::POST, PATH, PublicReason::Report, report)
}

async fn report(
    State(state): State<AppState>,
    Extension(origin): Extension<Arc<Origin>>,
    headers: HeaderMap,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let essence = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = essence.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if !matches!(essence.as_str(), "application/csp-report" | "application/reports+json")
        || headers.contains_key(header::CONTENT_ENCODING)
    {
        return Err(body::unsupported());
    }
    let limit = LONGEST.min(state.config.max_request_size);
    let reading = Limited::new(request.into_body(), limit).collect();
    let bytes = match tokio::time::timeout(PATIENCE, reading).await {
        Ok(Ok(read)) => read.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(body::too_large(limit));
        }
        Ok(Err(_)) | Err(_) => return Err(body::too_late()),
    };
    let body = strict_json::parse(&bytes)?;
    let fits = match &body {
        Value::Object(_) => essence == "application/csp-report",
        Value::Array(reports) => essence != "application/csp-report" && reports.iter().all(Value::is_object),
        _ => false,
    };
    if !fits {
        return Err(ApiError::field(&["body"], "type", "The body must be a report, or a list of reports."));
    }
    for found in read(&body) {
        security::event(Event::PagePolicyViolated, None, Some(&origin), found);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// What is logged of a body in one of the two forms.
fn read(body: &Value) -> Vec<Value> {
    if let Some(old) = body.get("csp-report") {
        return vec![told(
            old,
            ["effective-directive", "violated-directive"],
            "document-uri",
            "blocked-uri",
            ["line-number", "column-number"],
        )];
    }
    let reports = body.as_array().map_or(&[][..], Vec::as_slice);
    let violations = reports.iter().filter(|report| report["type"] == "csp-violation");
    let names = ["effectiveDirective", "effectiveDirective"];
    violations
        .take(MOST)
        .map(|report| {
            told(&report["body"], names, "documentURL", "blockedURL", ["lineNumber", "columnNumber"])
        })
        .collect()
}

fn told(report: &Value, directive: [&str; 2], page: &str, blocked: &str, place: [&str; 2]) -> Value {
    let text = |name: &str| report.get(name).and_then(Value::as_str);
    let directive = directive.into_iter().find_map(text).and_then(|all| all.split(' ').next());
    let page = text(page).and_then(|page| page.parse::<Uri>().ok());
    let page =
        page.and_then(|page| PAGES.into_iter().find(|ours| page.path().trim_end_matches('/') == *ours));
    let [line, column] = place.map(|name| report.get(name).and_then(Value::as_u64));
    json!({
        "directive": directive.and_then(|named| DIRECTIVES.into_iter().find(|known| *known == named)).unwrap_or("other"),
        "page": page.unwrap_or("other"),
        "blocked": text(blocked).map_or_else(|| "other".to_owned(), what_was_blocked),
        "line": line, "column": column,
    })
}

/// A word of the list, or the host of an address.
fn what_was_blocked(text: &str) -> String {
    if let Some(word) = WORDS.into_iter().find(|word| *word == text) {
        return word.to_owned();
    }
    let host = text.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_ascii_lowercase));
    let is_host = |host: &String| {
        (1..=LONGEST_HOST).contains(&host.len())
            && host
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b':' | b'[' | b']'))
    };
    host.filter(is_host).unwrap_or_else(|| "other".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_nothing_but_words_and_hosts_is_told() {
        let old = json!({ "csp-report": {
            "document-uri": "https://lab.example/panel?token=secret#x", "violated-directive": "script-src-elem 'self'",
            "blocked-uri": "https://EVIL.example:8443/steal?token=secret", "line-number": 3, "column-number": 7,
            "script-sample": "secret",
        }});
        let new = json!([
            { "type": "csp-violation", "body": {
                "documentURL": "https://lab.example/docs/", "effectiveDirective": "require-trusted-types-for",
                "blockedURL": "trusted-types-sink", "lineNumber": 1,
            }},
            { "type": "deprecation", "body": {} },
            { "type": "csp-violation", "body": {
                "documentURL": "https://lab.example/secret", "effectiveDirective": "secret", "blockedURL": "a secret\n",
                "lineNumber": "secret",
            }},
            { "type": "csp-violation" },
        ]);

        let (old, new) = (read(&old), read(&new));

        assert_eq!(
            old,
            [json!({
                "directive": "script-src-elem", "page": "/panel", "blocked": "evil.example", "line": 3, "column": 7,
            })]
        );
        let nothing = json!({ "directive": "other", "page": "other", "blocked": "other", "line": null, "column": null });
        assert_eq!(
            new,
            [
                json!({
                    "directive": "require-trusted-types-for", "page": "/docs", "blocked": "trusted-types-sink", "line": 1,
                    "column": null,
                }),
                nothing.clone(),
                nothing,
            ]
        );
    }

    #[test]
    fn what_is_no_report_tells_nothing_and_many_tell_no_more_than_some() {
        for body in
            [json!({}), json!([]), json!("x"), json!([1, null, {"type": 3}]), json!({ "csp-reports": {} })]
        {
            assert!(read(&body).is_empty(), "{body}");
        }
        let many = json!(vec![json!({ "type": "csp-violation", "body": {} }); 500]);
        assert_eq!(read(&many).len(), MOST);
        assert!(DIRECTIVES.is_sorted() && WORDS.is_sorted());
    }
}
