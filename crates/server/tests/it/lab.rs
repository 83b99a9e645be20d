//! A whole device server without a socket: router, temporary database, test clock, scripted device.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use interlock_engine::Ambient;
use interlock_engine::audit::{self, Recorder};
use interlock_engine::auth::{
    AccessRules, Db, Directories, Guard, Hasher, KEY_BYTES, Keys, Lifetimes, MasterKey, Passwords,
    Principals, SystemPermit, Tokens,
};
use interlock_engine::bans::Bans;
use interlock_engine::devices::{Device, DeviceWorld, Devices};
use interlock_engine::evidence::Evidence;
use interlock_engine::executions::{Executions, Limits};
use interlock_engine::identity::{Identity, Setup};
use interlock_engine::notary;
use interlock_engine::orchestrator::{Orchestrator, OrchestratorSettings};
use interlock_engine::reads::Reads;
use interlock_engine::runs::Hub;
use interlock_engine::tools::Tools;
use interlock_engine::users::Users;
use interlock_model::audit::AuditEntry;
use interlock_model::secret::Secret;
use interlock_model::time::{TestClock, TestEntropy};
use interlock_model::{Clock as _, Timestamp};
use interlock_server::config::{
    ConnectionLimits, ForwardedBy, Hsts, RateLimits, Screening, ScreeningMode, ServerConfig,
};
use interlock_server::listener::Peer;
use interlock_server::perimeter::limits::Limiter;
use interlock_server::{AppState, DeviceServices, Services};
use interlock_store::Store;
use interlock_store::sqlite::Sqlite;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::fake::FakeDevice;
use crate::flaky::Flaky;

/// Long enough for a slow machine, short enough to fail a stuck test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Everyone's password ends like this.
const PASSWORD: &str = "seven purple pipettes";
/// What tokens are signed with where a test says nothing else.
pub(crate) const SECRET: &str = "0123456789abcdefghijklmnopqrstuvwxyz";
/// Who issues them.
pub(crate) const ISSUER: &str = "http://localhost";
/// For whom tokens are.
pub(crate) const AUDIENCE: &str = "interlock:test";
/// `(name, roles)` of everyone.
pub(crate) const PEOPLE: [(&str, &[&str]); 7] = [
    ("ada", &["admin"]),
    ("ana", &["operator"]),
    ("ben", &["operator"]),
    ("vic", &["viewer"]),
    ("odo", &["auditor"]),
    ("cal", &["calibrator"]),
    ("zoe", &["admin", "operator", "viewer"]),
];

/// The start of every test's time.
pub(crate) fn epoch() -> Timestamp {
    Timestamp::from_seconds(1_780_000_000)
}

/// A server with everything that a test wants to look at.
pub(crate) struct Lab {
    pub(crate) app: AppState,
    pub(crate) router: Router,
    pub(crate) store: Arc<Flaky>,
    pub(crate) device: Arc<FakeDevice>,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) recorder: Recorder,
    /// Runs as the engine counts them; closing it is the start of a shutdown.
    pub(crate) runs: TaskTracker,
    /// What tokens are signed with.
    pub(crate) key: SigningKey,
    agents: std::sync::atomic::AtomicU32,
    tokens: Mutex<HashMap<String, String>>,
    folder: Arc<TempDir>,
    /// No two servers of a test draw the same random numbers.
    seed: u64,
    rules: AccessRules,
}

/// What tokens are signed with.
#[derive(Clone)]
pub(crate) enum SigningKey {
    /// HS256 with this secret.
    Secret(&'static str),
    /// EdDSA with this key.
    Ed25519(Vec<u8>),
}

impl SigningKey {
    /// A new EdDSA key.
    pub(crate) fn new() -> Self {
        Self::Ed25519(Keys::generate().expect("a key"))
    }

