//! Keeps the certificates in force the ones that the files hold.
//!
//! The files are looked at every few seconds and when told (SIGHUP). New ones are taken for new handshakes; connections
//! that are open go on. A set that cannot be used (a new chain beside the old key, for example, while somebody copies) is
//! left alone with a word in the log, and what was in force stays. Ends of validity are measured and told in time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use interlock_model::{Clock, Timestamp};
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use super::acme::Challenges;
use super::clients::Judge;
use super::{
    ClientSources, Internal, One, TlsError, certified, check_validity, internal, protocols, provider, read,
    validity, versions,
};

/// How often the files are looked at.
const LOOKING: Duration = Duration::from_secs(5);
/// How often the same trouble is told again.
const TELLING: Duration = Duration::from_hours(24);
/// From when on an end is told: what is left is less than both this and a fifth of the whole time.
const SOON: Duration = Duration::from_hours(24 * 14);

/// Where the certificates come from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The server's chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Folder and names of the internal authority, if that issues the two.
    pub internal: Option<(PathBuf, Vec<String>)>,
    /// TLS 1.2 is spoken too.
    pub tls12: bool,
    /// Client certificates, if any are taken.
    pub clients: Option<ClientSources>,
}

impl Sources {
    /// Files that somebody else writes.
    pub fn files(certificate: PathBuf, key: PathBuf) -> Self {
        Self { certificate, key, internal: None, tls12: false, clients: None }
    }

    /// Certificates for `names` by the internal authority in this folder.
    pub fn internal(folder: &Path, names: Vec<String>) -> Self {
        let Internal { certificate, key, .. } = Internal::within(folder);
        Self { internal: Some((folder.to_owned(), names)), ..Self::files(certificate, key) }
    }

    /// What clients must be told to trust, where it is the internal authority.
    pub fn authority(&self) -> Option<PathBuf> {
        self.internal.as_ref().map(|(folder, _)| Internal::within(folder).ca_file)
    }
}

/// How long something holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Long enough.
    Good,
    /// Not for long.
    Soon,
    /// Not any more.
    Over,
}

impl Condition {
    /// In answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Soon => "ends soon",
            Self::Over => "expired",
        }
    }
}

/// Something with an end.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// As in metrics and log.
    what: &'static str,
    starts: Timestamp,
    ends: Timestamp,
}

impl Span {
    fn condition(&self, now: Timestamp) -> Condition {
        let (left, whole) = (self.ends.since(now), self.ends.since(self.starts));
        if now >= self.ends {
            Condition::Over
        } else if left < SOON && left < whole / 5 {
            Condition::Soon
        } else {
            Condition::Good
        }
    }
}

/// What is in force.
struct Loaded {
    digest: [u8; 32],
    config: Arc<ServerConfig>,
    judge: Option<Judge>,
    /// Counts loads.
    generation: u64,
    /// The server's own first.
    spans: Vec<Span>,
}

/// Trouble that was told last, and when.
#[derive(Debug, Default)]
struct Told {
    failure: Option<String>,
    spans: Vec<(&'static str, Condition, Timestamp)>,
}

/// The certificates in force.
pub struct Keeper {
    sources: Sources,
    clock: Arc<dyn Clock>,
    loaded: ArcSwap<Loaded>,
    told: Mutex<Told>,
    nudge: Notify,
    challenges: Challenges,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("sources", &self.sources).finish_non_exhaustive()
    }
}

/// The time of handshakes is the time of everything else.
struct Now(Arc<dyn Clock>);

impl std::fmt::Debug for Now {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Now")
    }
}

