//! People: who there is, which roles they have, their passwords.

use std::sync::Arc;

use interlock_model::Timestamp;
use interlock_model::action::{CreateUser, ListUsers, ResetFactors, SetPassword, UpdateUser};
use interlock_model::policy;
use interlock_model::secret::Secret;
use interlock_model::text::{Form as _, UserName};
use interlock_store::{Error, UserRow};
use serde_json::json;

use crate::Ambient;
use crate::auth::{
    Db, FactorError, Factors, PasswordRefused, Passwords, Permit, Principals, Proof, Recorded, SystemPermit,
    bcrypt_cost, is_importable, note_length, reset_factors,
};
use crate::security::{self, Event};

/// Why a user was not made or changed.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The name cannot be used.
    #[error("the user name is not allowed: use 1 to 64 letters, digits, dots, hyphens or underscores")]
    Name,
    /// There is one already.
    #[error("there is a user of this name already")]
    Exists,
    /// There is none.
    #[error("there is no user of this name")]
    NoSuchUser,
    /// A role does not exist.
    #[error(
        "unknown role: use admin, operator, viewer, auditor, a role of this installation, or one that an action of the device asks for"
    )]
    Role,
    /// The last administrator would be gone.
    #[error("this is the last enabled administrator; make another one first")]
    LastAdmin,
    /// The hash is of no kind that can be taken over.
    #[error("the password hash is no bcrypt hash ($2a$, $2b$ or $2y$, cost 4 to 14)")]
    Hash,
    /// The password is not accepted.
    #[error(transparent)]
    Password(#[from] PasswordRefused),
    /// The password is too short to stand alone.
    #[error(
        "the password is shorter than 15 characters, too short without a second factor; set a longer one first"
    )]
    ShortPassword,
    /// The account for emergencies is renewed on the server's own machine only.
    #[error("the account for emergencies is renewed on the server's own machine: interlock user break-glass")]
    Sealed,
    /// People choose their own passwords here.
    #[error(
        "people choose their own passwords here: make an invitation, or start a reset (interlock user passwd NAME --reset-link)"
    )]
    ByLink,
    /// Oneself proves and changes, others help.
    #[error(
        "this is your own account: interlock account password, or have another administrator start the reset"
    )]
    Own,
    /// There is no password here to reset.
    #[error("the password of this user is kept by a directory")]
    Elsewhere,
    /// Somebody else changed the user meanwhile.
    #[error("the user was changed at the same time; look and try again")]
    Conflict,
    /// Hashing is overloaded.
    #[error("too many passwords are being hashed; try again in a second")]
    Overloaded,
    /// The storage failed.
    #[error("store the user")]
    Store(#[from] Error),
}

/// What to change; `None` leaves it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserChange {
    /// The new roles.
    pub roles: Option<Vec<String>>,
    /// Disabled or not.
    pub disabled: Option<bool>,
}

/// The form in which names are stored and compared: lower case.
///
/// # Errors
/// [`UserError::Name`].
pub fn canonical_name(name: &str) -> Result<String, UserError> {
    if UserName::RULE.holds(name) { Ok(name.to_ascii_lowercase()) } else { Err(UserError::Name) }
}

/// Names that mean something else in paths, or belong to the installation.
const RESERVED: [&str; 2] = ["invitations", crate::emergency::NAME];

/// The form of a name for somebody new.
///
/// # Errors
/// [`UserError::Name`].
pub(crate) fn new_name(name: &str) -> Result<String, UserError> {
    canonical_name(name)
        .and_then(|name| if RESERVED.contains(&&*name) { Err(UserError::Name) } else { Ok(name) })
}

/// What a change does to the tokens that the user holds.
#[derive(PartialEq, Eq)]
enum Tokens {
    Live,
    Die,
}

