//! The way of one run: check, record the intent, execute, record the outcome.
//!
//! A run is on record before the device hears of it and its end before the caller does. The device's journal and the runs
//! here are reconciled at start. Nothing here ever repeats an action: a repeated key gets the first run's answer, and only a
//! run that provably never started gives its key free.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use interlock_model::action::{CancelRun, CheckAction, ExecuteAction};
use interlock_model::device::{Call, EventKind, Journaled, NotStarted, Outcome, ParameterError};
use interlock_model::run::{RunState, conclude};
use interlock_model::trace::{Span, SpanKind};
use interlock_model::{RunId, Timestamp};
use interlock_store::{Error, KeyRow, RunEnd, RunRow, StoredEvent};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::Ambient;
use crate::auth::{Db, Permit, Proof, Recorded, SystemPermit};
use crate::devices::Device;
use crate::metrics::ActionMetrics;
use crate::runs::{Hub, LiveRun, ended};
use crate::security::{self, Event};
use crate::spans;

/// An idempotency key is remembered this long.
const KEY_LIFETIME: Duration = Duration::from_hours(24);
/// Shortest wait for the device, which covers handing the call over.
const HANDING_OVER: Duration = Duration::from_millis(100);
/// Runs that the device's journal is told to drop at once.
const FORGET_BATCH: usize = 64;
/// How often the end of a run is tried to be stored before it is left to reconciliation.
const STORE_ATTEMPTS: u32 = 5;

/// Why nothing was executed.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// There is no such action.
    #[error("find the action")]
    NoSuchAction,
    /// Parameters were refused.
    #[error("accept the parameters")]
    Parameters(Vec<ParameterError>),
    /// The key stands for another request.
    #[error("use the idempotency key: it was used for a different request")]
    KeyReused,
    /// The server is shutting down.
    #[error("start a run: the server is stopping")]
    Stopping,
    /// The intent could not be recorded, so nothing was done.
    #[error("record the intent")]
    Store(#[from] Error),
}

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    /// As the caller sent them.
    pub parameters: Map<String, Value>,
    /// The caller's idempotency key.
    pub key: Option<String>,
    /// Execute with the device's simulator.
    pub simulated: bool,
    /// Wait for the end, or return as soon as the run is on record.
    pub wait: bool,
}

/// A run that was asked for.
#[derive(Debug)]
pub struct Execution {
    /// The run as it is now.
    pub run: RunRow,
    /// It was started by an earlier request with the same key.
    pub replayed: bool,
}

/// Limits of executions.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest wait for a busy device.
    pub queue: Duration,
    /// Deadline of an action that declares none.
    pub default_timeout: Duration,
}

/// Executes actions.
#[derive(Clone)]
pub struct Executions {
    inner: Arc<Inner>,
}

struct Inner {
    device: Arc<dyn Device>,
    device_name: String,
    db: Db,
    ambient: Ambient,
    hub: Arc<Hub>,
    tasks: TaskTracker,
    limits: Limits,
    system: SystemPermit,
    /// Runs whose ends are stored, not yet told to the device's journal.
    forgettable: Mutex<Vec<RunId>>,
    /// By the names of the actions that were declared at the start.
    counted: HashMap<String, ActionMetrics>,
}

impl std::fmt::Debug for Executions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Executions")
    }
}

/// How a run ended, made once however often it takes to store it.
#[derive(Debug, Clone)]
struct Ending {
    end: Arc<RunEnd>,
    /// Class of the exception, if there was one.
    class: Option<String>,
    /// Events that are not stored yet.
    events: Vec<StoredEvent>,
}

impl Ending {
    fn new(
        id: RunId,
        outcome: Outcome,
        started_at: Option<Timestamp>,
        finished_at: Timestamp,
        events: Vec<StoredEvent>,
    ) -> Self {
        let (state, error) = conclude(&outcome);
        let class = match &outcome {
            Outcome::Raised { error, .. } => Some(error.class.clone()),
            _ => None,
        };
        let (result, duration_ms) = told(outcome);
        let end = RunEnd { id, state, result, error, started_at, finished_at, duration_ms };
        Self { end: Arc::new(end), class, events }
    }
}

enum Claimed {
    /// A new run is on record.
    Mine,
    /// The key belongs to this run.
    Theirs(KeyRow),
}

