//! Certificates: given as PEM files, or issued by this installation's own authority for first use.
//!
//! Every mistake is found at start-up: missing, unreadable, mismatched and expired files stop it with words.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use interlock_model::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

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
    /// A file holds no certificate or key.
    #[error("{path} holds no {what} in PEM form")]
    Empty {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
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
    #[error("use the certificate in {path}: {reason}")]
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

/// Loads a chain and its key and checks them against each other and against the clock.
///
/// # Errors
/// [`TlsError`].
pub fn load(
    certificate: &Path,
    key: &Path,
    tls12: bool,
    now: Timestamp,
) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = read_chain(certificate)?;
    check_validity(certificate, &chain, now)?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|_| TlsError::Empty { path: key.to_owned(), what: "private key" })?;
    let provider = provider();
    let certified = CertifiedKey::from_der(chain, private, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::Mismatched { certificate: certificate.to_owned(), key: key.to_owned() }
        }
        other => TlsError::Unusable { path: certificate.to_owned(), reason: other.to_string() },
    })?;
    let versions: &[&rustls::SupportedProtocolVersion] =
        if tls12 { &[&rustls::version::TLS13, &rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| TlsError::Issue(error.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(One(Arc::new(certified))));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// One certificate for every name: the host check is the perimeter's.
#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for One {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
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

fn check_validity(path: &Path, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<(), TlsError> {
    let (starts, ends) = validity(path, chain)?;
    if now < starts {
        return Err(TlsError::NotYet { path: path.to_owned(), at: starts });
    }
    if now >= ends {
        return Err(TlsError::Expired { path: path.to_owned(), at: ends });
    }
    Ok(())
}

fn validity(path: &Path, chain: &[CertificateDer<'_>]) -> Result<(Timestamp, Timestamp), TlsError> {
    let leaf = chain.first().ok_or_else(|| TlsError::Empty { path: path.to_owned(), what: "certificate" })?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf)
        .map_err(|error| TlsError::Unusable { path: path.to_owned(), reason: error.to_string() })?;
    let validity = parsed.validity();
    Ok((
        Timestamp::from_seconds(validity.not_before.timestamp()),
        Timestamp::from_seconds(validity.not_after.timestamp()),
    ))
}

/// Files of the internal authority.
#[derive(Debug, Clone)]
pub struct Internal {
    /// What clients trust.
    pub ca_file: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

const DAY: i64 = 86_400;

/// A certificate from this installation's own authority, for `names`. Made once, renewed when a third of its 90 days is left or
/// the names have changed; the authority itself is valid for ten years and never leaves `directory`.
///
/// # Errors
/// [`TlsError`].
pub fn internal(directory: &Path, names: &[String], now: Timestamp) -> Result<Internal, TlsError> {
    let files = Internal {
        ca_file: directory.join("ca.pem"),
        certificate: directory.join("server.pem"),
        key: directory.join("server.key"),
    };
    let ca_key = directory.join("ca.key");
    let names_file = directory.join("server.names");
    let issue = |error: rcgen::Error| TlsError::Issue(error.to_string());
    let unwritable = |error: std::io::Error| TlsError::Issue(format!("{}: {error}", directory.display()));
    fs::create_dir_all(directory).map_err(unwritable)?;
    if !files.ca_file.exists() || !ca_key.exists() {
        let key = KeyPair::generate().map_err(issue)?;
        let certificate = authority(now).map_err(issue)?.self_signed(&key).map_err(issue)?;
        write(&ca_key, &key.serialize_pem(), 0o600).map_err(unwritable)?;
        write(&files.ca_file, &certificate.pem(), 0o644).map_err(unwritable)?;
        let _ = fs::remove_file(&files.certificate);
    }
    let wanted = names.join("\n");
    let fresh = files.key.exists()
        && fs::read_to_string(&names_file).is_ok_and(|stored| stored == wanted)
        && read_chain(&files.certificate)
            .and_then(|chain| validity(&files.certificate, &chain))
            .is_ok_and(|(starts, ends)| starts <= now && ends.seconds() - now.seconds() > 30 * DAY);
    if !fresh {
        let authority_key = KeyPair::from_pem(&String::from_utf8_lossy(&read(&ca_key)?)).map_err(issue)?;
        let issuer =
            Issuer::from_ca_cert_pem(&String::from_utf8_lossy(&read(&files.ca_file)?), authority_key)
                .map_err(issue)?;
        let key = KeyPair::generate().map_err(issue)?;
        let certificate = server(names, now).map_err(issue)?.signed_by(&key, &issuer).map_err(issue)?;
        write(&files.key, &key.serialize_pem(), 0o600).map_err(unwritable)?;
        write(&files.certificate, &certificate.pem(), 0o644).map_err(unwritable)?;
        write(&names_file, &wanted, 0o644).map_err(unwritable)?;
    }
    Ok(files)
}

fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn date(at: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(at).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

fn authority(now: Timestamp) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "Interlock internal CA");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = date(now.seconds() - DAY);
    params.not_after = date(now.seconds() + 3650 * DAY);
    Ok(params)
}

fn server(names: &[String], now: Timestamp) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names.to_vec())?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "Interlock");
    params.distinguished_name = name;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = date(now.seconds() - DAY);
    params.not_after = date(now.seconds() + 90 * DAY);
    Ok(params)
}