    fn keys(&self) -> Keys {
        match self {
            Self::Secret(text) => Keys::hs256(&Secret::new(*text), None),
            Self::Ed25519(pkcs8) => Keys::ed25519(pkcs8),
        }
        .expect("a key")
    }
}

/// What a server is built on.
struct Ground {
    folder: Arc<TempDir>,
    store: Arc<Flaky>,
    clock: Arc<TestClock>,
    key: SigningKey,
    seed: u64,
    rules: AccessRules,
    directories: Directories,
}

/// The settings that tests start from: everything on, limits off.
fn config() -> ServerConfig {
    ServerConfig {
        title: "Test lab".to_owned(),
        description: "A device for tests".to_owned(),
        version: "0.0.0-test",
        production: false,
        force_https: false,
        tls: false,
        hsts: Hsts::Secure,
        compat_headers: false,
        legacy_errors: false,
        public_url: None,
        allowed_hosts: vec![
            "localhost".to_owned(),
            "*.lab.example".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ],
        cors_origins: Vec::new(),
        cors_methods: vec![Method::GET, Method::POST, Method::PATCH, Method::DELETE],
        trusted_proxies: Vec::new(),
        forwarded_by: ForwardedBy::XForwardedFor,
        proxy_protocol: Vec::new(),
        internal_listener: false,
        max_request_size: 10 * 1024 * 1024,
        rate: RateLimits { enabled: false, per_minute: 60, per_hour: 1000 },
        screening: Screening { mode: ScreeningMode::Block, text_as_labels: false },
        connections: ConnectionLimits::default(),
        security_contacts: Vec::new(),
        security_policy: None,
        metrics_token: None,
    }
}

fn orchestrator(db: &Db, ambient: &Ambient, principals: &Arc<Principals>) -> Orchestrator {
    Orchestrator::new(
        db.clone(),
        ambient.clone(),
        Arc::clone(principals),
        Arc::new(Tools::new(Vec::new())),
        OrchestratorSettings::default(),
        SystemPermit::root("system"),
        None,
    )
}

impl Lab {
    /// A server with the usual settings.
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A server with changed settings.
    pub(crate) async fn with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        Self::signing(SigningKey::Secret(SECRET), change).await
    }

    /// A server whose tokens are signed with this key.
    pub(crate) async fn signing(key: SigningKey, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        let store = Flaky::new(Arc::new(Sqlite::open_in(folder.path()).expect("a new database")));
        let clock = Arc::new(TestClock::at(epoch()));
        Self::over(
            Ground {
                folder,
                store,
                clock,
                key,
                seed: 7,
                rules: AccessRules::default(),
                directories: Directories::default(),
            },
            FakeDevice::new(),
            Vec::new(),
            change,
        )
        .await
    }

    /// The same installation after a restart: only what is in the database file is left.
    pub(crate) async fn restarted(self) -> Self {
        let rules = self.rules.clone();
        self.restarted_under(rules).await
    }

    /// The same, under other rules of access.
    pub(crate) async fn restarted_under(self, rules: AccessRules) -> Self {
        self.restarted_with(rules, |_| {}).await
    }

    /// The same, with changed settings.
    pub(crate) async fn restarted_with(
        self,
        rules: AccessRules,
        change: impl FnOnce(&mut ServerConfig),
    ) -> Self {
        self.recorder.drained(PATIENCE).await;
        self.store.close().await;
        let store = Flaky::new(Arc::new(Sqlite::open_in(self.folder.path()).expect("the database")));
        let Self { folder, clock, key, seed, .. } = self;
        let ground =
            Ground { folder, store, clock, key, seed: seed + 1, rules, directories: Directories::default() };
        Self::over(ground, FakeDevice::new(), Vec::new(), change).await
    }

    /// Another server of the same installation, with a key of its own.
    pub(crate) async fn beside(&self, key: SigningKey) -> Self {
        let ground = Ground {
            folder: Arc::clone(&self.folder),
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            key,
            seed: self.seed + 1000,
            rules: self.rules.clone(),
            directories: Directories::default(),
        };
        Self::over(ground, FakeDevice::new(), Vec::new(), |_| {}).await
    }

    /// Takes in what other servers have changed.
    pub(crate) async fn catch_up(&self) {
        self.app.identity.principals.catch_up().await.expect("the changes");
        self.app.identity.principals.reload().await.expect("users and revocations");
    }

    /// A server without request screening: what stands behind the tripwire must hold by itself.
    pub(crate) async fn unscreened() -> Self {
        Self::with(|config| config.screening.mode = ScreeningMode::Off).await
    }