impl Executions {
    /// Wires the parts. `tasks` keeps runs alive whose callers went away, and lets shutdown wait for them.
    #[expect(clippy::too_many_arguments, reason = "wiring, called once")]
    pub fn new(
        device: Arc<dyn Device>,
        device_name: String,
        db: Db,
        ambient: Ambient,
        hub: Arc<Hub>,
        tasks: TaskTracker,
        limits: Limits,
        system: SystemPermit,
    ) -> Self {
        let forgettable = Mutex::default();
        let catalogue = device.catalogue();
        let counted = catalogue.actions().map(|action| {
            let name = &action.spec.name;
            (name.clone(), ActionMetrics::of(name))
        });
        let counted = counted.collect();
        Self {
            inner: Arc::new(Inner {
                device,
                device_name,
                db,
                ambient,
                hub,
                tasks,
                limits,
                system,
                forgettable,
                counted,
            }),
        }
    }

    /// Checks parameters as an execution would. Nothing is executed or recorded as a run.
    ///
    /// # Errors
    /// [`ExecuteError::NoSuchAction`], [`ExecuteError::Parameters`].
    pub fn check(
        &self,
        permit: &Permit<CheckAction>,
        parameters: Map<String, Value>,
    ) -> Result<Map<String, Value>, ExecuteError> {
        let catalogue = self.inner.device.catalogue();
        let action = catalogue.action(&permit.target().task).ok_or(ExecuteError::NoSuchAction)?;
        let checked = action.check_call(parameters).map_err(ExecuteError::Parameters)?;
        Ok(action.mask(&checked))
    }

    /// Executes an action, or gives the answer of the run that the key stands for.
    ///
    /// Dropping the future does not stop a run that is on record.
    ///
    /// # Errors
    /// [`ExecuteError`]; then nothing was done.
    pub async fn execute(
        &self,
        permit: Arc<Permit<ExecuteAction>>,
        request: Request,
    ) -> Result<Execution, ExecuteError> {
        let inner = &self.inner;
        if inner.tasks.is_closed() {
            return Err(ExecuteError::Stopping);
        }
        let catalogue = inner.device.catalogue();
        let action = catalogue.action(&permit.target().task).ok_or(ExecuteError::NoSuchAction)?;
        let parameters = action.check_call(request.parameters).map_err(ExecuteError::Parameters)?;
        let now = inner.ambient.clock.now();
        let row = RunRow {
            id: RunId::new(now, &*inner.ambient.entropy),
            device: inner.device_name.clone(),
            action: action.spec.name.clone(),
            state: RunState::Queued,
            simulated: request.simulated,
            parameters: Value::Object(action.mask(&parameters)),
            result: None,
            error: None,
            actor: permit.caller().name().to_owned(),
            request_id: permit.caller().origin().request_id.clone(),
            created_at: now,
            started_at: None,
            finished_at: None,
            duration_ms: None,
        };
        let asked = digest(&row.action, request.simulated, &parameters);
        let key = request.key.map(|key| KeyRow {
            actor: row.actor.clone(),
            key,
            digest: asked,
            run: row.id,
            // A key that was taken before the clock jumped forward is still taken.
            created_at: inner.ambient.clock.settled(),
            expires_at: now.plus(KEY_LIFETIME),
        });
        let call = Call {
            run: row.id,
            action: row.action.clone(),
            parameters,
            simulated: request.simulated,
            timeout: action
                .spec
                .timeout_seconds
                .map_or(inner.limits.default_timeout, Duration::from_secs_f64),
            // An idle device must never look busy because its journal took a moment.
            queue_limit: Some(inner.limits.queue.max(HANDING_OVER)),
        };
        // On a task of its own from the first write on: a caller that goes away between the record and the call would leave a
        // run that nobody carries out.
        let (opened, told) = oneshot::channel();
        let row = Arc::new(row);
        let running = inner.tasks.spawn(Arc::clone(inner).start(permit, Arc::clone(&row), key, call, opened));
        match told.await {
            Ok(Ok(Claimed::Mine)) => {}
            Ok(Ok(Claimed::Theirs(holder))) => return inner.replay(&holder, &asked, request.wait).await,
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(Error::Closed.into()),
        }
        if !request.wait {
            return Ok(Execution { run: Arc::unwrap_or_clone(row), replayed: false });
        }
        let run = running.await.ok().flatten().unwrap_or_else(|| {
            tracing::error!(run.id = %row.id, "a run's task panicked");
            RunRow { state: RunState::Uncertain, ..Arc::unwrap_or_clone(row) }
        });
        Ok(Execution { run, replayed: false })
    }

