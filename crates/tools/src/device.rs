//! `device.<device>.<action>`: the actions of device servers.
//!
//! A call is put on record at the device server under the key of the step and then followed to its end. The device server
//! knows a repeated key for a day, so a run that is taken up again after a crash asks there what became of its call, and
//! nothing is done twice. When the time is over or the run is cancelled, the device is asked to stop and has time to do so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use interlock_client::{Client, ClientError, News, Submission};
use interlock_engine::pipeline::Note;
use interlock_engine::tools::{Call, Done, Failure, Tool, Toolbox};
use interlock_model::RunId;
use interlock_model::device::{ActionSpec, EventKind};
use interlock_model::pipeline::{Effect, Known, Misuse};
use interlock_model::run::RunState;
use interlock_model::wire::{RunEventView, RunView};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// How long a device has to end a call by itself: its cancel ladder and its safe state.
const STOPPING: Duration = Duration::from_secs(30);
/// A device server forgets keys after 24 h.
const REMEMBERS: Duration = Duration::from_hours(23);
/// First and longest pause between two looks at a run.
const LOOKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How long a run is followed without an answer before it is asked how it is.
const AWAY: Duration = Duration::from_secs(10);
/// How often the lists of actions are fetched.
const REFRESH: Duration = Duration::from_secs(30);

/// A device server, as the tools need it.
#[async_trait]
pub trait Link: Send + Sync + 'static {
    /// What the device offers.
    ///
    /// # Errors
    /// It cannot be reached, or refuses.
    async fn actions(&self) -> Result<Vec<ActionSpec>, ClientError>;
    /// Puts a run on record; with a key that was used before, gives the run of that time.
    ///
    /// # Errors
    /// As [`Client::submit`].
    async fn submit(&self, submission: &Submission) -> Result<RunId, ClientError>;
    /// How a run is.
    ///
    /// # Errors
    /// It cannot be reached, or refuses.
    async fn run(&self, run: RunId) -> Result<RunView, ClientError>;
    /// Gives `heard` what a run reports behind event `after`, as it happens; returns when the run is over.
    ///
    /// # Errors
    /// It cannot be reached any more, or refuses. What was heard until then was heard.
    async fn follow(
        &self,
        run: RunId,
        after: u64,
        heard: &(dyn Fn(RunEventView) + Send + Sync),
    ) -> Result<(), ClientError>;
    /// Asks a run to end.
    ///
    /// # Errors
    /// It cannot be reached, or refuses.
    async fn cancel(&self, run: RunId, reason: &str) -> Result<(), ClientError>;
}

#[async_trait]
impl Link for Client {
    async fn actions(&self) -> Result<Vec<ActionSpec>, ClientError> {
        Client::actions(self).await.map(|answer| answer.actions)
    }

    async fn submit(&self, submission: &Submission) -> Result<RunId, ClientError> {
        Client::submit(self, submission).await.map(|submitted| submitted.run)
    }

    async fn run(&self, run: RunId) -> Result<RunView, ClientError> {
        Client::run(self, run).await
    }

    async fn follow(
        &self,
        run: RunId,
        after: u64,
        heard: &(dyn Fn(RunEventView) + Send + Sync),
    ) -> Result<(), ClientError> {
        let mut following = Client::follow(self, run, after).give_up_after(AWAY);
        while let Some(news) = following.next().await? {
            if let News::Event(event) = news {
                heard(event);
            }
        }
        Ok(())
    }

    async fn cancel(&self, run: RunId, reason: &str) -> Result<(), ClientError> {
        Client::cancel(self, run, Some(reason)).await.map(|_| ())
    }
}

struct Device {
    name: String,
    link: Arc<dyn Link>,
    /// None until the device has been reached.
    actions: ArcSwapOption<Vec<ActionSpec>>,
}

/// The devices whose actions can be used.
#[derive(Clone)]
pub struct Devices(Arc<Vec<Arc<Device>>>);

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|device| &device.name)).finish()
    }
}

impl Devices {
    /// These, by name. A name is what stands between the dots of an address, so it holds none.
    pub fn new(devices: Vec<(String, Arc<dyn Link>)>) -> Self {
        let all = devices.into_iter();
        Self(Arc::new(
            all.map(|(name, link)| Arc::new(Device { name, link, actions: ArcSwapOption::empty() }))
                .collect(),
        ))
    }

    /// Fetches the lists of actions once. A device that is away keeps the list it had.
    pub async fn refresh(&self) {
        let fetch = |device: &Arc<Device>| {
            let device = Arc::clone(device);
            async move {
                match device.link.actions().await {
                    Ok(actions) => device.actions.store(Some(Arc::new(actions))),
                    Err(error) => {
                        tracing::warn!(target: "tools", device = device.name, %error, "a device cannot be asked for its actions");
                    }
                }
            }
        };
        futures::future::join_all(self.0.iter().map(fetch)).await;
    }

