//! Carrying out the steps of a run.
//!
//! [`execute`] goes through a compiled pipeline and tells a [`RunHost`] what must not be forgotten: that a step with an effect
//! is about to begin, and how each step ended. When a run is taken up again, by this worker or another, what is finished is
//! not repeated; a step that was begun and must not be done twice makes the run uncertain. The host stores and decides about
//! leases, attempts and approvals; what a step does is its tool's ([`crate::tools`]).

mod outcome;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use interlock_model::Timestamp;
use interlock_model::pipeline::{
    Context, Effect, Known, Misuse, Pipeline, RunOutput, Step, StepRecord, StepState, check_result,
};
use interlock_model::scope::Scope;
use interlock_model::task::{ApprovalState, EventId, TaskId, TaskRunId};
use interlock_model::trace::{Span, SpanKind};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::Ambient;
use crate::spans;
use crate::tools::{Allowed, Call, Done, Failure, Toolbox};
pub(crate) use outcome::describe_steps;
use outcome::{Tally, step_ended};

/// Longest wait between two attempts of a step.
const LONGEST_BACKOFF: Duration = Duration::from_mins(1);
/// What a person is shown of the steps after a question, bytes as JSON.
const LONGEST_FOLLOWING: usize = 65_536;

/// The lease of the run belongs to somebody else: nothing more may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease of the run is lost")]
pub struct Lost;

/// Why an event was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The lease is lost.
    #[error("the lease of the run is lost")]
    Lost,
    /// It may not be; the sentence may be shown.
    #[error("{0}")]
    Refused(String),
    /// It could not be stored.
    #[error("the event could not be stored")]
    Unavailable,
}

/// How a question to a person stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// As it is now.
    pub state: ApprovalState,
    /// Who decided.
    pub by: Option<String>,
    /// Who had approved before, where two must.
    pub first: Option<String>,
    /// What they wrote.
    pub note: Option<String>,
    /// When.
    pub at: Option<Timestamp>,
}

/// What keeps a run while it is carried out. One for each run that is taken up.
#[async_trait]
pub trait RunHost: Send + Sync {
    /// Keeps what is known of a step, in place of what was. Returns when it is durable.
    ///
    /// # Errors
    /// [`Lost`]: stop at once.
    async fn keep(&self, record: &StepRecord) -> Result<(), Lost>;

    /// How the question of this step with this digest stands; None if it was not asked. One that is approved is used up by
    /// this, for this step of this run only: asking again gives the same answer.
    ///
    /// # Errors
    /// [`Lost`].
    async fn decision(&self, step: u32, digest: &str) -> Result<Option<Decision>, Lost>;

    /// Tells those who follow the run something that happens during it. Never waits and never fails: what is too much is counted.
    fn tell(&self, note: Note);

    /// Publishes an event for the owner of the task: once for each step of the run, whatever crashes.
    ///
    /// # Errors
    /// [`PublishError`].
    async fn publish(
        &self,
        step: u32,
        topic: &str,
        payload: Map<String, Value>,
    ) -> Result<EventId, PublishError>;
}

/// Something that happens during a run, for those who follow it.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// `step progress log metric artifact rung`.
    pub kind: &'static str,
    /// What; `step` is the place of the step, from 0.
    pub data: Map<String, Value>,
    /// It comes from what the step uses, such as a device: worth keeping even if the run is over within a moment.
    pub outside: bool,
}

/// A run to carry out.
#[derive(Debug)]
pub struct Job {
    /// The task.
    pub task: TaskId,
    /// Its title.
    pub title: String,
    /// This attempt.
    pub run: TaskRunId,
    /// The first attempt.
    pub lineage: TaskRunId,
    /// Whose task it is.
    pub owner: String,
    /// What they may do now.
    pub scopes: Arc<[Scope]>,
    /// When this attempt began.
    pub started_at: Timestamp,
    /// `{topic, payload, event_id}`, if an event made the run.
    pub event: Option<Value>,
    /// What was kept of its steps in all attempts.
    pub records: Vec<StepRecord>,
    /// Fires when the run is to end: somebody cancelled it, or the server stops.
    pub cancel: CancellationToken,
}

/// A question to a person, before which the run does not go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Place of the step, from 0.
    pub step: u32,
    /// SHA-256 of what the answer is bound to, in hex.
    pub digest: String,
    /// Why it is asked.
    pub reason: String,
    /// What the person decides about.
    pub subject: Value,
    /// Until when it can be answered.
    pub expires_at: Timestamp,
    /// How many people must approve: one or two.
    pub approvers: u32,
}