    /// Asks a run to end. It goes down the cancel ladder; the caller follows its events.
    ///
    /// # Errors
    /// The storage's: without a record nothing is cancelled.
    pub async fn cancel(&self, permit: &Permit<CancelRun>, reason: &str) -> Result<Option<RunRow>, Error> {
        let inner = &self.inner;
        let id = permit.target().run_id;
        let found = inner.db.read().run(id).await?;
        let Some(run) = found.filter(|run| permit.caller().reaches(&run.actor)) else { return Ok(None) };
        if run.state.is_final() {
            return Ok(Some(run));
        }
        let details = json!({ "phase": "intent", "reason": reason });
        inner
            .db
            .write(permit, move |_| Box::pin(async move { Ok::<_, Error>(Recorded { value: (), details }) }))
            .await?;
        inner.device.cancel(&id, reason);
        inner.db.read().run(id).await
    }

    /// Brings runs that an earlier process left open to their true end. Call it once, before serving.
    ///
    /// # Errors
    /// The storage's.
    pub async fn reconcile(&self) -> Result<usize, Error> {
        let inner = &self.inner;
        let mut open = inner.db.read().open_runs().await?;
        // Another server's runs are another journal's: only that one knows how they stand.
        open.retain(|run| run.device == inner.device_name);
        let count = open.len();
        for run in open {
            let outcome = match inner.device.journaled(&run.id) {
                Journaled::Finished(outcome) => outcome,
                Journaled::NeverStarted => Outcome::NotStarted { reason: NotStarted::HostStopped },
                Journaled::Started => Outcome::Uncertain {
                    reason: "the server stopped while the action was running".to_owned(),
                },
            };
            tracing::warn!(run.id = %run.id, action = run.action, ?outcome, "a run was left open by an earlier process");
            let proof = inner.system.acting("device.executed", Some(run.action.clone()));
            let id = run.id;
            let ending = Ending::new(id, outcome, None, inner.ambient.clock.now(), Vec::new());
            inner.close(&proof, &run.action, &Arc::new(ending)).await?;
            inner.device.forget(&[id]);
        }
        Ok(count)
    }
}

impl Inner {
    /// Puts run, key and intent on record in one transaction.
    async fn open(
        &self,
        permit: &Permit<ExecuteAction>,
        row: &Arc<RunRow>,
        key: Option<KeyRow>,
    ) -> Result<Claimed, ExecuteError> {
        enum Abort {
            Taken(KeyRow),
            Store(Error),
        }
        impl From<Error> for Abort {
            fn from(error: Error) -> Self {
                Self::Store(error)
            }
        }
        let asked = Arc::new((Arc::clone(row), key));
        let answer = self
            .db
            .write_repeatable(permit, move |tx| {
                let asked = Arc::clone(&asked);
                Box::pin(async move {
                    let (run, key) = &*asked;
                    if let Some(key) = key {
                        let holder = tx.claim_key(key).await?;
                        if holder.run != key.run {
                            let earlier = tx.run(holder.run).await?;
                            // A run that never started gives its key free; everything else keeps it.
                            if !earlier.as_ref().is_none_or(never_started) || holder.digest != key.digest {
                                return Err(Abort::Taken(holder));
                            }
                            tx.rebind_key(&key.actor, &key.key, key.run).await?;
                        }
                    }
                    tx.insert_run(run).await?;
                    let names: Vec<&String> =
                        run.parameters.as_object().map(|p| p.keys().collect()).unwrap_or_default();
                    let details = json!({
                        "phase": "intent", "run": run.id, "task": run.action, "parameter_names": names, "simulated": run.simulated,
                        "keyed": key.is_some(),
                    });
                    Ok(Recorded { value: (), details })
                })
            })
            .await;
        match answer {
            Ok(()) => Ok(Claimed::Mine),
            Err(Abort::Taken(holder)) => Ok(Claimed::Theirs(holder)),
            Err(Abort::Store(error)) => Err(error.into()),
        }
    }

