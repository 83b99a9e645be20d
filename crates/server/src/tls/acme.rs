//! Certificates by ACME (RFC 8555): ordered, proven and renewed while the server runs.
//!
//! The certificate and its key lie in one file, `acme/server.pem` in the state folder, which [`super::Keeper`] follows like any
//! other: a new one counts for new connections, and those that are open go on. Before the first one has come, and when the last
//! has ended, a certificate of the internal authority stands in, so that no authority elsewhere decides whether a robot's server
//! starts. What is sent is `instant-acme`'s.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationStatus, ChallengeType, ExternalAccountKey,
    Identifier, KeyAuthorization, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use interlock_model::secret::Secret;
use interlock_model::{Clock, Timestamp};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::Acceptor;
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Internal, Keeper, One, TlsError, certified, check_validity, internal, provider, read, validity};

/// Protocol in which an authority asks for a proof (RFC 8737).
const PROOF: &[u8] = b"acme-tls/1";
/// How often it is looked whether the certificate is due, at least: clocks are set, files are changed.
const LOOKING: Duration = Duration::from_mins(30);
/// How soon at the earliest.
const SETTLING: Duration = Duration::from_secs(1);
/// Between a failure and the next try, at first; doubled with each further one.
const AGAIN: Duration = Duration::from_mins(2);
/// The longest such time. Authorities count failures by the hour.
const AGAIN_AT_MOST: Duration = Duration::from_hours(6);
/// How long an order may take.
const ORDER: Duration = Duration::from_mins(3);
/// Challenges that wait at once.
const MOST: usize = 100;

/// How the control of a name is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// By a certificate on port 443 of the name (RFC 8737).
    TlsAlpn,
    /// By a text on port 80 of the name (RFC 8555 section 8.3).
    Http,
}

/// What is ordered, and where.
#[derive(Debug, Clone)]
pub struct Acme {
    /// The authority's directory.
    pub directory: String,
    /// Authorities whose server certificate it may have, PEM, if not those that this machine trusts.
    pub authorities: Option<PathBuf>,
    /// Where it can reach somebody, as URIs such as `mailto:lab@example.org`.
    pub contacts: Vec<String>,
    /// The names in the certificate.
    pub names: Vec<String>,
    /// How they are proved.
    pub proof: Proof,
    /// Id and key of an account that exists elsewhere (external account binding, RFC 8555 section 7.3.4).
    pub external: Option<(String, Secret)>,
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// The authority, or the way to it.
    #[error("{0}")]
    Authority(String),
    /// It could not see the proof.
    #[error(
        "the authority could not verify {name}: {reason}. It must reach this server under that name on port {port}"
    )]
    Proof {
        /// The name.
        name: String,
        /// What the authority says.
        reason: String,
        /// 443 or 80.
        port: u16,
    },
    /// It offers other proofs.
    #[error("the authority offers no {0} challenge for {1}; choose another with ACME_CHALLENGE")]
    Offer(&'static str, String),
    /// Files, keys.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// It took too long.
    #[error("the order was not done after {} s", ORDER.as_secs())]
    Late,
}

impl From<instant_acme::Error> for AcmeError {
    fn from(error: instant_acme::Error) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::Authority(text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect())
    }
}

/// The proofs that wait to be asked for.
#[derive(Debug, Default)]
pub struct Challenges {
    open: AtomicBool,
    certificates: Mutex<HashMap<String, Arc<ServerConfig>>>,
    texts: Mutex<HashMap<String, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Challenges {
    /// Whether a handshake could be an authority's. Nearly always not, and then nothing is looked at.
    pub(crate) fn are_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// How an authority that asks for this name is answered.
    fn certificate(&self, name: &str) -> Option<Arc<ServerConfig>> {
        lock(&self.certificates).get(&name.to_ascii_lowercase()).map(Arc::clone)
    }

    /// The text for a token, where one waits.
    pub fn text(&self, token: &str) -> Option<String> {
        lock(&self.texts).get(token).cloned()
    }

    fn open(&self, proof: Proof, name: &str, token: &str, key: &KeyAuthorization) -> Result<(), TlsError> {
        match proof {
            Proof::TlsAlpn => {
                let config = Arc::new(proof_config(name, key)?);
                let mut certificates = lock(&self.certificates);
                if certificates.len() < MOST {
                    certificates.insert(name.to_ascii_lowercase(), config);
                }
                self.open.store(true, Ordering::Release);
            }
            Proof::Http => {
                let mut texts = lock(&self.texts);
                if texts.len() < MOST {
                    texts.insert(token.to_owned(), key.as_str().to_owned());
                }
            }
        }
        Ok(())
    }

    fn close(&self) {
        self.open.store(false, Ordering::Release);
        lock(&self.certificates).clear();
        lock(&self.texts).clear();
    }
}

/// A handshake in which an authority may ask for a proof. That is then all there is to the connection: `None`.
pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    config: Arc<ServerConfig>,
    challenges: &Challenges,
) -> io::Result<Option<TlsStream<S>>> {
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let hello = start.client_hello();
    let asked = hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == PROOF));
    let proof = hello.server_name().filter(|_| asked).and_then(|name| challenges.certificate(name));
    match proof {
        Some(proof) => {
            let mut shown = start.into_stream(proof).await?;
            shown.shutdown().await.map(|()| None)
        }
        None => start.into_stream(config).await.map(Some),
    }
}

