//! What every server of ours is told about its address, its certificate and its folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use interlock_engine::security::{self, Event};
use interlock_model::Clock as _;
use interlock_server::config::{ConnectionLimits, ScreeningMode};
use interlock_server::perimeter::limits::WhenAway;
use interlock_server::tls::acme::Renewal;
use interlock_server::tls::{self, Keeper, Sources};
use serde_json::json;

use super::serve::Ready;
use crate::config::{Config, ServerSettings, TlsMode};

/// Options of every serving command.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct NetArgs {
    /// Title in documents
    #[arg(long)]
    pub(crate) title: Option<String>,
    /// Text below the title
    #[arg(long)]
    pub(crate) description: Option<String>,
    /// Address to listen on
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Port to listen on; 0 takes a free one
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Address and port in one, such as 127.0.0.1:0
    #[arg(long, conflicts_with_all = ["host", "port"])]
    pub(crate) listen: Option<SocketAddr>,
    /// Certificate chain, PEM
    #[arg(long, requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key, PEM
    #[arg(long, requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// auto; internal: a certificate of this installation's own authority; acme: one by ACME
    #[arg(long)]
    pub(crate) tls: Option<String>,
    /// Folder for everything that is kept
    #[arg(long)]
    pub(crate) state: Option<PathBuf>,
    /// Written as JSON once the server answers: url, ca_file, pid, listeners
    #[arg(long)]
    pub(crate) ready_file: Option<PathBuf>,
    /// Settings file, TOML
    #[arg(long, env = "INTERLOCK_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

impl NetArgs {
    /// The settings from every layer.
    pub(crate) fn settings(&self) -> anyhow::Result<Config> {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        let host = self.host.clone().or_else(|| self.listen.map(|address| address.ip().to_string()));
        let port =
            self.port.or_else(|| self.listen.map(|address| address.port())).map(|port| port.to_string());
        let flags = [
            ("server.bind", "--host", host),
            ("server.port", "--port", port),
            ("server.title", "--title", self.title.clone()),
            ("server.description", "--description", self.description.clone()),
            ("tls.cert_file", "--tls-cert", path(&self.tls_cert)),
            ("tls.key_file", "--tls-key", path(&self.tls_key)),
            ("tls.mode", "--tls", self.tls.clone()),
        ];
        Ok(Config::load(self.config.as_deref(), &environment, &flags)?)
    }
}

/// The certificates in force, and the authority that clients have to be told of.
pub(super) fn certificates(
    settings: &ServerSettings,
    state: &Path,
) -> anyhow::Result<(Option<Arc<Keeper>>, Option<PathBuf>)> {
    let mut sources = match &settings.tls {
        TlsMode::Off => return Ok((None, None)),
        TlsMode::Files { certificate, key } => Sources::files(certificate.clone(), key.clone()),
        TlsMode::Internal => {
            let names: Vec<String> = tls::loopback_names(settings.bind)
                .into_iter()
                .chain(settings.allowed_hosts.iter().map(|host| host.trim_matches(['[', ']']).to_owned()))
                .collect();
            Sources::internal(&state.join("tls"), names)
        }
        TlsMode::Acme { acme, .. } => {
            let path = acme.prepare(&state.join("acme"), crate::ambient::SystemClock.now())?;
            Sources::files(path.clone(), path)
        }
    };
    sources.tls12 = settings.tls12;
    sources.clients.clone_from(&settings.tls_clients);
    let ca_file = sources.authority();
    let keeper = Keeper::open(sources, Arc::new(crate::ambient::SystemClock))?;
    Ok((Some(keeper), ca_file))
}

/// Files that are open beside connections: database, log, journal, artifacts, pipes.
const OTHER_FILES: u64 = 512;

/// Keeps what is in memory, keys and sensitive parameters among it, out of core files: of this process and of those that it
/// starts. Others of the same user can no longer read this process's memory either.
pub(super) fn keep_memory_private() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limited = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    // The limit says nothing to a program that the kernel pipes core files into.
    #[cfg(target_os = "linux")]
    let limited = limited.and_then(|()| {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
    });
    if let Err(error) = limited {
        tracing::warn!(%error, "core files cannot be switched off: after a crash one may hold keys and parameters");
    }
}

/// Lets this process open as many files as it may, and bounds the connections by what is left.
pub(super) fn connection_limits() -> ConnectionLimits {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limits = ConnectionLimits::default();
    let wanted = limits.total as u64 + OTHER_FILES;
    let mut allowed = getrlimit(Resource::Nofile);
    // The usual 1024 would be used up by a few hundred browsers; raising it to what is allowed needs no privilege.
    if allowed.current.is_some_and(|current| current < wanted) {
        let raised = rustix::process::Rlimit {
            current: Some(allowed.maximum.map_or(wanted, |most| most.min(wanted))),
            maximum: allowed.maximum,
        };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            allowed = raised;
        }
    }
    if let Some(current) = allowed.current.filter(|current| *current < wanted) {
        let total = usize::try_from(current.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX).max(64);
        tracing::warn!(
            open_files = current,
            connections = total,
            "few open files are allowed, so few connections are taken; raise LimitNOFILE or ulimit -n to {wanted}"
        );
        limits.total = total.min(limits.total);
    }
    limits
}