    /// The answer of the run that holds the key.
    async fn replay(&self, holder: &KeyRow, asked: &[u8; 32], wait: bool) -> Result<Execution, ExecuteError> {
        if holder.digest != *asked {
            return Err(ExecuteError::KeyReused);
        }
        let live = self.hub.live(&holder.run);
        if wait && let Some(live) = &live {
            live.ended().await;
        }
        let run = self.db.read().run(holder.run).await?;
        let run = run.ok_or_else(|| {
            Error::Corrupt("an idempotency key stands for a run that does not exist".to_owned())
        })?;
        let run = match live {
            Some(live) => live.brought_up_to_date(run),
            None => run,
        };
        Ok(Execution { run, replayed: true })
    }

    /// Puts the run on record, tells whether it could, and carries it out if the key is free.
    async fn start(
        self: Arc<Self>,
        permit: Arc<Permit<ExecuteAction>>,
        row: Arc<RunRow>,
        key: Option<KeyRow>,
        call: Call,
        opened: oneshot::Sender<Result<Claimed, ExecuteError>>,
    ) -> Option<RunRow> {
        // The device may report as soon as the run is recorded, so its events need a place before.
        let live = self.hub.begin(row.id);
        let claimed = self.open(&permit, &row, key).await;
        let mine = matches!(claimed, Ok(Claimed::Mine));
        if !mine {
            self.hub.withdraw(&live);
        }
        // Nobody listens when the caller went away; the run is carried out all the same.
        let _ = opened.send(claimed);
        if mine { Some(self.carry_out(permit, row, call, live).await) } else { None }
    }

