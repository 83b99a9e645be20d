//! What is kept about agents, sessions, keys and roles. Serde forms of `store::identity`: new members need a default.

use interlock_model::grant::{GrantType, KeyMethod};
use interlock_model::policy::PrincipalKind;
use interlock_model::scope::Scope;
use interlock_model::{AgentId, Timestamp};
use interlock_store::identity::Document;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Its id; says who it is, proves nothing.
    pub id: AgentId,
    /// Name for people, unique among agents that are not deleted.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Where outcomes are told.
    pub webhook_url: Option<String>,
    /// What is told there is signed with these, newest first: at most two, during a rotation.
    #[serde(default)]
    pub webhook_secrets: Vec<WebhookSecret>,
    /// Deleted agents stay, disabled, so that what they did keeps its actor.
    pub disabled: bool,
    /// At most two: during a rotation the one before still works.
    #[serde(default)]
    pub secrets: Vec<AgentSecret>,
    /// Public keys (RFC 7517) for `private_key_jwt`.
    #[serde(default)]
    pub keys: Vec<Value>,
    /// Names of certificates for `tls_client_auth`, as [`super::ClientCertificate`] writes them.
    #[serde(default)]
    pub certificate_names: Vec<String>,
    /// How it may get tokens.
    #[serde(default = "all_grants")]
    pub grant_types: Vec<GrantType>,
    /// The only way in which it may prove who it is.
    #[serde(default)]
    pub key_method: Option<KeyMethod>,
    /// Scopes that one person has asked for it, and that a second one must ask for too.
    #[serde(default)]
    pub waiting: Option<WaitingScopes>,
    /// Tokens issued under another value are dead.
    pub tokens_valid_from: Timestamp,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Last change.
    pub updated_at: Timestamp,
    /// When it last got a token or used a key.
    #[serde(default)]
    pub last_seen_at: Option<Timestamp>,
}

/// Scopes that wait for a second person's word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitingScopes {
    /// Which.
    pub scopes: Vec<Scope>,
    /// Who asked first.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// Agents of earlier versions could use every grant.
fn all_grants() -> Vec<GrantType> {
    GrantType::ALL.to_vec()
}

/// A secret that messages to an agent's webhook are signed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookSecret {
    /// Short id, for people.
    pub id: String,
    /// The 32 bytes, sealed with the master key.
    pub sealed: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Not signed with any more from then on.
    pub expires_at: Option<Timestamp>,
}

/// A stored secret of an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentSecret {
    /// Short id, for people.
    pub id: String,
    /// PHC string.
    pub hash: String,
    /// When it was set.
    pub created_at: Timestamp,
    /// Dead from then on.
    pub expires_at: Option<Timestamp>,
    /// When it last gave a token.
    #[serde(default)]
    pub last_used_at: Option<Timestamp>,
}

impl Agent {
    /// The secrets that work at `now`.
    pub fn live_secrets(&self, now: Timestamp) -> impl Iterator<Item = &AgentSecret> {
        self.secrets.iter().filter(move |secret| secret.expires_at.is_none_or(|end| end > now))
    }
}

impl Document for Agent {
    const KIND: &'static str = "agent";

    fn id(&self) -> String {
        self.id.to_string()
    }

    fn alias(&self) -> Option<String> {
        (!self.disabled).then(|| self.name.to_lowercase())
    }
}

/// A session: one proof of identity and every token that follows from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Also the `fam` of its tokens.
    pub id: String,
    /// What kind of principal.
    pub kind: PrincipalKind,
    /// User name or agent id.
    pub principal: String,
    /// Name for people.
    pub name: String,
    /// How it proved who it is: `password`, `secret`, `private_key_jwt`, `tls_client_auth`, `device_code`, `oidc`, `ldap`, ….
    pub method: String,
    /// Factors (RFC 8176).
    pub amr: Vec<String>,
    /// When the principal last proved who it is.
    pub auth_time: Timestamp,
    /// Roles at issue.
    #[serde(default)]
    pub roles: Vec<String>,
    /// Scopes at issue.
    pub scopes: Vec<Scope>,
    /// The scopes are a limit that a person asked for, not merely what the roles held.
    #[serde(default)]
    pub limited: bool,
    /// The principal's `tokens_valid_from` at issue.
    pub epoch: Timestamp,
    /// From where.
    pub client_ip: String,
    /// With what.
    pub user_agent: String,
    /// Begin.
    pub created_at: Timestamp,
    /// Tokens were last issued.
    pub issued_at: Timestamp,
    /// The refresh token in force, if the session has any.
    pub refresh_jti: Option<String>,
    /// The one before it, for a repetition by the same client.
    #[serde(default)]
    pub previous_jti: Option<String>,
    /// The access token issued last.
    pub access_jti: String,
    /// The last token's end.
    pub expires_at: Timestamp,
    /// Ended before that.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// The certificate that its tokens are good with (RFC 8705 section 3).
    #[serde(default)]
    pub certificate: Option<super::Bound>,
    /// Why: `manual rotated reuse credentials agent_disabled`.
    #[serde(default)]
    pub ended_reason: Option<String>,
}

