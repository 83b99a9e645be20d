//! What callers can see of runs, and ending one.

use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::action::{
    CancelTaskRun, ListRuns, ReadTaskRun, ReadTaskRuns, TaskRunTarget, TaskTarget,
};
use interlock_model::task::{TaskId, TaskRunId, TaskRunState};
use interlock_store::orchestrator::{RunFigures, RunsFilter, TaskRunRow};
use interlock_store::{Error, Page, Paged};
use serde_json::json;

use super::Orchestrator;
use crate::auth::{Caller, Permit, Recorded};

/// Why nothing can be told about a run, or it was not ended.
#[derive(Debug, thiserror::Error)]
pub enum RunsError {
    /// The id is no UUID.
    #[error("the id of a run is a UUID")]
    NotAnId,
    /// There is none, or the caller may not know.
    #[error("run not found")]
    NoSuchRun,
    /// There is none, or the caller may not know.
    #[error("task not found")]
    NoSuchTask,
    /// The id is no UUID.
    #[error("the id of a task is a UUID")]
    NotATask,
    /// It is over.
    #[error("the run is over")]
    Over,
    /// Too many follow.
    #[error("too many streams are followed at once")]
    TooManyFollowers,
    /// The storage's.
    #[error("read or write runs")]
    Store(#[from] Error),
}

/// Figures of a period.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Days.
    pub days: u32,
    /// The figures.
    pub figures: RunFigures,
}

impl Stats {
    fn share(&self, part: u64) -> f64 {
        if self.figures.total == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a share with three decimals")]
        let share = part as f64 / self.figures.total as f64;
        (share * 1000.0).round() / 1000.0
    }

    /// 0 to 1, three decimals.
    pub fn success_rate(&self) -> f64 {
        self.share(self.figures.succeeded)
    }

    /// 0 to 1, three decimals.
    pub fn failure_rate(&self) -> f64 {
        self.share(self.figures.failed)
    }

    /// Mean time of execution.
    pub fn seconds(&self) -> f64 {
        if self.figures.timed == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a mean with three decimals")]
        let mean = self.figures.micros as f64 / 1e6 / self.figures.timed as f64;
        (mean * 1000.0).round() / 1000.0
    }

    /// Mean number in a day.
    pub fn per_day(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a mean with three decimals")]
        let mean = self.figures.total as f64 / f64::from(self.days);
        (mean * 1000.0).round() / 1000.0
    }
}

fn days_ago(now: Timestamp, days: u32) -> Timestamp {
    now.minus(Duration::from_hours(24 * u64::from(days)))
}

impl Orchestrator {
    fn run_id(target: &TaskRunTarget) -> Result<TaskRunId, RunsError> {
        target.run_id.parse().map_err(|_| RunsError::NotAnId)
    }

    /// Runs, newest first, without output. Agents see their own, unless they administer.
    ///
    /// # Errors
    /// The storage's.
    pub async fn runs(
        &self,
        permit: &Permit<ListRuns>,
        mut filter: RunsFilter,
        page: Page,
    ) -> Result<Paged<TaskRunRow>, Error> {
        if let Some(own) = Self::visible(permit.caller()) {
            filter.owner = Some(own);
        }
        self.ask(move |mut reads| Box::pin(async move { reads.runs(&filter, page).await })).await
    }

    async fn visible_run(&self, caller: &Caller, id: TaskRunId) -> Result<TaskRunRow, RunsError> {
        let run = self.ask(move |mut reads| Box::pin(async move { reads.run(id).await })).await?;
        run.filter(|run| caller.reaches(&run.owner)).ok_or(RunsError::NoSuchRun)
    }

    /// One run with its output.
    ///
    /// # Errors
    /// [`RunsError`].
    pub async fn run(&self, permit: &Permit<ReadTaskRun>) -> Result<TaskRunRow, RunsError> {
        self.visible_run(permit.caller(), Self::run_id(permit.target())?).await
    }

    async fn visible_task(&self, caller: &Caller, target: &TaskTarget) -> Result<TaskId, RunsError> {
        let id: TaskId = target.task_id.parse().map_err(|_| RunsError::NotATask)?;
        let task = self.ask(move |mut reads| Box::pin(async move { reads.task(id).await })).await?;
        task.filter(|task| caller.reaches(&task.created_by)).map(|task| task.id).ok_or(RunsError::NoSuchTask)
    }

    /// The newest run of a task.
    ///
    /// # Errors
    /// [`RunsError`].
    pub async fn latest_run(&self, permit: &Permit<ReadTaskRuns>) -> Result<Option<TaskRunRow>, RunsError> {
        let task = self.visible_task(permit.caller(), permit.target()).await?;
        let filter = RunsFilter { task: Some(task), ..RunsFilter::default() };
        let newest = Page { limit: 1, offset: 0 };
        let latest = self
            .ask(move |mut reads| {
                Box::pin(async move {
                    let found = reads.runs(&filter, newest).await?;
                    match found.items.first() {
                        Some(run) => reads.run(run.id).await,
                        None => Ok(None),
                    }
                })
            })
            .await?;
        Ok(latest)
    }