/// What keeps a certificate by ACME in time, where there is one.
pub(super) fn renewal(
    settings: &ServerSettings,
    state: &Path,
    keeper: Option<&Arc<Keeper>>,
) -> Option<Arc<Renewal>> {
    let (TlsMode::Acme { acme, .. }, Some(keeper)) = (&settings.tls, keeper) else { return None };
    let clock = Arc::new(crate::ambient::SystemClock);
    Some(Arc::new(Renewal::new((**acme).clone(), &state.join("acme"), Arc::clone(keeper), clock)))
}

/// Looks at the certificates again at every SIGHUP, until dropped.
pub(super) async fn look_when_told(keeper: Arc<Keeper>, renewal: Option<Arc<Renewal>>) {
    use tokio::signal::unix::{SignalKind, signal};
    // Without the signal the files are still looked at every few seconds.
    let Ok(mut told) = signal(SignalKind::hangup()) else { return };
    while told.recv().await.is_some() {
        keeper.look();
        if let Some(renewal) = &renewal {
            renewal.look();
        }
    }
}

pub(super) fn bind_hint(address: SocketAddr) -> String {
    format!(
        "listen on {address}: is another server running there? Choose another with --port, or 0 for a free one"
    )
}

/// An address as a client on this machine can use it.
pub(super) fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        std::net::IpAddr::V4(ip) if ip.is_unspecified() => std::net::IpAddr::from([127, 0, 0, 1]),
        std::net::IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

/// Who issues the tokens: the address under which clients know this server, as far as it can be known.
pub(super) fn issuer(settings: &ServerSettings, bound: SocketAddr) -> String {
    if let Some(url) = &settings.public_url {
        return url.clone();
    }
    let scheme = if settings.tls.is_off() { "http" } else { "https" };
    let named = settings.allowed_hosts.iter().find(|host| !host.contains(['*', ':']));
    match named {
        Some(host) => format!("{scheme}://{host}:{}", bound.port()),
        None => format!("{scheme}://{}", reachable(bound)),
    }
}

/// Says at every start what weakens security.
pub(super) fn warn_about(settings: &ServerSettings, config: &Config) {
    let insecure = |what: &str| {
        security::event(
            Event::ConfigInsecure,
            None,
            None,
            json!({ "setting": what, "origin": config.origin("server.bind").to_string() }),
        );
    };
    if !settings.rate.enabled {
        insecure("RATE_LIMIT_ENABLED=false: nothing slows guessing and flooding down");
    }
    match settings.screening.mode {
        ScreeningMode::Block => {}
        ScreeningMode::Observe => {
            insecure("BLOCK_SUSPICIOUS_PATTERNS: requests that look like attacks are only recorded");
        }
        ScreeningMode::Off => insecure("BLOCK_SUSPICIOUS_PATTERNS=off: nobody looks at requests"),
    }
    if settings.redis.as_ref().is_some_and(interlock_shared::RedisConfig::is_exposed) {
        insecure("INSECURE_REDIS_PLAINTEXT=true: Redis' password crosses the network in the clear");
    }
    if settings.redis.is_some() && settings.redis_down == WhenAway::Allow {
        insecure("RATE_LIMIT_REDIS_DOWN=allow: without Redis only signing in is limited");
    }
    if settings.owner_mode {
        insecure("SCOPE_MODE=owner: agents act on what is their own without scopes");
    }
    if settings.tls_clients.as_ref().is_some_and(|clients| clients.revocations.is_none()) {
        insecure("TLS_CLIENT_CRL_FILE is not set: no client certificate can be revoked");
    }
    if settings.tls12 {
        insecure("tls.min_version=1.2");
    }
    if settings.compat_headers {
        insecure("COMPAT_HEADERS=true");
    }
}

pub(super) fn write_ready_file(path: &Path, told: &Ready) -> anyhow::Result<()> {
    let listener = json!({ "name": "http", "url": told.url });
    let tasks = told.tasks_url.as_ref().map(|url| json!({ "name": "tasks", "url": url }));
    let internal = told.internal.as_ref().map(|url| json!({ "name": "internal", "url": url }));
    let listeners: Vec<_> = std::iter::once(listener).chain(tasks).chain(internal).collect();
    let body = json!({ "url": told.url, "ca_file": told.ca_file, "pid": std::process::id(), "listeners": listeners });
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, format!("{body}\n"))
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("write {}", path.display()))
}

pub(super) async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without signals only a kill ends the server; runs are reconciled then.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
