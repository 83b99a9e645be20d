//! `interlock device serve FILE.py`: one file of actions behind HTTPS, sign-in, roles and audit.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use interlock_device::{Durability, Host, HostConfig};
use interlock_engine::audit::{self, Recorder};
use interlock_engine::auth::{Guard, Sessions, SystemPermit, Tokens};
use interlock_engine::bans::Bans;
use interlock_engine::devices::{Device, DeviceWorld, Devices};
use interlock_engine::executions::{Executions, Limits};
use interlock_engine::janitor;
use interlock_engine::reads::Reads;
use interlock_engine::runs::Hub;
use interlock_engine::security::{self, Event};
use interlock_model::secret::Secret;
use interlock_server::config::{ConnectionLimits, ScreeningMode, ServerConfig};
use interlock_server::listener::Listener;
use interlock_server::perimeter::limits::Limiter;
use interlock_server::tls;
use interlock_server::{AppState, Services};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapter::LocalDevice;
use crate::config::{Config, DeviceSettings, TlsMode};
use crate::installation::{self, Parts};
use crate::python;

/// Longest wait for requests and runs when the server ends.
const DRAIN: Duration = Duration::from_secs(10);
/// How often expired keys and revocations are deleted.
const CLEANING: Duration = Duration::from_hours(1);

/// Options of `device serve`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServeArgs {
    /// Python file with `@task` functions
    pub(crate) file: PathBuf,
    /// Short name of the device [default: the file's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
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
    /// auto, or internal: a certificate of this installation's own authority
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
    /// Python interpreter
    #[arg(long, env = "INTERLOCK_PYTHON")]
    pub(crate) python: Option<PathBuf>,
    /// NAME=VALUE for the device's program, which inherits neither secrets nor INTERLOCK_ variables
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) environment: Vec<(String, String)>,
    /// Execute everything with the device's simulator
    #[arg(long)]
    pub(crate) simulate: bool,
    /// Do without the second process that keeps the safe-state hook ready (saves memory, makes stopping slower)
    #[arg(long)]
    pub(crate) no_standby: bool,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

impl ServeArgs {
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

    /// The device's short name.
    pub(crate) fn device_name(&self) -> String {
        let stem = self
            .file
            .file_stem()
            .map_or_else(|| "device".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let name = self.name.clone().unwrap_or(stem).to_ascii_lowercase();
        let clean: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(64).collect();
        clean.trim_matches('-').to_owned()
    }
}

/// What a caller learns when the server answers.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    pub(crate) url: String,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) state: PathBuf,
    pub(crate) title: String,
    pub(crate) actions: usize,
    /// Name of the first action of the file.
    pub(crate) first_action: String,
    /// The first administrator's password, if one was made up just now.
    pub(crate) first_password: Option<Secret>,
}