    /// A server that never bans these networks.
    pub(crate) async fn allowing(allow: &[&str], change: impl FnOnce(&mut ServerConfig)) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        let store = Flaky::new(Arc::new(Sqlite::open_in(folder.path()).expect("a new database")));
        let clock = Arc::new(TestClock::at(epoch()));
        let allow = allow.iter().map(|net| net.parse().expect("a network")).collect();
        let ground = Ground {
            folder,
            store,
            clock,
            key: SigningKey::Secret(SECRET),
            seed: 7,
            rules: AccessRules::default(),
            directories: Directories::default(),
        };
        Self::over(ground, FakeDevice::new(), allow, change).await
    }

    /// A server that lets people of these directories in.
    pub(crate) async fn knowing(directories: Directories) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        let store = Flaky::new(Arc::new(Sqlite::open_in(folder.path()).expect("a new database")));
        let clock = Arc::new(TestClock::at(epoch()));
        let (key, rules) = (SigningKey::Secret(SECRET), AccessRules::default());
        let ground = Ground { folder, store, clock, key, seed: 7, rules, directories };
        Self::over(ground, FakeDevice::new(), Vec::new(), |_| {}).await
    }

    async fn over(
        ground: Ground,
        device: Arc<FakeDevice>,
        ban_allow: Vec<ipnet::IpNet>,
        change: impl FnOnce(&mut ServerConfig),
    ) -> Self {
        let Ground { folder, store, clock, key, seed, rules, directories } = ground;
        let mut config = config();
        change(&mut config);
        let entropy = Arc::new(TestEntropy::seeded(seed));
        let ambient = Ambient { clock: Arc::clone(&clock) as _, entropy };
        let storage: Arc<dyn Store> = Arc::clone(&store) as _;
        let (recorder, recording) = audit::recorder(Arc::clone(&storage), ambient.clone());
        tokio::spawn(recording);
        let db = Db::new(Arc::clone(&storage), ambient.clone());
        let principals = Principals::load(Arc::clone(&storage), ambient.clone()).await.expect("principals");
        let passwords = Passwords::start(Hasher::Weak);
        let lifetimes = Lifetimes { user_seconds: 3600, agent_seconds: 3600, refresh_seconds: 30 * 86_400 };
        let tokens = Tokens::new(key.keys(), AUDIENCE.to_owned(), lifetimes).issued_by(ISSUER.to_owned());
        let identity = Identity::new(Setup {
            db: &db,
            ambient: &ambient,
            principals: &principals,
            passwords: &passwords,
            tokens,
            master: MasterKey::new(&[7; KEY_BYTES]).expect("a key"),
            recorder: &recorder,
            rules: rules.clone(),
            system: SystemPermit::root("system"),
            directories,
            ceremonies: None,
        });
        let system = SystemPermit::root("system");
        identity.publish_key(&system).await.expect("the public key");
        identity.agents.ensure_first(&system, None).await.expect("the first agent");
        let port: Arc<dyn Device> = Arc::clone(&device) as _;
        let world = Arc::new(DeviceWorld { device: Arc::clone(&port), name: "fake".to_owned() });
        let guard =
            Arc::new(Guard::new(Arc::clone(&identity.sessions), recorder.clone(), world, ambient.clone()));
        let hub = Hub::new(db.clone(), ambient.clone(), port.events());
        let runs = TaskTracker::new();
        let executions = Executions::new(
            Arc::clone(&port),
            "fake".to_owned(),
            db.clone(),
            ambient.clone(),
            Arc::clone(&hub),
            runs.clone(),
            Limits { queue: Duration::from_secs(5), default_timeout: Duration::from_mins(1) },
            SystemPermit::root("system"),
        );
        tokio::spawn(Arc::clone(&hub).follow(port.events()));
        let roles: Vec<String> =
            device.catalogue().actions().map(|action| action.role().to_owned()).collect();
        let orchestrator = orchestrator(&db, &ambient, &principals);
        let users = Users::new(db.clone(), ambient.clone(), principals, passwords, roles.into());
        let console = SystemPermit::root("console");
        let nobody = users.console(&console).list().await.expect("the users").is_empty();
        for (name, roles) in PEOPLE.into_iter().filter(|_| nobody) {
            let roles: Vec<String> = roles.iter().map(|&role| role.to_owned()).collect();
            users.console(&console).create(name, password(name), &roles).await.expect("a user");
        }
        let allow = ban_allow.into_iter().chain(config.trusted_proxies.clone()).collect();
        let system = SystemPermit::root("system");
        let bans = Bans::load(db.clone(), ambient.clone(), allow, system).await.expect("bans");
        let app = AppState::new(Services {
            added: Arc::default(),
            guard,
            identity,
            evidence: Evidence::new(db.clone()),
            device: Some(DeviceServices {
                executions,
                reads: Reads::new(db.clone(), hub, Arc::clone(&port)),
                devices: Devices::new(port, db, ambient.clone(), recorder.clone()),
            }),
            orchestrator: Some(orchestrator),
            users,
            bans,
            recorder: recorder.clone(),
            limits: Arc::new(Limiter::new(config.rate, config.connections.in_flight, &*ambient.clock)),
            config: Arc::new(config),
            certificates: None,
            clock: Arc::clone(&ambient.clock),
            entropy: Arc::clone(&ambient.entropy),
            // Not installed: every test reads its own.
            metrics: PrometheusBuilder::new().build_recorder().handle(),
            tasks: TaskTracker::new(),
            started: Instant::now(),
        });
        let router = interlock_server::router(app.clone());
        Self {
            app,
            router,
            store,
            device,
            clock,
            recorder,
            runs,
            tokens: Mutex::default(),
            key,
            agents: std::sync::atomic::AtomicU32::new(0),
            folder,
            seed,
            rules,
        }
    }

    /// The same installation where people choose their own passwords.
    pub(crate) fn with_passwords_by_link(mut self) -> Self {
        self.app = self.app.edited(|services| {
            services.users = services.users.clone().with_passwords_by_link(true);
        });
        self.router = interlock_server::router(self.app.clone());
        self
    }

    /// The same installation as an orchestrator: tasks in the place of a device.
    pub(crate) fn without_device(mut self) -> Self {
        self.app = self.app.edited(|services| services.device = None);
        self.router = interlock_server::router(self.app.clone());
        self
    }

    pub(crate) fn ask(&self, method: Method, path: &str) -> Ask<'_> {
        let peer = Peer { address: SocketAddr::from(([10, 0, 0, 7], 4711)), ..Peer::default() };
        Ask {
            lab: self,
            method,
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: Body::empty(),
            peer,
            host: true,
        }
    }

    pub(crate) fn get(&self, path: &str) -> Ask<'_> {
        self.ask(Method::GET, path)
    }

    pub(crate) fn put(&self, path: &str) -> Ask<'_> {
        self.ask(Method::PUT, path)
    }

    pub(crate) fn delete(&self, path: &str) -> Ask<'_> {
        self.ask(Method::DELETE, path)
    }

    /// A pair of tokens for an agent.
    pub(crate) async fn pair(&self, id: &str, secret: &str) -> (String, String) {
        let body = serde_json::json!({ "agent_id": id, "agent_secret": secret });
        pair_of(&self.post("/agents/auth/token").json(&body).send().await.ok())
    }

    /// Whether this credential is taken.
    pub(crate) async fn takes(&self, credential: &str) -> bool {
        let answer = self.get("/auth/me").signed(credential).send().await;
        if answer.status == StatusCode::OK {
            return true;
        }
        answer.refused(401, "unauthorized");
        false
    }

    pub(crate) fn post(&self, path: &str) -> Ask<'_> {
        self.ask(Method::POST, path)
    }

    /// A token of this person, signed in once a test.
    pub(crate) async fn token(&self, name: &str) -> String {
        let known = self.tokens.lock().expect("lock").get(name).cloned();
        if let Some(token) = known {
            return token;
        }
        let token = self.sign_in(name).await;
        self.tokens.lock().expect("lock").insert(name.to_owned(), token.clone());
        token
    }

    /// A fresh token of this person.
    pub(crate) async fn sign_in(&self, name: &str) -> String {
        let body = serde_json::json!({ "username": name, "password": password(name).expose() });
        let answer = self.post("/auth/login").json(&body).send().await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()["access_token"].as_str().expect("a token").to_owned()
    }

    /// A fresh token of a new agent with these scopes.
    pub(crate) async fn agent_token(&self, scopes: &[&str]) -> String {
        let (id, secret) = self.agent(scopes).await;
        let body = serde_json::json!({ "agent_id": id, "agent_secret": secret });
        let answer = self.post("/agents/auth/token").json(&body).send().await.ok();
        answer["access_token"].as_str().expect("a token").to_owned()
    }

    /// Id and secret of a new agent with these scopes.
    pub(crate) async fn agent(&self, scopes: &[&str]) -> (String, String) {
        let admin = self.sign_in("zoe").await;
        let name =
            format!("agent {}.{}", self.seed, self.agents.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let body = serde_json::json!({ "name": name, "scopes": scopes });
        let made = self.post("/agents").signed(&admin).json(&body).send().await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
        let id = made.json()["id"].as_str().expect("an id").to_owned();
        let answer = self.post(&format!("/agents/{id}/credentials")).signed(&admin).send().await.ok();
        (id, answer["agent_secret"].as_str().expect("a secret").to_owned())
    }

    /// Executes `mix` with good parameters.
    pub(crate) async fn mix(&self, name: &str) -> Ask<'_> {
        self.post("/execute/mix").signed(&self.token(name).await).json(&serde_json::json!({ "volume": 50 }))
    }

    /// Every audit entry, oldest first, after what was given is written.
    pub(crate) async fn trail(&self) -> Vec<AuditEntry> {
        self.recorder.drained(PATIENCE).await;
        let mut entries: Vec<AuditEntry> = Vec::new();
        loop {
            let more = self.store.audit_from(entries.len() as u64, 500).await.expect("the audit trail");
            if more.is_empty() {
                return entries;
            }
            entries.extend(more);
        }
    }

    /// Every audit entry of this action.
    pub(crate) async fn trail_of(&self, action: &str) -> Vec<AuditEntry> {
        self.trail().await.into_iter().filter(|entry| entry.draft.action == action).collect()
    }

    /// The chain must hold at the end of any story.
    pub(crate) async fn assert_chain(&self) {
        let length = self.trail().await.len() as u64;
        let verified =
            notary::verify(&*self.store, notary::Trust::default()).await.expect("the chain is unbroken");
        assert_eq!(verified.last, length);
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// Access and refresh token of an answer.
pub(crate) fn pair_of(answer: &Value) -> (String, String) {
    let text = |name: &str| answer[name].as_str().unwrap_or_else(|| panic!("{name}: {answer}")).to_owned();
    (text("access_token"), text("refresh_token"))
}

/// The password of a person.
pub(crate) fn password(name: &str) -> Secret {
    Secret::new(format!("{name} and {PASSWORD}"))
}

/// A request in the making.
pub(crate) struct Ask<'a> {
    lab: &'a Lab,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Body,
    peer: Peer,
    host: bool,
}

