//! The orchestrator: tasks that run for certain, once, on one machine or many.
//!
//! Servers are equal and share one database. [`scheduler`] turns due times into runs, [`worker`] has them carried out by
//! [`crate::pipeline`] and lives by its heartbeat; `deliveries` tells agents how it ended; `tasks`, `runs`, `events` and
//! `approvals` are what callers can do. What holds whatever crashes is told in `store::orchestrator`.

mod approvals;
mod clock;
mod deliveries;
mod events;
pub mod metrics;
mod mirror;
mod retention;
mod runs;
pub mod scheduler;
mod tasks;
pub mod worker;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use interlock_model::action::ListTools;
use interlock_model::pipeline::{Pipeline, PipelineError};
use interlock_model::policy::Grants;
use interlock_model::scope::Scope;
use interlock_model::task::TaskId;
use interlock_model::{AgentId, Timestamp};
use interlock_store::Error;
use interlock_store::orchestrator::TaskRow;
use tokio::sync::Notify;

use crate::Ambient;
use crate::auth::{Caller, Db, Permit, Principals, SystemPermit};
use crate::tools::{Allowed, Toolbox};

pub use self::approvals::{ApprovalError, Verdict};
pub use self::deliveries::{Courier, DeliveryError, Message, Undelivered};
pub use self::events::{EventError, NewEvent, Published, Subscription};
pub use self::mirror::{EventMirror, MirrorError};
pub use self::runs::{RunFact, RunFollowing, RunNews, RunsError, Stats};
pub use self::tasks::{
    Cancelled, Keyed, NewTask, Preview, Skipped, Snoozed, StatusChange, TaskChange, TaskError,
};
pub use interlock_store::orchestrator::{
    ApprovalRow, DeliveryRow, DeliveryState, EventRow, RunNote, RunsFilter, TaskRunRow, TasksFilter, Topic,
};

/// How this server does its part.
#[derive(Clone, Debug)]
pub struct OrchestratorSettings {
    /// A worker whose heart has not beaten for this long is dead.
    pub lease: Duration,
    /// How often the queue is looked at when nobody tells that something changed.
    pub poll: Duration,
    /// Longest wait before another attempt.
    pub backoff_max: Duration,
    /// A due time that is older than this was missed.
    pub misfire_grace: Duration,
    /// Runs that are carried out at once; 0: this server carries out none.
    pub concurrency: usize,
    /// Runs that are claimed beyond those.
    pub prefetch: usize,
    /// Runs and events are kept this long.
    pub retention: Duration,
    /// Time zone of tasks that name none.
    pub default_zone: String,
}

impl Default for OrchestratorSettings {
    fn default() -> Self {
        Self {
            lease: Duration::from_mins(1),
            poll: Duration::from_millis(500),
            backoff_max: Duration::from_mins(1),
            misfire_grace: Duration::from_secs(30),
            concurrency: 32,
            prefetch: 32,
            retention: Duration::from_hours(24 * 90),
            default_zone: "UTC".to_owned(),
        }
    }
}

/// Tells other servers that there is work, and hears from them.
pub type WorkNews = Option<Arc<dyn crate::news::News>>;

/// A task as a worker needs it: read and compiled once for all its runs.
struct Known {
    task: TaskRow,
    /// `None` if it cannot be compiled with the rights that its creator had when it was read.
    pipeline: Option<Pipeline>,
}

/// Tasks that were read lately. Bounded by [`CACHED`].
type Cache = Mutex<HashMap<TaskId, Arc<Known>>>;

/// Most tasks, and most principals with their rights, that are kept in memory.
const CACHED: usize = 1_000;

/// Tasks that are read at the same time, at most one read of each.
const READING: usize = 64;

/// What principals may do, put together once for all their runs until something about any principal changes: the generation of
/// [`Principals`] that it was made of. `None` is nobody, or somebody who is disabled. Bounded by [`CACHED`].
#[derive(Default)]
struct Rights {
    generation: u64,
    known: HashMap<String, Option<Arc<[Scope]>>>,
}