/// SHA-256 fingerprint of the first certificate in a file, as people compare it.
///
/// # Errors
/// [`TlsError`].
pub fn fingerprint(path: &Path) -> Result<String, TlsError> {
    use sha2::Digest as _;
    let chain = read_chain(path)?;
    let digest = sha2::Sha256::digest(&chain[0]);
    Ok(digest.iter().enumerate().fold(String::new(), |mut text, (index, byte)| {
        let _ = write!(text, "{}{byte:02X}", if index == 0 { "" } else { ":" });
        text
    }))
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
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_seconds(1_780_000_000)
    }

    fn issued(directory: &Path) -> Internal {
        internal(directory, &loopback_names("127.0.0.1".parse().expect("address")), now()).expect("issued")
    }

    #[test]
    fn an_internal_certificate_is_made_once_and_renewed_in_time() {
        let directory = tempfile::tempdir().expect("folder");
        let files = issued(directory.path());
        let first = fingerprint(&files.certificate).expect("fingerprint");
        let authority = fingerprint(&files.ca_file).expect("fingerprint");

        assert!(load(&files.certificate, &files.key, false, now()).is_ok());
        issued(directory.path());
        assert_eq!(fingerprint(&files.certificate).expect("fingerprint"), first);

        let later = Timestamp::from_seconds(now().seconds() + 70 * DAY);
        internal(directory.path(), &loopback_names("127.0.0.1".parse().expect("address")), later)
            .expect("renewed");
        assert_ne!(fingerprint(&files.certificate).expect("fingerprint"), first);
        assert_eq!(fingerprint(&files.ca_file).expect("fingerprint"), authority);
    }

    #[test]
    fn every_mistake_is_named() {
        let (one, two) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        let (a, b) = (issued(one.path()), issued(two.path()));
        let missing = one.path().join("missing.pem");
        let late = Timestamp::from_seconds(now().seconds() + 91 * DAY);
        let early = Timestamp::from_seconds(now().seconds() - 2 * DAY);

        assert!(matches!(load(&missing, &a.key, false, now()), Err(TlsError::Unreadable { .. })));
        assert!(matches!(
            load(&a.key, &a.key, false, now()),
            Err(TlsError::Empty { what: "certificate", .. })
        ));
        assert!(matches!(
            load(&a.certificate, &a.certificate, false, now()),
            Err(TlsError::Empty { what: "private key", .. })
        ));
        assert!(matches!(load(&a.certificate, &b.key, false, now()), Err(TlsError::Mismatched { .. })));
        assert!(matches!(load(&a.certificate, &a.key, false, late), Err(TlsError::Expired { .. })));
        assert!(matches!(load(&a.certificate, &a.key, false, early), Err(TlsError::NotYet { .. })));
    }
}