impl Ask<'_> {
    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        self.headers.append(name, HeaderValue::from_bytes(value.as_ref()).expect("a header value"));
        self
    }

    pub(crate) fn signed(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.text(body.to_string())
    }

    pub(crate) fn text(self, body: impl Into<String>) -> Self {
        self.typed("application/json", body.into())
    }

    pub(crate) fn typed(self, media_type: &str, body: impl Into<Body>) -> Self {
        let mut ask = self.header("content-type", media_type);
        ask.body = body.into();
        ask
    }

    /// A form.
    pub(crate) fn form(self, pairs: &[(&str, &str)]) -> Self {
        let encode = |text: &str| {
            text.bytes().fold(String::new(), |mut out, byte| {
                let plain = byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
                let escaped = if plain { char::from(byte).to_string() } else { format!("%{byte:02X}") };
                out.push_str(&escaped);
                out
            })
        };
        let pairs: Vec<String> =
            pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        self.typed("application/x-www-form-urlencoded", pairs.join("&"))
    }

    /// A body without a media type.
    pub(crate) fn bare(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn from(mut self, address: &str) -> Self {
        self.peer.address = SocketAddr::new(address.parse().expect("an address"), 4711);
        self
    }

    pub(crate) fn encrypted(mut self) -> Self {
        self.peer.tls = true;
        self
    }

    /// Without the usual `Host: localhost`.
    pub(crate) fn without_host(mut self) -> Self {
        self.host = false;
        self
    }

    /// The response with its body still to come.
    pub(crate) async fn open(self) -> Response<Body> {
        let mut request =
            Request::builder().method(self.method).uri(self.path).body(self.body).expect("a request");
        *request.headers_mut() = self.headers;
        if self.host {
            request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
        }
        request.extensions_mut().insert(self.peer);
        let answering = self.lab.router.clone().oneshot(request);
        let answer = tokio::time::timeout(PATIENCE, answering).await.expect("an answer in time");
        answer.unwrap_or_else(|never| match never {})
    }

    pub(crate) async fn send(self) -> Answer {
        Answer::read(self.open().await).await
    }
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) async fn read(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect())
            .await
            .expect("a body in time")
            .expect("a whole body")
            .to_bytes()
            .to_vec();
        Self { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a readable header"))
    }

    /// A refusal in the documented form with this status and code.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        let body = self.json();
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["error"], code);
        assert_eq!(body["status"], status);
        assert_eq!(body["detail"], body["message"]);
        assert_eq!(body["type"], "about:blank");
        assert_eq!(body["details"], Value::Null);
        assert_eq!(body["request_id"].as_str(), self.header("x-request-id"));
        assert!(body["timestamp"].as_str().is_some_and(|text| text.parse::<Timestamp>().is_ok()), "{body}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        body
    }

    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text());
        self.json()
    }
}

/// Waits until `condition` holds, within [`PATIENCE`].
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "it never came true that {what}");
}