/// Serves until told to stop.
///
/// `ready` is called once, when the server answers.
///
/// # Errors
/// Whatever keeps the server from starting, with the remedy.
#[expect(clippy::too_many_lines, reason = "start-up in one place, in the order in which it happens")]
pub(crate) async fn serve<F>(args: ServeArgs, config: Config, ready: F) -> anyhow::Result<()>
where
    F: FnOnce(&Ready),
{
    let settings = config.device()?;
    let name = args.device_name();
    let state = args.state.clone().unwrap_or_else(|| installation::default_state(&name));
    installation::prepare(&state)?;

    // What can fail without touching the device comes first: certificate, port, database, keys.
    let (tls_config, ca_file) = certificate(&settings, &state)?;
    let address = SocketAddr::new(settings.bind, settings.port);
    let tcp = TcpListener::bind(address).await.with_context(|| bind_hint(address))?;
    let parts = installation::open(&state, settings.database_url.as_ref()).await?;
    let keys = installation::signing_keys(&state, &settings)?;
    let tokens =
        Tokens::new(keys, installation::audience(&state, &parts.ambient)?, settings.token_hours * 3600);
    let algorithm = tokens.algorithm();
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new()
        .set_buckets(&[
            0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
        ])
        .context("describe the histograms")?
        .install_recorder()
        .context("start the metrics")?;
    interlock_engine::metrics::describe();
    warn_about(&settings, &config);

    let host = start_device(&args, &name, &state, &parts).await?;
    let device: Arc<dyn Device> = Arc::new(LocalDevice(host.clone()));
    let title =
        Some(settings.title.clone()).filter(|title| !title.is_empty()).unwrap_or_else(|| host.status().title);
    let server = ServerConfig {
        title: title.clone(),
        description: description(&settings, &host),
        version: env!("CARGO_PKG_VERSION"),
        production: settings.production,
        force_https: settings.force_https,
        tls: tls_config.is_some(),
        hsts: settings.hsts,
        compat_headers: settings.compat_headers,
        legacy_errors: settings.legacy_errors,
        allowed_hosts: tls::loopback_names(settings.bind)
            .into_iter()
            .chain(settings.allowed_hosts.clone())
            .collect(),
        cors_origins: settings.cors_origins.clone(),
        trusted_proxies: settings.trusted_proxies.clone(),
        max_request_size: settings.max_request_size,
        rate: settings.rate,
        screening: settings.screening,
        connections: ConnectionLimits::default(),
        metrics_token: settings.metrics_token.clone(),
    };

    let (recorder, recording) = audit::recorder(Arc::clone(&parts.store), parts.ambient.clone());
    let background = TaskTracker::new();
    background.spawn(recording);
    let runs = TaskTracker::new();
    let limits = Limits { queue: settings.queue, default_timeout: settings.default_timeout };
    let wired =
        Wired { parts: &parts, device, name, tokens, recorder: recorder.clone(), runs: runs.clone(), limits };
    let system = SystemPermit::root("system");
    let bans = Bans::load(parts.db.clone(), parts.ambient.clone(), config.never_banned()?, system)
        .await
        .context("read the bans")?;
    let (app, following) = wired.state(server, metrics, bans);
    let first_password =
        installation::first_admin(&parts, &app.users, settings.bootstrap_admin_secret.as_ref()).await?;
    let reconciled =
        app.executions.reconcile().await.context("bring runs of an earlier process to their end")?;
    for task in following {
        tokio::spawn(task);
    }

    let listener = Listener::new(tcp, tls_config, ConnectionLimits::default());
    let bound = listener.address()?;
    let scheme = if app.config.tls { "https" } else { "http" };
    let told = Ready {
        url: format!("{scheme}://{}", reachable(bound)),
        ca_file,
        state,
        title,
        actions: host.catalogue().actions().len(),
        first_action: host
            .catalogue()
            .declarations
            .actions
            .first()
            .map_or_else(String::new, |action| action.name.clone()),
        first_password,
    };
    tracing::info!(
        url = told.url,
        tls = app.config.tls,
        token_algorithm = algorithm,
        rate_limits = app.config.rate.enabled,
        roles = "admin operator viewer auditor",
        actions = told.actions,
        reconciled,
        "the device server is starting"
    );
    let stop = CancellationToken::new();
    let connections = TaskTracker::new();
    let serving = tokio::spawn(listener.serve(
        interlock_server::router(app.clone()),
        stop.clone(),
        connections.clone(),
    ));
    if let Some(path) = &args.ready_file {
        write_ready_file(path, &told)?;
    }
    ready(&told);

    stop_signal().await;
    tracing::info!("the device server is stopping");
    stop.cancel();
    let _ = serving.await;
    runs.close();
    connections.close();
    // The running action gets its time to end; what is still open then goes down the cancel ladder.
    let device_down = host.shutdown(DRAIN);
    let drained = tokio::time::timeout(DRAIN * 3, async {
        device_down.await;
        runs.wait().await;
    });
    if drained.await.is_err() {
        tracing::warn!("runs were still open when the server ended; they are reconciled at the next start");
    }
    let _ = tokio::time::timeout(Duration::from_secs(2), connections.wait()).await;
    recorder.drained(Duration::from_secs(5)).await;
    parts.store.close().await;
    if let Some(path) = &args.ready_file {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

struct Wired<'a> {
    parts: &'a Parts,
    device: Arc<dyn Device>,
    name: String,
    tokens: Tokens,
    recorder: Recorder,
    runs: TaskTracker,
    limits: Limits,
}

type Background = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl Wired<'_> {
    /// Puts the services together, and the background work they need.
    fn state(
        self,
        server: ServerConfig,
        metrics: metrics_exporter_prometheus::PrometheusHandle,
        bans: Bans,
    ) -> (AppState, Vec<Background>) {
        let Parts { ambient, db, principals, passwords, .. } = self.parts;
        let roles: Vec<String> =
            self.device.catalogue().actions().map(|action| action.role().to_owned()).collect();
        let sessions = Sessions::new(
            db.clone(),
            ambient.clone(),
            Arc::clone(principals),
            passwords.clone(),
            self.tokens,
            self.recorder.clone(),
            SystemPermit::root("system"),
        );
        let world = Arc::new(DeviceWorld(Arc::clone(&self.device)));
        let guard =
            Arc::new(Guard::new(Arc::clone(&sessions), self.recorder.clone(), world, ambient.clone()));
        let hub = Hub::new(db.clone(), ambient.clone(), self.device.events());
        let executions = Executions::new(
            Arc::clone(&self.device),
            self.name,
            db.clone(),
            ambient.clone(),
            Arc::clone(&hub),
            self.runs.clone(),
            self.limits,
            SystemPermit::root("system"),
        );
        let cleaning =
            janitor::clean_forever(db.clone(), ambient.clone(), SystemPermit::root("system"), CLEANING);
        let following: Vec<Background> = vec![
            Box::pin(cleaning),
            Box::pin(Arc::clone(&hub).follow(self.device.events())),
            Box::pin(Arc::clone(&hub).flush_forever()),
            Box::pin(Arc::clone(principals).watch(Duration::from_millis(500))),
            Box::pin(bans.clone().watch(Duration::from_millis(500))),
        ];
        let limiter = Limiter::new(server.rate, server.connections.in_flight);
        let app = AppState::new(Services {
            guard,
            sessions,
            executions,
            reads: Reads::new(db.clone(), hub, Arc::clone(&self.device)),
            devices: Devices::new(self.device, db.clone(), ambient.clone(), self.recorder.clone()),
            users: self.parts.users(roles.into()),
            bans,
            recorder: self.recorder,
            limits: Arc::new(limiter),
            config: Arc::new(server),
            clock: Arc::clone(&ambient.clock),
            entropy: Arc::clone(&ambient.entropy),
            metrics,
            tasks: self.runs,
            started: Instant::now(),
        });
        (app, following)
    }
}

