//! A token that has ended is exchanged for a new one, once, before anybody is asked to sign in again.

use std::sync::Arc;

use interlock_model::secret::Secret;
use interlock_model::wire::LoginAnswer;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::json;

use crate::answer::value;
use crate::{Client, ClientError};

/// An access token and the refresh token that goes with it.
#[derive(Debug, Clone)]
pub struct TokenPair {
    /// For requests.
    pub access: Secret,
    /// For the next pair.
    pub refresh: Secret,
}

/// Where a pair is kept between programs. Others may change it meanwhile: a refresh token counts once, so whoever finds a newer
/// pair takes that instead of asking for one.
pub trait TokenStore: std::fmt::Debug + Send + Sync {
    /// The pair as it is now.
    fn load(&self) -> Option<TokenPair>;
    /// Keeps a new pair. It must be kept before it is used.
    fn save(&self, answer: &LoginAnswer);
}

/// The store, and a lock so that one client asks once.
#[derive(Debug)]
pub(crate) struct Renewal {
    store: Arc<dyn TokenStore>,
    one_at_a_time: tokio::sync::Mutex<()>,
}

impl Renewal {
    pub(crate) fn new(store: Arc<dyn TokenStore>) -> Self {
        Self { store, one_at_a_time: tokio::sync::Mutex::new(()) }
    }
}

/// The header that carries a token.
pub(crate) fn signed(token: &Secret) -> Result<HeaderMap, ClientError> {
    let mut headers = HeaderMap::new();
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose().trim()))
        .map_err(|_| ClientError::Settings("the token holds characters that a token never has".to_owned()))?;
    value.set_sensitive(true);
    headers.insert(AUTHORIZATION, value);
    Ok(headers)
}

impl Client {
    /// Sends a request; if the token has ended and can be renewed, once more with the new one.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let used = self.headers();
        // A request without a credential was refused for another reason than its age.
        let again = self.renewal().filter(|_| !used.is_empty()).and_then(|_| request.try_clone());
        let response = self.send_once(request).await?;
        let Some(again) = again.filter(|_| response.status().as_u16() == 401) else { return Ok(response) };
        match self.renewed(&used).await {
            Some(headers) => self.send_once(again.headers(headers)).await,
            None => Ok(response),
        }
    }

    /// Other headers than those that were refused; `None` when there are none to be had.
    async fn renewed(&self, refused: &HeaderMap) -> Option<HeaderMap> {
        let renewal = self.renewal()?;
        let _turn = renewal.one_at_a_time.lock().await;
        let pair = renewal.store.load()?;
        let kept = signed(&pair.access).ok()?;
        let headers = if kept == *refused {
            let answer = self.refresh(&pair.refresh).await.ok()?;
            renewal.store.save(&answer);
            signed(&Secret::new(answer.access_token)).ok()?
        } else {
            kept
        };
        self.set_headers(headers.clone());
        Some(headers)
    }

    /// Exchanges a refresh token, which is spent by it. This client does not take the new pair over.
    ///
    /// # Errors
    /// [`ClientError::SignInNeeded`] when it is not in force.
    pub async fn refresh(&self, token: &Secret) -> Result<LoginAnswer, ClientError> {
        let body = json!({ "refresh_token": token.expose() });
        let request = self.bare_request(Method::POST, &["auth", "refresh"]).timeout(self.answer_timeout());
        value(self.url(), self.send_once(request.json(&body)).await?).await
    }
}
