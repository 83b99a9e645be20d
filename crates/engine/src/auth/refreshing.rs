//! Refreshing: each use of a refresh token rotates it; a second use of an old one ends the whole session, except that the same
//! client repeating within [`GRACE`] gets the same successor (RFC 9700 section 4.14.2).

use std::time::Duration;

use interlock_model::scope::Scope;
use interlock_model::{AgentId, Timestamp};
use interlock_store::identity::{self, Put, Versioned};
use interlock_store::{Error, Tx};
use serde_json::json;

use super::documents::Session;
use super::elsewhere::NO_PASSWORD;
use super::sessions::{Issued, Present, tokens_of};
use super::tokens::{Claims, TokenKind};
use super::{Bound, Origin, Recorded, Sessions, TokenError, Tokens};
use crate::security::{self, Event};

/// The same client may repeat a refresh within this time.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// A person proves who it is again after this long, whatever was refreshed.
const LONGEST: Duration = Duration::from_hours(24 * 90);
/// The same for people of a directory: what they lose there, they lose here by then.
pub(super) const LONGEST_ELSEWHERE: Duration = Duration::from_hours(12);

/// Why there are no new tokens. To the outside all but the storage's error look the same.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The token is not in force.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// It was used before: the session is ended.
    #[error("invalid authentication credentials")]
    Reused,
    /// The storage's.
    #[error("record the new tokens")]
    Store(#[from] Error),
}

impl Sessions {
    /// Exchanges a refresh token for a new pair. `authenticated` is the agent that has proved who it is with this very
    /// request, if any: then it may repeat from anywhere.
    ///
    /// # Errors
    /// [`RefreshError`].
    pub async fn refresh(
        &self,
        token: &str,
        authenticated: Option<AgentId>,
        origin: &Origin,
    ) -> Result<Issued, RefreshError> {
        let rotated = self.rotate(token, authenticated, origin).await;
        match &rotated {
            Ok((issued, repeated)) => {
                security::authentication("refresh", "success");
                if !repeated {
                    metrics::counter!("orchestrator_jwt_tokens_revoked_total", "reason" => "rotated")
                        .increment(1);
                    Self::note_issued(&issued.session, origin);
                }
            }
            Err(error) => {
                security::authentication(
                    "refresh",
                    if matches!(error, RefreshError::Store(_)) { "error" } else { "failed" },
                );
            }
        }
        rotated.map(|(issued, _)| issued)
    }

    /// The pair, and whether it was given before.
    async fn rotate(
        &self,
        token: &str,
        authenticated: Option<AgentId>,
        origin: &Origin,
    ) -> Result<(Issued, bool), RefreshError> {
        let now = self.ambient.clock.now();
        let claims = self.tokens().read(token, TokenKind::Refresh)?;
        Tokens::check_time(&claims, now)?;
        let present = self.present(&claims)?;
        if authenticated.is_some_and(|agent| agent.to_string() != claims.sub) {
            return Err(TokenError::Principal.into());
        }
        if let Present::Agent(agent) = &present {
            let same = |scope: &Scope| claims.scopes.iter().any(|held| held == scope.as_str());
            let held = |scope: &String| agent.scopes.iter().any(|now| now.covers(scope));
            let unchanged = if claims.limited {
                claims.scopes.iter().all(held)
            } else {
                agent.scopes.len() == claims.scopes.len() && agent.scopes.iter().all(same)
            };
            if !unchanged {
                return Err(TokenError::Principal.into());
            }
        }
        if let Present::User(user) = &present {
            let longest = if user.password_hash == NO_PASSWORD { LONGEST_ELSEWHERE } else { LONGEST };
            if now.since(Timestamp::from_seconds(claims.auth_time)) > longest {
                return Err(TokenError::Expired.into());
            }
        }
        let next = Rotation {
            jti: claims.jti.clone(),
            refresh: self.fresh_jti(),
            access: self.fresh_jti(),
            now,
            end: self.end_of(claims.principal, true, now),
            longest: self.tokens().longest_session(),
            from: (origin.client_ip.to_string(), origin.user_agent.clone()),
            authenticated: authenticated.is_some(),
            certificate: origin.certificate.as_ref().map(|certificate| certificate.bound().clone()),
        };
        let proof =
            self.system.acting("token.refreshed", Some(claims.sub.clone())).on_behalf(&claims.sub, origin);
        let family = claims.fam.clone();
        let rotated =
            self.db().write(&proof, move |tx| Box::pin(async move { next.apply(tx, &family).await })).await;
        match rotated {
            Ok((session, repeated)) => Ok((self.issue(session)?, repeated)),
            Err(RefreshError::Reused) => {
                self.reuse_detected(&claims, origin).await?;
                Err(RefreshError::Reused)
            }
            Err(error) => Err(error),
        }
    }

