//! Invitations: an account for whoever holds a token that works once. Nobody but the new user ever knows the password.

use std::sync::Arc;
use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::action::{Invite, ListInvitations, RevokeInvitation};
use interlock_model::secret::Secret;
use interlock_store::identity::{self, Put};
use interlock_store::{Error, UserRow};
use serde_json::json;

use crate::auth::documents::Invitation;
use crate::auth::{Factors, Origin, PasswordRefused, Permit, Recorded, Sessions};
use crate::one_time;
use crate::users::{UserError, Users, new_name};

/// How long an invitation is open.
const LIFE: Duration = Duration::from_hours(72);
/// What every token begins with.
const PREFIX: &str = "ili_";

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum InvitationError {
    /// There is no such open invitation, whatever the reason.
    #[error("the invitation does not exist, has ended, or was used")]
    NotOpen,
    /// There is none of this id.
    #[error("there is no such invitation")]
    NoSuchInvitation,
    /// Name or roles cannot be used, or hashing is overloaded, or the storage failed.
    #[error(transparent)]
    User(#[from] UserError),
}

impl From<Error> for InvitationError {
    fn from(error: Error) -> Self {
        Self::User(error.into())
    }
}

impl From<PasswordRefused> for InvitationError {
    fn from(error: PasswordRefused) -> Self {
        Self::User(error.into())
    }
}

/// Makes and takes invitations.
#[derive(Debug, Clone)]
pub struct Invitations {
    users: Users,
    sessions: Arc<Sessions>,
}

impl Invitations {
    /// Over these users.
    pub fn new(users: Users, sessions: Arc<Sessions>) -> Self {
        Self { users, sessions }
    }

    /// Makes an invitation; the token is shown once.
    ///
    /// # Errors
    /// [`InvitationError`].
    pub async fn make(
        &self,
        permit: &Permit<Invite>,
        name: &str,
        roles: &[String],
    ) -> Result<(Invitation, Secret), InvitationError> {
        let users = &self.users;
        let (name, roles) = (new_name(name)?, users.checked_roles(roles)?);
        if users.principals.user(&name).is_some() {
            return Err(UserError::Exists.into());
        }
        let one_time::New { id, token, digest } = one_time::make(PREFIX, &*users.ambient.entropy);
        let now = users.ambient.clock.now();
        let invitation = Invitation {
            id,
            name,
            roles,
            digest,
            created_at: now,
            created_by: permit.caller().name().to_owned(),
            expires_at: now.plus(LIFE),
            accepted_at: None,
            revoked_at: None,
        };
        let row = invitation.clone();
        users
            .db
            .write_about(permit, Some(row.id.clone()), move |tx| {
                Box::pin(async move {
                    if identity::insert(tx, &row).await? != Put::Done {
                        return Err(InvitationError::from(UserError::Conflict));
                    }
                    let details =
                        json!({ "name": row.name, "roles": row.roles, "expires_at": row.expires_at });
                    Ok(Recorded { value: (), details })
                })
            })
            .await?;
        Ok((invitation, token))
    }

    /// All that are remembered, newest first.
    ///
    /// # Errors
    /// The storage's.
    pub async fn list(&self, _permit: &Permit<ListInvitations>) -> Result<Vec<Invitation>, Error> {
        let found = identity::list::<Invitation>(self.users.db.read(), None).await?;
        let mut all: Vec<Invitation> = found.into_iter().map(|found| found.document).collect();
        all.sort_by_key(|invitation| std::cmp::Reverse(invitation.created_at));
        Ok(all)
    }

    /// Time by which `list` says whether one is open.
    pub fn now(&self) -> Timestamp {
        self.users.ambient.clock.now()
    }

    /// Takes an invitation back.
    ///
    /// # Errors
    /// [`InvitationError::NoSuchInvitation`], also for one that is over.
    pub async fn revoke(&self, permit: &Permit<RevokeInvitation>) -> Result<(), InvitationError> {
        let (id, now) = (permit.target().id.clone(), self.now());
        self.users
            .db
            .write(permit, move |tx| {
                Box::pin(async move {
                    let found =
                        identity::get::<Invitation>(tx, &id).await?.filter(|found| found.is_open(now));
                    let mut found = found.ok_or(InvitationError::NoSuchInvitation)?;
                    found.document.revoked_at = Some(now);
                    identity::update(tx, &found).await?;
                    Ok(Recorded { value: (), details: json!({ "name": found.name }) })
                })
            })
            .await
    }

    /// Makes the promised user with a password of their own choice. The invitation is spent then.
    ///
    /// # Errors
    /// [`InvitationError`]; unknown, used, ended and taken back are alike.
    pub async fn accept(
        &self,
        token: &Secret,
        password: Secret,
        origin: &Origin,
    ) -> Result<UserRow, InvitationError> {
        let users = &self.users;
        let shown = one_time::read(PREFIX, token).ok_or(InvitationError::NotOpen)?;
        let found = identity::read::<Invitation>(users.db.read(), &shown.id).await?;
        let now = self.now();
        let is_good = move |found: &Invitation| shown.is_of(&found.digest) && found.is_open(now);
        let found = found.map(|found| found.document).filter(&is_good).ok_or(InvitationError::NotOpen)?;
        // Whoever was dismissed meanwhile lets nobody in any more.
        let inviter = users.principals.user(&found.created_by);
        if inviter.is_none_or(|inviter| inviter.disabled) {
            return Err(InvitationError::NotOpen);
        }
        users.passwords.accept(&found.name, &password, Factors::Alone)?;
        let hash = users.passwords.hash(password).await.map_err(|_| UserError::Overloaded)?;
        let user = UserRow {
            name: found.name.clone(),
            password_hash: hash,
            roles: users.checked_roles(&found.roles)?,
            disabled: false,
            tokens_valid_from: now,
            created_at: now,
            updated_at: now,
            version: 1,
        };
        let proof = self.sessions.acting_for("user.created", &found.name, origin);
        let (row, id) = (user.clone(), found.id);
        users
            .db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let found = identity::get::<Invitation>(tx, &id).await?.filter(|found| is_good(found));
                    let mut found = found.ok_or(InvitationError::NotOpen)?;
                    if !tx.insert_user(&row).await? {
                        return Err(UserError::Exists.into());
                    }
                    found.document.accepted_at = Some(now);
                    identity::update(tx, &found).await?;
                    let details = json!({
                        "name": row.name, "roles": row.roles, "invitation": found.id, "invited_by": found.created_by,
                    });
                    Ok::<_, InvitationError>(Recorded { value: (), details })
                })
            })
            .await?;
        users.principals.put(user.clone());
        Ok(user)
    }
}
