//! Certificates of clients: which are taken, whom they name, and whether they still hold.
//!
//! A certificate is checked in the handshake: chain, validity, key usage, revocation. It is checked again when the
//! authorities or the revocation lists change while its connection is open, and its end is looked at with every request.
//! What a certificate allows is the engine's to say (`interlock_engine::auth::ClientCertificate`).
//!
//! Machines and people have authorities of their own. A certificate that the authorities of machines vouch for names no
//! person, whatever stands in it, and one of a person names no machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use interlock_engine::auth::{ClientCertificate, NamedPerson};
use interlock_model::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, RootCertStore};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::{Keeper, TlsError, read, read_chain, validity};

/// Most names of one certificate that are looked at, and their longest, in bytes.
const MOST_NAMES: usize = 16;
const LONGEST_NAME: usize = 255;

/// Where it is said which client certificates are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSources {
    /// Authorities of machines, PEM.
    pub machines: Option<PathBuf>,
    /// Authorities of people.
    pub people: Option<PeopleSources>,
    /// Revocation lists, PEM: one for each authority that occurs in chains. Without them nothing is ever revoked.
    pub revocations: Option<PathBuf>,
    /// Whoever shows no certificate gets no connection.
    pub required: bool,
}

/// Where it is said which certificates are of people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeopleSources {
    /// Authorities, PEM. None of them is one of machines.
    pub authorities: PathBuf,
    /// Where a certificate names its person.
    pub field: PersonField,
}

/// A field that names a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PersonField {
    /// The one mail address among the alternative names (RFC 5280 section 4.2.1.6).
    Mail,
    /// The one user principal name of Active Directory among the alternative names.
    PrincipalName,
    /// The one common name of the subject.
    CommonName,
}

/// Judges the certificates of clients.
#[derive(Clone)]
pub(super) struct Judge {
    /// Takes what any of the authorities vouches for: it sees to the handshake.
    pub(super) any: Arc<dyn ClientCertVerifier>,
    /// Tells machines and people apart, where there are authorities of people.
    apart: Option<Arc<Apart>>,
}

/// What tells machines and people apart.
struct Apart {
    machines: Option<Arc<dyn ClientCertVerifier>>,
    people: Arc<dyn ClientCertVerifier>,
    field: PersonField,
}

/// What the files say.
pub(super) struct Clients {
    pub(super) judge: Judge,
    /// Begin and end of the authority that ends first.
    pub(super) authorities: Option<(Timestamp, Timestamp)>,
    /// The same of the revocation list that should be replaced first, if there are lists that say when.
    pub(super) revocations: Option<(Timestamp, Timestamp)>,
}

impl ClientSources {
    /// The files.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let people = self.people.as_ref().map(|people| &people.authorities);
        self.machines.iter().chain(people).chain(self.revocations.as_ref())
    }

    pub(super) fn load(&self, provider: &Arc<CryptoProvider>) -> Result<Clients, TlsError> {
        let mut spans = (None, None);
        let mut of_machines = Vec::new();
        if let Some(path) = &self.machines {
            of_machines = authorities(path, &mut spans.0)?;
        }
        let mut of_people = Vec::new();
        if let Some(people) = &self.people {
            of_people = authorities(&people.authorities, &mut spans.0)?;
            if of_people.iter().any(|one| of_machines.iter().any(|other| is_the_same(one, other))) {
                let reason = "it holds an authority of machines too, so every machine could be a person. Give people one of \
                              their own, such as an intermediate authority";
                return Err(unusable(&people.authorities, reason.to_owned()));
            }
        }
        let lists = match &self.revocations {
            Some(path) => lists(path, &mut spans.1)?,
            None => Vec::new(),
        };
        let verifier = |trusted: &[CertificateDer<'static>], optional: bool| {
            let Some(path) = self.files().next() else {
                return Err(TlsError::Issue("no authority of clients is given".to_owned()));
            };
            let mut roots = RootCertStore::empty();
            for authority in trusted {
                roots.add(authority.clone()).map_err(|error| unusable(path, error.to_string()))?;
            }
            let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
            let builder = if lists.is_empty() { builder } else { builder.with_crls(lists.clone()) };
            let builder = if optional { builder.allow_unauthenticated() } else { builder };
            let built = builder.build();
            built.map_err(|error| unusable(self.revocations.as_ref().unwrap_or(path), error.to_string()))
        };
        let apart = match &self.people {
            None => None,
            Some(people) => Some(Arc::new(Apart {
                machines: self.machines.is_some().then(|| verifier(&of_machines, false)).transpose()?,
                people: verifier(&of_people, false)?,
                field: people.field,
            })),
        };
        let any = verifier(&[of_machines, of_people].concat(), !self.required)?;
        Ok(Clients { judge: Judge { any, apart }, authorities: spans.0, revocations: spans.1 })
    }
}

fn unusable(path: &Path, reason: String) -> TlsError {
    TlsError::Unusable { path: path.to_owned(), reason }
}

/// Begin and end of what ends first.
type Sooner = Option<(Timestamp, Timestamp)>;