/// A bad end, as it is certain.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// Why, with the step. May be shown to whoever may see the run.
    pub error: String,
    /// Place of the step.
    pub step: u32,
    /// Whether another attempt is allowed and may help.
    pub retryable: bool,
    /// The output of the run.
    pub output: RunOutput,
}

/// How carrying out ended, for now or for good.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// Every step ended well or was skipped.
    Succeeded {
        /// The output of the run.
        output: RunOutput,
    },
    /// A step failed.
    Failed(Ended),
    /// A step did not end in time.
    TimedOut(Ended),
    /// The run was cancelled, and what was under way has ended for certain.
    Cancelled(Ended),
    /// A step that must not be done twice was begun, and nobody can know how it ended.
    Uncertain(Ended),
    /// A person is asked: let go of the run until there is an answer or it is too late for one.
    Waiting(Question),
    /// Let go of the run until this time.
    Later {
        /// When it is to be taken up again.
        at: Timestamp,
    },
    /// The run is somebody else's. Nothing is to be stored.
    Lost,
}

/// What stands in the way of the next step.
enum Stop {
    Lost,
    Later(Timestamp),
    Ask(Box<Question>),
    Bad(Kind, String, bool),
}

#[derive(Clone, Copy)]
enum Kind {
    Failed,
    TimedOut,
    Cancelled,
    Uncertain,
}

impl From<Lost> for Stop {
    fn from(_: Lost) -> Self {
        Self::Lost
    }
}

/// Carries out a run until it ends, or has to wait without a worker.
///
/// Ends by itself within the time limits of the steps. If the future is dropped, the run can be taken up again; a step under way
/// that must not be done twice is then uncertain.
pub async fn execute(
    pipeline: &Pipeline,
    job: Job,
    host: &dyn RunHost,
    toolbox: &dyn Toolbox,
    ambient: &Ambient,
) -> End {
    let context = Context::new(pipeline, job.started_at, job.event.clone());
    let mut walk = Walk { pipeline, job: &job, host, toolbox, ambient, context, tally: Tally::default() };
    metrics::counter!("orchestrator_pipeline_executions_total", "status" => "started").increment(1);
    for step in pipeline.steps() {
        if let Err(why) = walk.step(step).await {
            return walk.stopped(step, why);
        }
    }
    metrics::counter!("orchestrator_pipeline_executions_total", "status" => "success").increment(1);
    End::Succeeded { output: walk.output(None) }
}

struct Walk<'a> {
    pipeline: &'a Pipeline,
    job: &'a Job,
    host: &'a dyn RunHost,
    toolbox: &'a dyn Toolbox,
    ambient: &'a Ambient,
    context: Context,
    tally: Tally,
}

fn failed(message: impl Into<String>) -> Stop {
    Stop::Bad(Kind::Failed, message.into(), false)
}

fn overdue(step: &Step, effect: Effect) -> Failure {
    let message = format!("it did not end within {} s", step.timeout.as_secs_f64());
    if effect == Effect::Once {
        Failure::Unknown(format!("{message}; whether it was done cannot be known"))
    } else {
        Failure::TimedOut(message)
    }
}

