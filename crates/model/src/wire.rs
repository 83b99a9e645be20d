//! Bodies on the wire, shared by server and client. Field names are the contract; see docs/reference/device-http.md.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::audit::{AuditDraft, AuditEntry, Hash};
use crate::device::{ActionSpec, DeviceStop, EventKind};
use crate::grant::{GrantType, KeyMethod};
use crate::policy::PrincipalKind;
use crate::run::{RunError, RunState};
use crate::scope::Scope;
use crate::secret::Secret;
use crate::task::TaskRunId;
use crate::text::{CodeText, SecretText};
use crate::{AgentId, RunId, Timestamp};

/// POST `/auth/login`.
#[derive(Debug, Deserialize)]
pub struct LoginRequest {
    /// Sign-in name.
    pub username: String,
    /// Password.
    pub password: Secret,
    /// Code of the second factor, or a recovery code; for those who have one.
    #[serde(default)]
    pub otp: Option<SecretText<CodeText>>,
    /// Scopes that the session is to be limited to, separated by spaces.
    #[serde(default)]
    pub scope: Option<String>,
    /// Whether there is to be a refresh token; there is if nothing is said.
    #[serde(default)]
    pub refresh: Option<bool>,
}

/// Answer to a sign-in.
#[derive(Debug, Serialize, Deserialize)]
pub struct LoginAnswer {
    /// The token.
    pub access_token: String,
    /// Exchanged at `/auth/refresh` for a new pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    /// Always `bearer`.
    pub token_type: String,
    /// Lifetime in seconds.
    pub expires_in: i64,
    /// Who signed in.
    pub user: String,
    /// Roles of the token.
    pub roles: Vec<String>,
    /// How many notices about the account were not seen yet, if there are any. Only where somebody signs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notices: Option<usize>,
}

/// Something that a person should know about the own account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NoticeView {
    /// When, for the last time.
    pub at: Timestamp,
    /// `sign_in.unusual`, `sign_in.incomplete`, `password.guessable`, `credential.expiring`, or the act that changed something.
    pub kind: String,
    /// In words.
    pub text: String,
    /// From which address.
    pub from: Option<String>,
    /// Who did it, if somebody else.
    pub by: Option<String>,
    /// How often within an hour.
    pub count: u32,
    /// What is special about it.
    pub details: Value,
    /// Its owner has seen it.
    pub read: bool,
}

/// GET `/auth/me`.
#[derive(Debug, Serialize, Deserialize)]
pub struct WhoAmIAnswer {
    /// Name of the principal.
    pub user: String,
    /// Roles in force now.
    pub roles: Vec<String>,
    /// Scopes in force now.
    #[serde(default)]
    pub scopes: Vec<Scope>,
    /// Person or agent.
    #[serde(default)]
    pub kind: PrincipalKind,
    /// End of the token.
    pub expires_at: Timestamp,
}

/// An act was done.
#[derive(Debug, Serialize, Deserialize)]
pub struct Operation {
    /// Always true: a failure is a problem body.
    pub success: bool,
    /// A sentence for people.
    pub message: String,
    /// Facts.
    pub details: Option<Value>,
}

impl Operation {
    /// Done, with a sentence.
    pub fn done(message: impl Into<String>, details: Option<Value>) -> Self {
        Self { success: true, message: message.into(), details }
    }
}

/// A device as the catalogue names it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Short name.
    pub name: String,
    /// Title for people.
    pub title: String,
    /// What it is.
    pub description: Option<String>,
}

/// GET `/actions`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ActionsAnswer {
    /// The device.
    pub device: DeviceInfo,
    /// Its actions.
    pub actions: Vec<ActionSpec>,
}

/// Answer to a successful execution.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecuteAnswer {
    /// The action.
    pub task_name: String,
    /// Parameters as sent to the device, sensitive ones masked.
    pub parameters: Map<String, Value>,
    /// What the function returned.
    pub result: Value,
    /// Always `success`.
    pub status: String,
    /// Who asked.
    pub executed_by: String,
    /// Time in the function.
    pub execution_time_seconds: f64,
    /// When it ended.
    pub timestamp: Timestamp,
    /// The run.
    pub run_id: RunId,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Done so far.
    pub current: f64,
    /// Of how many, if known.
    pub total: Option<f64>,
    /// One line for people.
    pub message: Option<String>,
}

