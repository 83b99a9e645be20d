//! The internal authority: certificates of this installation's own, for first use.
//!
//! Whoever trusts `ca.pem` trusts this installation and nothing else: the authority signs certificates of this server only.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use interlock_model::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

use super::{TlsError, read, read_chain, validity};

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

impl Internal {
    /// Where they are in this folder.
    pub fn within(directory: &Path) -> Self {
        Self {
            ca_file: directory.join("ca.pem"),
            certificate: directory.join("server.pem"),
            key: directory.join("server.key"),
        }
    }
}

const DAY: i64 = 86_400;

/// A certificate from this installation's own authority, for `names`. Made once, renewed when a third of its 90 days is left or
/// the names have changed; the authority itself is valid for ten years and never leaves `directory`.
///
/// # Errors
/// [`TlsError`].
pub fn internal(directory: &Path, names: &[String], now: Timestamp) -> Result<Internal, TlsError> {
    let files = Internal::within(directory);
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
            .and_then(|chain| {
                // The authority comes along, so that `interlock trust` can see it.
                let whole = chain.len() == 2;
                let missing = || TlsError::Empty { path: files.certificate.clone(), what: "authority" };
                whole.then(|| validity(&files.certificate, &chain[0])).ok_or_else(missing)?
            })
            .is_ok_and(|(starts, ends)| starts <= now && ends.seconds() - now.seconds() > 30 * DAY);
    if !fresh {
        let authority_key = KeyPair::from_pem(&String::from_utf8_lossy(&read(&ca_key)?)).map_err(issue)?;
        let issuer =
            Issuer::from_ca_cert_pem(&String::from_utf8_lossy(&read(&files.ca_file)?), authority_key)
                .map_err(issue)?;
        let key = KeyPair::generate().map_err(issue)?;
        let certificate = server(names, now).map_err(issue)?.signed_by(&key, &issuer).map_err(issue)?;
        write(&files.key, &key.serialize_pem(), 0o600).map_err(unwritable)?;
        let chain = format!("{}{}", certificate.pem(), String::from_utf8_lossy(&read(&files.ca_file)?));
        write(&files.certificate, &chain, 0o644).map_err(unwritable)?;
        write(&names_file, &wanted, 0o644).map_err(unwritable)?;
    }
    Ok(files)
}

pub(super) fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
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
    // Ninety days with the one before.
    params.not_after = date(now.seconds() + 89 * DAY);
    Ok(params)
}
