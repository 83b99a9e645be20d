//! Webhooks: telling an address of an agent how a run ended, signed as the Standard Webhooks specification says.
//!
//! One attempt at a time. What is to be told, and that it was, is kept by `engine::orchestrator`, which also says when to try
//! again. The receiver checks the signature over id, time and body, refuses old times, and forgets ids that it has seen.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use interlock_engine::orchestrator::{Courier, Message, Undelivered};
use interlock_model::Timestamp;
use interlock_model::secret::Secret;
use reqwest::Client;
use url::Url;

use crate::http::{SetupError, client};
use crate::net::{Lookup, Reach, System};

/// How long a receiver has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The header `webhook-signature` of a message.
fn signature(secret: &Secret, id: &str, seconds: i64, body: &str) -> Option<String> {
    let key = STANDARD.decode(secret.expose().strip_prefix("whsec_")?).ok()?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let made = hmac::sign(&key, format!("{id}.{seconds}.{body}").as_bytes());
    Some(format!("v1,{}", STANDARD.encode(made.as_ref())))
}

/// Sends them.
#[derive(Clone)]
pub struct Webhooks {
    reach: Arc<Reach>,
    client: Client,
}

impl std::fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhooks").field("reach", &self.reach).finish_non_exhaustive()
    }
}

impl Webhooks {
    /// To where `reach` lets them, usually [`Reach::anywhere`]. `ca_pem`: authorities beside those of this machine.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(reach: Arc<Reach>, ca_pem: Option<&[u8]>) -> Result<Self, SetupError> {
        let lookup: Arc<dyn Lookup> = Arc::new(System);
        let client = client(&reach, lookup, ca_pem)?;
        Ok(Self { reach, client })
    }
}

#[async_trait]
impl Courier for Webhooks {
    /// Takes at most 15 s.
    async fn tell(&self, message: &Message, secrets: &[Secret], now: Timestamp) -> Result<(), Undelivered> {
        let never = |message: String| Undelivered { message, again: false, answered: true };
        let url = Url::parse(&message.url).map_err(|_| never("the webhook has no address".to_owned()))?;
        self.reach.check(&url).map_err(|refused| never(refused.to_string()))?;
        let body = message.body.to_string();
        let signatures: Option<Vec<String>> =
            secrets.iter().map(|secret| signature(secret, &message.id, now.seconds(), &body)).collect();
        let signatures =
            signatures.ok_or_else(|| never("a secret of the webhook is not whsec_ and base64".to_owned()))?;
        let request = self
            .client
            .post(url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", now.seconds())
            // Several while the secret is exchanged: the receiver takes the one that it can check.
            .header("webhook-signature", signatures.join(" "))
            .timeout(ANSWER_TIMEOUT)
            .body(body);
        let host = url.host_str().unwrap_or("the receiver");
        let Ok(response) = request.send().await else {
            return Err(Undelivered {
                message: format!("{host} did not answer"),
                again: true,
                answered: false,
            });
        };
        let status = response.status();
        match status.as_u16() {
            200..300 => Ok(()),
            // The receiver wants no more (Standard Webhooks, "Response").
            410 => Err(never(format!("{host} answered 410 Gone"))),
            code => {
                Err(Undelivered { message: format!("{host} answered {code}"), again: true, answered: true })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;

    use super::*;
    use crate::testing::{Seen, answer, serve};

    fn message(url: String) -> Message {
        Message {
            url,
            id: "msg_1".to_owned(),
            body: json!({ "type": "run.succeeded", "data": { "run_id": "r" } }),
        }
    }

    fn local(port: u16) -> Webhooks {
        let reach = Reach::anywhere(&[format!("http://127.0.0.1:{port}")], &["127.0.0.1".to_owned()]);
        Webhooks::new(Arc::new(reach.expect("a reach")), None).expect("a client")
    }

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const NOW: i64 = 1_614_265_330;

    #[test]
    fn the_example_of_the_specification_has_its_signature() {
        let secret = Secret::new(SECRET);
        let made = signature(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", NOW, r#"{"test": 2432232314}"#);
        assert_eq!(made.as_deref(), Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
        assert!(signature(&Secret::new("plain"), "a", 0, "b").is_none());
    }

    #[tokio::test]
    async fn what_is_told_arrives_signed() {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = Arc::clone(&seen);
        let port = serve(move |request| {
            log.lock().expect("log").push(request);
            answer(204, "", "")
        })
        .await;
        let secrets = [Secret::new(SECRET), Secret::new("whsec_b2xk")];

        local(port)
            .tell(&message(format!("http://127.0.0.1:{port}/hook")), &secrets, Timestamp::from_seconds(NOW))
            .await
            .expect("delivered");

        let request = seen.lock().expect("log")[0].clone();
        assert_eq!(request.line, "POST /hook HTTP/1.1");
        assert_eq!(request.header("webhook-id"), Some("msg_1"));
        assert_eq!(request.header("webhook-timestamp"), Some("1614265330"));
        let expected =
            secrets.map(|secret| signature(&secret, "msg_1", NOW, &request.body).expect("a signature"));
        assert_eq!(request.header("webhook-signature"), Some(expected.join(" ").as_str()));
    }

    #[tokio::test]
    async fn who_says_no_is_asked_again_unless_gone() {
        let secrets = [Secret::new(SECRET)];
        for (status, again) in [(500, true), (404, true), (302, true), (410, false)] {
            let port = serve(move |_| answer(status, "location: http://169.254.169.254/\r\n", "")).await;
            let told = message(format!("http://127.0.0.1:{port}/"));
            let error =
                local(port).tell(&told, &secrets, Timestamp::from_seconds(NOW)).await.expect_err("no");
            assert_eq!(error.again, again, "{status}: {error}");
        }
    }

    #[tokio::test]
    async fn inner_addresses_are_told_nothing() {
        let hooks = Webhooks::new(Arc::new(Reach::anywhere::<String>(&[], &[]).expect("a reach")), None);
        let hooks = hooks.expect("a client");
        let secrets = [Secret::new(SECRET)];
        for url in
            ["https://127.0.0.1/", "https://169.254.169.254/", "http://example.org/", "https://[::1]:8080/"]
        {
            let error = hooks.tell(&message(url.to_owned()), &secrets, Timestamp::from_seconds(NOW)).await;
            assert!(!error.expect_err(url).again);
        }
    }
}