async fn start_device(args: &ServeArgs, name: &str, state: &Path, parts: &Parts) -> anyhow::Result<Host> {
    let package = python::unpack(state)?;
    let mut config = HostConfig::new(
        name,
        args.file.clone(),
        package,
        state.join("device"),
        Arc::clone(&parts.ambient.clock),
    );
    config.title.clone_from(&args.title);
    config.python = python::interpreter(args.python.clone());
    // Each run is on record in the database before the device hears of it, and its end before anyone else does.
    config.durability = Durability::Caller;
    config.environment.clone_from(&args.environment);
    config.simulate = args.simulate;
    config.standby = !args.no_standby;
    Host::start(config).await.map_err(|error| {
        let remedy = error.remedy();
        anyhow::Error::new(error)
            .context(remedy)
            .context(format!("start the device file {}", args.file.display()))
    })
}

fn description(settings: &DeviceSettings, host: &Host) -> String {
    if settings.description.is_empty() {
        host.catalogue().declarations.description.clone().unwrap_or_default()
    } else {
        settings.description.clone()
    }
}

fn certificate(
    settings: &DeviceSettings,
    state: &Path,
) -> anyhow::Result<(Option<Arc<rustls::ServerConfig>>, Option<PathBuf>)> {
    use interlock_model::Clock as _;
    let now = crate::ambient::SystemClock.now();
    match &settings.tls {
        TlsMode::Off => Ok((None, None)),
        TlsMode::Files { certificate, key } => {
            Ok((Some(tls::load(certificate, key, settings.tls12, now)?), None))
        }
        TlsMode::Internal => {
            let names: Vec<String> = tls::loopback_names(settings.bind)
                .into_iter()
                .chain(settings.allowed_hosts.iter().map(|host| host.trim_matches(['[', ']']).to_owned()))
                .collect();
            let files = tls::internal(&state.join("tls"), &names, now)?;
            Ok((Some(tls::load(&files.certificate, &files.key, settings.tls12, now)?), Some(files.ca_file)))
        }
    }
}

fn bind_hint(address: SocketAddr) -> String {
    format!(
        "listen on {address}: is another server running there? Choose another with --port, or 0 for a free one"
    )
}

/// An address as a client on this machine can use it.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        std::net::IpAddr::V4(ip) if ip.is_unspecified() => std::net::IpAddr::from([127, 0, 0, 1]),
        std::net::IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

/// Says at every start what weakens security.
fn warn_about(settings: &DeviceSettings, config: &Config) {
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
    if settings.tls12 {
        insecure("tls.min_version=1.2");
    }
    if settings.compat_headers {
        insecure("COMPAT_HEADERS=true");
    }
    if settings.production && settings.tls == TlsMode::Off && settings.trusted_proxies.is_empty() {
        insecure("production without TLS and without TRUSTED_PROXIES: only clients on this machine are safe");
    }
}

fn write_ready_file(path: &Path, told: &Ready) -> anyhow::Result<()> {
    let listener = json!({ "name": "http", "url": told.url });
    let body = json!({ "url": told.url, "ca_file": told.ca_file, "pid": std::process::id(), "listeners": [listener] });
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, format!("{body}\n"))
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("write {}", path.display()))
}

async fn stop_signal() {
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

/// What a person reads when a server has started.
pub(crate) fn banner(told: &Ready) -> String {
    use std::fmt::Write as _;
    let mut text =
        format!("\n  Interlock {} · {} · {} actions\n", env!("CARGO_PKG_VERSION"), told.title, told.actions);
    let _ = writeln!(text, "  Panel     {}/panel", told.url);
    if let Some(ca) = &told.ca_file {
        let _ = writeln!(text, "  CA file   {}", ca.display());
    }
    let _ = writeln!(text, "  State     {}", told.state.display());
    if let Some(password) = &told.first_password {
        let _ = writeln!(text, "  Sign in   admin / {}   (shown only now)", password.expose());
    }
    let ca = told.ca_file.as_ref().map(|ca| format!(" --ca-file {}", ca.display())).unwrap_or_default();
    let _ = writeln!(text, "  Next      interlock login --url {}{ca} --user admin", told.url);
    text
}
