//! `interlock device serve FILE.py` and `interlock server`: a device's actions, or the orchestrator, behind HTTPS, sign-in,
//! roles and audit.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use interlock_device::{Durability, Host, HostConfig};
use interlock_engine::audit::{self, Recorder};
use interlock_engine::auth::{
    AccessRules, Breached, Ceremonies, ClientPolicy, Directories, Guard, MasterKey, StepUpPolicy,
    SystemPermit, Tokens,
};
use interlock_engine::backup;
use interlock_engine::bans::Bans;
use interlock_engine::devices::{Device, DeviceWorld, Devices, NoDevice};
use interlock_engine::evidence::Evidence;
use interlock_engine::executions::{Executions, Limits};
use interlock_engine::identity::{Identity, Setup};
use interlock_engine::janitor;
use interlock_engine::news::News;
use interlock_engine::notary::{self, Notary};
use interlock_engine::orchestrator::Orchestrator;
use interlock_engine::reads::Reads;
use interlock_engine::runs::Hub;
use interlock_model::action::World;
use interlock_model::secret::Secret;
use interlock_server::config::ServerConfig;
use interlock_server::listener::{Listener, listen};
use interlock_server::perimeter::added::AddedRules;
use interlock_server::perimeter::limits::{Limiter, SharedCounters, WhenAway};
use interlock_server::tls::{self, Keeper};
use interlock_server::{AppState, DeviceServices, Services};
use interlock_tools::device::Link;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::net::{self, NetArgs};
use super::orchestrate::Orchestrating;
use crate::adapter::LocalDevice;
use crate::ambient;
use crate::anchors;
use crate::config::{Config, Kind, SETTINGS, ServerSettings, TlsMode};
use crate::directories;
use crate::installation::{self, Parts};
use crate::own_device::OwnDevice;
use crate::python;
use crate::shared::{Heralds, Shared};
use crate::supervision::Manager;

/// Longest wait for requests and runs when the server ends.
const DRAIN: Duration = Duration::from_secs(10);
/// How often expired keys and revocations are deleted.
const CLEANING: Duration = Duration::from_hours(1);

/// How often changes by other processes are looked for.
const WATCHING: Duration = Duration::from_millis(250);
/// How often what was written to the audit log is signed for.
const SEALING: Duration = Duration::from_secs(1);
/// How long the end of the server waits for the last signature.
const LAST_SEAL: Duration = Duration::from_secs(5);
/// How often the rate limits' counters are written, so that a restart forgets no more than this.
const SAVING: Duration = Duration::from_secs(2);
/// Their file in the state folder.
const COUNTERS: &str = "limits.json";
/// How often the last use of API keys is stored.
const NOTING: Duration = Duration::from_mins(1);

/// Options of `device serve`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) net: NetArgs,
}

/// What is served, and how its program is run.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DeviceArgs {
    /// Python file with `@task` functions
    pub(crate) file: PathBuf,
    /// Short name of the device [default: the file's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
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

impl DeviceArgs {
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

/// An orchestrator in the same process as a device, with the same people, keys and records, on a listener of its own.
#[derive(Debug, Clone)]
pub(crate) struct Beside {
    /// Where it listens; loopback.
    pub(crate) listen: SocketAddr,
    /// As whom the steps of tasks use the device.
    pub(crate) user: &'static str,
    /// That one's password.
    pub(crate) password: Secret,
}

/// What a caller learns when the server answers.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    pub(crate) url: String,
    /// The orchestrator beside a device.
    pub(crate) tasks_url: Option<String>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) state: PathBuf,
    pub(crate) title: String,
    /// Actions of the device, on a server that has one.
    pub(crate) actions: Option<usize>,
    /// Name of the first action of the file.
    pub(crate) first_action: String,
    /// The first administrator's password, if one was made up just now.
    pub(crate) first_password: Option<Secret>,
    /// Where counters and news are shared: `host:port/db`.
    pub(crate) redis: Option<String>,
    /// Where probes and metrics are served, if it is not there where everything is.
    pub(crate) internal: Option<String>,
}