/// A self-signed certificate that holds the digest of the key authorization (RFC 8737 section 3).
fn proof_config(name: &str, key: &KeyAuthorization) -> Result<ServerConfig, TlsError> {
    let issue = |error: rcgen::Error| TlsError::Issue(error.to_string());
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(issue)?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(key.digest().as_ref())];
    let pair = KeyPair::generate().map_err(issue)?;
    let certificate = params.self_signed(&pair).map_err(issue)?;
    let unusable = |error: rustls::Error| TlsError::Issue(error.to_string());
    let provider = provider();
    let private = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
    let key = provider.key_provider.load_private_key(private).map_err(unusable)?;
    // The extension is critical and known to nobody but the authority: the certificate is not looked at on the way.
    let shown = Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(super::versions(true))
        .map_err(unusable)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(One(shown)));
    config.alpn_protocols = vec![PROOF.to_vec()];
    Ok(config)
}

/// The account as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    directory: String,
    credentials: AccountCredentials,
}

/// Where everything lies.
#[derive(Debug, Clone)]
struct Files {
    folder: PathBuf,
}

impl Files {
    /// Certificate chain and key together, so that they are replaced at once.
    fn certificate(&self) -> PathBuf {
        self.folder.join("server.pem")
    }

    /// For which names and by whom that was issued; absent beside one that stands in.
    fn issued(&self) -> PathBuf {
        self.folder.join("server.issued")
    }

    fn account(&self) -> PathBuf {
        self.folder.join("account.json")
    }

    fn write(path: &Path, text: &str) -> Result<(), TlsError> {
        internal::write(path, text, 0o600)
            .map_err(|error| TlsError::Issue(format!("write {}: {error}", path.display())))
    }
}

impl Acme {
    /// The file that holds certificate and key. Where it holds none that counts now, the internal authority's stands in.
    ///
    /// # Errors
    /// [`TlsError`] if none can be written.
    pub fn prepare(&self, folder: &Path, now: Timestamp) -> Result<PathBuf, TlsError> {
        let files = Files { folder: folder.to_owned() };
        let path = files.certificate();
        if usable(&path, now).is_err() {
            let Internal { certificate, key, .. } = internal(&folder.join("stand-in"), &self.names, now)?;
            let both = [read(&key)?, read(&certificate)?].concat();
            let _ = fs::remove_file(files.issued());
            Files::write(&path, &String::from_utf8_lossy(&both))?;
            tracing::warn!(
                directory = self.directory,
                "no certificate by ACME yet: until it has come, one of the internal authority stands in, which clients do not trust"
            );
        }
        Ok(path)
    }

    fn mark(&self) -> String {
        format!("{}\n{}\n", self.directory, self.names.join("\n"))
    }
}

/// Start and end of what is in the file, if it counts now.
fn usable(path: &Path, now: Timestamp) -> Result<(Timestamp, Timestamp), TlsError> {
    let chain = certified(path, path, &provider())?;
    let times = validity(path, &chain.cert[0])?;
    check_validity(path, times, now).map(|()| times)
}

/// Orders and renews for one server.
pub struct Renewal {
    acme: Acme,
    files: Files,
    keeper: Arc<Keeper>,
    clock: Arc<dyn Clock>,
    nudge: Notify,
}

impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewal").field("acme", &self.acme).finish_non_exhaustive()
    }
}

impl Renewal {
    /// For the keeper of a file that [`Acme::prepare`] has named in `folder`.
    pub fn new(acme: Acme, folder: &Path, keeper: Arc<Keeper>, clock: Arc<dyn Clock>) -> Self {
        Self { acme, files: Files { folder: folder.to_owned() }, keeper, clock, nudge: Notify::new() }
    }

    /// Tries now if the certificate is due, whenever the next try would have been.
    pub fn look(&self) {
        self.nudge.notify_one();
    }

    /// Keeps the certificate in time, until dropped. Run it as a background task once the listener listens.
    pub async fn keep_forever(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            let due = self.due_in();
            let pause = if due.is_zero() {
                let result = tokio::time::timeout(ORDER, self.renew()).await.unwrap_or(Err(AcmeError::Late));
                self.keeper.challenges().close();
                match result {
                    Ok(()) => {
                        failures = 0;
                        metrics::counter!("interlock_acme_orders_total", "result" => "done").increment(1);
                        tracing::info!(names = ?self.acme.names, "a certificate was issued by ACME");
                        self.keeper.look();
                        SETTLING
                    }
                    Err(error) => {
                        metrics::counter!("interlock_acme_orders_total", "result" => "failed").increment(1);
                        let pause = AGAIN.saturating_mul(1 << failures.min(16)).min(AGAIN_AT_MOST);
                        failures += 1;
                        let next = pause.as_secs();
                        tracing::error!(%error, directory = self.acme.directory, again_after_seconds = next,
                            "no certificate by ACME; what is in force stays");
                        pause
                    }
                }
            } else {
                due.clamp(SETTLING, LOOKING)
            };
            let _ = tokio::time::timeout(pause, self.nudge.notified()).await;
        }
    }

    /// How long until a third of its time is left; nothing where there is none for these names by this authority.
    fn due_in(&self) -> Duration {
        let now = self.clock.now();
        let Ok((starts, ends)) = usable(&self.files.certificate(), now) else { return Duration::ZERO };
        let issued = fs::read_to_string(self.files.issued()).is_ok_and(|mark| mark == self.acme.mark());
        if issued { ends.since(now).saturating_sub(ends.since(starts) / 3) } else { Duration::ZERO }
    }

    /// Speaks HTTPS and nothing else.
    fn client(&self) -> Result<AccountBuilder, AcmeError> {
        Ok(match &self.acme.authorities {
            Some(path) => Account::builder_with_root(path)?,
            None => Account::builder()?,
        })
    }

    /// The account of this installation at the authority; made where there is none.
    async fn account(&self) -> Result<Account, AcmeError> {
        let path = self.files.account();
        let kept = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
        if let Some(kept) = kept.filter(|kept| kept.directory == self.acme.directory) {
            return Ok(self.client()?.from_credentials(kept.credentials).await?);
        }
        self.new_account().await
    }

    async fn new_account(&self) -> Result<Account, AcmeError> {
        let contact: Vec<&str> = self.acme.contacts.iter().map(String::as_str).collect();
        let new =
            NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let external = match &self.acme.external {
            Some((id, key)) => {
                use base64::Engine as _;
                use base64::engine::general_purpose::URL_SAFE_NO_PAD;
                let key = URL_SAFE_NO_PAD
                    .decode(key.expose().trim_end_matches('='))
                    .map_err(|_| AcmeError::Authority("ACME_EAB_KEY is not base64url".to_owned()))?;
                Some(ExternalAccountKey::new(id.clone(), &key))
            }
            None => None,
        };
        let (account, credentials) =
            self.client()?.create(&new, self.acme.directory.clone(), external.as_ref()).await?;
        let kept = Kept { directory: self.acme.directory.clone(), credentials };
        let text = serde_json::to_string(&kept).map_err(|error| TlsError::Issue(error.to_string()))?;
        Files::write(&self.files.account(), &text)?;
        Ok(account)
    }

    /// One order to its end.
    async fn renew(&self) -> Result<(), AcmeError> {
        let identifiers: Vec<Identifier> = self.acme.names.iter().cloned().map(Identifier::Dns).collect();
        let wanted = NewOrder::new(&identifiers);
        let mut order = match self.account().await?.new_order(&wanted).await {
            Err(instant_acme::Error::Api(problem)) if is_unknown_account(&problem) => {
                self.new_account().await?.new_order(&wanted).await?
            }
            order => order?,
        };
        self.prove(&mut order).await?;
        let retries = RetryPolicy::default().backoff(1.3).timeout(ORDER);
        match order.poll_ready(&retries).await {
            Ok(OrderStatus::Invalid) => return Err(self.why_invalid(&mut order, None).await),
            Err(error @ instant_acme::Error::Api(_)) => {
                return Err(self.why_invalid(&mut order, Some(error)).await);
            }
            polled => polled?,
        };
        let issue = |error: rcgen::Error| AcmeError::Tls(TlsError::Issue(error.to_string()));
        let key = KeyPair::generate().map_err(issue)?;
        let mut params = CertificateParams::new(self.acme.names.clone()).map_err(issue)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(issue)?;
        order.finalize_csr(request.der()).await?;
        let chain = order.poll_certificate(&retries).await?;
        self.keep(&key.serialize_pem(), &chain)
    }

    /// Puts a new pair in its place, if it can be used.
    fn keep(&self, key: &str, chain: &str) -> Result<(), AcmeError> {
        let fresh = self.files.folder.join("server.fresh");
        Files::write(&fresh, &format!("{key}{chain}"))?;
        usable(&fresh, self.clock.now())?;
        let place = self.files.certificate();
        fs::rename(&fresh, &place)
            .map_err(|error| TlsError::Issue(format!("write {}: {error}", place.display())))?;
        Files::write(&self.files.issued(), &self.acme.mark())?;
        Ok(())
    }

    /// Has every name's proof ready before the authority is told to look.
    async fn prove(&self, order: &mut Order) -> Result<(), AcmeError> {
        let (kind, word) = match self.acme.proof {
            Proof::TlsAlpn => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
            Proof::Http => (ChallengeType::Http01, "http-01"),
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            let name = authorization.identifier().to_string();
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let Some(mut challenge) = authorization.challenge(kind.clone()) else {
                return Err(AcmeError::Offer(word, name));
            };
            let (token, key) = (challenge.token.clone(), challenge.key_authorization());
            self.keeper.challenges().open(self.acme.proof, &name, &token, &key)?;
            challenge.set_ready().await?;
        }
        Ok(())
    }

    /// What the authority says of the name that it could not verify.
    async fn why_invalid(&self, order: &mut Order, told: Option<instant_acme::Error>) -> AcmeError {
        let port = if self.acme.proof == Proof::Http { 80 } else { 443 };
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            let name = authorization.identifier().to_string();
            let Ok(state) = authorization.refresh().await else { continue };
            let problem = state.challenges.iter().find_map(|challenge| challenge.error.as_ref());
            if let Some(problem) = problem {
                let reason = problem.detail.clone().unwrap_or_default();
                let reason = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
                return AcmeError::Proof { name, reason, port };
            }
        }
        let unsaid =
            || AcmeError::Authority("the authority refused the order and does not say why".to_owned());
        told.map_or_else(unsaid, AcmeError::from)
    }
}