/// Manages users.
#[derive(Debug, Clone)]
pub struct Users {
    pub(crate) db: Db,
    pub(crate) ambient: Ambient,
    pub(crate) principals: Arc<Principals>,
    pub(crate) passwords: Passwords,
    device_roles: Arc<[String]>,
    by_link: bool,
}

impl Users {
    /// Wires the parts. `device_roles` are the roles that device actions ask for beside the built-in ones.
    pub fn new(
        db: Db,
        ambient: Ambient,
        principals: Arc<Principals>,
        passwords: Passwords,
        device_roles: Arc<[String]>,
    ) -> Self {
        Self { db, ambient, principals, passwords, device_roles, by_link: false }
    }

    /// Has people choose their own passwords: administrators make invitations and start resets, and the console alone sets.
    #[must_use]
    pub fn with_passwords_by_link(self, by_link: bool) -> Self {
        Self { by_link, ..self }
    }

    fn check_direct(&self) -> Result<(), UserError> {
        if self.by_link { Err(UserError::ByLink) } else { Ok(()) }
    }

    /// Known roles, sorted, each once.
    pub(crate) fn checked_roles(&self, roles: &[String]) -> Result<Vec<String>, UserError> {
        let custom = self.principals.roles();
        let known = |role: &String| {
            policy::is_role(role) || self.device_roles.contains(role) || custom.contains_key(role)
        };
        if roles.is_empty() || !roles.iter().all(known) {
            return Err(UserError::Role);
        }
        let mut roles = roles.to_vec();
        roles.sort();
        roles.dedup();
        Ok(roles)
    }

    /// Everyone, by name.
    ///
    /// # Errors
    /// The storage's.
    pub async fn list(&self, _permit: &Permit<ListUsers>) -> Result<Vec<UserRow>, Error> {
        self.db.read().users().await
    }

    /// Makes a user.
    ///
    /// # Errors
    /// [`UserError`].
    pub async fn create(
        &self,
        permit: &Permit<CreateUser>,
        name: &str,
        password: Secret,
        roles: &[String],
    ) -> Result<UserRow, UserError> {
        self.check_direct()?;
        self.insert(permit, name, password, roles).await
    }

    /// Changes roles or state.
    ///
    /// # Errors
    /// [`UserError`].
    pub async fn update(
        &self,
        permit: &Permit<UpdateUser>,
        change: UserChange,
    ) -> Result<UserRow, UserError> {
        let name = permit.target().name.clone();
        self.apply(permit, &name, change).await
    }

    /// Sets a password; every earlier token of the user is dead.
    ///
    /// # Errors
    /// [`UserError`].
    pub async fn set_password(
        &self,
        permit: &Permit<SetPassword>,
        password: Secret,
    ) -> Result<UserRow, UserError> {
        self.check_direct()?;
        let name = permit.target().name.clone();
        self.replace_password(permit, &name, password).await
    }

    /// Removes every second factor of somebody who has lost them.
    ///
    /// # Errors
    /// [`UserError`].
    pub async fn reset_factors(&self, permit: &Permit<ResetFactors>) -> Result<(), UserError> {
        self.check_direct()?;
        let name = canonical_name(&permit.target().name).map_err(|_| UserError::NoSuchUser)?;
        Ok(reset_factors(&self.db, &self.principals, permit, name).await?)
    }

    /// The same acts for whoever owns the machine: first start and the local command line.
    pub fn console<'a>(&'a self, permit: &'a SystemPermit) -> Console<'a> {
        Console { users: self, permit }
    }

    async fn insert<P: Proof + ?Sized>(
        &self,
        proof: &P,
        name: &str,
        password: Secret,
        roles: &[String],
    ) -> Result<UserRow, UserError> {
        let name = new_name(name)?;
        let roles = self.checked_roles(roles)?;
        self.passwords.accept(&name, &password, Factors::Alone)?;
        let password_hash = self.passwords.hash(password).await.map_err(|_| UserError::Overloaded)?;
        self.store(proof, name, password_hash, roles).await
    }

