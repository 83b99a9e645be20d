//! One run on a worker: what it needs is read, the pipeline is carried out, its end is told.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use interlock_model::Timestamp;
use interlock_model::pipeline::{RunOutput, StepRecord};
use interlock_model::task::{ApprovalId, TaskRunId, TaskRunState, TaskStatus};
use interlock_store::Error;
use interlock_store::orchestrator::{Claimed, Finished, NewApproval, Retry, TaskRow};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::keep::Keeper;
use super::{Held, Outcome, Worker};
use crate::orchestrator::Known;
use crate::orchestrator::events::facts;
use crate::pipeline::{End, Ended, Job, execute};

/// Longest error text, in characters.
const LONGEST_ERROR: usize = 2_000;
/// Attempts to read what a run needs.
const READS: u32 = 5;

/// What of a run is known when it ends.
struct Ending {
    state: TaskRunState,
    error: Option<String>,
    output: Option<RunOutput>,
    retry: bool,
}

impl Worker {
    /// Takes a claimed run in hand.
    pub(super) fn start(self: &Arc<Self>, claimed: Claimed) {
        let (cancel, dropped) = (CancellationToken::new(), CancellationToken::new());
        let held = Held {
            fence: claimed.fence,
            cancel: cancel.clone(),
            dropped: dropped.clone(),
            reason: None,
            began: None,
            noted: false,
        };
        self.held().insert(claimed.run, held);
        let worker = Arc::clone(self);
        self.tasks.spawn(async move {
            let run = claimed.run;
            let Ok(place) = worker.places.acquire().await else { return };
            // Given up while it waited for its turn.
            if !worker.has_begun(run, claimed.fence) {
                return;
            }
            let outcome = tokio::select! {
                outcome = worker.carry_out(claimed, cancel) => outcome,
                () = dropped.cancelled() => None,
            };
            drop(place);
            if let Some(outcome) = outcome {
                // Its end says more than its begin.
                if let Some(held) = worker.held().get_mut(&run) {
                    held.noted = true;
                }
                // The pump is gone only when everything was given up.
                let _ = worker.outcomes.send(outcome).await;
            }
        });
    }

    /// Notes the begin; `false` if the run is not this worker's any more.
    fn has_begun(&self, run: TaskRunId, fence: i64) -> bool {
        let now = self.orchestrator.now();
        match self.held().get_mut(&run) {
            Some(held) if held.fence == fence => {
                held.began = Some(now);
                true
            }
            _ => false,
        }
    }

    fn still_holds(&self, entry: &Claimed) -> bool {
        self.held().get(&entry.run).is_some_and(|held| held.fence == entry.fence)
    }

    /// `None` when it is another worker's by now.
    async fn carry_out(self: &Arc<Self>, entry: Claimed, cancel: CancellationToken) -> Option<Outcome> {
        let started_at = entry.started_at.unwrap_or_else(|| self.orchestrator.now());
        let left = has_left(&entry);
        let (known, event, records) = match self.read(&entry).await {
            Ok(Some(found)) => found,
            Ok(None) => {
                let ending = failed("the task is not known");
                return Some(self.finished(entry, (started_at, left), ending, None));
            }
            Err(error) => {
                tracing::warn!(run.id = %entry.run, error = &error as &dyn std::error::Error, "a run could not be read; it is given back");
                return Some(Outcome::GivenBack(entry));
            }
        };
        let refusal = match (&known.task.status, self.orchestrator.rights_of(&entry.owner)) {
            (TaskStatus::Canceled, _) => {
                Err(Ending { state: TaskRunState::Cancelled, ..failed("the task was canceled") })
            }
            (_, None) => Err(failed("the creator of this task is not active any more")),
            (_, Some(_)) if known.pipeline.is_none() => Err(failed(
                "the pipeline uses something that does not exist, or that the creator of the task may not use any more",
            )),
            (_, Some(scopes)) => Ok(scopes),
        };
        let scopes = match refusal {
            Ok(scopes) => scopes,
            Err(ending) => return Some(self.finished(entry, (started_at, left), ending, None)),
        };
        let job = Job {
            task: entry.task,
            title: known.task.title.clone(),
            run: entry.run,
            lineage: entry.lineage,
            owner: entry.owner.clone(),
            scopes,
            started_at,
            event,
            records,
            cancel,
        };
        let keep = Keeper::new(Arc::clone(self), &entry, started_at);
        self.telling().push(Arc::downgrade(&keep));
        let shared = &self.orchestrator.0;
        let Some(pipeline) = &known.pipeline else { return None };
        let carried = AssertUnwindSafe(execute(pipeline, job, &*keep, &*shared.toolbox, &shared.ambient));
        let carried = carried.catch_unwind().await;
        if !self.still_holds(&entry) {
            return None;
        }
        let left = left || keep.has_written();
        // Whoever hears of the end has heard the rest.
        keep.say(|telling| telling.rest(self.orchestrator.now())).await;
        let Ok(end) = carried else {
            tracing::error!(run.id = %entry.run, "carrying out a run panicked");
            let why = "the server failed while it carried out this run; its log has the cause";
            let ending = Ending { state: TaskRunState::Uncertain, ..failed(why) };
            return Some(self.finished(entry, (started_at, left), ending, None));
        };
        self.outcome(entry, &known.task, (started_at, left), end)
    }

