//! The engine on a temporary database with a device that does what a test decides.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use interlock_engine::Ambient;
use interlock_engine::audit;
use interlock_engine::auth::{
    AccessRules, Caller, Db, Directories, Guard, Hasher, KEY_BYTES, Keys, Lifetimes, MasterKey, Origin,
    Passwords, Permit, Principals, SystemPermit, Tokens, Wanted,
};
use interlock_engine::devices::{Device, DeviceWorld};
use interlock_engine::executions::{Executions, Limits, Request};
use interlock_engine::identity::{Identity, Setup};
use interlock_engine::notary;
use interlock_engine::reads::Reads;
use interlock_engine::runs::Hub;
use interlock_engine::users::Users;
use interlock_model::action::{DeviceActionTarget, ExecuteAction, ReadRun, RunTarget};
use interlock_model::device::{
    Call, Catalogue, Declarations, DeviceStatus, DeviceStop, Journaled, Outcome, RunEvent, StopLatch,
    WorkerStatus,
};
use interlock_model::secret::Secret;
use interlock_model::time::{TestClock, TestEntropy};
use interlock_model::{RunId, Timestamp};
use interlock_store::Store;
use interlock_store::sqlite::Sqlite;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::broadcast;
use tokio_util::task::TaskTracker;

/// Long enough for a slow machine, short enough to fail a stuck test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

type Behaviour = Box<dyn Fn(Call) -> BoxFuture<'static, Outcome> + Send + Sync>;

/// A device whose every call is a closure of the test.
pub(crate) struct Scripted {
    behaviour: Behaviour,
    pub(crate) calls: Mutex<Vec<Call>>,
    pub(crate) journal: Mutex<HashMap<RunId, Journaled>>,
    pub(crate) forgotten: Mutex<Vec<RunId>>,
    pub(crate) events: broadcast::Sender<RunEvent>,
}

impl Scripted {
    pub(crate) fn new<F>(behaviour: F) -> Arc<Self>
    where
        F: Fn(Call) -> BoxFuture<'static, Outcome> + Send + Sync + 'static,
    {
        Arc::new(Self {
            behaviour: Box::new(behaviour),
            calls: Mutex::default(),
            journal: Mutex::default(),
            forgotten: Mutex::default(),
            events: broadcast::channel(1024).0,
        })
    }

    /// Every call returns at once.
    pub(crate) fn prompt() -> Arc<Self> {
        Self::new(|_| Box::pin(async { Outcome::Returned { result: json!("done"), duration_ms: 1.0 } }))
    }
}

#[async_trait]
impl Device for Scripted {
    fn catalogue(&self) -> Arc<Catalogue> {
        let declarations: Declarations = serde_json::from_value(json!({ "actions": [
            { "name": "mix", "parameters": [{ "name": "volume", "required": true, "type": "number", "schema": { "type": "number" } }] },
        ] }))
        .expect("the declarations are well-formed");
        Arc::new(Catalogue::check(declarations).expect("the catalogue is sound"))
    }

    fn journaled(&self, run: &RunId) -> Journaled {
        self.journal.lock().expect("lock").get(run).cloned().unwrap_or(Journaled::NeverStarted)
    }

    fn forget(&self, runs: &[RunId]) {
        self.forgotten.lock().expect("lock").extend_from_slice(runs);
    }

    async fn call(&self, call: Call) -> Outcome {
        self.calls.lock().expect("lock").push(call.clone());
        (self.behaviour)(call).await
    }

    fn cancel(&self, _: &RunId, _: &str) -> bool {
        false
    }

    async fn emergency_stop(&self, _: &str, _: Option<&str>) -> DeviceStop {
        unreachable!("no test of this crate stops the device")
    }

    async fn release(&self, _: &str, _: &str) -> Result<(), String> {
        Ok(())
    }

    async fn clear_attention(&self, _: &str, _: &str) -> Result<(), String> {
        Ok(())
    }

    fn status(&self) -> DeviceStatus {
        DeviceStatus {
            name: "scripted".to_owned(),
            title: String::new(),
            state: "ready".to_owned(),
            running: None,
            queued: 0,
            emergency_stop: StopLatch::default(),
            attention: None,
            worker: WorkerStatus::default(),
            actions: 1,
        }
    }

    fn events(&self) -> broadcast::Receiver<RunEvent> {
        self.events.subscribe()
    }

    fn discard(&self, _: &[RunId]) -> std::io::Result<()> {
        Ok(())
    }

    fn artifact_path(&self, _: &RunId, _: &str) -> Option<PathBuf> {
        None
    }
}

/// One process of the engine.
pub(crate) struct Bench {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) ambient: Ambient,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) principals: Arc<Principals>,
    pub(crate) identity: Identity,
    pub(crate) guard: Guard,
    pub(crate) users: Users,
    pub(crate) executions: Executions,
    pub(crate) reads: Reads,
    pub(crate) device: Arc<Scripted>,
    tasks: TaskTracker,
}

/// A folder and one process on its database.
pub(crate) async fn fresh(device: Arc<Scripted>) -> (TempDir, Bench) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bench = Bench::open(folder.path(), device, 1).await;
    (folder, bench)
}

impl Bench {
    /// A process on the database in `folder`, with randomness of its own.
    pub(crate) async fn open(folder: &Path, device: Arc<Scripted>, seed: u64) -> Self {
        let store: Arc<dyn Store> = Arc::new(Sqlite::open_in(folder).expect("a database"));
        Self::over(store, device, seed).await
    }

