//! Signing in people by client certificate.
//!
//! Authorities of their own say who people are, and a setting says in which field; the name is then that of an account here.
//! A certificate is one factor, and no guess: wrong passwords of others lock nobody out who has one, while the code of a
//! second factor beside it is counted like any other. The session is bound to the certificate and ends with it.

use interlock_model::secret::Secret;
use interlock_store::UserRow;

use super::certificate::{ClientCertificate, NamedPerson};
use super::elsewhere::External;
use super::opening::Opening;
use super::sign_in::SignedIn;
use super::{Origin, SignInError, SignIns, Throttle};
use crate::emergency;
use crate::security;

/// As in sessions and in the audit trail.
const METHOD: &str = "certificate";

/// What certificates of people are good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateSignIn {
    /// The names end with `@` and this; what stands before it is the account. Without it the whole name is.
    pub domain: Option<String>,
    /// Whoever has no account is given one with these roles; if there are none, nobody is.
    pub roles: Vec<String>,
}

impl CertificateSignIn {
    /// The account that a name in a certificate stands for.
    fn account(&self, name: &str) -> Option<String> {
        let account = match &self.domain {
            None => name,
            Some(domain) => {
                let (account, of) = name.split_once('@')?;
                of.eq_ignore_ascii_case(domain).then_some(account)?
            }
        };
        let account = crate::users::canonical_name(account).ok()?;
        // An agent's id is no name of a person, and nobody has a certificate for emergencies.
        (account.parse::<interlock_model::AgentId>().is_err() && account != emergency::NAME)
            .then_some(account)
    }
}

impl SignIns {
    /// Opens a session for the person whom the certificate of the connection names. `code` is that of the second factor, of
    /// those who have one.
    ///
    /// # Errors
    /// [`SignInError::NotOffered`] without authorities for people; [`SignInError::Refused`] for every certificate that names
    /// nobody who may sign in; [`SignInError::SecondFactor`]; [`SignInError::Wait`] for those who guess codes.
    pub async fn certificate(&self, code: Option<Secret>, origin: &Origin) -> Result<SignedIn, SignInError> {
        let offered = self.arrivals().certificates().ok_or(SignInError::NotOffered)?;
        let refuse = |reason: &str| {
            self.arrivals().note_refusal(METHOD, reason, origin);
            Err(SignInError::Refused)
        };
        let Some(certificate) = origin.certificate.as_deref() else { return refuse("no_certificate") };
        let named = match certificate.person() {
            NamedPerson::Nobody => return refuse("certificate_of_no_person"),
            NamedPerson::Unclear(reason) => return refuse(reason),
            NamedPerson::Named(named) => named,
        };
        let Some(name) = offered.account(named) else { return refuse("name_not_allowed") };
        let user: UserRow = match self.principals.user(&name) {
            Some(user) if user.disabled => return refuse("disabled"),
            Some(user) => UserRow::clone(&user),
            None if offered.roles.is_empty() => return refuse("no_account"),
            None => {
                let (subject, roles) = (format!("{METHOD}:{name}"), offered.roles.clone());
                self.arrivals().account(&External { subject, name, roles, method: METHOD }, origin).await?
            }
        };
        self.open_by_certificate(&user, certificate, code, origin).await
    }

    async fn open_by_certificate(
        &self,
        user: &UserRow,
        certificate: &ClientCertificate,
        code: Option<Secret>,
        origin: &Origin,
    ) -> Result<SignedIn, SignInError> {
        // Only who has a second factor can be wrong about something.
        let guesser = if self.principals.has_second_factor(&user.name) {
            Some(self.admit(&user.name, origin, "device.login").await?)
        } else {
            None
        };
        let shown = self.check_second_factor(user, code, origin).await?;
        let amr: &[&str] = if shown { &["swk", "otp"] } else { &["swk"] };
        let opening = Opening::user(user, &self.principals.roles(), METHOD, amr, origin);
        let opening = Opening { until: Some(certificate.expires_at()), ..opening };
        let now = self.ambient.clock.now();
        let opened = self.sessions.open(opening, move |tx, _| {
            Box::pin(async move {
                match guesser {
                    Some(guesser) => Throttle::succeed(tx, &guesser, now).await,
                    None => Ok(()),
                }
            })
        });
        let issued = opened.await.inspect_err(|_| security::authentication("login", "error"))?;
        security::authentication("login", "success");
        Ok(SignedIn { user: user.name.clone(), roles: issued.session.roles.clone(), issued })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_an_account_in_one_way_or_in_none() {
        let whole = CertificateSignIn { domain: None, roles: vec![] };
        let within = CertificateSignIn { domain: Some("lab.example".to_owned()), roles: vec![] };
        let agent = interlock_model::AgentId::SYSTEM.to_string();
        for (name, as_a_whole, in_the_domain) in [
            ("ana", Some("ana"), None),
            ("Ana@LAB.example", Some("ana@lab.example"), Some("ana")),
            ("ana@lab.example.evil.example", Some("ana@lab.example.evil.example"), None),
            ("ana@evil.example@lab.example", Some("ana@evil.example@lab.example"), None),
            ("@lab.example", None, None),
            ("ana@lab.example\0", None, None),
            ("ana\0@lab.example", None, None),
            ("ana @lab.example", None, None),
            ("\u{430}na@lab.example", None, None),
            ("", None, None),
            (emergency::NAME, None, None),
            ("break-glass@lab.example", Some("break-glass@lab.example"), None),
        ] {
            assert_eq!(whole.account(name).as_deref(), as_a_whole, "{name:?}");
            assert_eq!(within.account(name).as_deref(), in_the_domain, "{name:?}");
        }
        assert_eq!((whole.account(&agent), within.account(&format!("{agent}@lab.example"))), (None, None));
    }
}