/// A file that a run produced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// File name.
    pub name: String,
    /// Media type as declared by the function.
    pub media_type: String,
    /// Size.
    pub bytes: u64,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// The run.
    pub id: RunId,
    /// The action.
    pub action: String,
    /// Where it is.
    pub state: RunState,
    /// Executed with the device's simulator.
    pub simulated: bool,
    /// Parameters, sensitive ones masked.
    pub parameters: Value,
    /// What the function returned.
    pub result: Option<Value>,
    /// Why it did not succeed.
    pub error: Option<RunError>,
    /// Who asked.
    pub executed_by: String,
    /// The request that asked.
    pub request_id: String,
    /// Accepted at.
    pub created_at: Timestamp,
    /// Sent to the device at.
    pub started_at: Option<Timestamp>,
    /// Ended at.
    pub finished_at: Option<Timestamp>,
    /// Time in the function.
    pub duration_seconds: Option<f64>,
    /// How far it is.
    pub progress: Option<Progress>,
    /// Files.
    pub artifacts: Vec<Artifact>,
}

/// A part of a list.
#[derive(Debug, Serialize, Deserialize)]
pub struct PageAnswer<T> {
    /// The part, newest first.
    pub items: Vec<T>,
    /// Length of the whole.
    pub total: u64,
    /// As asked.
    pub limit: u32,
    /// As asked.
    pub offset: u64,
    /// Whether there is more.
    pub has_more: bool,
}

/// An event of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunEventView {
    /// Counts from 1.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// GET `/runs/{id}/events` as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct EventsAnswer {
    /// In order.
    pub items: Vec<RunEventView>,
    /// Give it as `after` next time.
    pub next_after: u64,
    /// The run is over and every event was given.
    pub done: bool,
}

/// Answer to an emergency stop.
#[derive(Debug, Serialize, Deserialize)]
pub struct StopReport {
    /// Always true.
    pub engaged: bool,
    /// Devices known to be safe.
    pub confirmed: usize,
    /// Devices in all.
    pub of: usize,
    /// Each of them.
    pub devices: Vec<DeviceStop>,
    /// The run that was stopped.
    pub cancelled_run: Option<RunId>,
    /// Since when the latch holds.
    pub engaged_at: Timestamp,
    /// In the caller's words.
    pub reason: Option<String>,
}

/// A user.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UserView {
    /// Sign-in name.
    pub name: String,
    /// Roles.
    pub roles: Vec<String>,
    /// Signing in is refused.
    pub disabled: bool,
    /// Since when there is this user.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
}

/// A network that is refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BanView {
    /// CIDR notation.
    pub network: String,
    /// Why.
    pub reason: String,
    /// Who: a principal, `console`, or `system`.
    pub added_by: String,
    /// Since when.
    pub created_at: Timestamp,
    /// Until when; `null`: until somebody lifts it.
    pub ends_at: Option<Timestamp>,
    /// Automatic bans of this network in a row; 0 for one that a person added.
    pub offences: u32,
}

/// An agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentView {
    /// Its id.
    pub id: AgentId,
    /// Name for people.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Where outcomes are told.
    pub webhook_url: Option<String>,
    /// There is a secret to sign them with; without one nothing is told.
    #[serde(default)]
    pub has_webhook_secret: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// `active` or `disabled`.
    pub status: String,
    /// It has a secret, a key, or a certificate that names it.
    pub has_credentials: bool,
    /// When it last signed in.
    pub last_seen_at: Option<Timestamp>,
    /// Its secrets, without the secrets.
    pub secrets: Vec<AgentSecretView>,
    /// How many public keys are registered.
    pub keys: usize,
    /// Whom its certificates name (RFC 8705).
    #[serde(default)]
    pub certificate_names: Vec<String>,
    /// How it may get tokens.
    #[serde(default)]
    pub grant_types: Vec<GrantType>,
    /// The only way in which it may prove who it is; null: each that it has.
    #[serde(default)]
    pub token_endpoint_auth_method: Option<KeyMethod>,
    /// Scopes that a second person must ask for, too.
    #[serde(default)]
    pub waiting_scopes: Vec<Scope>,
    /// Who asked first.
    #[serde(default)]
    pub waiting_by: Option<String>,
    /// When; a day later it is void.
    #[serde(default)]
    pub waiting_since: Option<Timestamp>,
}

/// How telling an agent the outcome of one of its runs stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeliveryView {
    /// What the receiver tells repetitions by.
    pub webhook_id: String,
    /// Whose outcome it is.
    pub run_id: TaskRunId,
    /// `pending`, `delivered` or `failed`.
    pub state: String,
    /// Attempts that were begun, at most 8.
    pub attempts: u32,
    /// When the run ended.
    pub created_at: Timestamp,
    /// When the last attempt ended.
    pub last_attempt_at: Option<Timestamp>,
    /// When the next one is made, while it is pending.
    pub next_attempt_at: Option<Timestamp>,
    /// Why the last one failed.
    pub error: Option<String>,
}

/// A secret as an administrator may see it: everything but the secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentSecretView {
    /// Short id.
    pub id: String,
    /// When it was set.
    pub created_at: Timestamp,
    /// Dead from then on.
    pub expires_at: Option<Timestamp>,
    /// When it last gave a token.
    pub last_used_at: Option<Timestamp>,
}