    pub(crate) async fn over(store: Arc<dyn Store>, device: Arc<Scripted>, seed: u64) -> Self {
        Self::with(store, device, seed, Directories::default()).await
    }

    /// A process that signs people in against these directories too.
    pub(crate) async fn with(
        store: Arc<dyn Store>,
        device: Arc<Scripted>,
        seed: u64,
        directories: Directories,
    ) -> Self {
        let clock = Arc::new(TestClock::at(Timestamp::from_seconds(1_780_000_000)));
        let ambient =
            Ambient { clock: Arc::clone(&clock) as _, entropy: Arc::new(TestEntropy::seeded(seed)) };
        let (recorder, recording) = audit::recorder(Arc::clone(&store), ambient.clone());
        tokio::spawn(recording);
        let db = Db::new(Arc::clone(&store), ambient.clone());
        let principals = Principals::load(Arc::clone(&store), ambient.clone()).await.expect("principals");
        let passwords = Passwords::start(Hasher::Weak);
        let keys = Keys::hs256(&Secret::new("0123456789abcdefghijklmnopqrstuvwxyz"), None).expect("a key");
        let lifetimes = Lifetimes { user_seconds: 3600, agent_seconds: 3600, refresh_seconds: 86_400 };
        let tokens = Tokens::new(keys, "interlock:test".to_owned(), lifetimes);
        let root = SystemPermit::root("system");
        let identity = Identity::new(Setup {
            db: &db,
            ambient: &ambient,
            principals: &principals,
            passwords: &passwords,
            tokens,
            master: MasterKey::new(&[7; KEY_BYTES]).expect("a key"),
            recorder: &recorder,
            rules: AccessRules::default(),
            system: root,
            directories,
            ceremonies: None,
        });
        let port: Arc<dyn Device> = Arc::clone(&device) as _;
        let guard = Guard::new(
            Arc::clone(&identity.sessions),
            recorder.clone(),
            Arc::new(DeviceWorld { device: Arc::clone(&port), name: "scripted".to_owned() }),
            ambient.clone(),
        );
        let hub = Hub::new(db.clone(), ambient.clone(), port.events());
        tokio::spawn(Arc::clone(&hub).follow(port.events()));
        let limits = Limits { queue: Duration::from_secs(1), default_timeout: Duration::from_mins(1) };
        let tasks = TaskTracker::new();
        let reads = Reads::new(db.clone(), Arc::clone(&hub), Arc::clone(&port));
        let executions = Executions::new(
            port,
            "scripted".to_owned(),
            db.clone(),
            ambient.clone(),
            hub,
            tasks.clone(),
            limits,
            SystemPermit::root("system"),
        );
        let users = Users::new(db.clone(), ambient.clone(), Arc::clone(&principals), passwords, Arc::new([]));
        Self { store, ambient, clock, principals, identity, guard, users, executions, reads, device, tasks }
    }

    /// Makes a user the way the owner of the machine does.
    pub(crate) async fn user(&self, name: &str, roles: &[&str]) {
        let roles: Vec<String> = roles.iter().map(|&role| role.to_owned()).collect();
        let root = SystemPermit::root("console");
        self.users.console(&root).create(name, password(name), &roles).await.expect("a user");
    }

    pub(crate) async fn caller(&self, name: &str) -> Arc<Caller> {
        self.caller_as(name, &origin().request_id).await
    }

    /// Takes no more runs and waits until those that were begun are over, as a shutdown does.
    pub(crate) async fn settled(&self) {
        self.tasks.close();
        tokio::time::timeout(PATIENCE, self.tasks.wait()).await.expect("every run ends");
    }

    /// The same person under another request id.
    pub(crate) async fn caller_as(&self, name: &str, request_id: &str) -> Arc<Caller> {
        let session = self
            .identity
            .sign_ins
            .person(name, password(name), None, &Wanted::default(), &origin())
            .await
            .expect("signed in");
        let origin = Origin { request_id: request_id.to_owned(), ..origin() };
        self.guard.authenticate(Some(session.issued.access.expose()), &origin).expect("a caller")
    }

    pub(crate) fn may_read(&self, caller: &Arc<Caller>, run_id: RunId) -> Permit<ReadRun> {
        self.guard.permit(caller, RunTarget { run_id }).expect("permitted")
    }

    pub(crate) fn may_mix(&self, caller: &Arc<Caller>) -> Arc<Permit<ExecuteAction>> {
        Arc::new(self.guard.permit(caller, DeviceActionTarget { task: "mix".to_owned() }).expect("permitted"))
    }
}

pub(crate) fn password(name: &str) -> Secret {
    Secret::new(format!("{name} and seven purple pipettes"))
}

pub(crate) fn origin() -> Origin {
    Origin {
        client_ip: "10.0.0.7".parse().expect("an address"),
        request_id: "req-1".to_owned(),
        user_agent: String::new(),
        certificate: None,
        trace: None,
    }
}

pub(crate) fn mix(volume: i64, key: Option<&str>) -> Request {
    let parameters = json!({ "volume": volume }).as_object().cloned().expect("an object");
    Request { parameters, key: key.map(str::to_owned), simulated: false, wait: true }
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

/// The chain is unbroken.
pub(crate) async fn verified(store: &dyn Store) {
    notary::verify(store, notary::Trust::default()).await.expect("the chain is unbroken");
}
