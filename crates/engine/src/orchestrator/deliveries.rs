//! Telling agents how runs of theirs ended, at the address that each has given.
//!
//! That an outcome is to be told is stored with the outcome itself. Every server takes what is due and tells it; one that dies
//! in between leaves it to the next process at its place at once, and to others after a minute. So an outcome is told at least
//! once, with the same id each time, and a receiver that has seen the id forgets the repetition. Clocks of servers matter here
//! only for how soon that is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use interlock_model::action::{DeliveryTarget, ReadAgent, RetryDelivery};
use interlock_model::secret::Secret;
use interlock_model::task::TaskRunId;
use interlock_model::{AgentId, Timestamp};
use interlock_store::orchestrator::{Attempt, DeliveryRow, DeliveryState};
use interlock_store::{Error, Page, Paged};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Orchestrator, RunsError};
use crate::agents::{AgentError, Agents};
use crate::auth::{Permit, Recorded};

/// Deliveries that one server works at, at once.
const AT_ONCE: usize = 32;
/// Those of one agent among them: a receiver that does not answer costs no more.
const FOR_ONE: usize = 4;
/// How long a delivery is in the hands of one server, which is longer than an attempt can take.
const HELD: Duration = Duration::from_mins(1);
/// A receiver that did not answer is left alone for so long.
const REST: Duration = Duration::from_secs(5);
/// Shortest and longest time between two looks.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Waits before the second and later attempts; eight attempts in a little more than a day.
const WAITS: [Duration; 7] = [
    Duration::from_secs(5),
    Duration::from_mins(5),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(5),
    Duration::from_hours(10),
    Duration::from_hours(10),
];

/// Something to tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Where.
    pub url: String,
    /// The same at every attempt: what a receiver tells repetitions by.
    pub id: String,
    /// `{"type": …, "timestamp": …, "data": …}`.
    pub body: Value,
}

/// An attempt that did not succeed. The text may be shown to the agent's owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Undelivered {
    /// Why.
    pub message: String,
    /// Whether another attempt may help.
    pub again: bool,
    /// The receiver answered.
    pub answered: bool,
}

/// Carries messages to receivers.
#[async_trait]
pub trait Courier: Send + Sync {
    /// Tells once, signed with each of `secrets`. Takes less than a minute.
    ///
    /// # Errors
    /// [`Undelivered`].
    async fn tell(&self, message: &Message, secrets: &[Secret], now: Timestamp) -> Result<(), Undelivered>;
}

