//! Signing in by a code that is approved elsewhere (RFC 8628), and approving one.

use std::fmt::Write as _;
use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::secret::Secret;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::answer::{self, text_header, value};
use crate::{Client, ClientError};

const GRANT: &str = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code";
const FORM: &str = "application/x-www-form-urlencoded";

/// What is shown to the person, and what is kept.
#[derive(Debug, Deserialize)]
pub struct DeviceCode {
    /// Kept.
    pub device_code: Secret,
    /// Shown.
    pub user_code: String,
    /// Where it is approved.
    pub verification_uri: String,
    /// Seconds until both are dead.
    pub expires_in: u64,
    /// Seconds between two polls.
    pub interval: u64,
}

/// Tokens of the new session.
#[derive(Debug, Deserialize)]
pub struct DeviceToken {
    /// For requests.
    pub access_token: Secret,
    /// Seconds.
    pub expires_in: i64,
}

/// What a poll says.
#[derive(Debug)]
pub enum Polled {
    /// Let in.
    In(DeviceToken),
    /// Ask again after this long.
    Wait(Duration),
    /// Kept out, or too late: `access_denied`, `expired_token`, `invalid_grant`.
    Out(String),
}

/// What a code lets in.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeviceGrant {
    /// What it calls itself.
    pub client: String,
    /// From where it asked.
    pub client_ip: String,
    /// With what.
    pub user_agent: String,
    /// What it is limited to.
    pub scopes: Option<Vec<String>>,
    /// When it asked.
    pub created_at: Timestamp,
    /// Dead from then on.
    pub expires_at: Timestamp,
    /// `open`, `approved` or `denied`.
    pub decision: String,
}

impl Client {
    /// Begins to sign in by a code, limited to these scopes, separated by spaces, if there are any.
    pub async fn begin_device_code(&self, scope: Option<&str>) -> Result<DeviceCode, ClientError> {
        let mut form = "client_id=interlock-cli".to_owned();
        if let Some(scope) = scope {
            form.push_str("&scope=");
            for byte in scope.bytes() {
                let _ = write!(form, "%{byte:02x}");
            }
        }
        let request = self
            .request(Method::POST, &["oauth", "device_authorization"], &[])
            .timeout(self.answer_timeout())
            .header(CONTENT_TYPE, FORM)
            .body(form);
        value(self.url(), self.send(request).await?).await
    }

    /// Asks whether somebody has decided. `interval` is the pause so far.
    pub async fn poll_device_code(
        &self,
        code: &DeviceCode,
        interval: Duration,
    ) -> Result<Polled, ClientError> {
        let form =
            format!("grant_type={GRANT}&client_id=interlock-cli&device_code={}", code.device_code.expose());
        let request = self
            .request(Method::POST, &["oauth", "token"], &[])
            .timeout(self.answer_timeout())
            .header(CONTENT_TYPE, FORM)
            .body(form);
        let response = self.send(request).await?;
        if response.status().as_u16() == 429 {
            let after =
                text_header(response.headers(), RETRY_AFTER.as_str()).and_then(|text| text.parse().ok());
            return Ok(Polled::Wait(Duration::from_secs(after.unwrap_or(0)).max(interval)));
        }
        if response.status().as_u16() != 400 {
            return value(self.url(), response).await.map(Polled::In);
        }
        let body = answer::read(self.url(), response, 64 * 1024).await?;
        let told: Value = serde_json::from_slice(&body).unwrap_or_default();
        Ok(match told["error"].as_str().unwrap_or_default() {
            "authorization_pending" => Polled::Wait(interval),
            "slow_down" => Polled::Wait(interval + Duration::from_secs(5)),
            other => Polled::Out(other.to_owned()),
        })
    }

    /// What a user code lets in.
    pub async fn show_device_code(&self, user_code: &str) -> Result<DeviceGrant, ClientError> {
        self.post(&["auth", "device", "show"], &json!({ "user_code": user_code })).await
    }

    /// Lets it in as oneself, or keeps it out.
    pub async fn decide_device_code(
        &self,
        user_code: &str,
        approve: bool,
    ) -> Result<DeviceGrant, ClientError> {
        let act = if approve { "approve" } else { "deny" };
        self.post(&["auth", "device", act], &json!({ "user_code": user_code })).await
    }
}
