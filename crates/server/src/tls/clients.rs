//! Certificates of clients: which are taken, whom they name, and whether they still hold.
//!
//! A certificate is checked in the handshake: chain, validity, key usage, revocation. It is checked again when the
//! authorities or the revocation lists change while its connection is open, and its end is looked at with every request.
//! What a certificate allows is the engine's to say (`interlock_engine::auth::ClientCertificate`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use interlock_engine::auth::ClientCertificate;
use interlock_model::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, RootCertStore};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use super::{Keeper, TlsError, read, read_chain, validity};

/// Most names of one certificate that are looked at, and their longest, in bytes.
const MOST_NAMES: usize = 16;
const LONGEST_NAME: usize = 255;

/// Where it is said which client certificates are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSources {
    /// Authorities, PEM.
    pub authorities: PathBuf,
    /// Revocation lists, PEM: one for each authority that occurs in chains. Without them nothing is ever revoked.
    pub revocations: Option<PathBuf>,
    /// Whoever shows no certificate gets no connection.
    pub required: bool,
}

/// What the files say.
pub(super) struct Clients {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// Begin and end of the authority that ends first.
    pub(super) authorities: Option<(Timestamp, Timestamp)>,
    /// The same of the revocation list that should be replaced first, if there are lists that say when.
    pub(super) revocations: Option<(Timestamp, Timestamp)>,
}

impl ClientSources {
    pub(super) fn load(&self, provider: Arc<CryptoProvider>) -> Result<Clients, TlsError> {
        let unusable = |path: &PathBuf, reason: String| TlsError::Unusable { path: path.clone(), reason };
        let mut roots = RootCertStore::empty();
        let mut authorities = None;
        for authority in read_chain(&self.authorities)? {
            authorities = sooner(authorities, Some(validity(&self.authorities, &authority)?));
            roots.add(authority).map_err(|error| unusable(&self.authorities, error.to_string()))?;
        }
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let mut revocations = None;
        if let Some(path) = &self.revocations {
            let bytes = read(path)?;
            let lists: Vec<CertificateRevocationListDer<'static>> =
                CertificateRevocationListDer::pem_slice_iter(&bytes)
                    .collect::<Result<_, _>>()
                    .ok()
                    .filter(|lists: &Vec<_>| !lists.is_empty())
                    .ok_or_else(|| TlsError::Empty {
                        path: path.clone(),
                        what: "certificate revocation list",
                    })?;
            for list in &lists {
                let (_, parsed) =
                    x509_parser::revocation_list::CertificateRevocationList::from_der(list.as_ref())
                        .map_err(|error| unusable(path, error.to_string()))?;
                let at = |time: x509_parser::time::ASN1Time| Timestamp::from_seconds(time.timestamp());
                let span = parsed.next_update().map(|end| (at(parsed.last_update()), at(end)));
                revocations = sooner(revocations, span);
            }
            builder = builder.with_crls(lists);
        }
        if !self.required {
            builder = builder.allow_unauthenticated();
        }
        let verifier = builder.build().map_err(|error| {
            unusable(self.revocations.as_ref().unwrap_or(&self.authorities), error.to_string())
        })?;
        Ok(Clients { verifier, authorities, revocations })
    }
}

/// The one that ends sooner.
fn sooner(
    one: Option<(Timestamp, Timestamp)>,
    other: Option<(Timestamp, Timestamp)>,
) -> Option<(Timestamp, Timestamp)> {
    one.into_iter().chain(other).min_by_key(|(_, ends)| *ends)
}

/// The certificate that a client has shown on a connection.
pub struct Presented {
    identity: Arc<ClientCertificate>,
    chain: Vec<CertificateDer<'static>>,
    keeper: Arc<Keeper>,
    /// The keeper's generation under which it was checked, times two, and one more if it was good.
    checked: AtomicU64,
}

impl std::fmt::Debug for Presented {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Presented({})", self.identity.thumbprint())
    }
}

impl Presented {
    /// What a handshake under this generation has verified. `None` if it holds no certificate that can be read.
    pub(crate) fn new(chain: &[CertificateDer<'_>], keeper: &Arc<Keeper>, generation: u64) -> Option<Self> {
        let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let identity = Arc::new(identity(chain.first()?)?);
        Some(Self {
            identity,
            chain,
            keeper: Arc::clone(keeper),
            checked: AtomicU64::new(generation * 2 + 1),
        })
    }

    /// Whom it names.
    pub fn identity(&self) -> &Arc<ClientCertificate> {
        &self.identity
    }

    /// Whether it still holds: not expired, and good under the authorities and revocation lists of now.
    pub fn is_good(&self, now: Timestamp) -> bool {
        if now >= self.identity.expires_at() {
            return false;
        }
        let (generation, verifier) = self.keeper.verifier();
        let checked = self.checked.load(Ordering::Acquire);
        if checked / 2 == generation {
            return checked % 2 == 1;
        }
        let Some(verifier) = verifier else { return false };
        let seconds = u64::try_from(now.seconds()).unwrap_or(0);
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let good = verifier.verify_client_cert(&self.chain[0], &self.chain[1..], at).is_ok();
        self.checked.store(generation * 2 + u64::from(good), Ordering::Release);
        good
    }
}

/// Why a handshake failed, where it was for the client's certificate.
pub(crate) fn why_refused(error: &std::io::Error) -> Option<&'static str> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::NoCertificatesPresented => "none",
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not_yet_valid",
            CertificateError::Revoked => "revoked",
            CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => "revocation_unknown",
            CertificateError::UnknownIssuer => "unknown_authority",
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => "purpose",
            CertificateError::BadSignature => "signature",
            _ => "invalid",
        },
        _ => return None,
    })
}

/// Reads whom a certificate names: the URI and DNS names among its alternative names. The common name names nobody
/// (RFC 9525 section 2).
fn identity(certificate: &[u8]) -> Option<ClientCertificate> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(format!("uri:{uri}")),
            GeneralName::DNSName(name) => Some(format!("dns:{}", name.to_ascii_lowercase())),
            _ => None,
        })
        .filter(|name| name.len() <= LONGEST_NAME)
        .take(MOST_NAMES)
        .collect();
    let end = Timestamp::from_seconds(parsed.validity().not_after.timestamp());
    Some(ClientCertificate::new(certificate, names, end))
}