fn is_unknown_account(problem: &instant_acme::Problem) -> bool {
    problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:accountDoesNotExist")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn acme(names: &[&str]) -> Acme {
        Acme {
            directory: "https://ca.example/directory".to_owned(),
            authorities: None,
            contacts: Vec::new(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            proof: Proof::TlsAlpn,
            external: None,
        }
    }

    #[test]
    fn before_the_first_certificate_one_of_our_own_stands_in() {
        let folder = tempfile::tempdir().expect("folder");
        let now = Timestamp::from_seconds(1_800_000_000);

        let path = acme(&["ot2.lab.example"]).prepare(folder.path(), now).expect("prepared");

        assert!(usable(&path, now).is_ok());
        assert_eq!(fs::metadata(&path).expect("written").permissions().mode() & 0o777, 0o600);
        let first = fs::read(&path).expect("read");
        acme(&["ot2.lab.example"]).prepare(folder.path(), now).expect("prepared again");
        assert_eq!(fs::read(&path).expect("read"), first, "what can be used stays");
        let later = Timestamp::from_seconds(1_800_000_000 + 100 * 86_400);
        acme(&["ot2.lab.example"]).prepare(folder.path(), later).expect("prepared once more");
        assert_ne!(fs::read(&path).expect("read"), first, "what has ended does not");
    }
}
