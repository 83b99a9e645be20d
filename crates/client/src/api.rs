//! One method for each endpoint. Paths and bodies are those of docs/reference/device-http.md.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use interlock_model::device::DeviceStatus;
use interlock_model::run::RunState;
use interlock_model::secret::Secret;
use interlock_model::wire::{
    ActionsAnswer, AuditCount, AuditView, BanView, EventsAnswer, LoginAnswer, Operation, PageAnswer, RunView,
    StopReport, UserView, WhoAmIAnswer,
};
use interlock_model::{RunId, Timestamp};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::ClientError;
use crate::answer::{self, accept, value};
use crate::renewal::Renewal;

/// Longest wait for the report of an emergency stop: the server answers when every device is safe or has failed to be.
const STOP_TIMEOUT: Duration = Duration::from_mins(2);
/// An emergency stop is sent this often before it is given up. It is the same act every time.
const STOP_ATTEMPTS: u32 = 3;
/// Pause between these.
const STOP_PAUSE: Duration = Duration::from_millis(200);
/// Longest silence while a file is downloaded.
const DOWNLOAD_SILENCE: Duration = Duration::from_secs(30);

/// A connection to one server, as one principal or as nobody. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    address: Url,
    shown: String,
    headers: Arc<RwLock<HeaderMap>>,
    renewal: Option<Arc<Renewal>>,
    answer_timeout: Duration,
}

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct RunsQuery {
    /// Only in this state.
    pub state: Option<RunState>,
    /// Only of this action.
    pub action: Option<String>,
    /// At most so many, up to 200.
    pub limit: Option<u32>,
    /// Leave out the newest so many.
    pub offset: Option<u64>,
}

/// Which audit entries to list.
#[derive(Debug, Clone, Default)]
pub struct AuditQuery {
    /// Only of this kind.
    pub action: Option<String>,
    /// Only by this principal.
    pub actor: Option<String>,
    /// Only about this.
    pub subject: Option<String>,
    /// Only from this address.
    pub source: Option<String>,
    /// Only with this rule of threat detection.
    pub rule: Option<String>,
    /// Only at this route, such as `GET /runs`.
    pub route: Option<String>,
    /// Only with this result, such as `failed`.
    pub result: Option<String>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// At most so many, up to 200.
    pub limit: Option<u32>,
    /// Leave out the newest so many.
    pub offset: Option<u64>,
}

impl AuditQuery {
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = Vec::new();
        add(&mut pairs, "action", self.action.as_ref());
        add(&mut pairs, "actor", self.actor.as_ref());
        add(&mut pairs, "subject", self.subject.as_ref());
        add(&mut pairs, "source", self.source.as_ref());
        add(&mut pairs, "rule", self.rule.as_ref());
        add(&mut pairs, "route", self.route.as_ref());
        add(&mut pairs, "result", self.result.as_ref());
        add(&mut pairs, "since", self.since);
        add(&mut pairs, "until", self.until);
        add(&mut pairs, "limit", self.limit);
        add(&mut pairs, "offset", self.offset);
        pairs
    }
}

/// A user to be made.
#[derive(Debug)]
pub struct NewUser<'a> {
    /// Sign-in name.
    pub name: &'a str,
    /// First password.
    pub password: &'a Secret,
    /// Roles.
    pub roles: &'a [String],
}

/// A change of a user; `None` leaves it.
#[derive(Debug, Default, Serialize)]
pub struct UserEdit {
    /// The new roles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<String>>,
    /// Disabled or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
}

/// Answer to a check: the parameters as they would be sent to the device.
#[derive(Debug, Serialize, Deserialize)]
pub struct Checked {
    /// The action.
    pub task_name: String,
    /// Parameters with units converted and defaults filled in, sensitive ones masked.
    pub parameters: Map<String, Value>,
    /// Always true.
    pub ok: bool,
}

/// An answer without a type.
#[derive(Debug)]
pub struct Raw {
    /// Media type as told.
    pub media_type: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A download in parts.
#[derive(Debug)]
pub struct Body {
    url: String,
    response: Response,
}

impl Body {
    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or was silent for 30 s.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let silent = || ClientError::Unreachable {
            url: self.url.clone(),
            reason: "it stopped sending".to_owned(),
            sent: true,
        };
        let part =
            tokio::time::timeout(DOWNLOAD_SILENCE, self.response.chunk()).await.map_err(|_| silent())?;
        part.map_err(|error| ClientError::from_transport(&self.url, &error))
    }
}

