//! What owners and administrators do with sessions, tokens and roles: look, end, revoke, define, ask why.

use std::sync::Arc;

use interlock_model::Timestamp;
use interlock_model::action::{
    DeleteRole, EndSession, EndSessions, Introspect, ListRoles, ListSessions, Needs, PutRole, RevokeTokens,
    TestPolicy,
};
use interlock_model::policy::{self, CustomRoles, Explanation, Grants};
use interlock_model::scope::{self, Scope};
use interlock_model::text::{Form as _, RoleName};
use interlock_store::Error;
use interlock_store::identity::{self, Put, Versioned};
use serde_json::{Value, json};

use super::documents::{Agent, CustomRole, Cutoff, Session};
use super::{Db, Permit, Principals, Recorded, Sessions};
use crate::Ambient;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum ManageError {
    /// There is none, or it is somebody else's.
    #[error("there is no such session")]
    NoSuchSession,
    /// There is no such person or agent.
    #[error("there is no such principal")]
    NoSuchPrincipal,
    /// There is no such custom role.
    #[error("there is no such role")]
    NoSuchRole,
    /// The name cannot be used.
    #[error(
        "a role's name has 1 to 32 lower-case letters, digits, hyphens or underscores, and is not a built-in one"
    )]
    RoleName,
    /// The definer does not hold this.
    #[error("you can give a role only scopes that you hold or administer: {0}")]
    Grant(Scope),
    /// Somebody else changed it meanwhile.
    #[error("it was changed at the same time; look and try again")]
    Conflict,
    /// The storage's.
    #[error("store the change")]
    Store(#[from] Error),
}

/// What to revoke.
#[derive(Debug, Clone)]
pub enum Revoke {
    /// One access token.
    Jti(String),
    /// A session with all its tokens.
    Session(String),
    /// Everything a person or an agent holds.
    Principal(String),
    /// Everything issued before a time.
    Before(Timestamp),
}

/// Looks after sessions, tokens and roles.
#[derive(Clone)]
pub struct Manage {
    db: Db,
    ambient: Ambient,
    principals: Arc<Principals>,
    sessions: Arc<Sessions>,
}

impl std::fmt::Debug for Manage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Manage")
    }
}

impl Manage {
    /// Wires the parts.
    pub fn new(db: Db, ambient: Ambient, principals: Arc<Principals>, sessions: Arc<Sessions>) -> Self {
        Self { db, ambient, principals, sessions }
    }

    /// Sessions in force: the caller's own, or all for those who manage them. Newest first.
    ///
    /// # Errors
    /// The storage's.
    pub async fn sessions(&self, permit: &Permit<ListSessions>, all: bool) -> Result<Vec<Session>, Error> {
        let caller = permit.caller();
        let everybody = all && caller.grants().holds_scope("sessions:manage");
        let owner = (!everybody).then(|| caller.name());
        let now = self.ambient.clock.now();
        let found = identity::list::<Session>(self.db.read(), owner).await?;
        let mut live: Vec<Session> = found
            .into_iter()
            .map(|session| session.document)
            .filter(|session| {
                session.ended_at.is_none() && session.expires_at > now && self.is_current(session)
            })
            .collect();
        live.sort_by_key(|session| std::cmp::Reverse(session.created_at));
        Ok(live)
    }

    /// Whether the principal's credentials are still those that the session was opened with.
    fn is_current(&self, session: &Session) -> bool {
        let epoch = match session.kind {
            policy::PrincipalKind::User => {
                self.principals.user(&session.principal).map(|user| user.tokens_valid_from)
            }
            policy::PrincipalKind::Agent => {
                let agent = session.principal.parse().ok().and_then(|id| self.principals.agent(id));
                agent.filter(|agent| !agent.disabled).map(|agent| agent.tokens_valid_from)
            }
        };
        epoch == Some(session.epoch)
    }

    /// Ends one session: the caller's own, or any for those who manage them.
    ///
    /// # Errors
    /// [`ManageError`].
    pub async fn end_session(&self, permit: &Permit<EndSession>) -> Result<(), ManageError> {
        let caller = permit.caller();
        let id = &permit.target().id;
        let found = identity::read::<Session>(self.db.read(), id).await?.ok_or(ManageError::NoSuchSession)?;
        if found.principal != caller.name() && !caller.grants().holds_scope("sessions:manage") {
            return Err(ManageError::NoSuchSession);
        }
        self.sessions.end(permit, id, "manual").await?;
        Ok(())
    }