/// Why deliveries were not shown or not repeated.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// No such agent, or not to be seen.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The id of the run is no UUID.
    #[error(transparent)]
    Run(#[from] RunsError),
    /// There is none.
    #[error("no outcome of this run was to be told to this agent")]
    NoSuchDelivery,
    /// The storage's.
    #[error("read deliveries")]
    Store(#[from] Error),
}

/// When to try again after attempt number `attempt`, from 1. None: never.
fn next_attempt(attempt: u32, random: u64) -> Option<Duration> {
    let wait = *WAITS.get(usize::try_from(attempt.checked_sub(1)?).ok()?)?;
    // Up to a tenth more, so that what failed together does not come back together.
    Some(wait + wait / 10 * u32::try_from(random % 1_000).unwrap_or(0) / 1_000)
}

fn message(url: String, attempt: &Attempt) -> Message {
    let run = &attempt.run;
    Message {
        url,
        id: format!("msg_{}", run.id),
        body: json!({
            "type": format!("run.{}", run.state.as_str()),
            "timestamp": run.finished_at,
            "data": {
                "run_id": run.id, "task_id": run.task, "state": run.state, "success": run.state.success(),
                "error": run.error, "attempt": run.attempt, "trigger": run.trigger, "scheduled_for": run.scheduled_for,
                "started_at": run.started_at, "finished_at": run.finished_at,
            },
        }),
    }
}

/// What is under way here.
#[derive(Default)]
struct Desk {
    /// How many for each agent.
    busy: HashMap<String, usize>,
    /// Agents whose receivers did not answer, and until when they are left alone.
    resting: HashMap<String, Instant>,
}

impl Desk {
    fn without(&mut self) -> Vec<String> {
        let now = Instant::now();
        self.resting.retain(|_, until| *until > now);
        let full = self.busy.iter().filter(|(_, count)| **count >= FOR_ONE).map(|(agent, _)| agent);
        full.chain(self.resting.keys()).cloned().collect()
    }

    fn free(&self) -> usize {
        AT_ONCE.saturating_sub(self.busy.values().sum())
    }

    fn done(&mut self, agent: &str) {
        if let Some(count) = self.busy.get_mut(agent) {
            *count -= 1;
            if *count == 0 {
                self.busy.remove(agent);
            }
        }
    }
}

/// One server's part in telling outcomes.
struct Teller {
    orchestrator: Orchestrator,
    agents: Agents,
    courier: Arc<dyn Courier>,
    holder: String,
    desk: Mutex<Desk>,
    /// An attempt is over.
    settled: tokio::sync::Notify,
}

#[derive(Debug, thiserror::Error)]
enum TakeError {
    #[error("nothing is due")]
    Nothing,
    #[error("use the storage")]
    Store(#[from] Error),
}

impl Orchestrator {
    /// Tells outcomes until `stop`, and waits for what is being told. `place` as for [`Orchestrator::work`]. Run it as a
    /// background task.
    pub async fn tell_outcomes(
        self,
        agents: Agents,
        courier: Arc<dyn Courier>,
        place: &str,
        stop: CancellationToken,
    ) {
        let name = interlock_model::id::random_hex(&*self.0.ambient.entropy, 6);
        let mut happened = self.0.happened.subscribe();
        let teller = Arc::new(Teller {
            orchestrator: self,
            agents,
            courier,
            holder: format!("{place}.{name}"),
            desk: Mutex::default(),
            settled: tokio::sync::Notify::new(),
        });
        let under_way = TaskTracker::new();
        let mut begun = false;
        while !stop.is_cancelled() {
            let wait = match teller.look(place, &mut begun, &under_way).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "outcomes could not be told; they wait"
                    );
                    LOOKS.1
                }
            };
            let pause = tokio::time::sleep(LOOKS.0);
            tokio::select! {
                () = stop.cancelled() => break,
                () = teller.settled.notified() => {}
                heard = happened.changed() => if heard.is_err() { break },
                () = tokio::time::sleep(wait) => {}
            }
            pause.await;
        }
        under_way.close();
        under_way.wait().await;
    }

    /// Deliveries to an agent, newest first.
    ///
    /// # Errors
    /// [`DeliveryError`].
    pub async fn deliveries(
        &self,
        permit: &Permit<ReadAgent>,
        agents: &Agents,
        state: Option<DeliveryState>,
        page: Page,
    ) -> Result<Paged<DeliveryRow>, DeliveryError> {
        let agent = agents.get(permit)?.id.to_string();
        let found =
            self.ask(move |mut reads| Box::pin(async move { reads.deliveries(&agent, state, page).await }));
        Ok(found.await?)
    }

    /// Has an outcome told once more, whether it was taken or given up.
    ///
    /// # Errors
    /// [`DeliveryError`].
    pub async fn tell_again(&self, permit: &Permit<RetryDelivery>) -> Result<TaskRunId, DeliveryError> {
        let DeliveryTarget { agent_id, run_id } = permit.target();
        let run: TaskRunId = run_id.parse().map_err(|_| RunsError::NotAnId)?;
        let (agent, now) = (agent_id.to_string(), self.now());
        self.0
            .db
            .write_about(permit, Some(run.to_string()), move |tx| {
                Box::pin(async move {
                    if !tx.orchestrator().tell_again(&agent, run, now).await? {
                        return Err(DeliveryError::NoSuchDelivery);
                    }
                    Ok(Recorded { value: (), details: json!({ "agent_id": agent }) })
                })
            })
            .await?;
        self.tell_here();
        Ok(run)
    }
}

impl Teller {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins what is due and returns how long to wait for more.
    async fn look(
        self: &Arc<Self>,
        place: &str,
        begun: &mut bool,
        under_way: &TaskTracker,
    ) -> Result<Duration, Error> {
        let db = &self.orchestrator.0.db;
        if !*begun {
            let (place, now) = (place.to_owned(), self.orchestrator.now());
            db.count(move |tx| Box::pin(async move { tx.orchestrator().free_deliveries(&place, now).await }))
                .await?;
            *begun = true;
        }
        let first = self.orchestrator.ask(|mut reads| Box::pin(async move { reads.first_delivery().await }));
        let now = self.orchestrator.now();
        match first.await? {
            None => return Ok(LOOKS.1),
            Some(first) if first > now => return Ok(LOOKS.1.min(first.since(now))),
            Some(_) => {}
        }
        let taken = match self.take(now).await {
            Ok(taken) => taken,
            // What is due is of agents that must wait, or in the hands of others.
            Err(TakeError::Nothing) => return Ok(Duration::from_secs(1)),
            Err(TakeError::Store(error)) => return Err(error),
        };
        for attempt in taken {
            *self.desk().busy.entry(attempt.agent.clone()).or_default() += 1;
            let teller = Arc::clone(self);
            under_way.spawn(async move {
                teller.attempt(&attempt).await;
                teller.desk().done(&attempt.agent);
                teller.settled.notify_one();
            });
        }
        Ok(Duration::ZERO)
    }

