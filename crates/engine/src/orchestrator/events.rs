//! Events: published, stored, matched and turned into runs in one write; and the streams of those who follow.

use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::action::{CleanEvents, PublishEvent, ReadEvents};
use interlock_model::pipeline::Condition;
use interlock_model::policy::Grants;
use interlock_model::scope;
use interlock_model::task::{EventId, ScheduleKind, StreamId, TaskId, TaskRunId, Trigger};
use interlock_model::text::{self, Form as _};
use interlock_store::Error;
use interlock_store::orchestrator::{Changes, EventRow, NewRun, Topic};
use serde_json::{Value, json};

use super::Orchestrator;
use super::tasks::{LARGEST_PAYLOAD, new_run};
use crate::auth::{Permit, Recorded};

/// Most age of events that cleaning may name, in hours: a year.
const LONGEST_AGE: i64 = 8_760;
/// Events that are deleted in one write.
const BATCH: u32 = 1_000;
/// Events that a follower is given at once.
const PAGE: u32 = 200;

/// Why something was not done with events.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// A field that cannot be used, and what is wrong.
    #[error("{1}")]
    Field(&'static str, String),
    /// Somebody else's name.
    #[error("source_agent_id must be you; only an administrator can name somebody else")]
    NotYou,
    /// Nobody's name.
    #[error("source_agent_id names nobody who is active here")]
    NoSuchSource,
    /// Too many follow.
    #[error("too many streams are followed at once")]
    TooManyFollowers,
    /// The storage's.
    #[error("store the event")]
    Store(#[from] Error),
}

/// An event to publish.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Topic.
    pub topic: String,
    /// What it says: an object.
    pub payload: Value,
    /// Whose event it is.
    pub source: String,
}

/// What publishing did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The event.
    pub id: EventId,
    /// Its position.
    pub position: StreamId,
    /// Tasks that run because of it.
    pub triggered: Vec<TaskId>,
    /// When.
    pub at: Timestamp,
}

/// An event as pipelines and conditions see it.
pub(super) fn facts(event: &EventRow) -> Value {
    json!({ "topic": event.topic, "payload": event.payload, "event_id": event.id })
}

/// A task that runs because of an event.
pub(super) struct Triggered {
    task: TaskId,
    owner: String,
}

/// As the audit trail names them.
pub(super) fn ids(triggered: &[Triggered]) -> Vec<TaskId> {
    triggered.iter().map(|one| one.task).collect()
}

fn checked_topic(topic: &str) -> Result<(), EventError> {
    text::Topic::RULE.check(topic).map_err(|breach| EventError::Field("topic", format!("'topic' {breach}")))
}

impl Orchestrator {
    /// Stores an event, and lines up the runs of tasks that wait for it.
    pub(super) async fn publish_in(
        &self,
        all: &mut Changes<'_>,
        event: &EventRow,
        now: Timestamp,
    ) -> Result<(StreamId, Vec<Triggered>), Error> {
        let facts = facts(event);
        let mut runs = Vec::new();
        for task in all.listeners(&event.topic).await? {
            let condition = task.expression.as_deref().unwrap_or("");
            let sees = self.hears(&task.created_by, event);
            let holds = task.kind != ScheduleKind::Condition
                || Condition::compile(condition).is_ok_and(|condition| condition.holds(&facts));
            if sees && holds && all.trigger(task.id, task.dedupe_window_seconds, now).await? {
                let run = TaskRunId::new(now, &*self.0.ambient.entropy);
                runs.push(NewRun { event: Some(event.id), ..new_run(&task, run, Trigger::Event, now) });
            }
        }
        all.enqueue(&runs).await?;
        let position = all.publish(event).await?;
        let triggered = runs.into_iter().map(|run| Triggered { task: run.task, owner: run.owner }).collect();
        Ok((position, triggered))
    }

    /// Whether tasks of `owner` may be started by an event and see it: as far as the owner may see it, and as far as it was
    /// allowed to listen.
    fn hears(&self, owner: &str, event: &EventRow) -> bool {
        let heard = |grants: Grants| {
            owner == event.source
                || grants.reaches_others()
                || grants.holds_scope(&format!("{}:{}", scope::LISTEN, event.topic))
        };
        self.grants_of(owner).is_some_and(heard)
    }