impl Client {
    pub(crate) fn new(
        http: reqwest::Client,
        address: Url,
        shown: String,
        headers: HeaderMap,
        renewal: Option<Arc<Renewal>>,
        answer_timeout: Duration,
    ) -> Self {
        Self { http, address, shown, headers: Arc::new(RwLock::new(headers)), renewal, answer_timeout }
    }

    /// The server's address.
    pub fn url(&self) -> &str {
        &self.shown
    }

    /// Whether requests carry a token.
    pub fn has_token(&self) -> bool {
        !self.headers().is_empty()
    }

    /// What requests carry at this moment.
    pub(crate) fn headers(&self) -> HeaderMap {
        self.headers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_headers(&self, headers: HeaderMap) {
        *self.headers.write().unwrap_or_else(PoisonError::into_inner) = headers;
    }

    pub(crate) fn renewal(&self) -> Option<&Renewal> {
        self.renewal.as_deref()
    }

    pub(crate) fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }

    /// A request to a path of the server. Each segment is escaped, so that a name never becomes a path.
    pub(crate) fn request(
        &self,
        method: Method,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> RequestBuilder {
        self.http.request(method, self.place(segments, query)).headers(self.headers())
    }

    /// A request without a token.
    pub(crate) fn bare_request(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        self.http.request(method, self.place(segments, &[]))
    }

    fn place(&self, segments: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.address.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    pub(crate) async fn send_once(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        request.send().await.map_err(|error| ClientError::from_transport(&self.shown, &error))
    }

    /// Refuses before anything is sent when there is no token.
    pub(crate) fn signed_in(&self) -> Result<(), ClientError> {
        if self.has_token() {
            Ok(())
        } else {
            Err(ClientError::SignInNeeded("There is no token for this server.".to_owned()))
        }
    }

    pub(crate) async fn get<T: serde::de::DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, ClientError> {
        self.signed_in()?;
        let request = self.request(Method::GET, segments, query).timeout(self.answer_timeout);
        value(&self.shown, self.send(request).await?).await
    }

    pub(crate) async fn post<T: serde::de::DeserializeOwned>(
        &self,
        segments: &[&str],
        body: &Value,
    ) -> Result<T, ClientError> {
        self.signed_in()?;
        let request = self.request(Method::POST, segments, &[]).timeout(self.answer_timeout).json(body);
        value(&self.shown, self.send(request).await?).await
    }

    /// Sends a body without being signed in.
    pub(crate) async fn post_as_nobody<T: serde::de::DeserializeOwned>(
        &self,
        segments: &[&str],
        body: &Value,
    ) -> Result<T, ClientError> {
        let request = self.request(Method::POST, segments, &[]).timeout(self.answer_timeout).json(body);
        value(&self.shown, self.send(request).await?).await
    }

    /// Signs in. The token is in the answer; this client does not take it over.
    ///
    /// # Errors
    /// [`ClientError::SignInNeeded`] when name or password are wrong; [`ClientError::Problem`] with `second_factor_required` when
    /// they are right and `otp` is missing or wrong.
    pub async fn login(
        &self,
        username: &str,
        password: &Secret,
        otp: Option<&Secret>,
        scope: Option<&str>,
    ) -> Result<LoginAnswer, ClientError> {
        let mut body = json!({ "username": username, "password": password.expose() });
        if let Some(scope) = scope {
            body["scope"] = json!(scope);
        }
        if let Some(otp) = otp {
            body["otp"] = json!(otp.expose());
        }
        let request =
            self.bare_request(Method::POST, &["auth", "login"]).timeout(self.answer_timeout).json(&body);
        value(&self.shown, self.send_once(request).await?).await
    }

    /// Signs in as the person whom this client's certificate names. The token is in the answer, is good together with the
    /// certificate only, and this client does not take it over.
    ///
    /// # Errors
    /// As [`Client::login`]; [`ClientError::Problem`] with `not_found` where certificates of people are not taken.
    pub async fn login_by_certificate(&self, otp: Option<&Secret>) -> Result<LoginAnswer, ClientError> {
        let body = otp.map_or_else(|| json!({}), |otp| json!({ "otp": otp.expose() }));
        let request = self
            .bare_request(Method::POST, &["auth", "certificate"])
            .timeout(self.answer_timeout)
            .json(&body);
        value(&self.shown, self.send_once(request).await?).await
    }

    /// Kills the token.
    pub async fn logout(&self) -> Result<Operation, ClientError> {
        self.post(&["auth", "logout"], &json!({})).await
    }

    /// Whose token it is.
    pub async fn me(&self) -> Result<WhoAmIAnswer, ClientError> {
        self.get(&["auth", "me"], &[]).await
    }

    /// What the device offers.
    pub async fn actions(&self) -> Result<ActionsAnswer, ClientError> {
        self.get(&["actions"], &[]).await
    }

    /// How the device is.
    pub async fn device(&self) -> Result<DeviceStatus, ClientError> {
        self.get(&["device"], &[]).await
    }

    /// Whether the service is up; no token needed.
    pub async fn health(&self) -> Result<Value, ClientError> {
        let request = self.request(Method::GET, &["health"], &[]).timeout(self.answer_timeout);
        let response = self.send(request).await?;
        if response.status().as_u16() == 503 {
            let body = answer::read(&self.shown, response, answer::MAX_ANSWER_BYTES).await?;
            return serde_json::from_slice(&body).map_err(|_| answer::bad(&self.shown, "it is not JSON"));
        }
        value(&self.shown, response).await
    }

    /// Checks parameters as an execution would. Nothing runs.
    pub async fn check(&self, action: &str, parameters: &Map<String, Value>) -> Result<Checked, ClientError> {
        self.signed_in()?;
        let request =
            self.request(Method::POST, &["check", action], &[]).timeout(self.answer_timeout).json(parameters);
        value(&self.shown, self.send(request).await?).await
    }

    /// A page of runs, newest first.
    pub async fn runs(&self, query: &RunsQuery) -> Result<PageAnswer<RunView>, ClientError> {
        let mut pairs = Vec::new();
        add(&mut pairs, "state", query.state.map(RunState::as_str));
        add(&mut pairs, "action", query.action.as_ref());
        add(&mut pairs, "limit", query.limit);
        add(&mut pairs, "offset", query.offset);
        self.get(&["runs"], &pairs).await
    }

    /// A run.
    pub async fn run(&self, id: RunId) -> Result<RunView, ClientError> {
        self.get(&["runs", &id.to_string()], &[]).await
    }

    /// Events of a run that are there already.
    pub async fn events(&self, id: RunId, after: u64, limit: u32) -> Result<EventsAnswer, ClientError> {
        let query = [("after", after.to_string()), ("limit", limit.to_string())];
        self.get(&["runs", &id.to_string(), "events"], &query).await
    }

    /// Asks a run to stop. The answer does not say that it has stopped.
    pub async fn cancel(&self, id: RunId, reason: Option<&str>) -> Result<RunView, ClientError> {
        self.post(&["runs", &id.to_string(), "cancel"], &json!({ "reason": reason })).await
    }

    /// A file that a run produced.
    pub async fn artifact(&self, id: RunId, name: &str) -> Result<Body, ClientError> {
        self.signed_in()?;
        let request = self.request(Method::GET, &["runs", &id.to_string(), "artifacts", name], &[]);
        let silent = || ClientError::Unreachable {
            url: self.shown.clone(),
            reason: "no answer within the time limit".to_owned(),
            sent: true,
        };
        let response =
            tokio::time::timeout(self.answer_timeout, self.send(request)).await.map_err(|_| silent())??;
        Ok(Body { url: self.shown.clone(), response: accept(&self.shown, response).await? })
    }

    /// Emergency stop. Sent up to three times when the connection breaks.
    pub async fn stop(&self, reason: Option<&str>) -> Result<StopReport, ClientError> {
        self.signed_in()?;
        let body = json!({ "reason": reason });
        let mut attempt = 1;
        loop {
            let request = self.request(Method::POST, &["stop"], &[]).timeout(STOP_TIMEOUT).json(&body);
            let answer = match self.send(request).await {
                Ok(response) => value(&self.shown, response).await,
                Err(error) => Err(error),
            };
            match answer {
                Err(error) if error.is_passing() && attempt < STOP_ATTEMPTS => attempt += 1,
                other => return other,
            }
            tokio::time::sleep(STOP_PAUSE).await;
        }
    }

    /// Releases the emergency stop.
    pub async fn release(&self, reason: &str) -> Result<Operation, ClientError> {
        self.post(&["stop", "release"], &json!({ "reason": reason })).await
    }

    /// Says that a person has looked at a device that waits for one.
    pub async fn clear_attention(&self, reason: &str) -> Result<Operation, ClientError> {
        self.post(&["device", "attention", "clear"], &json!({ "reason": reason })).await
    }

    /// Everyone, by name.
    pub async fn users(&self) -> Result<Vec<UserView>, ClientError> {
        self.get(&["users"], &[]).await
    }

    /// Makes a user.
    pub async fn create_user(&self, user: &NewUser<'_>) -> Result<UserView, ClientError> {
        let body = json!({ "name": user.name, "password": user.password.expose(), "roles": user.roles });
        self.post(&["users"], &body).await
    }

    /// Changes roles or state of a user.
    pub async fn update_user(&self, name: &str, edit: &UserEdit) -> Result<UserView, ClientError> {
        self.signed_in()?;
        let request =
            self.request(Method::PATCH, &["users", name], &[]).timeout(self.answer_timeout).json(edit);
        value(&self.shown, self.send(request).await?).await
    }

    /// Sets a password; every earlier token of the user is dead.
    pub async fn set_password(&self, name: &str, password: &Secret) -> Result<Operation, ClientError> {
        self.post(&["users", name, "password"], &json!({ "password": password.expose() })).await
    }

    /// Networks that are refused.
    pub async fn bans(&self) -> Result<Vec<BanView>, ClientError> {
        self.get(&["bans"], &[]).await
    }

    /// Refuses a network, for `length` (whole seconds) or without an end.
    pub async fn add_ban(
        &self,
        network: &str,
        reason: &str,
        length: Option<Duration>,
    ) -> Result<BanView, ClientError> {
        let seconds = length.map(|length| length.as_secs());
        self.post(&["bans"], &json!({ "network": network, "reason": reason, "seconds": seconds })).await
    }

    /// Serves a network again.
    pub async fn remove_ban(&self, network: &str) -> Result<Operation, ClientError> {
        self.signed_in()?;
        let request = self.request(Method::DELETE, &["bans", network], &[]).timeout(self.answer_timeout);
        value(&self.shown, self.send(request).await?).await
    }

    /// Accounts at which somebody guesses and must wait.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn lockouts(&self) -> Result<Vec<serde_json::Value>, ClientError> {
        self.get(&["security", "lockouts"], &[]).await
    }

    /// Forgets the guesses at an account, by name or id.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn unlock(&self, account: &str) -> Result<Operation, ClientError> {
        self.signed_in()?;
        let request = self
            .request(Method::DELETE, &["security", "lockouts", account], &[])
            .timeout(self.answer_timeout);
        value(&self.shown, self.send(request).await?).await
    }