    /// Figures of a task over its last days.
    ///
    /// # Errors
    /// [`RunsError`].
    pub async fn task_stats(
        &self,
        permit: &Permit<ReadTaskRuns>,
        days: u32,
    ) -> Result<(TaskId, Stats), RunsError> {
        let task = self.visible_task(permit.caller(), permit.target()).await?;
        let since = days_ago(self.now(), days);
        let figures = self
            .ask(move |mut reads| Box::pin(async move { reads.run_figures(None, Some(task), since).await }))
            .await?;
        Ok((task, Stats { days, figures }))
    }

    /// Figures of everything that the caller may see.
    ///
    /// # Errors
    /// The storage's.
    pub async fn summary(&self, permit: &Permit<ListRuns>, days: u32) -> Result<Stats, Error> {
        let own = Self::visible(permit.caller());
        let since = days_ago(self.now(), days);
        let figures = self
            .ask(move |mut reads| {
                Box::pin(async move { reads.run_figures(own.as_deref(), None, since).await })
            })
            .await?;
        Ok(Stats { days, figures })
    }

    /// Ends a run: at once if no worker holds it; else its worker is told.
    ///
    /// # Errors
    /// [`RunsError`].
    pub async fn cancel_run(
        &self,
        permit: &Permit<CancelTaskRun>,
        reason: Option<String>,
    ) -> Result<TaskRunRow, RunsError> {
        let id = Self::run_id(permit.target())?;
        self.visible_run(permit.caller(), id).await?;
        let now = self.now();
        let why = reason.clone().unwrap_or_else(|| "cancelled by request".to_owned());
        self.0
            .db
            .write(permit, move |tx| {
                Box::pin(async move {
                    let over = tx.orchestrator().cancel(id, &why, now).await?.ok_or(RunsError::Over)?;
                    let details = json!({ "reason": reason, "was_running": !over });
                    Ok::<_, RunsError>(Recorded { value: (), details })
                })
            })
            .await?;
        self.tell_work();
        self.visible_run(permit.caller(), id).await
    }

    /// Follows a run: each change of its state, until it is over.
    ///
    /// # Errors
    /// [`RunsError`].
    pub async fn follow_run(&self, permit: &Permit<ReadTaskRun>) -> Result<RunFollowing, RunsError> {
        let id = Self::run_id(permit.target())?;
        let place = std::sync::Arc::clone(&self.0.followers)
            .try_acquire_owned()
            .map_err(|_| RunsError::TooManyFollowers)?;
        let happened = self.0.happened.subscribe();
        let run = self.visible_run(permit.caller(), id).await?;
        Ok(RunFollowing {
            orchestrator: self.clone(),
            until: permit.caller().expires_at(),
            told: None,
            next: Some(run),
            happened,
            _place: place,
        })
    }
}

/// Somebody who follows a run.
pub struct RunFollowing {
    orchestrator: Orchestrator,
    until: Timestamp,
    told: Option<(TaskRunId, TaskRunState)>,
    next: Option<TaskRunRow>,
    happened: tokio::sync::watch::Receiver<u64>,
    _place: tokio::sync::OwnedSemaphorePermit,
}

impl std::fmt::Debug for RunFollowing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RunFollowing")
    }
}

impl RunFollowing {
    /// The run in its next state; `None` after its end, or when the credential has ended.
    ///
    /// # Errors
    /// The storage's.
    pub async fn next(&mut self) -> Result<Option<TaskRunRow>, Error> {
        loop {
            let id = match (&self.next, self.told) {
                (Some(run), _) => run.id,
                (None, Some((_, state))) if state.is_final() => return Ok(None),
                (None, Some((id, _))) => id,
                (None, None) => return Ok(None),
            };
            let run = if let Some(run) = self.next.take() {
                Some(run)
            } else {
                self.happened.mark_unchanged();
                self.orchestrator.ask(move |mut reads| Box::pin(async move { reads.run(id).await })).await?
            };
            let Some(run) = run else { return Ok(None) };
            if self.told != Some((id, run.state)) {
                self.told = Some((id, run.state));
                return Ok(Some(run));
            }
            if self.orchestrator.now() >= self.until {
                return Ok(None);
            }
            let poll = self.orchestrator.0.settings.poll.min(Duration::from_secs(1));
            if let Ok(Err(_)) = tokio::time::timeout(poll, self.happened.changed()).await {
                return Ok(None);
            }
        }
    }
}