/// What everybody here shares.
struct Shared {
    db: Db,
    /// With the clock below.
    ambient: Ambient,
    clock: Arc<clock::Agreed>,
    principals: Arc<Principals>,
    toolbox: Arc<dyn Toolbox>,
    settings: OrchestratorSettings,
    system: SystemPermit,
    news: WorkNews,
    /// There may be runs to claim.
    work: Notify,
    /// Due times have changed.
    schedule: Notify,
    /// Something happened that followers may want to see.
    happened: tokio::sync::watch::Sender<u64>,
    cache: Cache,
    /// Held while a task is read that is not in the cache: who else wants it finds it there afterwards. By the last byte of its id.
    reading: [tokio::sync::Mutex<()>; READING],
    rights: Mutex<Rights>,
    followers: Arc<tokio::sync::Semaphore>,
}

/// Everything about tasks. Cheap to clone.
#[derive(Clone)]
pub struct Orchestrator(Arc<Shared>);

impl std::fmt::Debug for Orchestrator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Orchestrator")
    }
}

/// Most streams of events that are followed at once, of all callers together.
const FOLLOWERS: usize = 1_000;

impl Orchestrator {
    /// Wires the parts.
    pub fn new(
        db: Db,
        ambient: Ambient,
        principals: Arc<Principals>,
        toolbox: Arc<dyn Toolbox>,
        settings: OrchestratorSettings,
        system: SystemPermit,
        news: WorkNews,
    ) -> Self {
        let clock = Arc::new(clock::Agreed::new(ambient.clock));
        let ambient = Ambient { clock: Arc::clone(&clock) as _, entropy: ambient.entropy };
        Self(Arc::new(Shared {
            db,
            ambient,
            clock,
            principals,
            toolbox,
            settings,
            system,
            news,
            work: Notify::new(),
            schedule: Notify::new(),
            happened: tokio::sync::watch::Sender::new(0),
            cache: Cache::default(),
            reading: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            rights: Mutex::default(),
            followers: Arc::new(tokio::sync::Semaphore::new(FOLLOWERS)),
        }))
    }

    /// How this server does its part.
    pub fn settings(&self) -> &OrchestratorSettings {
        &self.0.settings
    }

    fn now(&self) -> Timestamp {
        self.0.ambient.clock.now()
    }

    /// Puts this server's clock right by the database's, if that has one.
    async fn agree_on_time(&self) -> Result<(), Error> {
        let clock = &self.0.clock;
        let asked = clock.own();
        let there = self.ask(|mut reads| Box::pin(async move { reads.time().await })).await?;
        if let Some(there) = there {
            clock.compare(asked, there, clock.own());
        }
        Ok(())
    }

    /// There may be runs to claim, here and elsewhere: whoever lines runs up says so after the commit.
    pub fn tell_work(&self) {
        self.tell_here();
        if let Some(news) = &self.0.news {
            news.publish();
        }
    }

    /// Due times have changed.
    fn tell_schedule(&self) {
        self.0.schedule.notify_one();
        self.tell_work();
    }