    /// Ends all sessions of the caller, or all but the one it speaks in. Returns how many.
    ///
    /// # Errors
    /// The storage's.
    pub async fn end_sessions(&self, permit: &Permit<EndSessions>, keep_this: bool) -> Result<usize, Error> {
        let caller = permit.caller();
        let now = self.ambient.clock.now();
        let own = identity::list::<Session>(self.db.read(), Some(caller.name())).await?;
        let live: Vec<Versioned<Session>> = own
            .into_iter()
            .filter(|session| session.ended_at.is_none() && !(keep_this && session.id == caller.session()))
            .collect();
        let count = live.len();
        let ended = self
            .db
            .write(permit, move |tx| {
                Box::pin(async move {
                    let mut ended = Vec::new();
                    for session in live {
                        // Read again under its lock: it may have been refreshed since.
                        let Some(mut found) = identity::get::<Session>(tx, &session.id).await? else {
                            continue;
                        };
                        found.document.ended_at.get_or_insert(now);
                        found.document.ended_reason.get_or_insert_with(|| "manual".to_owned());
                        identity::update(tx, &found).await?;
                        ended.push(found.document);
                    }
                    let details = json!({ "sessions": ended.len() });
                    Ok::<_, Error>(Recorded { value: ended, details })
                })
            })
            .await?;
        for session in &ended {
            self.principals.put_session(session);
        }
        Ok(count)
    }

    /// Revokes tokens by what they have in common.
    ///
    /// # Errors
    /// [`ManageError`].
    pub async fn revoke(&self, permit: &Permit<RevokeTokens>, what: Revoke) -> Result<(), ManageError> {
        let now = self.ambient.clock.now();
        match what {
            Revoke::Jti(jti) => {
                let end = now.plus(std::time::Duration::from_hours(24 * 366));
                self.sessions.revoke_jti(permit, &jti, end, "manual").await?;
            }
            Revoke::Session(id) => {
                let known = self.sessions.end(permit, &id, "manual").await?;
                known.then_some(()).ok_or(ManageError::NoSuchSession)?;
            }
            Revoke::Principal(name) => self.revoke_principal(permit, &name).await?,
            Revoke::Before(before) => self.revoke_before(permit, before.min(now)).await?,
        }
        Ok(())
    }

    async fn revoke_principal(&self, permit: &Permit<RevokeTokens>, name: &str) -> Result<(), ManageError> {
        let now = self.ambient.clock.now();
        let later = move |before: Timestamp| now.max(Timestamp::from_micros(before.micros() + 1));
        let details = json!({ "principal": name, "tokens": "all" });
        if let Ok(id) = name.parse::<interlock_model::AgentId>() {
            let changed = self
                .db
                .write(permit, move |tx| {
                    Box::pin(async move {
                        let found = identity::get::<Agent>(tx, &id.to_string()).await?;
                        let mut found = found.ok_or(ManageError::NoSuchPrincipal)?;
                        found.document.tokens_valid_from = later(found.tokens_valid_from);
                        identity::update(tx, &found).await?;
                        found.version += 1;
                        Ok::<_, ManageError>(Recorded { value: found, details })
                    })
                })
                .await?;
            self.principals.put_agent(changed.document, changed.version);
        } else {
            let name = crate::users::canonical_name(name).map_err(|_| ManageError::NoSuchPrincipal)?;
            let user = self
                .db
                .write(permit, move |tx| {
                    Box::pin(async move {
                        let mut user = tx.user(&name).await?.ok_or(ManageError::NoSuchPrincipal)?;
                        user.tokens_valid_from = later(user.tokens_valid_from);
                        user.updated_at = now;
                        user.version += 1;
                        tx.update_user(&user).await?.then_some(()).ok_or(ManageError::Conflict)?;
                        Ok::<_, ManageError>(Recorded { value: user, details })
                    })
                })
                .await?;
            self.principals.put(user);
        }
        metrics::counter!("orchestrator_jwt_tokens_revoked_total", "reason" => "manual").increment(1);
        Ok(())
    }

    async fn revoke_before(
        &self,
        permit: &Permit<RevokeTokens>,
        before: Timestamp,
    ) -> Result<(), ManageError> {
        let cutoff = Cutoff { before, reason: "manual".to_owned() };
        let row = cutoff.clone();
        self.db
            .write(permit, move |tx| {
                Box::pin(async move {
                    let details = json!({ "tokens": "all", "before": row.before });
                    let put = match identity::get::<Cutoff>(tx, "all").await? {
                        None => identity::insert(tx, &row).await?,
                        // It only moves forward.
                        Some(found) if found.before >= row.before => Put::Done,
                        Some(mut found) => {
                            found.document = row;
                            identity::update(tx, &found).await?
                        }
                    };
                    if put != Put::Done {
                        return Err(ManageError::Conflict);
                    }
                    Ok(Recorded { value: (), details })
                })
            })
            .await?;
        self.principals.put_cutoff(&cutoff);
        metrics::counter!("orchestrator_jwt_tokens_revoked_total", "reason" => "manual").increment(1);
        Ok(())
    }

    /// What a token stands for, if it is in force.
    pub fn introspect(&self, _permit: &Permit<Introspect>, token: &str) -> Option<Value> {
        self.sessions.introspect(token)
    }