    async fn take(&self, now: Timestamp) -> Result<Vec<Attempt>, TakeError> {
        let (without, free) = {
            let mut desk = self.desk();
            (desk.without(), desk.free().min(FOR_ONE))
        };
        if free == 0 {
            return Err(TakeError::Nothing);
        }
        let limit = u32::try_from(free).unwrap_or(1);
        let (holder, times) = (self.holder.clone(), (now, now.plus(HELD)));
        let proof = self.orchestrator.0.system.acting("webhook.sending", Some(self.holder.clone()));
        self.orchestrator
            .0
            .db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let taken = tx.orchestrator().take_deliveries(&holder, times, limit, &without).await?;
                    if taken.is_empty() {
                        return Err(TakeError::Nothing);
                    }
                    let told: Vec<Value> = taken
                        .iter()
                        .map(|one| json!({ "agent": one.agent, "run": one.run.id, "attempt": one.number }))
                        .collect();
                    Ok(Recorded { value: taken, details: json!({ "deliveries": told }) })
                })
            })
            .await
    }

    async fn attempt(&self, attempt: &Attempt) {
        let went = self.tell(attempt).await;
        let ambient = &self.orchestrator.0.ambient;
        let now = ambient.clock.now();
        let went = went.map_err(|untold| {
            if !untold.answered {
                self.desk().resting.insert(attempt.agent.clone(), Instant::now() + REST);
            }
            let mut random = [0; 8];
            ambient.entropy.fill(&mut random);
            let wait = next_attempt(attempt.number, u64::from_le_bytes(random)).filter(|_| untold.again);
            (untold.message, wait.map(|wait| now.plus(wait)))
        });
        let result = match &went {
            Ok(()) => "delivered",
            Err((_, Some(_))) => "again",
            Err((_, None)) => "failed",
        };
        metrics::counter!("orchestrator_webhook_deliveries_total", "result" => result).increment(1);
        let (holder, run, number) = (self.holder.clone(), attempt.run.id, attempt.number);
        let proof = self.orchestrator.0.system.acting("webhook.sent", Some(run.to_string()));
        let agent = attempt.agent.clone();
        let settled = self.orchestrator.0.db.write(&proof, move |tx| {
            Box::pin(async move {
                let (error, next) = match &went {
                    Ok(()) => (None, None),
                    Err((why, next)) => (Some(why.as_str()), *next),
                };
                let result_of = match error {
                    None => Ok(()),
                    Some(why) => Err((why, next)),
                };
                let own = tx.orchestrator().settle_delivery(&holder, (run, number), result_of, now).await?;
                let details = json!({
                    "agent": agent, "attempt": number, "delivered": error.is_none(), "error": error, "next_at": next, "stored": own,
                });
                Ok::<_, Error>(Recorded { value: (), details })
            })
        });
        if let Err(error) = settled.await {
            tracing::warn!(
                run.id = %run, error = &error as &dyn std::error::Error,
                "how telling an outcome went could not be stored; it is told again later"
            );
        }
    }

    async fn tell(&self, attempt: &Attempt) -> Result<(), Undelivered> {
        let quietly =
            |message: &str, again| Undelivered { message: message.to_owned(), again, answered: true };
        let agent = attempt.agent.parse::<AgentId>().map_err(|_| quietly("the agent is not known", false))?;
        let (url, secrets) = self
            .agents
            .webhook(agent)
            .map_err(|error| {
                tracing::error!(agent.id = %agent, error = &error as &dyn std::error::Error, "secrets of a webhook cannot be used");
                quietly("the secret of the webhook cannot be opened; the server's log has the cause", true)
            })?
            .ok_or_else(|| quietly("the agent has no webhook any more", false))?;
        if secrets.is_empty() {
            return Err(quietly(
                "the webhook has no secret yet; make one, and it is told at the next attempt",
                true,
            ));
        }
        self.courier.tell(&message(url, attempt), &secrets, self.orchestrator.now()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_end_after_a_day() {
        let all: Vec<Duration> = (1..).map_while(|attempt| next_attempt(attempt, 0)).collect();
        assert_eq!(all.len(), 7);
        assert!(all.iter().sum::<Duration>() > Duration::from_hours(24));
        assert!(next_attempt(0, 0).is_none());
        assert!(next_attempt(1, 999).expect("again") < Duration::from_millis(5_600));
    }

    #[test]
    fn one_agent_has_a_part_of_the_desk_only() {
        let mut desk = Desk::default();
        desk.busy.insert("a".to_owned(), FOR_ONE);
        desk.busy.insert("b".to_owned(), 1);
        desk.resting.insert("c".to_owned(), Instant::now() + REST);

        let mut without = desk.without();
        without.sort();
        assert_eq!(without, ["a", "c"]);
        assert_eq!(desk.free(), AT_ONCE - FOR_ONE - 1);
        desk.done("a");
        desk.done("b");
        assert_eq!(desk.without(), ["c"]);
        assert!(!desk.busy.contains_key("b"));
    }
}