    fn tell_here(&self) {
        self.0.work.notify_one();
        self.0.happened.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Passes on what other servers tell. Run it as a background task.
    pub async fn hear(self) {
        let Some(news) = self.0.news.clone() else { return };
        let mut heard = news.subscribe();
        while heard.changed().await.is_ok() {
            heard.mark_unchanged();
            self.0.schedule.notify_one();
            self.tell_here();
        }
    }

    /// A task as it was at `version` or later.
    async fn task_at(&self, id: TaskId, version: i64) -> Result<Option<Arc<Known>>, Error> {
        if let Some(known) = self.cached(id, version) {
            return Ok(Some(known));
        }
        let place = usize::from(id.as_bytes()[15]) % READING;
        let _alone = self.0.reading[place].lock().await;
        if let Some(known) = self.cached(id, version) {
            return Ok(Some(known));
        }
        let Some(task) = self.ask(move |mut reads| Box::pin(async move { reads.task(id).await })).await?
        else {
            return Ok(None);
        };
        let pipeline = self.compile(&task.payload, &task.created_by).ok();
        let known = Arc::new(Known { task, pipeline });
        let mut cache = self.0.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHED {
            cache.clear();
        }
        cache.insert(id, Arc::clone(&known));
        Ok(Some(known))
    }

    fn cached(&self, id: TaskId, version: i64) -> Option<Arc<Known>> {
        let cache = self.0.cache.lock().unwrap_or_else(PoisonError::into_inner);
        // One that could not be compiled may be by now: its creator's rights can have grown.
        cache.get(&id).filter(|known| known.task.version >= version && known.pipeline.is_some()).cloned()
    }

    /// Compiles a pipeline for its owner, with the rights that they have now. Mistakes come with their place below the payload.
    fn compile(&self, payload: &serde_json::Value, owner: &str) -> Result<Pipeline, Vec<PipelineError>> {
        let none = serde_json::Map::new();
        let scopes = self.grants_of(owner).map(|grants| grants.scopes().to_vec()).unwrap_or_default();
        Pipeline::compile(payload.as_object().unwrap_or(&none), &Allowed::new(&*self.0.toolbox, &scopes))
    }

    async fn ask<T, F>(&self, question: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'q> FnOnce(
                interlock_store::orchestrator::Reads<'q>,
            ) -> futures::future::BoxFuture<'q, Result<T, Error>>
            + Send
            + 'static,
    {
        interlock_store::orchestrator::ask(self.0.db.read(), question).await
    }

    /// What a principal may do at this moment; `None` if there is none of this name, or it is disabled.
    fn grants_of(&self, owner: &str) -> Option<Grants> {
        if let Ok(id) = owner.parse::<AgentId>() {
            let agent = self.0.principals.agent(id).filter(|agent| !agent.disabled)?;
            return Some(Grants::of_agent(&agent.scopes, &agent.scopes));
        }
        let user = self.0.principals.user(owner).filter(|user| !user.disabled)?;
        Some(Grants::of_user(&user.roles, &user.roles, &self.0.principals.roles(), None))
    }

    /// As [`Orchestrator::grants_of`], put together once for many runs: what was withdrawn before this is asked is not in it.
    fn rights_of(&self, owner: &str) -> Option<Arc<[Scope]>> {
        // Looked at before what it stands for: a change in between is seen the next time.
        let generation = self.0.principals.generation();
        let mut rights = self.0.rights.lock().unwrap_or_else(PoisonError::into_inner);
        if rights.generation != generation || rights.known.len() >= CACHED {
            *rights = Rights { generation, known: HashMap::new() };
        }
        if let Some(known) = rights.known.get(owner) {
            return known.clone();
        }
        let scopes = self.grants_of(owner).map(|grants| Arc::from(grants.scopes()));
        rights.known.insert(owner.to_owned(), scopes.clone());
        scopes
    }

    /// Only what the caller may see.
    fn visible(caller: &Caller) -> Option<String> {
        (!caller.grants().reaches_others()).then(|| caller.name().to_owned())
    }

    /// Tools that the caller may use, with what they do.
    pub fn tools(&self, permit: &Permit<ListTools>) -> serde_json::Value {
        Allowed::new(&*self.0.toolbox, permit.caller().grants().scopes()).listing()
    }

    /// How many workers are at work in all servers, whether this one is among them, and how far behind the schedule is.
    ///
    /// # Errors
    /// The storage's.
    pub async fn standing(&self) -> Result<Standing, Error> {
        let (workers, first, depth) = self
            .ask(|mut reads| {
                Box::pin(async move {
                    Ok((reads.workers().await?.len(), reads.first_due().await?, reads.queue_depth().await?))
                })
            })
            .await?;
        metrics::queue_depth(&depth);
        let now = self.now();
        let lag = first.map_or(Duration::ZERO, |first| now.since(first));
        Ok(Standing { workers, lag, waiting: depth.iter().map(|(_, count)| count).sum() })
    }
}

/// How the orchestrator is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Workers of all servers.
    pub workers: usize,
    /// Since when the earliest due time should have been carried out.
    pub lag: Duration,
    /// Runs that wait.
    pub waiting: u64,
}