impl Document for Session {
    const KIND: &'static str = "session";

    fn id(&self) -> String {
        self.id.clone()
    }

    fn owner(&self) -> Option<String> {
        Some(self.principal.clone())
    }

    fn expires_at(&self) -> Option<Timestamp> {
        // A minute more than the tokens: clocks differ.
        Some(self.expires_at.plus(std::time::Duration::from_mins(1)))
    }
}

/// A key for scripts: one secret, sent with every request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Public part of the key.
    pub id: String,
    /// What kind of principal it stands for.
    pub kind: PrincipalKind,
    /// User name or agent id.
    pub principal: String,
    /// Name for people.
    pub name: String,
    /// SHA-256 of the whole key: 256 random bits need no slow hash.
    pub digest: String,
    /// What it may do, at most what its principal may.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Dead from then on.
    pub expires_at: Timestamp,
    /// Revoked since.
    #[serde(default)]
    pub revoked_at: Option<Timestamp>,
    /// Last use, to the minute.
    #[serde(default)]
    pub last_used_at: Option<Timestamp>,
}

impl Document for ApiKey {
    const KIND: &'static str = "api_key";

    fn id(&self) -> String {
        self.id.clone()
    }

    fn owner(&self) -> Option<String> {
        Some(self.principal.clone())
    }

    fn expires_at(&self) -> Option<Timestamp> {
        // Kept for a while after its end, so that reviews can see it.
        Some(self.expires_at.plus(std::time::Duration::from_hours(24 * 90)))
    }
}

/// A role that this installation has defined.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CustomRole {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// What it may do. Empty once deleted.
    pub scopes: Vec<Scope>,
    /// Deleted; nobody holds anything by it.
    #[serde(default)]
    pub deleted: bool,
    /// Last change.
    pub updated_at: Timestamp,
}

impl Document for CustomRole {
    const KIND: &'static str = "role";

    fn id(&self) -> String {
        self.name.clone()
    }
}

/// The public half of a signing key: every server of an installation verifies what any of them signed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PublicKey {
    /// Key id.
    pub kid: String,
    /// Ed25519 public key, hexadecimal.
    pub public: String,
    /// First use.
    pub created_at: Timestamp,
    /// No token of it is taken after.
    pub retired_at: Option<Timestamp>,
}

impl Document for PublicKey {
    const KIND: &'static str = "signing_key";

    fn id(&self) -> String {
        self.kid.clone()
    }

    fn expires_at(&self) -> Option<Timestamp> {
        self.retired_at
    }
}

/// Something that may be used once: the id of a client assertion, a code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// What was used.
    pub what: String,
    /// May be forgotten after.
    pub until: Timestamp,
}

impl Document for Used {
    const KIND: &'static str = "used";

    fn id(&self) -> String {
        self.what.clone()
    }

    fn expires_at(&self) -> Option<Timestamp> {
        Some(self.until)
    }
}

/// Everything issued before a time is dead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cutoff {
    /// The time.
    pub before: Timestamp,
    /// Why.
    pub reason: String,
}

impl Document for Cutoff {
    const KIND: &'static str = "cutoff";

    fn id(&self) -> String {
        "all".to_owned()
    }
}

/// What makes tokens of this installation its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstallationName {
    /// Random, made once.
    pub name: String,
}

impl Document for InstallationName {
    const KIND: &'static str = "installation";

    fn id(&self) -> String {
        "name".to_owned()
    }
}

/// A name under which a server of this installation issues tokens, or has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Issuer {
    /// The name, an address.
    pub issuer: String,
    /// Last start under this name.
    pub at: Timestamp,
    /// No token of that name is taken after, because no server has started under it for long.
    #[serde(default)]
    pub until: Option<Timestamp>,
}

impl Document for Issuer {
    const KIND: &'static str = "issuer";

    fn id(&self) -> String {
        self.issuer.clone()
    }

    fn expires_at(&self) -> Option<Timestamp> {
        self.until
    }
}

/// What a person proves identity with beside the password.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SecondFactors {
    /// Whose.
    pub user: String,
    /// Authenticator apps.
    #[serde(default)]
    pub totp: Vec<TotpFactor>,
    /// Passkeys.
    #[serde(default)]
    pub passkeys: Vec<PasskeyFactor>,
    /// Digests of the recovery codes that are left: 120 random bits need no slow hash.
    #[serde(default)]
    pub recovery: Vec<String>,
    /// The password is too short to stand alone.
    #[serde(default)]
    pub short_password: bool,
    /// Last change.
    pub updated_at: Timestamp,
}

/// A passkey. What is kept of it is no secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PasskeyFactor {
    /// Short id.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Id of the credential, hexadecimal.
    pub credential: String,
    /// What verifies it, in the form of the library that judges it.
    pub passkey: Value,
    /// When it was made.
    pub created_at: Timestamp,
    /// Last sign-in.
    #[serde(default)]
    pub last_used_at: Option<Timestamp>,
}