impl Walk<'_> {
    fn record(&self, step: &Step) -> Option<&StepRecord> {
        self.job.records.iter().find(|record| record.step == step.index)
    }

    async fn step(&mut self, step: &Step) -> Result<(), Stop> {
        let before = self.record(step).cloned();
        match before.as_ref().map(|record| record.state) {
            Some(StepState::Finished) => {
                let output = before.and_then(|record| record.output).unwrap_or_default();
                return self.finished(step, output);
            }
            Some(StepState::Skipped) => {
                self.tally.skipped += 1;
                return Ok(());
            }
            Some(StepState::Started)
                if before.as_ref().is_some_and(|record| self.is_unknown(step, record)) =>
            {
                let message = "it was begun and then the worker ended; whether it was done cannot be known, so it is not repeated";
                return Err(Stop::Bad(Kind::Uncertain, message.to_owned(), false));
            }
            _ => {}
        }
        if self.job.cancel.is_cancelled() {
            return Err(Stop::Bad(Kind::Cancelled, "the run was cancelled before it".to_owned(), false));
        }
        let waiting = before.as_ref().is_some_and(|record| record.state == StepState::Waiting);
        let now = self.ambient.clock.now();
        let mut record = before.unwrap_or_else(|| StepRecord {
            step: step.index,
            state: StepState::Started,
            uses: step.uses.clone(),
            effect: Effect::None,
            attempt: 0,
            started_at: now,
            finished_at: None,
            until: None,
            output: None,
            error: None,
        });
        // One that waits has been asked already, and has begun.
        if !waiting && !step.applies(&self.context).map_err(|error| failed(error.to_string()))? {
            self.tally.skipped += 1;
            self.told(step, "skipped", None);
            record.state = StepState::Skipped;
            record.finished_at = Some(now);
            if !self.is_last(step) {
                self.host.keep(&record).await?;
            }
            return Ok(());
        }
        let output = self.attempts(step, &mut record).await?;
        self.finished(step, output)
    }

    /// Whether a step that was begun must not be called again: it must not be done twice, and nobody knows it by its key.
    fn is_unknown(&self, step: &Step, record: &StepRecord) -> bool {
        let allowed = Allowed::new(self.toolbox, &self.job.scopes);
        let remembered = allowed.tool(&step.uses).map_or(Duration::ZERO, |tool| tool.remembers());
        record.effect == Effect::Once && self.ambient.clock.now().since(record.started_at) >= remembered
    }

    fn finished(&mut self, step: &Step, output: Value) -> Result<(), Stop> {
        self.tally.executed += 1;
        match &step.save_as {
            Some(name) => self.context.save(name, output).map_err(|error| failed(error.to_string())),
            None => Ok(()),
        }
    }

    /// Tells how a step stands.
    fn told(&self, step: &Step, state: &str, error: Option<&str>) {
        let mut data = Map::new();
        data.insert("step".to_owned(), step.index.into());
        data.insert("of".to_owned(), self.pipeline.steps().len().into());
        data.insert("id".to_owned(), json!(step.id));
        data.insert("uses".to_owned(), json!(step.uses));
        data.insert("state".to_owned(), json!(state));
        if let Some(error) = error {
            data.insert("error".to_owned(), json!(error));
        }
        self.host.tell(Note { kind: "step", data, outside: false });
    }

    fn is_last(&self, step: &Step) -> bool {
        usize::try_from(step.index).is_ok_and(|index| index + 1 == self.pipeline.steps().len())
    }

    /// Tries until it ends well, or must not or need not be tried again.
    async fn attempts(&self, step: &Step, record: &mut StepRecord) -> Result<Value, Stop> {
        let mut retry = 0;
        loop {
            let failure = match self.attempt(step, record).await {
                Ok(output) => return Ok(output),
                Err(Stop::Bad(kind @ (Kind::Failed | Kind::TimedOut), message, true)) => (kind, message),
                Err(other) => return Err(other),
            };
            if retry == step.retries {
                return Err(Stop::Bad(failure.0, failure.1, true));
            }
            retry += 1;
            let wait = step.backoff.delay(retry, self.random(), LONGEST_BACKOFF);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.job.cancel.cancelled() => {
                    let message = format!("the run was cancelled before it was tried again; it had failed: {}", failure.1);
                    return Err(Stop::Bad(Kind::Cancelled, message, false));
                }
            }
        }
    }

    fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        self.ambient.entropy.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    async fn attempt(&self, step: &Step, record: &mut StepRecord) -> Result<Value, Stop> {
        let allowed = Allowed::new(self.toolbox, &self.job.scopes);
        let Some(tool) = allowed.tool(&step.uses) else {
            return Err(failed(format!(
                "there is no tool {:?} that the owner of the task may use now",
                step.uses
            )));
        };
        let input = step.input(&self.context).map_err(|error| failed(error.to_string()))?;
        let effect = tool.check(Known { fixed: &input, open: &[] }).map_err(|misuse| {
            failed(match misuse {
                Misuse::Unknown => "the tool is gone".to_owned(),
                Misuse::Input(Some(name), message) => format!("with.{name}: {message}"),
                Misuse::Input(None, message) => format!("with: {message}"),
            })
        })?;
        record.attempt += 1;
        record.effect = effect;
        record.state = StepState::Started;
        if effect != Effect::None {
            self.host.keep(record).await?;
        }
        self.told(step, "started", None);
        let following = || self.following(step);
        let call = Call {
            input,
            address: &step.uses,
            key: format!("{}-{}", self.job.lineage, step.index),
            owner: &self.job.owner,
            task: self.job.task,
            run: self.job.run,
            lineage: self.job.lineage,
            pipeline: *self.pipeline.digest(),
            step: step.index,
            until: record.until,
            timeout: step.timeout,
            cancel: self.job.cancel.clone(),
            host: self.host,
            following: &following,
            clock: self.ambient.clock.as_ref(),
        };
        let grace = tool.grace();
        let begun = tokio::time::Instant::now();
        let ended = {
            let call = AssertUnwindSafe(tool.call(call)).catch_unwind();
            let cancelled = async {
                self.job.cancel.cancelled().await;
                // Whoever can end by itself is given the time for it.
                tokio::time::sleep(grace.max(Duration::from_millis(1))).await;
            };
            tokio::select! {
                biased;
                ended = tokio::time::timeout(step.timeout + grace, call) => match ended {
                    Ok(Ok(ended)) => ended,
                    Ok(Err(_panic)) => {
                        tracing::error!(target: "pipeline", tool = step.uses, "a tool panicked");
                        Err(Failure::Unknown("it ended in an internal error".to_owned()))
                    }
                    Err(_elapsed) => Err(overdue(step, effect)),
                },
                () = cancelled => Err(if effect == Effect::Once {
                    Failure::Unknown("the run was cancelled while it was under way; whether it was done cannot be known".to_owned())
                } else {
                    Failure::Cancelled
                }),
            }
        };
        step_ended(&step.uses, begun.elapsed(), ended.as_ref().err());
        if spans::is_on() {
            let now = self.ambient.clock.now();
            spans::ended(Span {
                context: spans::step(self.job.run, step.index),
                parent: Some(spans::run(self.job.run).span),
                name: step.uses.clone(),
                kind: SpanKind::Client,
                began: now.minus(begun.elapsed()),
                ended: now,
                failed: ended.is_err(),
                attributes: vec![
                    ("interlock.step", json!(step.index)),
                    ("interlock.attempt", json!(record.attempt)),
                ],
            });
        }
        self.conclude(step, record, ended).await
    }

    /// Keeps how a call ended, and says what follows from it.
    async fn conclude(
        &self,
        step: &Step,
        record: &mut StepRecord,
        ended: Result<Done, Failure>,
    ) -> Result<Value, Stop> {
        let now = self.ambient.clock.now();
        let (kind, message, again) = match ended {
            Ok(Done::Value(output)) => match check_result(&output) {
                Ok(()) => {
                    record.state = StepState::Finished;
                    record.finished_at = Some(now);
                    record.output = Some(output.clone());
                    record.error = None;
                    self.told(step, "finished", None);
                    // The end of the run is stored next; only what must not be done twice is kept before.
                    if !self.is_last(step) || record.effect == Effect::Once {
                        self.host.keep(record).await?;
                    }
                    return Ok(output);
                }
                Err(error) => (Kind::Failed, format!("it ended well, and {error}"), false),
            },
            Ok(Done::Wait(until)) => {
                self.told(step, "waiting", None);
                record.state = StepState::Waiting;
                record.until = Some(until);
                self.host.keep(record).await?;
                return Err(Stop::Later(until));
            }
            Ok(Done::Ask(question)) => {
                self.told(step, "waiting", None);
                record.state = StepState::Waiting;
                record.until = Some(question.expires_at);
                self.host.keep(record).await?;
                return Err(Stop::Ask(Box::new(question)));
            }
            Err(Failure::Lost) => return Err(Stop::Lost),
            Err(Failure::Unknown(message)) if record.effect == Effect::Once => {
                // What was kept says "begun", and stays.
                self.told(step, "uncertain", Some(&message));
                return Err(Stop::Bad(Kind::Uncertain, message, false));
            }
            Err(Failure::Refused(message)) => (Kind::Failed, message, false),
            Err(Failure::Unreached(message) | Failure::Unknown(message)) => (Kind::Failed, message, true),
            Err(Failure::Failed { message, again }) => {
                (Kind::Failed, message, again && record.effect != Effect::Once)
            }
            Err(Failure::TimedOut(message)) => (Kind::TimedOut, message, record.effect != Effect::Once),
            Err(Failure::Cancelled) => (Kind::Cancelled, Failure::Cancelled.to_string(), false),
        };
        self.told(step, "failed", Some(&message));
        record.state = StepState::Failed;
        record.finished_at = Some(now);
        record.error = Some(message.clone());
        if record.effect != Effect::None {
            self.host.keep(record).await?;
        }
        Err(Stop::Bad(kind, message, again))
    }

    /// The steps after this one, as far as they can be rendered now, for the person who is asked.
    fn following(&self, step: &Step) -> Value {
        let mut left = LONGEST_FOLLOWING;
        let steps = self.pipeline.steps().iter().filter(|next| next.index > step.index);
        let shown = steps.map(|next| {
            let with = next.input(&self.context).ok().map(Value::Object);
            let size = with.as_ref().map_or(0, |with| with.to_string().len());
            let fits = size <= left;
            left = left.saturating_sub(size);
            json!({ "id": next.id, "uses": next.uses, "with": with.filter(|_| fits) })
        });
        Value::Array(shown.collect())
    }
}

#[cfg(test)]
mod tests;
