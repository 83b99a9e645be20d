//! Client certificates: whom one names, and what is bound to it (RFC 8705).
//!
//! The server has verified it by the time it comes here. It proves an agent that has registered one of its names
//! (`tls_client_auth`, section 2.1), or a person ([`super::certificate_sign_in`]), never both; and whoever signs in over a connection with one gets tokens that are good together with
//! it alone (section 3), so that a stolen token is worth nothing.

use base64::Engine as _;
use interlock_model::Timestamp;
use interlock_model::text::{CertificateName, Form as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Most names of one agent.
pub(super) const MAX_NAMES: usize = 4;

/// A certificate that a client has shown, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    bound: Bound,
    expires_at: Timestamp,
    person: NamedPerson,
}

/// Whether a certificate names a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedPerson {
    /// It is of no authority for people.
    Nobody,
    /// It is, and cannot be read in one way only: why, for log and audit.
    Unclear(&'static str),
    /// What stands in the field that names people, unchanged.
    Named(String),
}

/// What a session keeps of the certificate that it was opened with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// SHA-256 of the certificate, in base64url (RFC 8705 section 3.1).
    pub thumbprint: String,
    /// Whom it names.
    pub names: Vec<String>,
}

impl Bound {
    /// Whether `other` is the same certificate, or one that its authority gave to the same names since.
    pub(super) fn is_followed_by(&self, other: &Self) -> bool {
        self.thumbprint == other.thumbprint || (!self.names.is_empty() && self.names == other.names)
    }
}

impl ClientCertificate {
    /// A certificate in DER form with the names that it holds, written `dns:mixer.lab.example` and
    /// `uri:spiffe://lab.example/mixer`.
    pub fn new(certificate: &[u8], mut names: Vec<String>, expires_at: Timestamp) -> Self {
        names.sort_unstable();
        let digest = Sha256::digest(certificate);
        let thumbprint = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest);
        Self { bound: Bound { thumbprint, names }, expires_at, person: NamedPerson::Nobody }
    }

    /// The same certificate, of an authority for people.
    #[must_use]
    pub fn naming(self, person: NamedPerson) -> Self {
        Self { person, ..self }
    }

    /// The person whom it names.
    pub fn person(&self) -> &NamedPerson {
        &self.person
    }

    /// SHA-256 of the certificate, in base64url.
    pub fn thumbprint(&self) -> &str {
        &self.bound.thumbprint
    }

    /// What a session keeps of it.
    pub(super) fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Whom it names.
    pub fn names(&self) -> &[String] {
        &self.bound.names
    }

    /// End of its validity.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Whether it names one of these.
    pub(super) fn names_any(&self, registered: &[String]) -> bool {
        registered.iter().any(|name| self.bound.names.contains(name))
    }
}

/// Why a name cannot be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// More than [`MAX_NAMES`].
    #[error("at most 4 names")]
    TooMany,
    /// Not a name that is accepted.
    #[error(
        "each name must be one alternative name of a certificate, such as dns:mixer.lab.example or uri:spiffe://lab.example/mixer, without wildcards"
    )]
    Form,
}

/// Checks names that an agent registers.
///
/// # Errors
/// [`BadName`].
pub fn check_names(names: &[String]) -> Result<Vec<String>, BadName> {
    if names.len() > MAX_NAMES {
        return Err(BadName::TooMany);
    }
    names.iter().map(|name| checked(name).ok_or(BadName::Form)).collect()
}

fn checked(name: &str) -> Option<String> {
    let (kind, rest) = name.split_once(':').filter(|_| CertificateName::RULE.holds(name))?;
    match kind {
        "dns" => {
            let label = |label: &str| {
                !label.is_empty()
                    && label.len() <= 63
                    && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            };
            rest.split('.').all(label).then(|| name.to_ascii_lowercase())
        }
        // As it stands in the certificate: URIs are compared byte by byte (RFC 8705 section 2.1.2).
        "uri" => {
            let (scheme, path) = rest.split_once(':')?;
            let good = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.'))
                && !path.is_empty()
                && path
                    .bytes()
                    .all(|c| c.is_ascii_graphic() && !matches!(c, b'"' | b'<' | b'>' | b'\\' | b'*'));
            good.then(|| name.to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_certificates_hold() {
        for (name, kept) in [
            ("dns:mixer.lab.example", Some("dns:mixer.lab.example")),
            ("dns:Mixer.Lab.Example", Some("dns:mixer.lab.example")),
            ("uri:spiffe://lab.example/Mixer", Some("uri:spiffe://lab.example/Mixer")),
            ("uri:urn:lab:mixer", Some("uri:urn:lab:mixer")),
            ("dns:*.lab.example", None),
            ("dns:", None),
            ("dns:lab..example", None),
            ("dns:-lab.example", None),
            ("uri:mixer", None),
            ("uri:https://lab.example/*", None),
            ("uri:https://lab.example/a b", None),
            ("mixer", None),
            ("ip:192.0.2.1", None),
        ] {
            assert_eq!(checked(name).as_deref(), kept, "{name}");
        }
        assert_eq!(checked(&format!("uri:urn:{}", "x".repeat(300))), None);
        assert_eq!(check_names(&vec!["dns:a".to_owned(); 5]), Err(BadName::TooMany));
    }

    #[test]
    fn a_renewed_certificate_follows_the_one_before_if_it_names_somebody() {
        let bound = |thumbprint: &str, names: &[&str]| Bound {
            thumbprint: thumbprint.to_owned(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
        };

        assert!(bound("a", &[]).is_followed_by(&bound("a", &[])));
        assert!(bound("a", &["dns:x"]).is_followed_by(&bound("b", &["dns:x"])));
        assert!(!bound("a", &["dns:x"]).is_followed_by(&bound("b", &["dns:y"])));
        assert!(!bound("a", &[]).is_followed_by(&bound("b", &[])));
    }
}