    /// A page of the audit trail, newest first.
    pub async fn audit(&self, query: &AuditQuery) -> Result<PageAnswer<AuditView>, ClientError> {
        self.get(&["audit"], &query.pairs()).await
    }

    /// How many entries of the audit trail there are of each value, the most frequent first. `by` is one of `actor`, `action`,
    /// `subject`, `source`, `rule`, `route` and `reason`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn audit_counts(&self, by: &str, query: &AuditQuery) -> Result<Vec<AuditCount>, ClientError> {
        let mut pairs = query.pairs();
        pairs.push(("by", by.to_owned()));
        self.get(&["audit", "counts"], &pairs).await
    }

    /// Asks for something to be removed.
    pub(crate) async fn delete<T: serde::de::DeserializeOwned>(
        &self,
        segments: &[&str],
    ) -> Result<T, ClientError> {
        self.signed_in()?;
        let request = self.request(Method::DELETE, segments, &[]).timeout(self.answer_timeout);
        value(&self.shown, self.send(request).await?).await
    }

    /// Any request to this server, for what has no method here. `path` begins with `/` and may hold a query.
    ///
    /// # Errors
    /// [`ClientError::Settings`] for a path that would leave the server.
    pub async fn raw(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Raw, ClientError> {
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| ClientError::Settings("that is not an HTTP method".to_owned()))?;
        if !path.starts_with('/') || path.starts_with("//") {
            return Err(ClientError::Settings("the path must begin with one '/'".to_owned()));
        }
        let url = Url::parse(&format!("{}{path}", self.shown))
            .ok()
            .filter(|url| url.origin() == self.address.origin());
        let url = url.ok_or_else(|| ClientError::Settings("the path is not part of a URL".to_owned()))?;
        let mut request = self.http.request(method, url).headers(self.headers()).timeout(self.answer_timeout);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = accept(&self.shown, self.send(request).await?).await?;
        let media_type = answer::text_header(response.headers(), "content-type").unwrap_or_default();
        Ok(Raw { media_type, bytes: answer::read(&self.shown, response, answer::MAX_ANSWER_BYTES).await? })
    }
}

fn add(pairs: &mut Vec<(&'static str, String)>, name: &'static str, value: Option<impl ToString>) {
    if let Some(value) = value {
        pairs.push((name, value.to_string()));
    }
}