    /// Keeps the lists current until it is told to stop.
    pub async fn keep_current(&self, stop: CancellationToken) {
        crate::repeat(REFRESH, stop, || self.refresh()).await;
    }
}

impl Toolbox for Devices {
    fn tool(&self, address: &str) -> Option<Arc<dyn Tool>> {
        let (device, action) = address.strip_prefix("device.")?.split_once('.')?;
        let device = self.0.iter().find(|known| known.name == device)?;
        let actions = device.actions.load_full();
        let spec = match &actions {
            Some(actions) => Some(actions.iter().find(|spec| spec.name == action)?.clone()),
            // Not reached yet: it may be there, and what is unknown is taken for the worst.
            None => None,
        };
        Some(Arc::new(Action { device: Arc::clone(device), name: action.to_owned(), spec }))
    }

    fn all(&self) -> BTreeMap<String, Arc<dyn Tool>> {
        let mut all: BTreeMap<String, Arc<dyn Tool>> = BTreeMap::new();
        for device in self.0.iter() {
            for spec in device.actions.load_full().iter().flat_map(|actions| actions.iter()) {
                let action =
                    Action { device: Arc::clone(device), name: spec.name.clone(), spec: Some(spec.clone()) };
                all.insert(format!("device.{}.{}", device.name, spec.name), Arc::new(action));
            }
        }
        all
    }
}

struct Action {
    device: Arc<Device>,
    name: String,
    spec: Option<ActionSpec>,
}

#[async_trait]
impl Tool for Action {
    fn description(&self) -> String {
        let spec = self.spec.as_ref();
        let text = spec.and_then(|spec| spec.doc.as_deref().or(spec.title.as_deref())).unwrap_or("An action");
        let first = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("An action");
        format!("{first} (on the device {})", self.device.name)
    }

    fn check(&self, known: Known<'_>) -> Result<Effect, Misuse> {
        let Some(spec) = &self.spec else { return Ok(Effect::Once) };
        if let Some(unknown) =
            known.names().find(|name| !spec.parameters.iter().any(|spec| spec.name == **name))
        {
            let names: Vec<&str> = spec.parameters.iter().map(|spec| spec.name.as_str()).collect();
            let message = format!("{} has the parameters {}", self.name, names.join(", "));
            return Err(Misuse::Input(Some(unknown.to_owned()), message));
        }
        Ok(if spec.idempotent { Effect::Idempotent } else { Effect::Once })
    }

    fn needs(&self, address: &str) -> Vec<String> {
        vec![format!("tool:{address}"), format!("devices:execute:{}/{}", self.device.name, self.name)]
    }

    fn grace(&self) -> Duration {
        STOPPING
    }

    fn remembers(&self) -> Duration {
        REMEMBERS
    }

    async fn call(&self, call: Call<'_>) -> Result<Done, Failure> {
        let submission = Submission {
            action: self.name.clone(),
            parameters: call.input.clone(),
            key: call.key.clone(),
            traceparent: call.traceparent(),
            simulated: false,
        };
        let link = &self.device.link;
        let submitted = tokio::select! {
            submitted = link.submit(&submission) => submitted,
            () = tokio::time::sleep(call.timeout) => {
                return Err(Failure::Unknown(format!("the device {} did not answer in time", self.device.name)));
            }
        };
        let run = submitted.map_err(|error| self.refused(&error))?;
        let stop = async {
            tokio::select! {
                () = call.cancel.cancelled() => (false, "the run of the task was cancelled"),
                () = tokio::time::sleep(call.timeout) => (true, "the time limit of the step has passed"),
            }
        };
        // Number of the last event that was passed on.
        let heard = AtomicU64::new(0);
        let ended = tokio::select! {
            ended = self.wait(run, &call, &heard) => return self.told(&ended, false),
            (overdue, reason) = stop => {
                // The ladder on the device ends it; what is asked here is how.
                if let Err(error) = link.cancel(run, reason).await {
                    tracing::warn!(target: "tools", device = self.device.name, %run, %error, "a run could not be cancelled");
                }
                (self.wait(run, &call, &heard).await, overdue)
            }
        };
        self.told(&ended.0, ended.1)
    }
}

