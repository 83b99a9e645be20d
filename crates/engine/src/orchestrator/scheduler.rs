//! Turns due times into runs. Every server does; a due time is served by whoever locks it first, and moved in the same write.

use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::schedule::Schedule;
use interlock_model::task::{Misfire, TaskId, Trigger};
use interlock_store::Error;
use interlock_store::orchestrator::{Due, NewRun};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::tasks::run_of_due;
use super::{Orchestrator, clock};
use crate::auth::Recorded;

/// Due times in one write.
const BATCH: u32 = 500;
/// Missed times of one task that are looked at in one go.
const MISSED: usize = 1_000;
/// Longest pause after the storage failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What becomes of one due time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    /// The due time that gets a run.
    run_for: Option<Timestamp>,
    /// When the task is due next.
    next: Option<Timestamp>,
    /// Due times that get none.
    missed: usize,
}

/// What a task that was due at `due` does now.
///
/// Up to `grace` late is on time. What is later was missed: nobody was there. `run_once` runs for the latest of the times that
/// were missed, `run_all` for each, `skip` for none.
fn plan(schedule: &Schedule, due: Timestamp, misfire: Misfire, now: Timestamp, grace: Duration) -> Plan {
    let late = now.since(due);
    if late <= grace || misfire == Misfire::RunAll {
        return Plan { run_for: Some(due), next: schedule.next_after(due), missed: 0 };
    }
    if misfire == Misfire::Skip {
        return Plan { run_for: None, next: schedule.next_after(now), missed: 1 };
    }
    let mut latest = due;
    let mut missed = 0;
    while missed < MISSED {
        match schedule.next_after(latest) {
            Some(next) if next <= now => latest = next,
            next => return Plan { run_for: Some(latest), next, missed },
        }
        missed += 1;
    }
    Plan { run_for: Some(latest), next: schedule.next_after(now), missed }
}