/// The authorities in a file.
fn authorities(path: &Path, span: &mut Sooner) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let authorities = read_chain(path)?;
    for authority in &authorities {
        *span = sooner(*span, Some(validity(path, authority)?));
    }
    Ok(authorities)
}

/// Whether two certificates are of one authority: its name and key count, not when it was certified.
fn is_the_same(one: &CertificateDer<'_>, other: &CertificateDer<'_>) -> bool {
    let read = |certificate: &CertificateDer<'_>| {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        Some((parsed.subject().as_raw().to_vec(), parsed.public_key().raw.to_vec()))
    };
    read(one).is_some_and(|one| Some(one) == read(other))
}

/// The revocation lists in a file.
fn lists(path: &Path, span: &mut Sooner) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    lists_in(&read(path)?, path, span)
}

/// The same of what was read from it.
pub(crate) fn lists_in(
    bytes: &[u8],
    path: &Path,
    span: &mut Sooner,
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let lists: Vec<CertificateRevocationListDer<'static>> =
        CertificateRevocationListDer::pem_slice_iter(bytes)
            .collect::<Result<_, _>>()
            .ok()
            .filter(|lists: &Vec<_>| !lists.is_empty())
            .ok_or_else(|| TlsError::Empty { path: path.to_owned(), what: "certificate revocation list" })?;
    let mut signers: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for list in &lists {
        let (_, parsed) = x509_parser::revocation_list::CertificateRevocationList::from_der(list.as_ref())
            .map_err(|error| unusable(path, error.to_string()))?;
        if let Some(key) = signing_key(&parsed) {
            let name = parsed.issuer().as_raw();
            if signers.iter().any(|(other, others)| other == name && *others != key) {
                return Err(unusable(path, SAME_NAME.replace("NAME", &parsed.issuer().to_string())));
            }
            signers.push((name.to_vec(), key));
        }
        let at = |time: x509_parser::time::ASN1Time| Timestamp::from_seconds(time.timestamp());
        let ends = parsed.next_update().map(|end| (at(parsed.last_update()), at(end)));
        *span = sooner(*span, ends);
    }
    Ok(lists)
}

/// Lists are found by the name of who issued a certificate. Of two authorities with one name, the clients of one would be refused.
const SAME_NAME: &str = "it holds lists of two authorities that have different keys and the same name, NAME, so that the clients of one \
                         of them could not be checked. Give the new authority another name";

/// Which key a list says that it was signed with (RFC 5280 section 5.2.1).
fn signing_key(list: &x509_parser::revocation_list::CertificateRevocationList<'_>) -> Option<Vec<u8>> {
    list.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(key) => {
            key.key_identifier.as_ref().map(|identifier| identifier.0.to_vec())
        }
        _ => None,
    })
}

/// The one that ends sooner.
fn sooner(one: Sooner, other: Sooner) -> Sooner {
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
        let (_, judge) = keeper.judge();
        let identity = Arc::new(identity(&chain, judge.as_ref()?, keeper.now())?);
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
        let (generation, judge) = self.keeper.judge();
        let checked = self.checked.load(Ordering::Acquire);
        if checked / 2 == generation {
            return checked % 2 == 1;
        }
        let good = judge.is_some_and(|judge| vouches(&*judge.any, &self.chain, now));
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
        rustls::Error::InvalidCertRevocationList(_) => "revocation_list",
        _ => return None,
    })
}

/// Whether one of these authorities vouches for a client's chain.
fn vouches(verifier: &dyn ClientCertVerifier, chain: &[CertificateDer<'_>], now: Timestamp) -> bool {
    let seconds = u64::try_from(now.seconds()).unwrap_or(0);
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    chain.split_first().is_some_and(|(own, others)| verifier.verify_client_cert(own, others, at).is_ok())
}

/// Reads whom a certificate names.
fn identity(chain: &[CertificateDer<'_>], judge: &Judge, now: Timestamp) -> Option<ClientCertificate> {
    let certificate = chain.first()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let end = Timestamp::from_seconds(parsed.validity().not_after.timestamp());
    let Some(apart) = &judge.apart else {
        return Some(ClientCertificate::new(certificate, machine(&parsed), end));
    };
    let by_machines = apart.machines.as_ref().is_some_and(|machines| vouches(&**machines, chain, now));
    let by_people = vouches(&*apart.people, chain, now);
    let names = if by_machines { machine(&parsed) } else { Vec::new() };
    let person = match (by_people, by_machines) {
        (false, _) => NamedPerson::Nobody,
        (true, true) => NamedPerson::Unclear("certificate_of_a_machine"),
        (true, false) => person(&parsed, apart.field).map_or_else(NamedPerson::Unclear, NamedPerson::Named),
    };
    Some(ClientCertificate::new(certificate, names, end).naming(person))
}

/// Whom a machine's certificate names: the URI and DNS names among its alternative names. The common name names nobody
/// (RFC 9525 section 2).
pub(crate) fn machine(parsed: &X509Certificate<'_>) -> Vec<String> {
    alternative_names(parsed)
        .unwrap_or_default()
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(format!("uri:{uri}")),
            GeneralName::DNSName(name) => Some(format!("dns:{}", name.to_ascii_lowercase())),
            _ => None,
        })
        .filter(|name| name.len() <= LONGEST_NAME)
        .take(MOST_NAMES)
        .collect()
}