impl Action {
    /// How the run ends; what it reports meanwhile is passed on. Whoever does not want to wait for ever has to drop it.
    async fn wait(&self, run: RunId, call: &Call<'_>, last: &AtomicU64) -> Result<RunView, ClientError> {
        let mut pause = LOOKS.0;
        let heard = |event: RunEventView| {
            if last.fetch_max(event.seq, Ordering::Relaxed) < event.seq
                && let Some(note) = self.note(call.step, &event)
            {
                call.host.tell(note);
            }
        };
        loop {
            // One request however long the device moves. Whatever breaks it, the run itself is asked how it is.
            if let Err(error) = self.device.link.follow(run, last.load(Ordering::Relaxed), &heard).await {
                tracing::debug!(target: "tools", device = self.device.name, %run, %error, "a run cannot be followed");
            }
            match self.device.link.run(run).await {
                Ok(view) if view.state.is_final() => return Ok(view),
                Ok(_) => {}
                Err(error) if error.is_passing() => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
    }

    /// What those who follow the run of the task see of an event of the device's run.
    fn note(&self, step: u32, event: &RunEventView) -> Option<Note> {
        let kind = match &event.kind {
            // The step tells how it stands.
            EventKind::State { .. } => return None,
            EventKind::Progress { .. } => "progress",
            EventKind::Log { .. } => "log",
            EventKind::Metric { .. } => "metric",
            EventKind::Artifact { .. } => "artifact",
            EventKind::Rung { .. } => "rung",
        };
        let mut said = serde_json::to_value(&event.kind).ok()?;
        let Value::Object(mut data) = said["data"].take() else { return None };
        data.insert("step".to_owned(), step.into());
        data.insert("device".to_owned(), self.device.name.as_str().into());
        Some(Note { kind, data, outside: true })
    }

    fn told(&self, ended: &Result<RunView, ClientError>, overdue: bool) -> Result<Done, Failure> {
        let name = &self.device.name;
        let view = ended.as_ref().map_err(|error| {
            Failure::Unknown(format!("the device {name} does not tell how the call ended: {}", code(error)))
        })?;
        let error = view.error.as_ref();
        let message = error.map_or_else(|| "it gave no reason".to_owned(), |error| error.message.clone());
        match view.state {
            RunState::Succeeded => Ok(Done::Value(json!({
                "result": view.result, "run_id": view.id, "duration_seconds": view.duration_seconds,
            }))),
            RunState::Failed => Err(Failure::Failed {
                message,
                again: self.spec.as_ref().is_some_and(|spec| spec.idempotent),
            }),
            RunState::Cancelled if error.is_some_and(|error| error.code == "run_not_started") => {
                Err(Failure::Unreached(message))
            }
            RunState::Cancelled if !overdue => Err(Failure::Cancelled),
            RunState::Cancelled | RunState::TimedOut => Err(Failure::TimedOut(message)),
            RunState::Queued | RunState::Running | RunState::Uncertain => {
                Err(Failure::Unknown(format!("the device {name} cannot say whether it was done: {message}")))
            }
        }
    }

    /// A call that was not taken up.
    fn refused(&self, error: &ClientError) -> Failure {
        let name = &self.device.name;
        match error {
            ClientError::Unreachable { sent: true, .. } => {
                Failure::Unknown(format!("the connection to the device {name} broke"))
            }
            ClientError::Unreachable { .. } | ClientError::Tls { .. } => {
                Failure::Unreached(format!("the device {name} cannot be reached"))
            }
            ClientError::Problem(refusal) => {
                let message = format!("the device {name} refused: {}", refusal.problem.detail);
                match refusal.problem.code.as_str() {
                    // Another run stands behind this key; it may be ours with other parameters.
                    "idempotency_key_reused" => Failure::Unknown(message),
                    "device_busy" | "device_unavailable" | "rate_limited" | "unavailable" => {
                        Failure::Unreached(message)
                    }
                    _ if refusal.status >= 500 => Failure::Unknown(message),
                    // A stop, a hold, wrong parameters, missing rights: somebody has to do something first.
                    _ => Failure::Refused(message),
                }
            }
            ClientError::BadAnswer { .. } => {
                Failure::Unknown(format!("the answer of the device {name} cannot be understood"))
            }
            ClientError::Settings(_) | ClientError::SignInNeeded(_) => {
                Failure::Refused(format!("the device {name} does not let this server in"))
            }
        }
    }
}

/// What kind of error it is; the texts hold addresses of the inner network.
fn code(error: &ClientError) -> &'static str {
    match error {
        ClientError::Settings(_) => "settings",
        ClientError::Unreachable { .. } => "unreachable",
        ClientError::Tls { .. } => "no trusted connection",
        ClientError::Problem(_) => "refused",
        ClientError::SignInNeeded(_) => "not let in",
        ClientError::BadAnswer { .. } => "answer not understood",
    }
}

#[cfg(test)]
mod tests;