    async fn reuse_detected(&self, claims: &Claims, origin: &Origin) -> Result<(), Error> {
        let proof = self
            .system
            .acting("token.reuse_detected", Some(claims.sub.clone()))
            .on_behalf(&claims.sub, origin);
        self.end(&proof, &claims.fam, "reuse").await?;
        let details = json!({ "token_type": "refresh", "jti": claims.jti, "session": claims.fam });
        security::event(Event::TokenReuseDetected, Some(&claims.sub), Some(origin), details);
        Ok(())
    }
}

/// One use of a refresh token.
struct Rotation {
    /// The token that was shown.
    jti: String,
    refresh: String,
    access: String,
    now: Timestamp,
    end: Timestamp,
    longest: Duration,
    from: (String, String),
    /// The client has proved who it is.
    authenticated: bool,
    /// The certificate that it shows.
    certificate: Option<Bound>,
}

impl Rotation {
    async fn apply(self, tx: &mut dyn Tx, family: &str) -> Result<Recorded<(Session, bool)>, RefreshError> {
        let found = identity::get::<Session>(tx, family).await?.ok_or(TokenError::Revoked)?;
        let Versioned { document: mut session, version } = found;
        if session.ended_at.is_some() {
            return Err(TokenError::Revoked.into());
        }
        // The session of a certificate goes on with that certificate, or with its successor (RFC 8705 section 4).
        let fits = match (&session.certificate, &self.certificate) {
            (None, _) => true,
            (Some(_), Some(_)) if self.authenticated => true,
            (Some(bound), Some(shown)) => bound.is_followed_by(shown),
            (Some(_), None) => false,
        };
        if !fits {
            return Err(TokenError::Certificate.into());
        }
        let details = |session: &Session, repeated: bool| {
            let mut details = tokens_of(session);
            details["repeated"] = json!(repeated);
            details
        };
        let last_moment = session.created_at.plus(self.longest);
        if session.refresh_jti.as_ref() == Some(&self.jti) {
            session.previous_jti = session.refresh_jti.replace(self.refresh);
            session.access_jti = self.access;
            session.issued_at = self.now;
            session.expires_at = self.end.min(last_moment);
            (session.client_ip, session.user_agent) = self.from;
            session.certificate = self.certificate;
            let session = Versioned { document: session, version };
            if identity::update(tx, &session).await? != Put::Done {
                return Err(Error::Corrupt("a session changed under its own lock".to_owned()).into());
            }
            let details = details(&session, false);
            return Ok(Recorded { value: (session.document, false), details });
        }
        let same_client =
            self.authenticated || (&session.client_ip, &session.user_agent) == (&self.from.0, &self.from.1);
        let repeats = session.previous_jti.as_ref() == Some(&self.jti)
            && same_client
            && self.now.since(session.issued_at) <= GRACE;
        if !repeats {
            return Err(RefreshError::Reused);
        }
        let details = details(&session, true);
        Ok(Recorded { value: (session, true), details })
    }
}