/// Serves until told to stop: a device's actions where `device` is given, with an orchestrator beside it where `beside` is; else
/// the orchestrator.
///
/// `ready` is called once, when the server answers.
///
/// # Errors
/// Whatever keeps the server from starting, with the remedy.
#[expect(clippy::too_many_lines, reason = "start-up in one place, in the order in which it happens")]
pub(crate) async fn serve<F>(
    net: NetArgs,
    device: Option<DeviceArgs>,
    beside: Option<Beside>,
    config: Config,
    ready: F,
) -> anyhow::Result<()>
where
    F: FnOnce(&Ready),
{
    net::keep_memory_private();
    let settings = config.server()?;
    let name = device.as_ref().map_or_else(|| "server".to_owned(), DeviceArgs::device_name);
    let state = net.state.clone().unwrap_or_else(|| installation::default_state(&name));
    installation::prepare(&state)?;

    // What can fail without touching the device comes first: certificate, port, database, keys.
    let (certificates, ca_file) = net::certificates(&settings, &state)?;
    let address = SocketAddr::new(settings.bind, settings.port);
    let tcp = listen(address).with_context(|| net::bind_hint(address))?;
    let tasks_tcp = match &beside {
        Some(beside) => Some(listen(beside.listen).with_context(|| net::bind_hint(beside.listen))?),
        None => None,
    };
    let internal = match settings.internal_listen {
        Some(address) => Some(listen(address).with_context(|| net::bind_hint(address))?),
        None => None,
    };
    let challenges = match settings.tls {
        TlsMode::Acme { http: Some(address), .. } => {
            Some(listen(address).with_context(|| net::bind_hint(address))?)
        }
        _ => None,
    };
    let mut parts = installation::open(&state, settings.database_url.as_ref()).await?;
    if let Some(path) = &settings.breached_passwords {
        let list = Breached::open(path)
            .with_context(|| format!("identity.breached_passwords_file ({})", path.display()))?;
        parts.passwords = parts.passwords.refusing(list);
    }
    parts.passwords = parts.passwords.storing_as(settings.password_hash);
    let shared = match &settings.redis {
        Some(redis) => Some(Shared::open(redis, &parts.ambient).await?),
        None => None,
    };
    let heralds = Heralds::new(shared.as_ref(), parts.told.as_ref().map(|told| &told.news));
    if let Some(heralds) = &heralds {
        parts.db = parts.db.clone().telling(Arc::clone(heralds) as Arc<dyn News>);
    }
    let issuer = net::issuer(&settings, tcp.local_addr()?);
    let tokens = installation::tokens(&state, &settings, issuer, &parts).await?;
    let master = installation::master_key(&state, &settings, &parts)?;
    let algorithm = tokens.algorithm();
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new()
        .set_buckets(&[
            0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
        ])
        .context("describe the histograms")?
        .install_recorder()
        .context("start the metrics")?;
    interlock_engine::metrics::describe();
    if let Some(collector) = settings.collector.clone()
        && let Some(exporting) =
            interlock_tools::telemetry::export(collector).context("set up the export of traces")?
    {
        tokio::spawn(exporting);
    }
    net::warn_about(&settings, &config);

    let scheme = if certificates.is_some() { "https" } else { "http" };
    let orchestrating = match (&device, &beside) {
        (Some(_), None) => None,
        (Some(_), Some(Beside { user, password, .. })) => {
            let url = format!("{scheme}://{}", net::reachable(tcp.local_addr()?));
            let own = Arc::new(OwnDevice::new(url, user, password.clone())) as Arc<dyn Link>;
            Some(Orchestrating::new(&state, &settings, &parts, Some((name.clone(), own)))?)
        }
        (None, _) => Some(Orchestrating::new(&state, &settings, &parts, None)?),
    };
    let host = match &device {
        Some(device) => Some(start_device(device, net.title.clone(), &name, &state, &parts).await?),
        None => None,
    };
    let title = Some(settings.title.clone())
        .filter(|title| !title.is_empty())
        .or_else(|| host.as_ref().map(|host| host.status().title))
        .unwrap_or_else(|| "Interlock".to_owned());
    let server = server_config(&settings, &title, host.as_ref(), certificates.is_some());

    let redis = shared.as_ref().map(|shared| shared.place().to_owned());
    let (recorder, recording) = audit::recorder(Arc::clone(&parts.store), parts.ambient.clone());
    let background = TaskTracker::new();
    background.spawn(recording);
    let runs = TaskTracker::new();
    let limits = Limits { queue: settings.queue, default_timeout: settings.default_timeout };
    let step_up = StepUpPolicy {
        required: settings.require_step_up,
        admins_need_second_factor: settings.require_mfa_for_admins,
    };
    let directories = directories::directories(&settings, &parts.ambient)?;
    let limiter = limiter(&server, shared.as_ref(), settings.redis_down, &parts);
    let counters = state.join(COUNTERS);
    limiter.restore(&counters);
    let wired = Wired {
        parts: &parts,
        recorder: recorder.clone(),
        runs: runs.clone(),
        limits,
        directories,
        ceremonies: ceremonies(settings.public_url.as_deref())?,
        step_up,
        owner_mode: settings.owner_mode,
        passwords_by_link: !settings.admins_set_passwords,
        rules: AccessRules {
            clients: ClientPolicy { keys_only: settings.agents_need_keys },
            two_people: settings.admin_grants_need_two,
            admin_networks: settings.admin_networks.clone(),
        },
        device_run_days: settings.device_run_days,
        limiter,
        shared: shared.clone(),
        heralds,
        certificates: certificates.clone(),
        added: Arc::clone(&settings.added_rules),
        orchestrator: orchestrating.as_ref().map(|all| all.orchestrator.clone()),
    };
    let hosted = host.as_ref().map(|host| (Arc::new(LocalDevice(host.clone())) as Arc<dyn Device>, name));
    let root = SystemPermit::root("system");
    let system = SystemPermit::root("system");
    let bans = Bans::load(parts.db.clone(), parts.ambient.clone(), config.never_banned()?, system)
        .await
        .context("read the bans")?;
    let (app, following) = wired.state(hosted, (tokens, master), server, metrics, bans);
    // The two families use the same paths for different things: each has its own listener.
    let tasks_app = beside.as_ref().map(|_| app.edited(|services| services.device = None));
    let app = if tasks_app.is_some() { app.edited(|services| services.orchestrator = None) } else { app };
    app.identity.publish_key(&root).await.context("publish the signing key")?;
    let signer = Arc::new(installation::audit_signer(&state, &parts).await?);
    let notary = Notary::new(Arc::clone(&parts.store), Arc::clone(&signer), parts.ambient.clone());
    notary.publish_key(&parts.db, &root).await.context("publish the key of the audit log")?;
    app.identity.publish_issuer(&root).await.context("publish the issuer's name")?;
    let secret = settings.bootstrap_admin_secret.as_ref();
    let first_password = installation::first_admin(&parts, &app.users, secret).await?;
    app.identity.agents.ensure_first(&root, secret).await.context("make the first agent")?;
    let reconciled = match &app.device {
        Some(device) => {
            device.executions.reconcile().await.context("bring runs of an earlier process to their end")?
        }
        None => 0,
    };
    for task in following {
        tokio::spawn(task);
    }
    tokio::spawn(ambient::tell_forever(state.clone()));
    tokio::spawn(backup::tell_forever(Arc::clone(&parts.store)));
    let written = CancellationToken::new();
    let sealing = tokio::spawn(notary.seal_until(SEALING, written.clone()));
    if let Some(days) = settings.audit_days {
        let (db, ambient) = (parts.db.clone(), parts.ambient.clone());
        tokio::spawn(notary::forget_forever(db, ambient, SystemPermit::root("system"), days, CLEANING));
    }
    if let Some(path) = settings.anchor_file.clone() {
        tokio::spawn(anchors::keep_forever(Arc::clone(&parts.store), signer.key().clone(), path));
    }
    tokio::spawn(Arc::clone(&app.limits).save_forever(counters.clone(), SAVING));
    tokio::spawn(Arc::clone(&app.added).watch());
    let renewal = net::renewal(&settings, &state, certificates.as_ref());
    if let Some(keeper) = certificates {
        tokio::spawn(Arc::clone(&keeper).watch());
        tokio::spawn(net::look_when_told(keeper, renewal.clone()));
    }
    if settings.master_key.is_none() {
        tokio::spawn(installation::follow_master_key(state.clone(), app.identity.clone()));
    }
    if settings.jwt_secret.is_none() {
        tokio::spawn(installation::follow_key(state.clone(), app.identity.clone()));
    }

    let listener = Listener::new(tcp, app.certificates.clone(), &app.config, Arc::clone(&app.entropy));
    let bound = listener.address()?;
    let internal = internal.map(|tcp| Listener::internal(tcp, Arc::clone(&app.entropy)));
    let inside = internal.as_ref().map(Listener::address).transpose()?;
    let beside = match (tasks_tcp, tasks_app) {
        (Some(tcp), Some(app)) => {
            Some((Listener::new(tcp, app.certificates.clone(), &app.config, Arc::clone(&app.entropy)), app))
        }
        _ => None,
    };
    let tasks_bound = beside.as_ref().map(|(listener, _)| listener.address()).transpose()?;
    let catalogue = host.as_ref().map(Host::catalogue);
    let told = Ready {
        url: format!("{scheme}://{}", net::reachable(bound)),
        tasks_url: tasks_bound.map(|address| format!("{scheme}://{}", net::reachable(address))),
        ca_file,
        state,
        title,
        actions: catalogue.as_ref().map(|catalogue| catalogue.actions().len()),
        first_action: catalogue
            .as_ref()
            .and_then(|catalogue| catalogue.declarations.actions.first().map(|action| action.name.clone()))
            .unwrap_or_default(),
        first_password,
        redis,
        internal: inside.map(|address| format!("http://{}", net::reachable(address))),
    };
    tracing::info!(
        url = told.url,
        tls = app.config.tls,
        redis = told.redis,
        token_algorithm = algorithm,
        rate_limits = app.config.rate.enabled,
        screening_rules = interlock_model::screen::RULES,
        added_rules = app.added.in_force().0,
        roles = "admin operator viewer auditor",
        actions = told.actions,
        reconciled,
        "the server is starting"
    );
    let stop = CancellationToken::new();
    let connections = TaskTracker::new();
    let service = interlock_server::router(app.clone());
    anyhow::ensure!(
        interlock_server::perimeter::limits_hold(&app, service.clone()).await,
        "RATE_LIMIT_ENABLED is true, but a request over the limit was not refused. This is a fault of the program: report it, \
         and do not open this server to the network"
    );
    let serving = tokio::spawn(listener.serve(service, stop.clone(), connections.clone()));
    if let Some((listener, app)) = beside {
        tokio::spawn(listener.serve(interlock_server::router(app), stop.clone(), connections.clone()));
    }
    if let Some(internal) = internal {
        let router = interlock_server::internal_router(app.clone());
        tokio::spawn(internal.serve(router, stop.clone(), connections.clone()));
    }
    if let Some(tcp) = challenges {
        let listener = Listener::internal(tcp, Arc::clone(&app.entropy));
        let router = interlock_server::challenge_router(app.clone());
        tokio::spawn(listener.serve(router, stop.clone(), connections.clone()));
    }
    if let Some(renewal) = renewal {
        tokio::spawn(renewal.keep_forever());
    }
    if let Some(orchestrating) = &orchestrating {
        orchestrating.begin(&parts, app.identity.agents.clone(), settings.drain);
    }
    if let Some(path) = &net.ready_file {
        net::write_ready_file(path, &told)?;
    }
    ready(&told);
    let supervised = Manager::of_this_process().map(Manager::ready);

    net::stop_signal().await;
    tracing::info!("the server is stopping");
    if let Some(supervised) = &supervised {
        supervised.stopping();
    }
    stop.cancel();
    let _ = serving.await;
    if let Some(orchestrating) = &orchestrating {
        orchestrating.end().await;
    }
    runs.close();
    connections.close();
    if let Some(host) = &host {
        // The running action gets its time to end; what is still open then goes down the cancel ladder.
        let device_down = host.shutdown(DRAIN);
        let drained = tokio::time::timeout(DRAIN * 3, async {
            device_down.await;
            runs.wait().await;
        });
        if drained.await.is_err() {
            tracing::warn!(
                "runs were still open when the server ended; they are reconciled at the next start"
            );
        }
    }
    let _ = tokio::time::timeout(Duration::from_secs(2), connections.wait()).await;
    if let Some(shared) = &shared {
        shared.leave().await;
    }
    if let Err(error) = app.limits.save(&counters) {
        tracing::warn!(path = %counters.display(), %error, "the rate limits' counters could not be written");
    }
    recorder.drained(Duration::from_secs(5)).await;
    // What was written last is signed for now rather than at the next start.
    written.cancel();
    if tokio::time::timeout(LAST_SEAL, sealing).await.is_err() {
        tracing::warn!("the end of the audit log was not signed; the next start does it");
    }
    parts.store.close().await;
    if let Some(path) = &net.ready_file {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

fn server_config(settings: &ServerSettings, title: &str, host: Option<&Host>, tls: bool) -> ServerConfig {
    let own = host.and_then(|host| host.catalogue().declarations.description.clone()).unwrap_or_default();
    ServerConfig {
        title: title.to_owned(),
        description: Some(settings.description.clone()).filter(|text| !text.is_empty()).unwrap_or(own),
        version: env!("CARGO_PKG_VERSION"),
        production: settings.production,
        force_https: settings.force_https,
        tls,
        hsts: settings.hsts,
        compat_headers: settings.compat_headers,
        legacy_errors: settings.legacy_errors,
        public_url: settings.public_url.clone(),
        allowed_hosts: tls::loopback_names(settings.bind)
            .into_iter()
            .chain(settings.allowed_hosts.clone())
            .collect(),
        cors_origins: settings.cors_origins.clone(),
        cors_methods: settings.cors_methods.clone(),
        trusted_proxies: settings.trusted_proxies.clone(),
        forwarded_by: settings.forwarded_by,
        proxy_protocol: settings.proxy_protocol.clone(),
        internal_listener: settings.internal_listen.is_some(),
        max_request_size: settings.max_request_size,
        rate: settings.rate,
        screening: settings.screening,
        connections: net::connection_limits(),
        security_contacts: settings.security_contacts.clone(),
        security_policy: settings.security_policy.clone(),
        metrics_token: settings.metrics_token.clone(),
    }
}

#[cfg(feature = "passkeys")]
use crate::passkeys::ceremonies;

/// Built without them, there are no passkeys.
#[cfg(not(feature = "passkeys"))]
#[expect(clippy::unnecessary_wraps, reason = "like the one that judges")]
fn ceremonies(_: Option<&str>) -> anyhow::Result<Option<Arc<dyn Ceremonies>>> {
    Ok(None)
}

fn limiter(
    server: &ServerConfig,
    shared: Option<&Arc<Shared>>,
    when_away: WhenAway,
    parts: &Parts,
) -> Limiter {
    let limiter = Limiter::new(server.rate, server.connections.in_flight, &*parts.ambient.clock);
    match shared {
        Some(shared) => limiter.sharing(Arc::clone(shared) as Arc<dyn SharedCounters>, when_away),
        None => limiter,
    }
}

struct Wired<'a> {
    parts: &'a Parts,
    recorder: Recorder,
    runs: TaskTracker,
    limits: Limits,
    directories: Directories,
    ceremonies: Option<Arc<dyn Ceremonies>>,
    limiter: Limiter,
    shared: Option<Arc<Shared>>,
    heralds: Option<Arc<Heralds>>,
    step_up: StepUpPolicy,
    owner_mode: bool,
    rules: AccessRules,
    passwords_by_link: bool,
    device_run_days: Option<u32>,
    orchestrator: Option<Orchestrator>,
    certificates: Option<Arc<Keeper>>,
    added: Arc<AddedRules>,
}

type Background = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl Wired<'_> {
    /// Puts the services together, and the background work they need.
    fn state(
        self,
        device: Option<(Arc<dyn Device>, String)>,
        (tokens, master): (Tokens, MasterKey),
        server: ServerConfig,
        metrics: metrics_exporter_prometheus::PrometheusHandle,
        bans: Bans,
    ) -> (AppState, Vec<Background>) {
        let Parts { ambient, db, principals, passwords, .. } = self.parts;
        let system = || SystemPermit::root("system");
        let identity = Identity::new(Setup {
            db,
            ambient,
            principals,
            passwords,
            tokens,
            master,
            recorder: &self.recorder,
            rules: self.rules.clone(),
            system: system(),
            directories: self.directories.clone(),
            ceremonies: self.ceremonies.clone(),
        });
        let world: Arc<dyn World> = match &device {
            Some((device, name)) => Arc::new(DeviceWorld { device: Arc::clone(device), name: name.clone() }),
            None => Arc::new(NoDevice),
        };
        let sessions = Arc::clone(&identity.sessions);
        let guard = Guard::new(sessions, self.recorder.clone(), world, ambient.clone());
        let guard = Arc::new(guard.with_step_up(self.step_up).with_owner_mode(self.owner_mode));
        let news = self.heralds.clone().map(|heralds| heralds as Arc<dyn News>);
        let mut following: Vec<Background> = vec![
            Box::pin(janitor::clean_forever(db.clone(), ambient.clone(), system(), CLEANING)),
            Box::pin(Arc::clone(principals).watch_hearing(WATCHING, news)),
            Box::pin(bans.clone().watch(WATCHING)),
            Box::pin(identity.api_keys.clone().note_use_forever(system(), NOTING)),
            Box::pin(Arc::clone(&identity.sessions).watch_scopes_forever(NOTING)),
            Box::pin(identity.notices.clone().remind_forever(system())),
        ];
        let roles: Vec<String> = device
            .iter()
            .flat_map(|(device, _)| {
                device.catalogue().actions().map(|action| action.role().to_owned()).collect::<Vec<_>>()
            })
            .collect();
        let device = device.map(|device| self.device(device, &mut following));
        following.extend(self.shared.iter().flat_map(Shared::background));
        following.extend(self.heralds.iter().flat_map(Heralds::background));
        let app = AppState::new(Services {
            added: self.added,
            guard,
            identity,
            evidence: Evidence::new(db.clone()),
            device,
            orchestrator: self.orchestrator,
            users: self.parts.users(roles.into()).with_passwords_by_link(self.passwords_by_link),
            bans,
            recorder: self.recorder,
            limits: Arc::new(self.limiter),
            config: Arc::new(server),
            certificates: self.certificates,
            clock: Arc::clone(&ambient.clock),
            entropy: Arc::clone(&ambient.entropy),
            metrics,
            tasks: self.runs,
            started: Instant::now(),
        });
        (app, following)
    }

    fn device(
        &self,
        (device, name): (Arc<dyn Device>, String),
        following: &mut Vec<Background>,
    ) -> DeviceServices {
        let Parts { ambient, db, .. } = self.parts;
        let hub = Hub::new(db.clone(), ambient.clone(), device.events());
        following.push(Box::pin(Arc::clone(&hub).follow(device.events())));
        following.push(Box::pin(Arc::clone(&hub).flush_forever()));
        if let Some(days) = self.device_run_days {
            let system = SystemPermit::root("system");
            let (db, ambient, device) = (db.clone(), ambient.clone(), Arc::clone(&device));
            following.push(Box::pin(janitor::discard_forever(db, ambient, system, device, days, CLEANING)));
        }
        let executions = Executions::new(
            Arc::clone(&device),
            name,
            db.clone(),
            ambient.clone(),
            Arc::clone(&hub),
            self.runs.clone(),
            self.limits,
            SystemPermit::root("system"),
        );
        DeviceServices {
            executions,
            reads: Reads::new(db.clone(), hub, Arc::clone(&device)),
            devices: Devices::new(device, db.clone(), ambient.clone(), self.recorder.clone()),
        }
    }
}