    /// Executes and records the end. Runs on its own task: a caller that hangs up changes nothing.
    async fn carry_out(
        self: Arc<Self>,
        permit: Arc<Permit<ExecuteAction>>,
        row: Arc<RunRow>,
        call: Call,
        live: Arc<LiveRun>,
    ) -> RunRow {
        let secrets =
            self.device.catalogue().action(&call.action).map(|action| action.secrets(&call.parameters));
        // A panic of the device's runtime says nothing about the robot.
        let outcome = AssertUnwindSafe(self.device.call(call)).catch_unwind().await;
        let mut outcome = outcome
            .unwrap_or_else(|_| Outcome::Uncertain { reason: "the device's runtime panicked".to_owned() });
        if let Outcome::Raised { error, .. } = &mut outcome {
            error.hide(&secrets.unwrap_or_default());
        }
        // What happened before the end is told before the end.
        self.hub.sort();
        self.log_failure(&row, &outcome, permit.caller().origin());
        let finished_at = self.ambient.clock.now();
        let events = Hub::closing(&live, conclude(&outcome).0, finished_at);
        let ending = Arc::new(Ending::new(row.id, outcome, live.started_at(), finished_at, events));
        let mut pause = Duration::from_millis(50);
        let mut stored = false;
        // If all attempts fail, the end is in the device's journal; the next start stores it. The caller still learns the truth.
        for attempt in 1..=STORE_ATTEMPTS {
            match self.close(&*permit, &row.action, &ending).await {
                Ok(()) => {
                    self.forget_later(row.id);
                    stored = true;
                    break;
                }
                Err(error) => {
                    metrics::gauge!("audit_failing").set(1.0);
                    security::event(
                        Event::AuditFailed,
                        None,
                        None,
                        json!({ "run": row.id, "reason": error.to_string(), "attempt": attempt }),
                    );
                }
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        let end = Arc::clone(&ending.end);
        drop(ending);
        self.tell_span(&row, &end, permit.caller().origin());
        if stored {
            self.hub.end(&live, Arc::clone(&end));
        } else {
            self.hub.end_unstored(&live, Arc::clone(&end));
        }
        drop(live);
        ended(Arc::unwrap_or_clone(row), Arc::unwrap_or_clone(end))
    }

    /// Puts the end of a run and its audit entry on record.
    async fn close<P: Proof + ?Sized>(
        &self,
        proof: &P,
        action: &str,
        ending: &Arc<Ending>,
    ) -> Result<(), Error> {
        let shared = (Arc::clone(ending), action.to_owned());
        self.db
            .write_repeatable(proof, move |tx| {
                let (ending, action) = shared.clone();
                Box::pin(async move {
                    let Ending { end, class, events } = &*ending;
                    if !events.is_empty() {
                        tx.insert_run_events(end.id, events).await?;
                    }
                    let was_open = tx.finish_run(end).await?;
                    let details = json!({
                        "phase": "outcome", "run": end.id, "task": action, "status": end.state.as_str(),
                        "code": end.error.as_ref().map(|error| &error.code), "error_class": class,
                        "duration_ms": end.duration_ms, "was_open": was_open,
                    });
                    Ok::<_, Error>(Recorded { value: (), details })
                })
            })
            .await?;
        let RunEnd { state, duration_ms, .. } = *ending.end;
        // The label is a declared action, so the number of series is bounded.
        match self.counted.get(action) {
            Some(counted) => counted.ended(state, duration_ms),
            None => ActionMetrics::of(action).ended(state, duration_ms),
        }
        Ok(())
    }

    /// The journal may drop the run. Told in batches: a journal that remembers too much loses nothing.
    fn forget_later(&self, id: RunId) {
        let mut forgettable = self.forgettable.lock().unwrap_or_else(PoisonError::into_inner);
        forgettable.push(id);
        if forgettable.len() >= FORGET_BATCH {
            let batch = std::mem::take(&mut *forgettable);
            drop(forgettable);
            self.device.forget(&batch);
        }
    }

    /// The run as a span of the request that asked for it.
    fn tell_span(&self, row: &RunRow, end: &RunEnd, origin: &crate::auth::Origin) {
        let Some(request) = origin.trace else { return };
        let mut span = [0; 8];
        self.ambient.entropy.fill(&mut span);
        spans::ended(Span {
            context: request.beside(span),
            parent: Some(request.span),
            name: format!("run {}", row.action),
            kind: SpanKind::Internal,
            began: end.started_at.unwrap_or(row.created_at),
            ended: end.finished_at,
            failed: end.state != RunState::Succeeded,
            attributes: vec![
                ("interlock.run_id", json!(row.id)),
                ("interlock.device", json!(row.device)),
                ("interlock.state", json!(end.state.as_str())),
                ("interlock.request_id", json!(row.request_id)),
            ],
        });
    }

    fn log_failure(&self, row: &RunRow, outcome: &Outcome, origin: &crate::auth::Origin) {
        match outcome {
            Outcome::Returned { .. } => {}
            Outcome::Raised { error, .. } => tracing::error!(
                run.id = %row.id, request_id = origin.request_id, action = row.action, class = error.class, message = error.message,
                traceback = error.traceback, "an action failed"
            ),
            other => tracing::warn!(
                run.id = %row.id, request_id = origin.request_id, action = row.action, device = self.device_name, outcome = ?other,
                "an action did not end by itself"
            ),
        }
    }
}

/// Whether a key may be given to another run.
fn never_started(run: &RunRow) -> bool {
    run.state == RunState::Cancelled
        && run.started_at.is_none()
        && run.error.as_ref().is_some_and(|error| {
            matches!(
                error.code.as_str(),
                "device_busy"
                    | "run_not_started"
                    | "emergency_stop_engaged"
                    | "device_needs_attention"
                    | "device_unavailable"
                    | "unavailable"
            )
        })
}

fn told(outcome: Outcome) -> (Option<Value>, Option<f64>) {
    match outcome {
        Outcome::Returned { result, duration_ms } => (Some(result), Some(duration_ms)),
        Outcome::Raised { duration_ms, .. } => (None, Some(duration_ms)),
        _ => (None, None),
    }
}

/// What a key stands for: the action, the mode and the checked parameters.
fn digest(action: &str, simulated: bool, parameters: &Map<String, Value>) -> [u8; 32] {
    let canonical = json!([action, simulated, parameters]).to_string();
    Sha256::digest(canonical.as_bytes()).into()
}

/// A run's events for a reader: the stored ones, and its last state when nothing else was worth storing.
pub(crate) fn final_event(run: &RunRow, seq: u64) -> StoredEvent {
    StoredEvent {
        seq,
        at: run.finished_at.unwrap_or(run.created_at),
        kind: EventKind::State { state: run.state },
    }
}