#[derive(Debug, thiserror::Error)]
enum TickError {
    /// Another server was faster: nothing is recorded.
    #[error("there was nothing to do")]
    Nothing,
    #[error("use the storage")]
    Store(#[from] Error),
}

/// One due time in the write.
struct Fired {
    run: Option<NewRun>,
    moved: (TaskId, Timestamp, Option<Timestamp>),
    told: Value,
    window: i64,
    kind: &'static str,
}

fn fire(due: &Due, now: Timestamp, grace: Duration) -> Fired {
    let parsed = Schedule::parse(due.kind, due.expression.as_deref(), &due.zone, due.anchor);
    let plan = match &parsed {
        Ok(schedule) => plan(schedule, due.due_at, due.misfire, now, grace),
        Err(error) => {
            // Checked when it was stored: only another version of the program can have understood it.
            tracing::error!(task.id = %due.task, %error, "a stored schedule cannot be read; the task is not due any more");
            Plan { run_for: None, next: None, missed: 0 }
        }
    };
    let run = plan.run_for.map(|time| {
        let run = run_of_due(due.task, time);
        NewRun {
            run,
            lineage: run,
            task: due.task,
            owner: due.created_by.clone(),
            attempt: 1,
            trigger: Trigger::Schedule,
            scheduled_for: Some(time),
            event: None,
            priority: due.priority,
            // A due time keeps its place in the queue, however late it is served.
            ready_at: time.min(now),
            concurrency_key: due.concurrency_key.clone(),
            created_at: now,
        }
    });
    let told = json!({
        "task": due.task, "due": due.due_at, "run": run.as_ref().map(|run| run.run), "for": plan.run_for, "next": plan.next,
        "missed": plan.missed,
    });
    Fired {
        run,
        moved: (due.task, due.due_at, plan.next),
        told,
        window: due.dedupe_window_seconds,
        kind: due.kind.as_str(),
    }
}

impl Orchestrator {
    /// Serves due times, retries whose wait is over, and questions that nobody answered, until `stop`. Run it as a background task.
    pub async fn schedule(self, stop: CancellationToken) {
        let mut pause = Duration::from_millis(100);
        let mut agreed: Option<Instant> = None;
        while !stop.is_cancelled() {
            let served = async {
                if agreed.is_none_or(|agreed| agreed.elapsed() >= clock::PERIOD) {
                    self.agree_on_time().await?;
                    agreed = Some(Instant::now());
                }
                self.serve_what_is_due().await
            }
            .await;
            let wait = match served {
                Ok(wait) => {
                    pause = Duration::from_millis(100);
                    metrics::counter!("orchestrator_scheduler_ticks_total", "result" => "success")
                        .increment(1);
                    wait
                }
                Err(error) => {
                    metrics::counter!("orchestrator_scheduler_ticks_total", "result" => "error").increment(1);
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "due times could not be served; they stay due"
                    );
                    pause = (pause * 2).min(PATIENCE);
                    pause
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.schedule.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Serves everything that is due now and returns how long to wait for the next.
    async fn serve_what_is_due(&self) -> Result<Duration, Error> {
        loop {
            let now = self.now();
            let (due, delayed, asked) = self
                .ask(|mut reads| {
                    Box::pin(async move {
                        let times = (reads.first_due().await?, reads.first_delayed().await?);
                        Ok((times.0, times.1, reads.first_question().await?))
                    })
                })
                .await?;
            metrics::gauge!("orchestrator_scheduler_lag_seconds")
                .set(due.map_or(0.0, |due| now.since(due).as_secs_f64()));
            let first = [due, delayed, asked].into_iter().flatten().min();
            match first {
                None => return Ok(self.0.settings.poll),
                Some(first) if first > now => return Ok(self.0.settings.poll.min(first.since(now))),
                Some(_) => {}
            }
            match self.tick(now).await {
                Ok(kinds) => {
                    for kind in &kinds {
                        metrics::counter!("orchestrator_scheduler_jobs_created_total", "schedule_kind" => *kind).increment(1);
                    }
                    self.tell_work();
                }
                // Another server is at it: look again soon, not at once.
                Err(TickError::Nothing) => return Ok(Duration::from_millis(20).min(self.0.settings.poll)),
                Err(TickError::Store(error)) => return Err(error),
            }
        }
    }

    /// One write; gives the kinds of the schedules whose runs it has lined up.
    async fn tick(&self, now: Timestamp) -> Result<Vec<&'static str>, TickError> {
        let grace = self.0.settings.misfire_grace;
        let proof = self.0.system.acting("runs.queued", None);
        self.0
            .db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    let promoted = all.promote(now, BATCH).await?;
                    let expired = all.expire_approvals(now, BATCH).await?;
                    let due = all.due(now, BATCH).await?;
                    if due.is_empty() && promoted == 0 && expired == 0 {
                        return Err(TickError::Nothing);
                    }
                    let mut kinds = Vec::new();
                    let (mut runs, mut moves, mut told) = (Vec::new(), Vec::new(), Vec::new());
                    for due in &due {
                        let fired = fire(due, now, grace);
                        moves.push(fired.moved);
                        told.push(fired.told);
                        if let Some(run) = fired.run
                            && all.trigger(due.task, fired.window, now).await?
                        {
                            kinds.push(fired.kind);
                            runs.push(run);
                        }
                    }
                    all.move_due(&moves).await?;
                    all.enqueue(&runs).await?;
                    let details = json!({ "due": told, "promoted": promoted, "expired_questions": expired });
                    Ok(Recorded { value: kinds, details })
                })
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use interlock_model::task::ScheduleKind;

    use super::*;

    fn minutes(text: &str) -> Schedule {
        Schedule::parse(ScheduleKind::Cron, Some(text), "UTC", Timestamp::from_seconds(0))
            .expect("a schedule")
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    const GRACE: Duration = Duration::from_secs(30);

    #[test]
    fn a_due_time_within_the_grace_is_on_time_whatever_the_policy() {
        for misfire in Misfire::ALL {
            let planned = plan(&minutes("* * * * *"), at(600), *misfire, at(630), GRACE);
            assert_eq!(planned, Plan { run_for: Some(at(600)), next: Some(at(660)), missed: 0 });
        }
    }

    #[test]
    fn missed_times_become_one_run_or_all_or_none() {
        let every = minutes("* * * * *");

        let once = plan(&every, at(600), Misfire::RunOnce, at(1_000), GRACE);
        let all = plan(&every, at(600), Misfire::RunAll, at(1_000), GRACE);
        let none = plan(&every, at(600), Misfire::Skip, at(1_000), GRACE);

        assert_eq!(once, Plan { run_for: Some(at(960)), next: Some(at(1_020)), missed: 6 });
        assert_eq!(all, Plan { run_for: Some(at(600)), next: Some(at(660)), missed: 0 });
        assert_eq!(none, Plan { run_for: None, next: Some(at(1_020)), missed: 1 });
    }

    #[test]
    fn years_of_missed_minutes_cost_a_bounded_search() {
        let planned = plan(&minutes("* * * * *"), at(600), Misfire::RunOnce, at(200_000_000), GRACE);

        assert_eq!(planned.missed, MISSED);
        assert!(planned.next.expect("there is a next") > at(200_000_000));
    }
}