    async fn store<P: Proof + ?Sized>(
        &self,
        proof: &P,
        name: String,
        password_hash: String,
        roles: Vec<String>,
    ) -> Result<UserRow, UserError> {
        let imported = bcrypt_cost(&password_hash).is_some();
        let now = self.ambient.clock.now();
        let user = UserRow {
            name,
            password_hash,
            roles,
            disabled: false,
            tokens_valid_from: now,
            created_at: now,
            updated_at: now,
            version: 1,
        };
        let row = user.clone();
        let mut details = json!({ "name": user.name, "roles": user.roles });
        if imported {
            details["imported"] = json!(true);
        }
        self.db
            .write_about(proof, Some(user.name.clone()), move |tx| {
                Box::pin(async move {
                    if !tx.insert_user(&row).await? {
                        return Err(UserError::Exists);
                    }
                    Ok(Recorded { value: (), details })
                })
            })
            .await?;
        self.principals.put(user.clone());
        Ok(user)
    }

    async fn apply<P: Proof + ?Sized>(
        &self,
        proof: &P,
        name: &str,
        change: UserChange,
    ) -> Result<UserRow, UserError> {
        let roles = change.roles.as_deref().map(|roles| self.checked_roles(roles)).transpose()?;
        let disabled = change.disabled;
        self.change(proof, name, "updated", move |user| {
            if let Some(roles) = roles {
                user.roles = roles;
            }
            let ends = disabled == Some(true) && !user.disabled;
            user.disabled = disabled.unwrap_or(user.disabled);
            if ends { Tokens::Die } else { Tokens::Live }
        })
        .await
    }

    async fn replace_password<P: Proof + ?Sized>(
        &self,
        proof: &P,
        name: &str,
        password: Secret,
    ) -> Result<UserRow, UserError> {
        let canonical = canonical_name(name).map_err(|_| UserError::NoSuchUser)?;
        if canonical == crate::emergency::NAME {
            return Err(UserError::Sealed);
        }
        self.passwords.accept(&canonical, &password, Factors::Alone)?;
        let hash = self.passwords.hash(password).await.map_err(|_| UserError::Overloaded)?;
        self.change(proof, &canonical, "password set, tokens revoked", move |user| {
            user.password_hash = hash;
            Tokens::Die
        })
        .await
    }

    async fn change<P, F>(
        &self,
        proof: &P,
        name: &str,
        what: &'static str,
        edit: F,
    ) -> Result<UserRow, UserError>
    where
        P: Proof + ?Sized,
        F: FnOnce(&mut UserRow) -> Tokens + Send + 'static,
    {
        let name = canonical_name(name).map_err(|_| UserError::NoSuchUser)?;
        let now = self.ambient.clock.now();
        let (user, tokens) = self
            .db
            .write(proof, move |tx| {
                Box::pin(async move {
                    let before = tx.user(&name).await?.ok_or(UserError::NoSuchUser)?;
                    let mut after = before.clone();
                    let tokens = edit(&mut after);
                    if tokens == Tokens::Die {
                        // The epoch must differ even when two changes share a microsecond or the clock went back.
                        after.tokens_valid_from =
                            now.max(Timestamp::from_micros(before.tokens_valid_from.micros() + 1));
                    }
                    after.updated_at = now;
                    after.version += 1;
                    if is_admin(&before) && !is_admin(&after) {
                        let others = tx.users().await?;
                        if !others.iter().any(|other| other.name != after.name && is_admin(other)) {
                            return Err(UserError::LastAdmin);
                        }
                    }
                    if !tx.update_user(&after).await? {
                        return Err(UserError::Conflict);
                    }
                    if before.password_hash != after.password_hash {
                        // What others set is always long enough to stand alone.
                        note_length(tx, &after.name, false).await?;
                    }
                    let details = json!({
                        "change": what,
                        "old_data": { "roles": before.roles, "disabled": before.disabled },
                        "new_data": { "roles": after.roles, "disabled": after.disabled },
                    });
                    Ok(Recorded { value: (after, tokens), details })
                })
            })
            .await?;
        if tokens == Tokens::Die {
            let reason = if user.disabled { "agent_disabled" } else { "credentials" };
            metrics::counter!("orchestrator_jwt_tokens_revoked_total", "reason" => reason).increment(1);
            security::event(
                Event::TokenRevoked,
                Some(&user.name),
                None,
                json!({ "reason": reason, "tokens": "all" }),
            );
        }
        self.principals.put(user.clone());
        Ok(user)
    }
}