    /// Custom roles with their scopes, by name.
    ///
    /// # Errors
    /// The storage's.
    pub async fn roles(&self, _permit: &Permit<ListRoles>) -> Result<Vec<CustomRole>, Error> {
        let roles = identity::list::<CustomRole>(self.db.read(), None).await?;
        Ok(roles.into_iter().map(|role| role.document).filter(|role| !role.deleted).collect())
    }

    /// Makes or changes a custom role. Whoever holds it has the new scopes at once.
    ///
    /// # Errors
    /// [`ManageError`].
    pub async fn put_role(
        &self,
        permit: &Permit<PutRole>,
        description: String,
        scopes: Vec<Scope>,
    ) -> Result<CustomRole, ManageError> {
        let name = permit.target().role.clone();
        if !RoleName::RULE.holds(&name) || policy::is_role(&name) {
            return Err(ManageError::RoleName);
        }
        let grants = permit.caller().grants();
        let grantable = |wanted: &&Scope| {
            let known = policy::ROLES.iter().flat_map(|(_, scopes)| scopes.iter());
            // An administrator may compose what the built-in roles hold; nothing else, and `admin` for agents only.
            wanted.as_str() != scope::ADMIN
                && wanted.as_str() != scope::SYSTEM
                && (grants.holds_scope(wanted.as_str())
                    || known
                        .filter_map(|text| text.parse::<Scope>().ok())
                        .any(|held| held.covers(wanted.as_str()))
                    || wanted.as_str().starts_with("tool:")
                    || wanted.as_str().starts_with("tasks:")
                    || wanted.as_str().starts_with("events:"))
        };
        if let Some(scope) = scopes.iter().find(|scope| !grantable(scope)) {
            return Err(ManageError::Grant(scope.clone()));
        }
        let role =
            CustomRole { name, description, scopes, deleted: false, updated_at: self.ambient.clock.now() };
        self.store_role(permit, role).await
    }

    /// Deletes a custom role: whoever holds it holds nothing by it from here on.
    ///
    /// # Errors
    /// [`ManageError`].
    pub async fn delete_role(&self, permit: &Permit<DeleteRole>) -> Result<(), ManageError> {
        let name = permit.target().role.clone();
        if !self.principals.roles().contains_key(&name) {
            return Err(ManageError::NoSuchRole);
        }
        let role = CustomRole {
            name,
            description: String::new(),
            scopes: Vec::new(),
            deleted: true,
            updated_at: self.ambient.clock.now(),
        };
        self.store_role(permit, role).await.map(drop)
    }

    async fn store_role<P>(&self, proof: &P, role: CustomRole) -> Result<CustomRole, ManageError>
    where
        P: super::Proof + ?Sized,
    {
        let stored = self
            .db
            .write(proof, move |tx| {
                Box::pin(async move {
                    let found = identity::get::<CustomRole>(tx, &role.name).await?;
                    let before = found.as_ref().filter(|role| !role.deleted).map(|role| role.scopes.clone());
                    let details =
                        json!({ "old_data": before, "new_data": role.scopes, "deleted": role.deleted });
                    let (put, version) = match found {
                        None => (identity::insert(tx, &role).await?, 1),
                        Some(found) => {
                            let next = Versioned { document: role.clone(), version: found.version };
                            (identity::update(tx, &next).await?, found.version + 1)
                        }
                    };
                    if put != Put::Done {
                        return Err(ManageError::Conflict);
                    }
                    Ok(Recorded { value: (role, version), details })
                })
            })
            .await?;
        self.principals.put_role(&stored.0, stored.1);
        Ok(stored.0)
    }

    /// Why somebody may or may not do something: a person or an agent, and a scope or a device action.
    ///
    /// # Errors
    /// [`ManageError::NoSuchPrincipal`].
    pub fn explain(
        &self,
        _permit: &Permit<TestPolicy>,
        principal: &str,
        needs: &Needs,
    ) -> Result<Explanation, ManageError> {
        let grants =
            self.grants_of(principal, &self.principals.roles()).ok_or(ManageError::NoSuchPrincipal)?;
        Ok(policy::explain(&grants, needs))
    }

    /// What a principal could hold at most now; `None` if there is none or it is disabled.
    fn grants_of(&self, principal: &str, custom: &CustomRoles) -> Option<Grants> {
        if let Ok(id) = principal.parse() {
            let agent = self.principals.agent(id).filter(|agent| !agent.disabled)?;
            return Some(Grants::of_agent(&agent.scopes, &agent.scopes));
        }
        let name = crate::users::canonical_name(principal).ok()?;
        let user = self.principals.user(&name).filter(|user| !user.disabled)?;
        Some(Grants::of_user(&user.roles, &user.roles, custom, None))
    }
}