async fn start_device(
    args: &DeviceArgs,
    title: Option<String>,
    name: &str,
    state: &Path,
    parts: &Parts,
) -> anyhow::Result<Host> {
    let package = python::unpack(state)?;
    let mut config = HostConfig::new(
        name,
        args.file.clone(),
        package,
        state.join("device"),
        Arc::clone(&parts.ambient.clock),
    );
    config.title = title;
    config.python = python::interpreter(args.python.clone());
    // Each run is on record in the database before the device hears of it, and its end before anyone else does.
    config.durability = Durability::Caller;
    config.environment.clone_from(&args.environment);
    let secrets = SETTINGS.iter().filter(|setting| setting.kind == Kind::Secret);
    config.secrets = secrets.flat_map(|setting| setting.variables.iter().copied()).collect();
    config.simulate = args.simulate;
    config.standby = !args.no_standby;
    Host::start(config).await.map_err(|error| {
        let remedy = error.remedy();
        anyhow::Error::new(error)
            .context(remedy)
            .context(format!("start the device file {}", args.file.display()))
    })
}

/// What a person reads when a server has started.
pub(crate) fn banner(told: &Ready) -> String {
    use std::fmt::Write as _;
    let version = env!("CARGO_PKG_VERSION");
    let mut text = match told.actions {
        Some(actions) => format!("\n  Interlock {version} · {} · {actions} actions\n", told.title),
        None => format!("\n  Interlock {version} · {} · orchestrator\n", told.title),
    };
    let page = if told.actions.is_some() { "Panel     " } else { "Documents " };
    let path = if told.actions.is_some() { "/panel" } else { "/docs" };
    let _ = writeln!(text, "  {page}{}{path}", told.url);
    if let Some(ca) = &told.ca_file {
        let _ = writeln!(text, "  CA file   {}", ca.display());
        if let Ok(fingerprint) = tls::fingerprint(ca) {
            let _ = writeln!(text, "  CA print  {fingerprint}");
        }
    }
    if let Some(internal) = &told.internal {
        let _ = writeln!(text, "  Probes    {internal}/health/ready, {internal}/metrics");
    }
    let _ = writeln!(text, "  State     {}", told.state.display());
    if let Some(redis) = &told.redis {
        let _ = writeln!(text, "  Redis     {redis}");
    }
    if let Some(password) = &told.first_password {
        let _ = writeln!(text, "  Sign in   admin / {}   (shown only now)", password.expose());
    }
    let ca = told.ca_file.as_ref().map(|ca| format!(" --ca-file {}", ca.display())).unwrap_or_default();
    let _ = writeln!(text, "  Next      interlock login --url {}{ca} --user admin", told.url);
    text
}
