//! What callers can see of runs, and ending one.

use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::action::{
    CancelTaskRun, ListRuns, ReadTaskRun, ReadTaskRuns, TaskRunTarget, TaskTarget,
};
use interlock_model::task::{TaskId, TaskRunId, TaskRunState};
use interlock_store::orchestrator::{RunFigures, RunNote, RunsFilter, TaskRunRow};
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

    /// What a run told behind number `after`, at most `limit`, and whether that is all there will be.
    ///
    /// # Errors
    /// [`RunsError`].
    pub async fn run_log(
        &self,
        permit: &Permit<ReadTaskRun>,
        after: u64,
        limit: u32,
    ) -> Result<(Vec<RunNote>, bool), RunsError> {
        let run = self.visible_run(permit.caller(), Self::run_id(permit.target())?).await?;
        let notes = self
            .ask(move |mut reads| Box::pin(async move { reads.notes(run.id, after, limit).await }))
            .await?;
        let all = run.state.is_final() && notes.len() < usize::try_from(limit).unwrap_or(usize::MAX);
        Ok((notes, all))
    }

    /// Follows a run until it is over: each change of its state, and what it tells meanwhile. `from` is where a follower that comes
    /// back was ([`RunNews::id`]).
    ///
    /// # Errors
    /// [`RunsError`].
    pub async fn follow_run(
        &self,
        permit: &Permit<ReadTaskRun>,
        from: Option<&str>,
    ) -> Result<RunFollowing, RunsError> {
        let id = Self::run_id(permit.target())?;
        let place = std::sync::Arc::clone(&self.0.followers)
            .try_acquire_owned()
            .map_err(|_| RunsError::TooManyFollowers)?;
        let happened = self.0.happened.subscribe();
        self.visible_run(permit.caller(), id).await?;
        let (after, told) = from.map(place_of).unwrap_or_default();
        Ok(RunFollowing {
            orchestrator: self.clone(),
            run: id,
            until: permit.caller().expires_at(),
            after,
            told,
            happened,
            _place: place,
        })
    }
}

/// Notes that a follower is given at once.
const PAGE: u32 = 200;

/// What a follower of a run is told.
#[derive(Clone, Debug, PartialEq)]
pub enum RunFact {
    /// The run in another state.
    State(Box<TaskRunRow>),
    /// Something that it reported.
    Note(RunNote),
}

/// A fact with the place in the stream behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunNews {
    /// Number of the last note and the last state, as in `12.running`: nothing is kept for followers, who come back with it.
    pub id: String,
    /// The fact.
    pub fact: RunFact,
}

/// What stands in [`RunNews::id`]. What cannot be read is the beginning.
fn place_of(id: &str) -> (u64, Option<TaskRunState>) {
    let (number, state) = match id.split_once('.') {
        Some(both) => both,
        None if id.starts_with(|c: char| c.is_ascii_digit()) => (id, ""),
        None => ("", id),
    };
    // No run has that many notes; the bound keeps absurd numbers out of arithmetic.
    (number.parse().map_or(0, |number: u64| number.min(u64::from(u32::MAX))), TaskRunState::parse(state))
}

/// Somebody who follows a run. Nothing is kept in memory for them: they read on from where they are.
pub struct RunFollowing {
    orchestrator: Orchestrator,
    run: TaskRunId,
    until: Timestamp,
    after: u64,
    told: Option<TaskRunState>,
    happened: tokio::sync::watch::Receiver<u64>,
    _place: tokio::sync::OwnedSemaphorePermit,
}

impl std::fmt::Debug for RunFollowing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RunFollowing")
    }
}

impl RunFollowing {
    /// What happens next, at least one fact; `None` after the end of the run, or when the credential has ended.
    ///
    /// # Errors
    /// The storage's.
    pub async fn next(&mut self) -> Result<Option<Vec<RunNews>>, Error> {
        loop {
            if self.told.is_some_and(TaskRunState::is_final) {
                return Ok(None);
            }
            self.happened.mark_unchanged();
            let (id, after) = (self.run, self.after);
            // The run first: what is told of one that is over was told before.
            let found = self.orchestrator.ask(move |mut reads| {
                Box::pin(async move {
                    let run = reads.run(id).await?;
                    Ok((run, reads.notes(id, after, PAGE).await?))
                })
            });
            let (Some(run), notes) = found.await? else { return Ok(None) };
            let news = self.news(run, notes);
            if !news.is_empty() {
                return Ok(Some(news));
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

    /// A state that is new comes before what the run told in it, the last one comes at the end.
    fn news(&mut self, run: TaskRunRow, notes: Vec<RunNote>) -> Vec<RunNews> {
        let more = notes.len() >= PAGE as usize;
        let mut run = Some(run).filter(|run| self.told != Some(run.state));
        let mut news = Vec::with_capacity(notes.len() + 1);
        if let Some(run) = run.take_if(|run| !run.state.is_final()) {
            self.told = Some(run.state);
            news.push(RunNews { id: self.id(), fact: RunFact::State(Box::new(run)) });
        }
        for note in notes {
            self.after = note.seq;
            news.push(RunNews { id: self.id(), fact: RunFact::Note(note) });
        }
        if let Some(run) = run.filter(|_| !more) {
            self.told = Some(run.state);
            news.push(RunNews { id: self.id(), fact: RunFact::State(Box::new(run)) });
        }
        news
    }

    fn id(&self) -> String {
        format!("{}.{}", self.after, self.told.map_or("", TaskRunState::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_comes_back_to_where_it_was() {
        assert_eq!(place_of("12.running"), (12, Some(TaskRunState::Running)));
        assert_eq!(place_of("3."), (3, None));
        assert_eq!(place_of("7"), (7, None));
        assert_eq!(place_of("leased"), (0, Some(TaskRunState::Leased)));
        assert_eq!(place_of("99999999999999.queued").0, u64::from(u32::MAX));
        for odd in ["", "x", "-1", "1.2.3", "9999999999999999999999999", "é.running2"] {
            assert_eq!(place_of(odd).1, None, "{odd}");
        }
    }
}
