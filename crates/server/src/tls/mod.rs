//! Certificates: the server's own, given as PEM files or issued by this installation's authority, and those of clients.
//!
//! Every mistake is found at start-up: missing, unreadable, mismatched and expired files stop it with words. Later,
//! [`Keeper`] looks at the files again, and what cannot be used leaves what is in force. [`clients`] says which client
//! certificates are taken and who they name.

pub mod acme;
mod clients;
mod internal;
mod keeper;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use interlock_model::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

pub use clients::{ClientSources, PeopleSources, PersonField, Presented};
pub(crate) use clients::{lists_in, machine, person, why_refused};
pub use internal::{Internal, internal};
pub use keeper::{Condition, Keeper, Sources};

/// Why there is no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read {path}: {reason}. Check the path and that this user may read it")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        reason: String,
    },
    /// A file holds none of what it should.
    #[error("{path} holds no {what} in PEM form")]
    Empty {
        /// The file.
        path: PathBuf,
        /// `certificate`, `private key` or `certificate revocation list`.
        what: &'static str,
    },
    /// The key belongs to another certificate.
    #[error("the private key in {key} does not belong to the certificate in {certificate}")]
    Mismatched {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// Its time is over.
    #[error("the certificate in {path} expired on {at}. Renew it, then start again")]
    Expired {
        /// The file.
        path: PathBuf,
        /// End of validity.
        at: Timestamp,
    },
    /// Its time has not come.
    #[error("the certificate in {path} is not valid before {at}. Check this machine's clock, or wait")]
    NotYet {
        /// The file.
        path: PathBuf,
        /// Start of validity.
        at: Timestamp,
    },
    /// It cannot be used.
    #[error("use {path}: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The internal authority cannot issue.
    #[error("issue a certificate: {0}")]
    Issue(String),
}

/// A chain and its key, checked against each other.
fn certified(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let chain = read_chain(certificate)?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|_| TlsError::Empty { path: key.to_owned(), what: "private key" })?;
    CertifiedKey::from_der(chain, private, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::Mismatched { certificate: certificate.to_owned(), key: key.to_owned() }
        }
        other => TlsError::Unusable { path: certificate.to_owned(), reason: other.to_string() },
    })
}

/// One certificate for every name: the host check is the perimeter's.
#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for One {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Versions that are spoken: 1.3, and 1.2 if asked.
fn versions(tls12: bool) -> &'static [&'static rustls::SupportedProtocolVersion] {
    static BOTH: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
    &BOTH[..if tls12 { 2 } else { 1 }]
}

fn protocols() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}

fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default()
        .map_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()), Arc::clone)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::Unreadable { path: path.to_owned(), reason: error.to_string() })
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    chain
        .ok()
        .filter(|chain| !chain.is_empty())
        .ok_or_else(|| TlsError::Empty { path: path.to_owned(), what: "certificate" })
}

fn check_validity(
    path: &Path,
    (starts, ends): (Timestamp, Timestamp),
    now: Timestamp,
) -> Result<(), TlsError> {
    if now < starts {
        return Err(TlsError::NotYet { path: path.to_owned(), at: starts });
    }
    if now >= ends {
        return Err(TlsError::Expired { path: path.to_owned(), at: ends });
    }
    Ok(())
}

/// From when to when a certificate is valid.
fn validity(path: &Path, certificate: &[u8]) -> Result<(Timestamp, Timestamp), TlsError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| TlsError::Unusable { path: path.to_owned(), reason: error.to_string() })?;
    let validity = parsed.validity();
    Ok((
        Timestamp::from_seconds(validity.not_before.timestamp()),
        Timestamp::from_seconds(validity.not_after.timestamp()),
    ))
}

/// SHA-256 fingerprint of the first certificate in a file, as people compare it.
///
/// # Errors
/// [`TlsError`].
pub fn fingerprint(path: &Path) -> Result<String, TlsError> {
    Ok(interlock_model::id::fingerprint(&read_chain(path)?[0]))
}

/// The first certificate in a file.
///
/// # Errors
/// [`TlsError`].
pub fn first_certificate(path: &Path) -> Result<CertificateDer<'static>, TlsError> {
    Ok(read_chain(path)?.swap_remove(0))
}

