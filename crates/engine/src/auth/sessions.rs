//! Sessions: one proof of identity and the tokens that follow from it, and what is asked of a token on every request.
//!
//! A session is also the family of its refresh tokens: each use rotates the token, a second use of an old one ends the whole
//! session (see [`super::refreshing`]). A
//! verified token is cached by its digest; whether it is revoked and what its owner may do is asked on every request.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use interlock_model::action::{LogOut, Needs};
use interlock_model::audit::AuditDraft;
use interlock_model::policy::{Grants, PrincipalKind};
use interlock_model::scope::Scope;
use interlock_model::secret::Secret;
use interlock_model::{AgentId, Timestamp};
use interlock_store::identity::{self, Put};
use interlock_store::{Error, Revocation, Tx, UserRow};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::activity::Activity;
use super::clients::{AccessRules, ClientPolicy};
use super::documents::{Agent, ApiKey, Session};
use super::notices;
use super::opening::Opening;
use super::tokens::{Claims, Issue, TokenKind};
use super::{Caller, Db, Origin, Permit, Principals, Recorded, SystemPermit, TokenError, Tokens};
use crate::Ambient;
use crate::security::{self, Event};

/// Verified tokens remembered at most.
const CACHE: usize = 10_000;
/// Tokens of a session, shown once.
#[derive(Debug)]
pub struct Issued {
    /// For requests.
    pub access: Secret,
    /// For the next pair.
    pub refresh: Option<Secret>,
    /// Lifetime of the access token in seconds.
    pub expires_in: i64,
    /// What they stand for.
    pub session: Session,
}

/// A principal as it is now.
pub(super) enum Present {
    User(Arc<UserRow>),
    Agent(Arc<Agent>),
}

impl Present {
    fn epoch(&self) -> Timestamp {
        match self {
            Self::User(user) => user.tokens_valid_from,
            Self::Agent(agent) => agent.tokens_valid_from,
        }
    }

    fn is_disabled(&self) -> bool {
        match self {
            Self::User(user) => user.disabled,
            Self::Agent(agent) => agent.disabled,
        }
    }
}

/// A verified token with what was last derived from it.
struct Verified {
    claims: Claims,
    /// Generation of the principals and the rights under it.
    derived: Mutex<(u64, Arc<Grants>)>,
}

/// Opens, continues and ends sessions, and turns tokens and keys into callers.
pub struct Sessions {
    db: Db,
    pub(super) ambient: Ambient,
    principals: Arc<Principals>,
    tokens: Tokens,
    rules: AccessRules,
    pub(super) system: SystemPermit,
    cache: Mutex<HashMap<[u8; 32], Arc<Verified>>>,
    /// Scopes that agents use.
    activity: Activity,
    /// API keys used since the last flush.
    used_keys: Mutex<BTreeMap<String, Timestamp>>,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

impl Sessions {
    /// Wires the parts.
    pub fn new(
        db: Db,
        ambient: Ambient,
        principals: Arc<Principals>,
        tokens: Tokens,
        rules: AccessRules,
        system: SystemPermit,
    ) -> Arc<Self> {
        Arc::new(Self {
            db,
            ambient,
            principals,
            tokens,
            rules,
            system,
            cache: Mutex::default(),
            activity: Activity::default(),
            used_keys: Mutex::default(),
        })
    }

    /// What signs and reads the tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub(super) fn principals(&self) -> &Principals {
        &self.principals
    }

    /// What is asked of every agent.
    pub fn clients(&self) -> ClientPolicy {
        self.rules.clients
    }

    /// Whether administration is allowed from where the caller is.
    pub(super) fn administers_from(&self, origin: &Origin) -> bool {
        self.rules.administers_from(origin.client_ip)
    }

    /// What of these rights counts where the caller is.
    fn here(&self, grants: Arc<Grants>, origin: &Origin) -> Arc<Grants> {
        if self.administers_from(origin) { grants } else { Arc::new(grants.without_administration()) }
    }

    pub(super) fn db(&self) -> &Db {
        &self.db
    }

    /// Proof of an act that a principal does by having proved who it is.
    pub(crate) fn acting_for(&self, action: &'static str, who: &str, origin: &Origin) -> SystemPermit {
        self.system.acting(action, Some(who.to_owned())).on_behalf(who, origin)
    }