impl rustls::time_provider::TimeProvider for Now {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        let seconds = u64::try_from(self.0.now().seconds()).ok()?;
        Some(rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

impl Keeper {
    /// Loads everything and checks it against each other and against the clock.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn open(sources: Sources, clock: Arc<dyn Clock>) -> Result<Arc<Self>, TlsError> {
        renew(&sources, clock.now())?;
        let loaded = load(&sources, &clock, 0)?;
        check_validity(&sources.certificate, (loaded.spans[0].starts, loaded.spans[0].ends), clock.now())?;
        Ok(Arc::new(Self {
            sources,
            clock,
            loaded: ArcSwap::from_pointee(loaded),
            told: Mutex::default(),
            nudge: Notify::new(),
            challenges: Challenges::default(),
        }))
    }

    /// How the next handshake is done, and the generation of that.
    pub(crate) fn config(&self) -> (Arc<ServerConfig>, u64) {
        let loaded = self.loaded.load();
        (Arc::clone(&loaded.config), loaded.generation)
    }

    /// Proofs for an authority that issues the certificate.
    pub fn challenges(&self) -> &Challenges {
        &self.challenges
    }

    /// What judges client certificates, and the generation of that.
    pub(super) fn judge(&self) -> (u64, Option<Judge>) {
        let loaded = self.loaded.load();
        (loaded.generation, loaded.judge.clone())
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Whether client certificates are taken.
    pub fn takes_client_certificates(&self) -> bool {
        self.sources.clients.is_some()
    }

    /// How the server's own certificate stands, and its end.
    pub fn condition(&self) -> (Condition, Timestamp) {
        let span = self.loaded.load().spans[0];
        (span.condition(self.clock.now()), span.ends)
    }

    /// Asks for a look at the files now.
    pub fn look(&self) {
        self.nudge.notify_one();
    }

    /// Follows the files until dropped. Run it as a background task.
    pub async fn watch(self: Arc<Self>) {
        loop {
            let keeper = Arc::clone(&self);
            if tokio::task::spawn_blocking(move || keeper.refresh()).await.is_err() {
                tracing::error!("looking at the certificates failed; what is in force stays");
            }
            let _ = tokio::time::timeout(LOOKING, self.nudge.notified()).await;
        }
    }

    /// Takes what the files hold now, if it is something else and can be used; tells what is to be told.
    pub fn refresh(&self) {
        let now = self.clock.now();
        match self.reload(now) {
            Ok(false) => self.told().failure = None,
            Ok(true) => {
                self.told().failure = None;
                metrics::counter!("interlock_tls_reloads_total", "result" => "done").increment(1);
                let (_, ends) = self.condition();
                tracing::info!(certificate = %self.sources.certificate.display(), expires_at = %ends, "the certificates were read again");
            }
            Err(error) => {
                let error = error.to_string();
                let mut told = self.told();
                if told.failure.as_ref() != Some(&error) {
                    metrics::counter!("interlock_tls_reloads_total", "result" => "failed").increment(1);
                    tracing::error!(%error, "the certificates on disk cannot be used; those in force stay");
                    told.failure = Some(error);
                }
            }
        }
        self.measure();
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was something new.
    fn reload(&self, now: Timestamp) -> Result<bool, TlsError> {
        renew(&self.sources, now)?;
        let current = self.loaded.load_full();
        if digest(&self.sources)? == current.digest {
            return Ok(false);
        }
        let fresh = load(&self.sources, &self.clock, current.generation + 1)?;
        check_validity(&self.sources.certificate, (fresh.spans[0].starts, fresh.spans[0].ends), now)?;
        self.loaded.store(Arc::new(fresh));
        Ok(true)
    }

    /// Tells how long everything holds.
    fn measure(&self) {
        let now = self.clock.now();
        let spans = self.loaded.load().spans.clone();
        let mut told = self.told();
        for span in spans {
            #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit a double's 53 bits")]
            metrics::gauge!("interlock_tls_expires_timestamp_seconds", "what" => span.what)
                .set(span.ends.seconds() as f64);
            let condition = span.condition(now);
            let before =
                told.spans.iter().position(|(what, ..)| *what == span.what).map(|at| told.spans.remove(at));
            let again = before.is_none_or(|(_, was, at)| was != condition || now.since(at) >= TELLING);
            let at = before.filter(|_| !again).map_or(now, |(_, _, at)| at);
            told.spans.push((span.what, condition, at));
            match condition {
                Condition::Over if again => {
                    tracing::error!(what = span.what, expired_at = %span.ends, "a certificate or list is out of date");
                }
                Condition::Soon if again => {
                    tracing::warn!(what = span.what, expires_at = %span.ends, "a certificate or list ends soon");
                }
                _ => {}
            }
        }
    }
}

/// Lets the internal authority issue again where that is due.
fn renew(sources: &Sources, now: Timestamp) -> Result<(), TlsError> {
    sources.internal.as_ref().map_or(Ok(()), |(folder, names)| internal(folder, names, now).map(drop))
}

fn files(sources: &Sources) -> impl Iterator<Item = &PathBuf> {
    let clients = sources.clients.iter().flat_map(ClientSources::files);
    [&sources.certificate, &sources.key].into_iter().chain(clients)
}

fn digest(sources: &Sources) -> Result<[u8; 32], TlsError> {
    let mut all = Sha256::new();
    for path in files(sources) {
        all.update(Sha256::digest(read(path)?));
    }
    Ok(all.finalize().into())
}

fn load(sources: &Sources, clock: &Arc<dyn Clock>, generation: u64) -> Result<Loaded, TlsError> {
    // First what is compared later: a file that changes while it is read is read again.
    let digest = digest(sources)?;
    let provider = provider();
    let certified = certified(&sources.certificate, &sources.key, &provider)?;
    let (starts, ends) = validity(&sources.certificate, &certified.cert[0])?;
    let mut spans = vec![Span { what: "server", starts, ends }];
    let clients = match &sources.clients {
        Some(clients) => Some(clients.load(&provider)?),
        None => None,
    };
    if let Some(clients) = &clients {
        let span = |what, (starts, ends)| Span { what, starts, ends };
        spans.extend(clients.authorities.map(|times| span("client_ca", times)));
        spans.extend(clients.revocations.map(|times| span("client_crl", times)));
    }
    let builder = ServerConfig::builder_with_details(provider, Arc::new(Now(Arc::clone(clock))))
        .with_protocol_versions(versions(sources.tls12))
        .map_err(|error| TlsError::Issue(error.to_string()))?;
    let judge = clients.map(|clients| clients.judge);
    let builder = match &judge {
        Some(judge) => builder.with_client_cert_verifier(Arc::clone(&judge.any)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(One(Arc::new(certified))));
    config.alpn_protocols = protocols();
    if judge.is_some() {
        // A resumed session takes the client's certificate as it was: with revocation there is none.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Loaded { digest, config: Arc::new(config), judge, generation, spans })
}