/// A certificate in PEM form (RFC 7468).
pub fn pem(certificate: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for start in (0..text.len()).step_by(64) {
        pem.push_str(&text[start..text.len().min(start + 64)]);
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// What people want to know of a certificate.
#[derive(Debug, Clone)]
pub struct Described {
    /// Whose it is.
    pub subject: String,
    /// DNS names and addresses that it is for.
    pub names: Vec<String>,
    /// SHA-256, as people compare it.
    pub fingerprint: String,
    /// From when on it is valid.
    pub starts_at: Timestamp,
    /// Until when.
    pub expires_at: Timestamp,
    /// It may sign others.
    pub is_authority: bool,
}

/// Reads a certificate.
///
/// # Errors
/// [`TlsError::Unreadable`].
pub fn describe(certificate: &[u8]) -> Result<Described, TlsError> {
    use x509_parser::extensions::GeneralName;
    let unreadable = |reason: String| TlsError::Unreadable { path: "the certificate".into(), reason };
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| unreadable(error.to_string()))?;
    let alternative = parsed.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
    let names =
        alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        });
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_seconds(time.timestamp());
    Ok(Described {
        subject: parsed.subject().to_string(),
        names: names.collect(),
        fingerprint: interlock_model::id::fingerprint(certificate),
        starts_at: at(parsed.validity().not_before),
        expires_at: at(parsed.validity().not_after),
        is_authority: parsed.is_ca(),
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// Names under which a listener on `address` is reached from this machine.
pub fn loopback_names(address: IpAddr) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !address.is_unspecified() && !names.contains(&address.to_string()) {
        names.push(address.to_string());
    }
    names
}

#[cfg(test)]
mod tests {
    use interlock_model::time::TestClock;

    use super::*;

    const DAY: i64 = 86_400;

    fn now() -> Timestamp {
        Timestamp::from_seconds(1_780_000_000)
    }

    fn at(days: i64) -> Timestamp {
        Timestamp::from_seconds(now().seconds() + days * DAY)
    }

    fn issued(directory: &Path, at: Timestamp) -> Internal {
        internal(directory, &loopback_names("127.0.0.1".parse().expect("address")), at).expect("issued")
    }

    fn open(certificate: &Path, key: &Path, at: Timestamp) -> Result<Arc<Keeper>, TlsError> {
        let sources = Sources::files(certificate.to_owned(), key.to_owned());
        Keeper::open(sources, Arc::new(TestClock::at(at)))
    }

    #[test]
    fn an_internal_certificate_is_made_once_and_renewed_in_time() {
        let directory = tempfile::tempdir().expect("folder");
        let files = issued(directory.path(), now());
        let first = fingerprint(&files.certificate).expect("fingerprint");
        let authority = fingerprint(&files.ca_file).expect("fingerprint");

        assert!(open(&files.certificate, &files.key, now()).is_ok());
        issued(directory.path(), now());
        assert_eq!(fingerprint(&files.certificate).expect("fingerprint"), first);

        issued(directory.path(), at(70));
        assert_ne!(fingerprint(&files.certificate).expect("fingerprint"), first);
        assert_eq!(fingerprint(&files.ca_file).expect("fingerprint"), authority);
    }

    #[test]
    fn a_server_that_runs_for_long_renews_its_internal_certificate_by_itself() {
        let directory = tempfile::tempdir().expect("folder");
        let clock = Arc::new(TestClock::at(now()));
        let sources = Sources::internal(directory.path(), vec!["localhost".to_owned()]);
        let keeper = Keeper::open(sources, Arc::clone(&clock) as _).expect("certificates");
        let (_, before) = keeper.condition();

        clock.advance(std::time::Duration::from_hours(24 * 70));
        keeper.refresh();

        let (condition, after) = keeper.condition();
        assert_eq!(condition, Condition::Good);
        assert!(after > before);
    }

    #[test]
    fn every_mistake_is_named() {
        let (one, two) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        let (a, b) = (issued(one.path(), now()), issued(two.path(), now()));
        let missing = one.path().join("missing.pem");

        assert!(matches!(open(&missing, &a.key, now()), Err(TlsError::Unreadable { .. })));
        assert!(matches!(open(&a.key, &a.key, now()), Err(TlsError::Empty { what: "certificate", .. })));
        assert!(matches!(
            open(&a.certificate, &a.certificate, now()),
            Err(TlsError::Empty { what: "private key", .. })
        ));
        assert!(matches!(open(&a.certificate, &b.key, now()), Err(TlsError::Mismatched { .. })));
        assert!(matches!(open(&a.certificate, &a.key, at(91)), Err(TlsError::Expired { .. })));
        assert!(matches!(open(&a.certificate, &a.key, at(-2)), Err(TlsError::NotYet { .. })));
    }

    #[test]
    fn every_mistake_about_clients_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let files = issued(folder.path(), now());
        let with = |authorities: &Path, revocations: Option<&Path>| {
            let clients = ClientSources {
                machines: Some(authorities.to_owned()),
                people: None,
                revocations: revocations.map(Path::to_owned),
                required: true,
            };
            let sources = Sources::files(files.certificate.clone(), files.key.clone());
            let sources = Sources { clients: Some(clients), ..sources };
            Keeper::open(sources, Arc::new(TestClock::at(now())))
        };
        let missing = folder.path().join("missing.pem");

        assert!(with(&files.ca_file, None).is_ok());
        assert!(matches!(with(&missing, None), Err(TlsError::Unreadable { .. })));
        assert!(matches!(with(&files.key, None), Err(TlsError::Empty { what: "certificate", .. })));
        assert!(matches!(with(&files.ca_file, Some(&missing)), Err(TlsError::Unreadable { .. })));
        assert!(matches!(
            with(&files.ca_file, Some(&files.ca_file)),
            Err(TlsError::Empty { what: "certificate revocation list", .. })
        ));
    }
}