impl From<FactorError> for UserError {
    fn from(error: FactorError) -> Self {
        match error {
            FactorError::NoSuchUser => Self::NoSuchUser,
            FactorError::ShortPassword => Self::ShortPassword,
            FactorError::Store(error) => Self::Store(error),
            _ => Self::Conflict,
        }
    }
}

/// Acts of whoever owns the machine, recorded under the name of their permit.
#[derive(Debug)]
pub struct Console<'a> {
    users: &'a Users,
    permit: &'a SystemPermit,
}

impl Console<'_> {
    /// Everyone, by name.
    ///
    /// # Errors
    /// The storage's.
    pub async fn list(&self) -> Result<Vec<UserRow>, Error> {
        self.users.db.read().users().await
    }

    /// Makes a user.
    ///
    /// # Errors
    /// [`UserError`].
    pub async fn create(&self, name: &str, password: Secret, roles: &[String]) -> Result<UserRow, UserError> {
        let proof = self.permit.acting("user.created", Some(name.to_owned()));
        self.users.insert(&proof, name, password, roles).await
    }

    /// Makes a user with the bcrypt hash of an earlier system. It is replaced at the first sign-in.
    ///
    /// # Errors
    /// [`UserError`].
    pub async fn import(
        &self,
        name: &str,
        password_hash: String,
        roles: &[String],
    ) -> Result<UserRow, UserError> {
        let proof = self.permit.acting("user.created", Some(name.to_owned()));
        let (name, roles) = (new_name(name)?, self.users.checked_roles(roles)?);
        if !is_importable(&password_hash) {
            return Err(UserError::Hash);
        }
        self.users.store(&proof, name, password_hash, roles).await
    }

    /// Changes roles or state.
    ///
    /// # Errors
    /// [`UserError`].
    pub async fn update(&self, name: &str, change: UserChange) -> Result<UserRow, UserError> {
        let proof = self.permit.acting("user.updated", Some(name.to_owned()));
        self.users.apply(&proof, name, change).await
    }

    /// Makes or renews the account for emergencies (see [`crate::emergency`]) with this password.
    ///
    /// # Errors
    /// [`UserError`].
    pub async fn break_glass(&self, password: Secret) -> Result<UserRow, UserError> {
        let name = crate::emergency::NAME.to_owned();
        let proof = self.permit.acting("break_glass.sealed", Some(name));
        crate::emergency::seal(self.users, &proof, password).await
    }

    /// Removes every second factor of somebody who has lost them.
    ///
    /// # Errors
    /// [`UserError`].
    pub async fn reset_factors(&self, name: &str) -> Result<(), UserError> {
        let name = canonical_name(name).map_err(|_| UserError::NoSuchUser)?;
        let proof = self.permit.acting("user.factors_reset", Some(name.clone()));
        Ok(reset_factors(&self.users.db, &self.users.principals, &proof, name).await?)
    }

    /// Sets a password.
    ///
    /// # Errors
    /// [`UserError`].
    pub async fn set_password(&self, name: &str, password: Secret) -> Result<UserRow, UserError> {
        let proof = self.permit.acting("user.password_set", Some(name.to_owned()));
        self.users.replace_password(&proof, name, password).await
    }
}

fn is_admin(user: &UserRow) -> bool {
    !user.disabled && user.roles.iter().any(|role| role == policy::ADMIN)
}