/// The alternative names. `None` where they are written twice, or cannot be read.
fn alternative_names<'p, 'c>(parsed: &'p X509Certificate<'c>) -> Option<&'p [GeneralName<'c>]> {
    let extension = parsed.subject_alternative_name().ok()?;
    Some(extension.map_or(&[], |extension| &extension.value.general_names))
}

/// The person in that field of a certificate; if there is not just one, why.
pub(crate) fn person(parsed: &X509Certificate<'_>, field: PersonField) -> Result<String, &'static str> {
    // It must say that it is for clients, not merely not say otherwise.
    let purpose = parsed.extended_key_usage().ok().flatten();
    if !purpose.is_some_and(|purpose| purpose.value.client_auth) {
        return Err("certificate_purpose");
    }
    let names = alternative_names(parsed).ok_or("certificate_malformed")?;
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err("certificate_malformed");
    }
    let mut found: Vec<Option<String>> = match field {
        PersonField::Mail => names
            .iter()
            .filter_map(|name| match name {
                GeneralName::RFC822Name(mail) => Some(Some((*mail).to_owned())),
                _ => None,
            })
            .collect(),
        PersonField::PrincipalName => names
            .iter()
            .filter_map(|name| match name {
                GeneralName::OtherName(kind, value) if kind.to_id_string() == PRINCIPAL_NAME => {
                    Some(utf8_string(value).map(str::to_owned))
                }
                _ => None,
            })
            .collect(),
        PersonField::CommonName => parsed.subject().iter_common_name().map(common_name).collect(),
    };
    match (found.pop(), found.is_empty()) {
        (None, _) => Err("certificate_names_nobody"),
        (Some(_), false) => Err("certificate_names_several"),
        (Some(None), true) => Err("certificate_encoding"),
        (Some(Some(name)), true) if name.len() > LONGEST_NAME => Err("certificate_name_too_long"),
        (Some(Some(name)), true) => Ok(name),
    }
}

/// The user principal name among other names (Microsoft, `szOID_NT_PRINCIPAL_NAME`).
const PRINCIPAL_NAME: &str = "1.3.6.1.4.1.311.20.2.3";

/// The text of another name that is a UTF-8 string, in the one form that DER has for it: `[0]` around tag 12.
fn utf8_string(value: &[u8]) -> Option<&str> {
    let text = contents(contents(value, 0xa0)?, 0x0c)?;
    std::str::from_utf8(text).ok()
}

/// What a DER value of this tag holds, if there is nothing behind it.
fn contents(bytes: &[u8], tag: u8) -> Option<&[u8]> {
    let (&[found, length], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match length {
        0..=0x7f => (length, rest),
        0x81 => {
            rest.split_first().filter(|(length, _)| **length > 0x7f).map(|(length, rest)| (*length, rest))?
        }
        // Longer than any name that is taken.
        _ => return None,
    };
    (found == tag && rest.len() == usize::from(length)).then_some(rest)
}

/// A common name in one of the two forms that RFC 5280 section 4.1.2.4 leaves.
fn common_name(name: &x509_parser::x509::AttributeTypeAndValue<'_>) -> Option<String> {
    use x509_parser::asn1_rs::Tag;
    let is_text = matches!(name.attr_value().header.tag(), Tag::Utf8String | Tag::PrintableString);
    name.as_str().ok().filter(|_| is_text).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_read_in_the_one_form_that_it_has() {
        let long = "x".repeat(200);
        let long_form = |text: &str| {
            let length = u8::try_from(text.len()).expect("short");
            let inner = [&[0x0c, 0x81, length][..], text.as_bytes()].concat();
            [&[0xa0, 0x81, u8::try_from(inner.len()).expect("short")][..], &inner].concat()
        };
        for (bytes, text) in [
            (b"\xa0\x05\x0c\x03ana".to_vec(), Some("ana")),
            (long_form(&long), Some(long.as_str())),
            (long_form("ana"), None),
            (b"\xa0\x05\x0c\x03ana!".to_vec(), None),
            (b"\xa0\x06\x0c\x03ana!".to_vec(), None),
            (b"\xa0\x05\x0c\x04ana".to_vec(), None),
            (b"\xa0\x05\x1e\x03ana".to_vec(), None),
            (b"\x0c\x03ana".to_vec(), None),
            (b"\xa0\x80\x0c\x03ana\x00\x00".to_vec(), None),
            (b"\xa0\x05\x0c\x03\xff\xfe\xfd".to_vec(), None),
            (b"\xa0".to_vec(), None),
            (Vec::new(), None),
        ] {
            assert_eq!(utf8_string(&bytes), text, "{bytes:?}");
        }
    }
}