    fn outcome(&self, entry: Claimed, task: &TaskRow, begin: (Timestamp, bool), end: End) -> Option<Outcome> {
        let now = self.orchestrator.now();
        let bad = |state, ended: Ended| Ending {
            state,
            error: Some(ended.error),
            output: Some(ended.output),
            retry: ended.retryable,
        };
        let ending = match end {
            End::Lost => return None,
            End::Later { at } => return Some(Outcome::Later(entry, at)),
            End::Waiting(question) => {
                let asked = NewApproval {
                    id: ApprovalId::new(now, &*self.orchestrator.0.ambient.entropy),
                    lineage: entry.lineage,
                    run: entry.run,
                    task: entry.task,
                    step: question.step.to_string(),
                    requester: entry.owner.clone(),
                    digest: interlock_model::id::from_hexadecimal(&question.digest)?,
                    subject: question.subject,
                    reason: question.reason,
                    created_at: now,
                    expires_at: question.expires_at,
                    approvers: question.approvers,
                };
                return Some(Outcome::Asks(entry, Box::new(asked)));
            }
            End::Succeeded { output } => {
                Ending { state: TaskRunState::Succeeded, error: None, output: Some(output), retry: false }
            }
            End::Failed(ended) => bad(TaskRunState::Failed, ended),
            End::TimedOut(ended) => bad(TaskRunState::TimedOut, ended),
            End::Uncertain(ended) => Ending { retry: false, ..bad(TaskRunState::Uncertain, ended) },
            End::Cancelled(ended) => {
                let reason = self.held().get(&entry.run).and_then(|held| held.reason.clone());
                let error =
                    reason.map_or_else(|| ended.error.clone(), |reason| format!("{}: {reason}", ended.error));
                Ending { error: Some(error), retry: false, ..bad(TaskRunState::Cancelled, ended) }
            }
        };
        Some(self.finished(entry, begin, ending, Some(task)))
    }

    /// With when it began, and whether steps of it were kept.
    fn finished(
        &self,
        entry: Claimed,
        (started_at, kept): (Timestamp, bool),
        ending: Ending,
        task: Option<&TaskRow>,
    ) -> Outcome {
        let ambient = &self.orchestrator.0.ambient;
        let now = ambient.clock.now();
        let retry =
            task.filter(|task| ending.retry && entry.attempt <= u32::from(task.max_retries)).map(|task| {
                let mut random = [0; 8];
                ambient.entropy.fill(&mut random);
                let longest = self.orchestrator.settings().backoff_max;
                let wait = task.backoff.delay(entry.attempt, u64::from_le_bytes(random), longest);
                Retry { run: TaskRunId::new(now, &*ambient.entropy), ready_at: now.plus(wait) }
            });
        let clean =
            |text: String| -> String { text.replace('\0', "\u{fffd}").chars().take(LONGEST_ERROR).collect() };
        Outcome::Finished(Arc::new(Finished {
            entry,
            state: ending.state,
            error: ending.error.map(clean),
            output: ending.output.as_ref().map(RunOutput::kept),
            kept,
            started_at,
            finished_at: now.max(started_at),
            retry,
        }))
    }

    /// Reads what a run needs; `None` if there is no such task.
    async fn read(&self, entry: &Claimed) -> Result<Option<Found>, Error> {
        let mut pause = Duration::from_millis(50);
        for _ in 1..READS {
            match self.read_once(entry).await {
                Ok(found) => return Ok(found),
                Err(Error::Closed) => return Err(Error::Closed),
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause *= 2;
        }
        self.read_once(entry).await
    }

    async fn read_once(&self, entry: &Claimed) -> Result<Option<Found>, Error> {
        let Some(known) = self.orchestrator.task_at(entry.task, entry.task_version).await? else {
            return Ok(None);
        };
        let (lineage, event) = (entry.lineage, entry.event);
        if event.is_none() && !has_left(entry) {
            return Ok(Some((known, None, Vec::new())));
        }
        let (event, steps) = self
            .orchestrator
            .ask(move |mut reads| {
                Box::pin(async move {
                    let event = match event {
                        Some(id) => reads.event(id).await?,
                        None => None,
                    };
                    Ok((event, reads.steps(lineage).await?))
                })
            })
            .await?;
        let records =
            steps.into_iter().map(|(_, record)| serde_json::from_value(record)).collect::<Result<_, _>>();
        let records = records.map_err(|error| Error::Corrupt(format!("the record of a step: {error}")))?;
        Ok(Some((known, event.as_ref().map(facts), records)))
    }
}

/// Whether steps of the run may have been kept before: a first attempt that was never begun has left nothing.
fn has_left(entry: &Claimed) -> bool {
    entry.attempt > 1 || entry.started_at.is_some() || entry.rescues > 0
}

/// A task, the event that made the run, and what its steps left.
type Found = (Arc<Known>, Option<Value>, Vec<StepRecord>);

fn failed(why: &str) -> Ending {
    Ending { state: TaskRunState::Failed, error: Some(why.to_owned()), output: None, retry: false }
}