    pub(super) fn fresh_jti(&self) -> String {
        interlock_model::id::random_hex(&*self.ambient.entropy, 16)
    }

    pub(super) fn end_of(&self, kind: PrincipalKind, with_refresh: bool, now: Timestamp) -> Timestamp {
        let seconds = if with_refresh {
            self.tokens.lifetimes().refresh_seconds
        } else {
            self.tokens.access_seconds(kind)
        };
        now.plus(Duration::from_secs(seconds.unsigned_abs()))
    }

    /// Opens a session and issues its first tokens. `also` may store more in the same transaction; it learns the session's
    /// id.
    pub(crate) async fn open<F>(&self, opening: Opening<'_>, also: F) -> Result<Issued, Error>
    where
        F: for<'t> FnOnce(&'t mut dyn Tx, &'t str) -> futures::future::BoxFuture<'t, Result<(), Error>>
            + Send
            + 'static,
    {
        let now = self.ambient.clock.now();
        let Opening { kind, origin, action, with_refresh, .. } = opening;
        let end = self.end_of(kind, with_refresh, now);
        let session = Session {
            id: self.fresh_jti(),
            kind,
            principal: opening.principal,
            name: opening.name,
            method: opening.method.to_owned(),
            amr: opening.amr,
            auth_time: opening.auth_time.unwrap_or(now),
            roles: opening.roles,
            scopes: opening.scopes,
            limited: opening.limited,
            epoch: opening.epoch,
            client_ip: origin.client_ip.to_string(),
            user_agent: origin.user_agent.clone(),
            created_at: now,
            issued_at: now,
            refresh_jti: with_refresh.then(|| self.fresh_jti()),
            previous_jti: None,
            access_jti: self.fresh_jti(),
            expires_at: opening.until.map_or(end, |until| until.min(end)),
            ended_at: None,
            certificate: origin.certificate.as_ref().map(|certificate| certificate.bound().clone()),
            ended_reason: None,
        };
        let issued = self.issue(session)?;
        let session = issued.session.clone();
        let mut details = json!({
            "result": "success", "method": session.method, "token_type": "access", "jti": session.access_jti,
            "session": session.id,
        });
        if let Some(who) = opening.vouched_by {
            details["vouched_by"] = json!(who);
        }
        let subject = Some(session.principal.clone());
        let proof = self.system.acting(action, subject).on_behalf(&session.principal, origin);
        let entry = self.issued_entry(&session.principal, origin);
        let unusual = self
            .db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let unusual = match session.kind {
                        PrincipalKind::User => notices::signed_in(&mut *tx, &session).await?,
                        PrincipalKind::Agent => None,
                    };
                    also(&mut *tx, &session.id).await?;
                    identity::insert(tx, &session).await?;
                    record_issued(tx, entry, &session).await?;
                    Ok::<_, Error>(Recorded { value: unusual, details })
                })
            })
            .await?;
        let (name, session) = (&issued.session.principal, &issued.session);
        if let Some(notice) = unusual {
            security::event(Event::SignInUnusual, Some(name), Some(origin), notice.details);
        }
        let details = json!({ "method": session.method });
        security::event(Event::AuthenticationSucceeded, Some(name), Some(origin), details);
        Self::note_issued(session, origin);
        Ok(issued)
    }

    /// The entry of the audit trail for tokens that are about to be issued, for [`record_issued`].
    pub(super) fn issued_entry(&self, principal: &str, origin: &Origin) -> AuditDraft {
        let proof = self.acting_for("token.issued", principal, origin);
        super::Proof::draft(&proof, self.ambient.clock.now(), Value::Null)
    }

    pub(super) fn note_issued(session: &Session, origin: &Origin) {
        let details = json!({ "token_type": "access", "jti": session.access_jti, "session": session.id });
        security::event(Event::TokenIssued, Some(&session.principal), Some(origin), details);
        crate::metrics::token_issued(session.kind, &session.principal, TokenKind::Access);
        if session.refresh_jti.is_some() {
            crate::metrics::token_issued(session.kind, &session.principal, TokenKind::Refresh);
        }
    }

    /// The tokens of a session as it stands: nothing here is random, so the same session gives the same tokens.
    pub(super) fn issue(&self, session: Session) -> Result<Issued, Error> {
        let sign = |kind, jti: &str| {
            let issue = Issue { session: &session, kind, jti };
            self.tokens
                .sign(&issue)
                .map(|(token, _)| token)
                .map_err(|error| Error::Corrupt(error.to_string()))
        };
        let access = sign(TokenKind::Access, &session.access_jti)?;
        let refresh = session.refresh_jti.as_ref().map(|jti| sign(TokenKind::Refresh, jti)).transpose()?;
        let left = session.expires_at.seconds() - session.issued_at.seconds();
        let expires_in = self.tokens.access_seconds(session.kind).min(left);
        Ok(Issued { access, refresh, expires_in, session })
    }

    /// Ends a session: all its tokens are dead from here on, also after a restart. `false` if there is none.
    pub(crate) async fn end<P>(&self, proof: &P, session: &str, reason: &'static str) -> Result<bool, Error>
    where
        P: super::Proof + ?Sized,
    {
        let (id, now) = (session.to_owned(), self.ambient.clock.now());
        let ended = self
            .db
            .write(proof, move |tx| {
                Box::pin(async move {
                    let details = json!({ "session": id, "reason": reason });
                    let Some(mut found) = identity::get::<Session>(tx, &id).await? else {
                        return Ok::<_, Error>(Recorded { value: None, details });
                    };
                    if found.ended_at.is_none() {
                        found.document.ended_at = Some(now);
                        found.document.ended_reason = Some(reason.to_owned());
                        identity::update(tx, &found).await?;
                    }
                    Ok(Recorded { value: Some(found.document), details })
                })
            })
            .await?;
        let Some(session) = ended else { return Ok(false) };
        self.principals.put_session(&session);
        metrics::counter!("orchestrator_jwt_tokens_revoked_total", "reason" => reason).increment(1);
        let details = json!({ "reason": reason, "session": session.id });
        security::event(Event::TokenRevoked, Some(&session.principal), None, details);
        Ok(true)
    }

    /// Ends the caller's session.
    ///
    /// # Errors
    /// The storage's; then its tokens live on.
    pub async fn sign_out(&self, permit: &Permit<LogOut>) -> Result<(), Error> {
        self.end(permit, permit.caller().session(), "manual").await.map(drop)
    }

    /// Revokes whatever token this is, as RFC 7009 has it: with a refresh token its whole session, with an access token that
    /// token. A text that is no token of ours is not an error. `client` limits it to tokens of one agent.
    ///
    /// # Errors
    /// The storage's; then the token lives on.
    pub async fn revoke(&self, token: &str, client: Option<AgentId>, origin: &Origin) -> Result<(), Error> {
        let own = |claims: &Claims| client.is_none_or(|client| client.to_string() == claims.sub);
        let proof = |claims: &Claims| {
            self.system.acting("token.revoked", Some(claims.sub.clone())).on_behalf(&claims.sub, origin)
        };
        if let Ok(claims) = self.tokens.read(token, TokenKind::Refresh) {
            if own(&claims) {
                self.end(&proof(&claims), &claims.fam, "manual").await?;
            }
        } else if let Ok(claims) = self.tokens.read(token, TokenKind::Access)
            && own(&claims)
        {
            self.revoke_jti(&proof(&claims), &claims.jti, Timestamp::from_seconds(claims.exp), "manual")
                .await?;
        }
        Ok(())
    }

    /// Revokes one token by its id.
    pub(crate) async fn revoke_jti<P>(
        &self,
        proof: &P,
        jti: &str,
        expires_at: Timestamp,
        reason: &'static str,
    ) -> Result<(), Error>
    where
        P: super::Proof + ?Sized,
    {
        let revocation = Revocation {
            jti: jti.to_owned(),
            expires_at: expires_at.plus(Duration::from_mins(1)),
            reason: reason.to_owned(),
            at: self.ambient.clock.now(),
        };
        let end = revocation.expires_at;
        self.db
            .write(proof, move |tx| {
                Box::pin(async move {
                    tx.insert_revocation(&revocation).await?;
                    let details = json!({ "jti": revocation.jti, "reason": reason });
                    Ok::<_, Error>(Recorded { value: (), details })
                })
            })
            .await?;
        self.principals.revoke(jti, end);
        metrics::counter!("orchestrator_jwt_tokens_revoked_total", "reason" => reason).increment(1);
        security::event(Event::TokenRevoked, None, None, json!({ "reason": reason, "jti": jti }));
        Ok(())
    }

    /// Spends something that may be used once. `false` if it was spent before.
    pub(crate) async fn use_once(&self, used: super::documents::Used) -> Result<bool, Error> {
        let proof = self.system.acting("assertion.used", None);
        self.db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let first = identity::insert(tx, &used).await? == Put::Done;
                    Ok::<_, Error>(Recorded { value: first, details: json!({ "first": first }) })
                })
            })
            .await
    }

    /// What a token stands for, if it is in force (RFC 7662).
    pub fn introspect(&self, token: &str) -> Option<Value> {
        let claims = self
            .tokens
            .read(token, TokenKind::Access)
            .or_else(|_| self.tokens.read(token, TokenKind::Refresh))
            .ok()?;
        Tokens::check_time(&claims, self.ambient.clock.now()).ok()?;
        let present = self.present(&claims).ok()?;
        let grants = self.derive(&claims, &present);
        let scope: Vec<&str> = grants.scopes().iter().map(Scope::as_str).collect();
        let mut answer = json!({
            "active": true, "scope": scope.join(" "), "client_id": claims.client_id, "username": claims.name,
            "token_type": claims.kind.name(), "exp": claims.exp, "iat": claims.iat, "nbf": claims.nbf,
            "sub": claims.sub, "aud": claims.aud, "iss": claims.iss, "jti": claims.jti,
        });
        if let Some(cnf) = &claims.cnf {
            answer["cnf"] = json!(cnf);
        }
        Some(answer)
    }

    /// The owner of a token as it is now, if the token is not revoked.
    pub(super) fn present(&self, claims: &Claims) -> Result<Present, TokenError> {
        if self.principals.is_revoked(&claims.jti, &claims.fam, claims.iat) {
            return Err(TokenError::Revoked);
        }
        let present = self.principal(claims.principal, &claims.sub)?;
        if present.epoch().micros() != claims.epo {
            return Err(TokenError::Principal);
        }
        match &present {
            Present::Agent(agent) if !self.clients().keeps(agent, claims) => Err(TokenError::Grant),
            Present::Agent(_) | Present::User(_) => Ok(present),
        }
    }

    fn principal(&self, kind: PrincipalKind, id: &str) -> Result<Present, TokenError> {
        let present = match kind {
            PrincipalKind::User => self.principals.user(id).map(Present::User),
            PrincipalKind::Agent => {
                id.parse().ok().and_then(|id| self.principals.agent(id)).map(Present::Agent)
            }
        };
        present.filter(|present| !present.is_disabled()).ok_or(TokenError::Principal)
    }

    fn derive(&self, claims: &Claims, present: &Present) -> Grants {
        let scopes = || claims.scopes.iter().filter_map(|scope| scope.parse().ok()).collect::<Vec<Scope>>();
        match present {
            Present::User(user) => {
                let limit = claims.limited.then(scopes);
                Grants::of_user(&claims.roles, &user.roles, &self.principals.roles(), limit.as_deref())
            }
            Present::Agent(agent) => Grants::of_agent(&scopes(), &agent.scopes),
        }
    }

    /// Turns a token or an API key into a caller with the rights it has now. Reads memory only.
    pub(super) fn caller(&self, credential: &str, origin: &Origin) -> Result<Caller, TokenError> {
        if credential.starts_with(super::keys::API_KEY_PREFIX) {
            return self.key_caller(credential, origin);
        }
        let verified = self.verified(credential)?;
        let claims = &verified.claims;
        Tokens::check_time(claims, self.ambient.clock.now())?;
        if let Some(bound) = &claims.cnf {
            let shown = origin.certificate.as_ref().ok_or(TokenError::Certificate)?;
            if shown.thumbprint() != bound.thumbprint {
                return Err(TokenError::Certificate);
            }
        }
        let present = self.present(claims)?;
        let generation = self.principals.generation();
        let mut derived = verified.derived.lock().unwrap_or_else(PoisonError::into_inner);
        if derived.0 != generation {
            *derived = (generation, Arc::new(self.derive(claims, &present)));
        }
        Ok(Caller {
            kind: claims.principal,
            name: claims.sub.clone(),
            grants: self.here(Arc::clone(&derived.1), origin),
            session: claims.fam.clone(),
            auth_time: Some(Timestamp::from_seconds(claims.auth_time)),
            amr: claims.amr.clone(),
            expires_at: Timestamp::from_seconds(claims.exp),
            origin: origin.clone(),
        })
    }

    fn key_caller(&self, key: &str, origin: &Origin) -> Result<Caller, TokenError> {
        let digest = super::keys::digest_of_key(key).ok_or(TokenError::Invalid)?;
        let found = self.principals.api_key(&digest).ok_or(TokenError::Invalid)?;
        let now = self.ambient.clock.now();
        if found.revoked_at.is_some() {
            return Err(TokenError::Revoked);
        }
        if found.expires_at <= now {
            return Err(TokenError::Expired);
        }
        let ApiKey { kind, principal, scopes, .. } = &*found;
        let present = self.principal(*kind, principal)?;
        // What ends every token of a principal, or everything of a time, ends keys too.
        if found.created_at < present.epoch() || self.principals.is_cut_off(found.created_at) {
            return Err(TokenError::Revoked);
        }
        if let Present::Agent(agent) = &present
            && !self.clients().takes_secrets_of(agent)
        {
            return Err(TokenError::Grant);
        }
        let grants = match present {
            Present::User(user) => {
                Grants::of_user(&user.roles, &user.roles, &self.principals.roles(), Some(scopes))
            }
            Present::Agent(agent) => Grants::of_agent(scopes, &agent.scopes),
        };
        self.used_keys.lock().unwrap_or_else(PoisonError::into_inner).insert(found.id.clone(), now);
        Ok(Caller {
            kind: *kind,
            name: principal.clone(),
            grants: self.here(Arc::new(grants), origin),
            session: String::new(),
            auth_time: None,
            amr: vec!["api_key".to_owned()],
            expires_at: found.expires_at,
            origin: origin.clone(),
        })
    }

    /// Whether what is known of revocations is fresh enough to rely on.
    pub(super) fn is_fresh(&self) -> bool {
        self.principals.is_fresh()
    }

    /// Notes that a caller was permitted something.
    pub(super) fn note_use(&self, caller: &Caller, needs: &Needs) {
        let _unusual = self.activity.note(caller, needs, &self.principals, self.ambient.clock.now());
    }

    /// Reads which scopes agents have used, then stores what is new once in every `period`, until dropped. Run it as a
    /// background task.
    pub async fn watch_scopes_forever(self: Arc<Self>, period: Duration) {
        if let Err(error) = self.activity.load(&self.db).await {
            tracing::warn!(%error, "the scopes that agents have used could not be read");
        }
        loop {
            tokio::time::sleep(period).await;
            if let Err(error) = self.activity.store(&self.db, &self.system).await {
                tracing::warn!(%error, "the scopes that agents have used could not be stored");
            }
        }
    }

    /// Takes the keys that were used since last time.
    pub(super) fn take_used_keys(&self) -> BTreeMap<String, Timestamp> {
        std::mem::take(&mut *self.used_keys.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn verified(&self, token: &str) -> Result<Arc<Verified>, TokenError> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(found) = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&digest) {
            return Ok(Arc::clone(found));
        }
        let claims = self.tokens.read(token, TokenKind::Access)?;
        // A generation that never was: rights are derived at first use.
        let verified = Arc::new(Verified { claims, derived: Mutex::new((u64::MAX, Arc::default())) });
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE {
            let now = self.ambient.clock.now();
            cache.retain(|_, verified| Tokens::check_time(&verified.claims, now).is_ok());
            if cache.len() >= CACHE {
                cache.clear();
            }
        }
        cache.insert(digest, Arc::clone(&verified));
        Ok(verified)
    }
}

/// Which tokens a session has now, for the audit trail: ids, never the tokens.
pub(super) fn tokens_of(session: &Session) -> Value {
    json!({
        "token_type": "access", "jti": session.access_jti, "refresh_jti": session.refresh_jti, "session": session.id,
    })
}

/// Records the tokens of a session in the transaction that changes it.
pub(super) async fn record_issued(
    tx: &mut dyn Tx,
    entry: AuditDraft,
    session: &Session,
) -> Result<(), Error> {
    tx.append_audit(&AuditDraft { details: tokens_of(session), ..entry }).await.map(drop)
}