/// A session as its owner sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionView {
    /// Its id, also the family of its tokens.
    pub id: String,
    /// User name or agent id.
    pub principal: String,
    /// Person or agent.
    pub kind: PrincipalKind,
    /// Name for people.
    pub name: String,
    /// How identity was proved.
    pub method: String,
    /// Factors (RFC 8176).
    pub amr: Vec<String>,
    /// From where.
    pub client_ip: String,
    /// With what.
    pub user_agent: String,
    /// Begin.
    pub created_at: Timestamp,
    /// Tokens were last issued.
    pub last_used_at: Timestamp,
    /// End of its last token.
    pub expires_at: Timestamp,
    /// It is the one that asks.
    pub current: bool,
}

/// An API key without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApiKeyView {
    /// Public part of the key.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Whom it stands for.
    pub principal: String,
    /// Person or agent.
    pub kind: PrincipalKind,
    /// What it may do, at most what its principal may.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// Dead from then on.
    pub expires_at: Timestamp,
    /// Revoked since.
    pub revoked_at: Option<Timestamp>,
    /// Last use, to the minute.
    pub last_used_at: Option<Timestamp>,
}

/// A role.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoleView {
    /// What it is for; empty for those that are built in.
    pub description: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// This installation has defined it.
    pub custom: bool,
}

/// A row of the audit trail.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditView {
    /// Number in the chain.
    pub id: u64,
    /// When.
    pub at: Timestamp,
    /// Name of the principal.
    pub actor_agent_id: Option<String>,
    /// What.
    pub action: String,
    /// To what.
    pub subject_id: Option<String>,
    /// Facts.
    pub details: Value,
    /// Resolved address.
    pub client_ip: Option<String>,
    /// The request.
    pub request_id: Option<String>,
    /// Hash of the entry before, hexadecimal.
    pub prev_hash: String,
    /// Hash of this entry, hexadecimal.
    pub hash: String,
}

/// How many rows of the audit trail have a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditCount {
    /// The value.
    pub value: String,
    /// How many.
    pub entries: u64,
}

impl From<AuditEntry> for AuditView {
    fn from(entry: AuditEntry) -> Self {
        let AuditEntry { seq, draft, prev_hash, hash } = entry;
        let AuditDraft { at, actor, action, subject, details, client_ip, request_id } = draft;
        Self {
            id: seq,
            at,
            actor_agent_id: actor,
            action,
            subject_id: subject,
            details,
            client_ip,
            request_id,
            prev_hash: crate::id::hexadecimal(&prev_hash),
            hash: crate::id::hexadecimal(&hash),
        }
    }
}

/// A row whose hashes are not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hash has 64 lower-case hexadecimal digits")]
pub struct NoHash;

impl TryFrom<AuditView> for AuditEntry {
    type Error = NoHash;

    fn try_from(view: AuditView) -> Result<Self, NoHash> {
        let (prev_hash, hash) = (parse_hash(&view.prev_hash)?, parse_hash(&view.hash)?);
        let AuditView { id, at, actor_agent_id, action, subject_id, details, client_ip, request_id, .. } =
            view;
        let draft = AuditDraft {
            at,
            actor: actor_agent_id,
            action,
            subject: subject_id,
            details,
            client_ip,
            request_id,
        };
        Ok(Self { seq: id, draft, prev_hash, hash })
    }
}

/// The hash in 64 lower-case hexadecimal digits.
///
/// # Errors
/// [`NoHash`] when the text is none.
pub fn parse_hash(text: &str) -> Result<Hash, NoHash> {
    let upper = text.bytes().any(|digit| digit.is_ascii_uppercase());
    crate::id::from_hexadecimal(text).filter(|_| !upper).ok_or(NoHash)
}

/// A problem body as a client reads it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Problem {
    /// HTTP status.
    #[serde(default)]
    pub status: u16,
    /// Stable code.
    #[serde(default)]
    pub code: String,
    /// A sentence.
    #[serde(default)]
    pub detail: String,
    /// The request.
    #[serde(default)]
    pub request_id: String,
    /// Refused fields.
    #[serde(default)]
    pub errors: Vec<FieldError>,
}

/// A part of the way to a refused field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Loc {
    /// A member of an object.
    Name(String),
    /// An element of a list.
    Index(usize),
}

impl From<&str> for Loc {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl From<String> for Loc {
    fn from(name: String) -> Self {
        Self::Name(name)
    }
}

/// A refused field.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct FieldError {
    /// Where: names of members, and places in lists as numbers.
    pub loc: Vec<Loc>,
    /// Kind of refusal.
    #[serde(rename = "type")]
    pub kind: String,
    /// A sentence.
    pub msg: String,
}