    /// Publishes an event.
    ///
    /// # Errors
    /// [`EventError`].
    pub async fn publish(
        &self,
        permit: &Permit<PublishEvent>,
        new: NewEvent,
    ) -> Result<Published, EventError> {
        checked_topic(&new.topic)?;
        let size = new.payload.to_string().len();
        if size > LARGEST_PAYLOAD {
            let message = format!("'payload' must have at most {LARGEST_PAYLOAD} bytes as JSON");
            return Err(EventError::Field("payload", message));
        }
        let caller = permit.caller();
        let source = new.source.parse::<interlock_model::AgentId>().map_or(new.source, |id| id.to_string());
        if source != caller.name() {
            if !caller.grants().holds_scope("agents:manage") {
                return Err(EventError::NotYou);
            }
            self.grants_of(&source).ok_or(EventError::NoSuchSource)?;
        }
        let now = self.now();
        let event = EventRow {
            id: EventId::new(now, &*self.0.ambient.entropy),
            position: StreamId::default(),
            topic: new.topic,
            payload: new.payload,
            source,
            published_by: caller.name().to_owned(),
            published_at: now,
        };
        let this = self.clone();
        let own = Self::visible(caller);
        let subject = event.id.to_string();
        let published = self
            .0
            .db
            .write_about(permit, Some(subject), move |tx| {
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    let (position, triggered) = this.publish_in(&mut all, &event, now).await?;
                    let details = json!({
                        "event_id": event.id, "topic": event.topic, "stream_id": position.to_string(),
                        "triggered_tasks": ids(&triggered), "payload_size": size,
                    });
                    // Topics reach everybody's tasks; whose those are is not for everybody.
                    let seen =
                        triggered.iter().filter(|one| own.as_ref().is_none_or(|own| *own == one.owner));
                    let triggered = seen.map(|one| one.task).collect();
                    let value = Published { id: event.id, position, triggered, at: now };
                    Ok::<_, EventError>(Recorded { value, details })
                })
            })
            .await?;
        self.tell_work();
        Ok(published)
    }

    /// Topics that active tasks wait for. Agents see their own tasks, unless they administer.
    ///
    /// # Errors
    /// The storage's.
    pub async fn topics(&self, permit: &Permit<ReadEvents>) -> Result<Vec<Topic>, Error> {
        let own = Self::visible(permit.caller());
        self.ask(move |mut reads| Box::pin(async move { reads.topics(own.as_deref()).await })).await
    }

    /// The newest events, newest first; 1 to 1000. Agents see their own, unless they administer.
    ///
    /// # Errors
    /// The storage's.
    pub async fn recent_events(
        &self,
        permit: &Permit<ReadEvents>,
        count: u32,
    ) -> Result<Vec<EventRow>, Error> {
        let own = Self::visible(permit.caller());
        self.ask(move |mut reads| Box::pin(async move { reads.recent_events(own.as_deref(), count).await }))
            .await
    }

    /// Deletes events older than `hours`, a batch at a time; returns how many, and the time.
    ///
    /// # Errors
    /// [`EventError`].
    pub async fn clean_events(
        &self,
        permit: &Permit<CleanEvents>,
        hours: i64,
    ) -> Result<(u64, Timestamp), EventError> {
        if !(0..=LONGEST_AGE).contains(&hours) {
            let message = format!("'max_age_hours' must be 0 to {LONGEST_AGE}");
            return Err(EventError::Field("max_age_hours", message));
        }
        let age = Duration::from_hours(hours.unsigned_abs());
        let cutoff = self.now().minus(age);
        let mut deleted = 0;
        loop {
            let before = deleted;
            let batch = self
                .0
                .db
                .write(permit, move |tx| {
                    Box::pin(async move {
                        let count = tx.orchestrator().delete_events(cutoff, BATCH).await?;
                        let details = json!({ "deleted_count": count, "before_that": before });
                        Ok::<_, EventError>(Recorded { value: count, details })
                    })
                })
                .await?;
            deleted += batch;
            if batch < u64::from(BATCH) {
                return Ok((deleted, cutoff));
            }
        }
    }

    /// Follows the stream from behind `after`, or from now on.
    ///
    /// # Errors
    /// [`EventError`].
    pub async fn follow_events(
        &self,
        permit: &Permit<ReadEvents>,
        after: Option<StreamId>,
    ) -> Result<Subscription, EventError> {
        let place = std::sync::Arc::clone(&self.0.followers)
            .try_acquire_owned()
            .map_err(|_| EventError::TooManyFollowers)?;
        let happened = self.0.happened.subscribe();
        let after = match after {
            Some(after) => after,
            None => self.ask(|mut reads| Box::pin(async move { reads.event_head().await })).await?,
        };
        Ok(Subscription {
            orchestrator: self.clone(),
            own: Self::visible(permit.caller()),
            until: permit.caller().expires_at(),
            after,
            happened,
            _place: place,
        })
    }
}

/// Somebody who follows the stream of events. Nothing is kept in memory for them: they read on from where they are.
pub struct Subscription {
    orchestrator: Orchestrator,
    own: Option<String>,
    until: Timestamp,
    after: StreamId,
    happened: tokio::sync::watch::Receiver<u64>,
    _place: tokio::sync::OwnedSemaphorePermit,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscription")
    }
}

impl Subscription {
    /// The next events, at least one, at most some hundred; `None` when the credential has ended.
    ///
    /// # Errors
    /// The storage's; ask again, or let the follower come back with its last position.
    pub async fn next(&mut self) -> Result<Option<Vec<EventRow>>, Error> {
        loop {
            if self.orchestrator.now() >= self.until {
                return Ok(None);
            }
            self.happened.mark_unchanged();
            let after = self.after;
            let found = self
                .orchestrator
                .ask(move |mut reads| Box::pin(async move { reads.events_after(after, PAGE).await }))
                .await?;
            if let Some(last) = found.last() {
                self.after = last.position;
                let own: Vec<EventRow> = found
                    .into_iter()
                    .filter(|event| self.own.as_ref().is_none_or(|own| *own == event.source))
                    .collect();
                if !own.is_empty() {
                    return Ok(Some(own));
                }
                continue;
            }
            // Woken by what happens here and by other servers' news; looking is the net.
            let poll = self.orchestrator.0.settings.poll;
            if let Ok(Err(_)) = tokio::time::timeout(poll, self.happened.changed()).await {
                return Ok(None);
            }
        }
    }
}