/// An authenticator app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TotpFactor {
    /// Short id.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Its secret, sealed with the master key.
    pub sealed: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When the first code proved it; before that it counts for nothing.
    #[serde(default)]
    pub confirmed_at: Option<Timestamp>,
    /// Step of the last code that was taken.
    #[serde(default)]
    pub last_step: i64,
    /// When that was.
    #[serde(default)]
    pub last_used_at: Option<Timestamp>,
}

impl SecondFactors {
    /// Nothing yet.
    pub(super) fn of(user: String, updated_at: Timestamp) -> Self {
        Self {
            user,
            totp: Vec::new(),
            passkeys: Vec::new(),
            recovery: Vec::new(),
            short_password: false,
            updated_at,
        }
    }

    /// How many factors count.
    pub fn count(&self) -> usize {
        self.confirmed().count() + self.passkeys.len()
    }

    /// Whether any does.
    pub fn has_any(&self) -> bool {
        self.count() > 0
    }

    /// The apps that count.
    pub fn confirmed(&self) -> impl Iterator<Item = &TotpFactor> {
        self.totp.iter().filter(|factor| factor.confirmed_at.is_some())
    }
}

impl Document for SecondFactors {
    const KIND: &'static str = "second_factors";

    fn id(&self) -> String {
        self.user.clone()
    }

    fn owner(&self) -> Option<String> {
        Some(self.user.clone())
    }
}

/// A promise of an account to whoever holds the token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Invitation {
    /// Public part of the token.
    pub id: String,
    /// Name of the user to be.
    pub name: String,
    /// Roles of the user to be.
    pub roles: Vec<String>,
    /// SHA-256 of the whole token: 256 random bits need no slow hash.
    pub digest: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Dead from then on.
    pub expires_at: Timestamp,
    /// When it became a user.
    #[serde(default)]
    pub accepted_at: Option<Timestamp>,
    /// When it was taken back.
    #[serde(default)]
    pub revoked_at: Option<Timestamp>,
}

impl Invitation {
    /// Whether it can be accepted at `now`.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.accepted_at.is_none() && self.revoked_at.is_none() && now < self.expires_at
    }
}

impl Document for Invitation {
    const KIND: &'static str = "invitation";

    fn id(&self) -> String {
        self.id.clone()
    }

    fn expires_at(&self) -> Option<Timestamp> {
        // Kept for a while after its end, so that reviews can see it.
        Some(self.expires_at.plus(std::time::Duration::from_hours(24 * 30)))
    }
}

/// Which credential is replaced by a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetOf {
    /// The password; second factors stay in force.
    Password,
    /// The second factors; the password is asked for.
    Factors,
}

/// Leave for whoever holds the token to replace a credential, once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reset {
    /// Public part of the token.
    pub id: String,
    /// Whose credential.
    pub user: String,
    /// Which.
    pub what: ResetOf,
    /// SHA-256 of the whole token: 256 random bits need no slow hash.
    pub digest: String,
    /// The user's `tokens_valid_from`: void when that moves.
    pub epoch: Timestamp,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Dead from then on.
    pub expires_at: Timestamp,
    /// When it was used or taken back.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
}

impl Reset {
    /// Whether it can be used at `now`.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.ended_at.is_none() && now < self.expires_at
    }
}

impl Document for Reset {
    const KIND: &'static str = "reset";

    fn id(&self) -> String {
        self.id.clone()
    }

    fn owner(&self) -> Option<String> {
        Some(self.user.clone())
    }

    fn expires_at(&self) -> Option<Timestamp> {
        Some(self.expires_at)
    }
}

/// A device that waits to be let in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceGrant {
    /// From the user code, which is not kept.
    pub id: String,
    /// SHA-256 of the device code.
    pub digest: String,
    /// What it calls itself.
    pub client: String,
    /// From where it asked.
    pub client_ip: String,
    /// With what.
    pub user_agent: String,
    /// What it wants to be limited to.
    #[serde(default)]
    pub scopes: Option<Vec<Scope>>,
    /// When it asked.
    pub created_at: Timestamp,
    /// Dead from then on.
    pub expires_at: Timestamp,
    /// What a person said.
    #[serde(default)]
    pub decision: Option<Approval>,
    /// When it got its tokens.
    #[serde(default)]
    pub spent_at: Option<Timestamp>,
}

/// What a person said, and how sure it was who they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Approval {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Yes or no.
    pub approved: bool,
    /// Factors of their proof of identity.
    pub amr: Vec<String>,
    /// When they gave it.
    pub auth_time: Timestamp,
    /// Their `tokens_valid_from`: void when that moves.
    pub epoch: Timestamp,
}

impl DeviceGrant {
    /// Whether it can be decided at `now`.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.decision.is_none() && self.spent_at.is_none() && now < self.expires_at
    }
}

impl Document for DeviceGrant {
    const KIND: &'static str = "device_grant";

    fn id(&self) -> String {
        self.id.clone()
    }

    fn expires_at(&self) -> Option<Timestamp> {
        // Long enough to tell a device that its code has ended.
        Some(self.expires_at.plus(std::time::Duration::from_mins(10)))
    }
}
