//! From a response to a value or an error. Reads no more than a stated number of bytes.

use interlock_model::RunId;
use interlock_model::wire::Problem;
use reqwest::Response;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use serde::de::DeserializeOwned;

use crate::{ClientError, Refusal};

/// Largest answer that is read into memory.
pub(crate) const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Largest problem body.
const MAX_PROBLEM_BYTES: usize = 256 * 1024;

pub(crate) fn bad(url: &str, reason: impl Into<String>) -> ClientError {
    ClientError::BadAnswer { url: url.to_owned(), reason: reason.into() }
}

/// The whole body, unless it is too large.
pub(crate) async fn read(url: &str, mut response: Response, limit: usize) -> Result<Vec<u8>, ClientError> {
    let mut body = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| ClientError::from_transport(url, &error))?
    {
        if body.len() + chunk.len() > limit {
            return Err(bad(url, format!("it is larger than {limit} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The value of a successful answer.
pub(crate) async fn value<T: DeserializeOwned>(url: &str, response: Response) -> Result<T, ClientError> {
    let response = accept(url, response).await?;
    let body = read(url, response, MAX_ANSWER_BYTES).await?;
    serde_json::from_slice(&body)
        .map_err(|error| bad(url, format!("it is not the JSON that was expected ({error})")))
}

/// A 2xx response as it is, anything else as an error.
pub(crate) async fn accept(url: &str, response: Response) -> Result<Response, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    if status.is_redirection() {
        let to = text_header(response.headers(), LOCATION.as_str()).unwrap_or_default();
        return Err(bad(
            url,
            format!("it sends us to {to:?}, and redirects are not followed; use the server's own address"),
        ));
    }
    let headers = response.headers().clone();
    let status = status.as_u16();
    let body = read(url, response, MAX_PROBLEM_BYTES).await.unwrap_or_default();
    let mut problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
    if problem.code.is_empty()
        && problem.detail.is_empty()
        && !matches!(status, 401 | 403 | 404 | 429 | 502..=504)
    {
        return Err(bad(
            url,
            format!("it is status {status} without an explanation; is this an Interlock server?"),
        ));
    }
    fill_in(&mut problem, status);
    // The password was right: the token, or the lack of one, is not what is wrong.
    if status == 401 && problem.code != "second_factor_required" {
        return Err(ClientError::SignInNeeded(problem.detail));
    }
    let retry_after = text_header(&headers, RETRY_AFTER.as_str()).and_then(|text| text.parse().ok());
    let run = run_header(&headers);
    Err(ClientError::Problem(Box::new(Refusal { problem, status, retry_after, run })))
}

/// Proxies answer without our problem body.
fn fill_in(problem: &mut Problem, status: u16) {
    problem.status = status;
    let (code, detail) = match status {
        401 => ("unauthorized", "The server does not accept the token."),
        403 => ("forbidden", "The server, or a proxy before it, does not allow this."),
        404 => ("not_found", "There is nothing at this address."),
        429 => ("rate_limited", "Too many requests."),
        _ => ("unavailable", "The server, or a proxy before it, cannot answer at the moment."),
    };
    if problem.code.is_empty() {
        code.clone_into(&mut problem.code);
    }
    if problem.detail.is_empty() {
        detail.clone_into(&mut problem.detail);
    }
}

pub(crate) fn text_header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The run that an answer belongs to.
pub(crate) fn run_header(headers: &HeaderMap) -> Option<RunId> {
    text_header(headers, "interlock-run")?.parse().ok()
}
