//! One's own account: password, second factors, fresh proof of identity.

use interlock_model::Timestamp;
use interlock_model::secret::Secret;
use interlock_model::wire::{LoginAnswer, NoticeView, Operation};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{Client, ClientError};

/// A second factor without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Factor {
    /// Short id.
    pub id: String,
    /// `totp`.
    pub kind: String,
    /// Name for people.
    pub name: String,
    /// When it was set up.
    pub created_at: Timestamp,
    /// When its last code was taken.
    pub last_used_at: Option<Timestamp>,
}

/// Second factors, and how many recovery codes are left.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Factors {
    /// Those that count.
    pub factors: Vec<Factor>,
    /// Unused recovery codes.
    pub recovery_codes_left: u32,
}

/// What an authenticator app is set up with.
#[derive(Debug, Deserialize)]
pub struct Enrolment {
    /// Id of the factor.
    pub id: String,
    /// In base32.
    pub secret: Secret,
    /// The same as an `otpauth` link.
    pub uri: Secret,
}

/// Codes that are shown once.
#[derive(Debug, Deserialize)]
pub struct RecoveryCodes {
    /// The codes; none where the ones before stay.
    pub recovery_codes: Vec<Secret>,
}

/// How one proves again who one is.
#[derive(Debug)]
pub enum Proof<'a> {
    /// Code of the second factor, or a recovery code.
    Otp(&'a Secret),
    /// For those without a second factor.
    Password(&'a Secret),
}

impl Client {
    /// Changes one's own password. Every earlier token is dead; the new ones are in the answer.
    pub async fn change_password(&self, current: &Secret, new: &Secret) -> Result<LoginAnswer, ClientError> {
        let body = json!({ "current": current.expose(), "new": new.expose() });
        self.post(&["auth", "password"], &body).await
    }

    /// Proves again who one is. The token before is dead; the new one is in the answer.
    pub async fn step_up(&self, proof: Proof<'_>) -> Result<LoginAnswer, ClientError> {
        let body = match proof {
            Proof::Otp(code) => json!({ "otp": code.expose() }),
            Proof::Password(password) => json!({ "password": password.expose() }),
        };
        self.post(&["auth", "step-up"], &body).await
    }

    /// What one is told about one's own account, newest first.
    pub async fn notices(&self) -> Result<Vec<NoticeView>, ClientError> {
        self.get(&["auth", "notices"], &[]).await
    }

    /// Says that one has seen the notices up to a time.
    pub async fn read_notices(&self, until: Timestamp) -> Result<Operation, ClientError> {
        self.post(&["auth", "notices", "read"], &json!({ "until": until })).await
    }

    /// Every principal with its rights and credentials.
    pub async fn access(&self) -> Result<Vec<serde_json::Value>, ClientError> {
        self.get(&["security", "access"], &[]).await
    }

    /// One's own second factors.
    pub async fn factors(&self) -> Result<Factors, ClientError> {
        self.get(&["auth", "factors"], &[]).await
    }

    /// Begins to set up an authenticator app.
    pub async fn enrol_totp(&self, name: &str) -> Result<Enrolment, ClientError> {
        self.post(&["auth", "factors", "totp"], &json!({ "name": name })).await
    }

    /// Gives the first code of the app. From here on it counts.
    pub async fn confirm_totp(&self, code: &Secret) -> Result<RecoveryCodes, ClientError> {
        self.post(&["auth", "factors", "totp", "confirm"], &json!({ "code": code.expose() })).await
    }

    /// Makes new recovery codes; the ones before are dead.
    pub async fn renew_recovery_codes(&self) -> Result<RecoveryCodes, ClientError> {
        self.post(&["auth", "factors", "recovery-codes"], &json!({})).await
    }

    /// Removes a second factor.
    pub async fn remove_factor(&self, id: &str) -> Result<Operation, ClientError> {
        self.delete(&["auth", "factors", id]).await
    }

    /// Removes the second factors of somebody who has lost them.
    pub async fn reset_factors(&self, user: &str) -> Result<Operation, ClientError> {
        self.delete(&["users", user, "factors"]).await
    }
}

/// An invitation without its token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Invitation {
    /// Short id.
    pub id: String,
    /// Name of the user to be.
    pub name: String,
    /// Roles of the user to be.
    pub roles: Vec<String>,
    /// `open`, `accepted`, `revoked` or `expired`.
    pub state: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Dead from then on.
    pub expires_at: Timestamp,
}

/// A reset with its token, which is shown once.
#[derive(Debug, Deserialize)]
pub struct StartedReset {
    /// Whose credential can be replaced.
    pub name: String,
    /// `password` or `factors`.
    pub what: String,
    /// Dead from then on.
    pub expires_at: Timestamp,
    /// For that person.
    pub token: Secret,
}

/// What a reset has done.
#[derive(Debug, Serialize, Deserialize)]
pub struct FinishedReset {
    /// Whose credential was replaced.
    pub name: String,
    /// `password` or `factors`.
    pub what: String,
}

/// A fresh invitation with its token, which is shown once.
#[derive(Debug, Deserialize)]
pub struct Invited {
    /// What is listed.
    #[serde(flatten)]
    pub invitation: Invitation,
    /// For the one who is invited.
    pub token: Secret,
}

/// Who an invitation has become.
#[derive(Debug, Serialize, Deserialize)]
pub struct Accepted {
    /// Sign-in name.
    pub name: String,
    /// Roles.
    pub roles: Vec<String>,
}

impl Client {
    /// Invitations, newest first.
    pub async fn invitations(&self) -> Result<Vec<Invitation>, ClientError> {
        self.get(&["users", "invitations"], &[]).await
    }

    /// Invites somebody.
    pub async fn invite(&self, name: &str, roles: &[String]) -> Result<Invited, ClientError> {
        self.post(&["users", "invitations"], &json!({ "name": name, "roles": roles })).await
    }

    /// Takes an open invitation back.
    pub async fn revoke_invitation(&self, id: &str) -> Result<Operation, ClientError> {
        self.delete(&["users", "invitations", id]).await
    }

    /// Lets somebody replace the `password`, or the second `factors`, with a token that works once.
    pub async fn start_reset(&self, name: &str, what: &str) -> Result<StartedReset, ClientError> {
        self.post(&["users", name, "reset"], &json!({ "what": what })).await
    }

    /// Takes the open resets of a user back.
    pub async fn revoke_reset(&self, name: &str) -> Result<Operation, ClientError> {
        self.delete(&["users", name, "reset"]).await
    }

    /// Replaces a credential. No token is needed but that of the reset.
    pub async fn finish_reset(
        &self,
        token: &Secret,
        password: &Secret,
    ) -> Result<FinishedReset, ClientError> {
        let body = json!({ "token": token.expose(), "password": password.expose() });
        self.post_as_nobody(&["auth", "reset"], &body).await
    }

    /// Becomes the invited user. No token is needed but that of the invitation.
    pub async fn accept_invitation(
        &self,
        token: &Secret,
        password: &Secret,
    ) -> Result<Accepted, ClientError> {
        let body = json!({ "token": token.expose(), "password": password.expose() });
        self.post_as_nobody(&["auth", "invitations", "accept"], &body).await
    }
}
