//! Events: published, stored and matched in one write.

use interlock_model::Timestamp;
use interlock_model::task::{EventId, StreamId, TaskId};
use serde_json::Value as Json;

use super::tasks::{TaskRow, task_row};
use super::{Changes, Reads};
use crate::sql::{Row, values};
use crate::{Error, codec};

/// An event as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    /// The event.
    pub id: EventId,
    /// Its position.
    pub position: StreamId,
    /// Topic.
    pub topic: String,
    /// What it says.
    pub payload: Json,
    /// Whose event it is.
    pub source: String,
    /// Who sent it.
    pub published_by: String,
    /// When.
    pub published_at: Timestamp,
}

/// A topic that tasks wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// The topic.
    pub topic: String,
    /// Active tasks.
    pub tasks: Vec<TaskId>,
}

const EVENT: &str =
    "SELECT id, millis, number, topic, payload, source, published_by, published_at FROM events";

fn event_row(row: &Row) -> Result<EventRow, Error> {
    Ok(EventRow {
        id: EventId::from_bytes(row.bytes(0)?),
        position: StreamId { millis: row.number(1)?, number: row.number(2)? },
        topic: row.text(3)?.to_owned(),
        payload: codec::json(row.text(4)?)?,
        source: row.text(5)?.to_owned(),
        published_by: row.text(6)?.to_owned(),
        published_at: row.time(7)?,
    })
}

impl Changes<'_> {
    /// Stores an event and returns its position; `event.position` is not read. Call it late: others who publish wait until this
    /// write has ended, so that positions rise in the order of commits.
    ///
    /// # Errors
    /// The storage's.
    pub async fn publish(&mut self, event: &EventRow) -> Result<StreamId, Error> {
        let millis = event.published_at.micros().div_euclid(1000);
        let head = self
            .sql
            .row(
                "UPDATE event_head SET number = CASE WHEN ?1 > millis THEN 0 ELSE number + 1 END, \
                 millis = CASE WHEN ?1 > millis THEN ?1 ELSE millis END WHERE id = 1 RETURNING millis, number",
                values![millis],
            )
            .await?
            .ok_or_else(|| Error::Corrupt("the head of the events is missing".to_owned()))?;
        let position = StreamId { millis: head.number(0)?, number: head.number(1)? };
        let payload = codec::json_text(&event.payload)?;
        self.sql
            .change(
                "INSERT INTO events (millis, number, id, topic, payload, source, published_by, published_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                values![
                    position.millis,
                    position.number,
                    event.id.as_bytes(),
                    &event.topic,
                    payload,
                    &event.source,
                    &event.published_by,
                    event.published_at
                ],
            )
            .await?;
        Ok(position)
    }

    /// Active tasks that wait for this topic, or for a condition; nobody changes them until this write has ended.
    ///
    /// # Errors
    /// The storage's.
    pub async fn listeners(&mut self, topic: &str) -> Result<Vec<TaskRow>, Error> {
        let query = format!(
            "SELECT id, title, description, kind, expression, zone, anchor, payload, status, priority, dedupe_key, \
             dedupe_window_seconds, max_retries, backoff, concurrency_key, misfire, created_by, created_at, updated_at, version \
             FROM tasks WHERE status = 'active' AND (kind = 'event' AND expression = ?1 OR kind = 'condition') ORDER BY id{}",
            self.sql.share()
        );
        self.sql.rows(&query, values![topic]).await?.iter().map(task_row).collect()
    }

    /// Deletes at most `limit` events that were published before `before` and that no run in the queue needs.
    ///
    /// # Errors
    /// The storage's.
    pub async fn delete_events(&mut self, before: Timestamp, limit: u32) -> Result<u64, Error> {
        self.sql
            .change(
                "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE published_at < ?1 \
                 AND id NOT IN (SELECT event FROM queue WHERE event IS NOT NULL) ORDER BY millis, number LIMIT ?2)",
                values![before, limit],
            )
            .await
    }
}

impl Reads<'_> {
    /// One event.
    ///
    /// # Errors
    /// The storage's.
    pub async fn event(&mut self, id: EventId) -> Result<Option<EventRow>, Error> {
        let query = format!("{EVENT} WHERE id = ?1");
        self.sql.row(&query, values![id.as_bytes()]).await?.as_ref().map(event_row).transpose()
    }

    /// The newest events, newest first; of one source, if it is given.
    ///
    /// # Errors
    /// The storage's.
    pub async fn recent_events(&mut self, source: Option<&str>, count: u32) -> Result<Vec<EventRow>, Error> {
        let rows = match source {
            None => {
                self.sql
                    .rows(&format!("{EVENT} ORDER BY millis DESC, number DESC LIMIT ?1"), values![count])
                    .await
            }
            Some(source) => {
                let query = format!("{EVENT} WHERE source = ?1 ORDER BY millis DESC, number DESC LIMIT ?2");
                self.sql.rows(&query, values![source, count]).await
            }
        };
        rows?.iter().map(event_row).collect()
    }

    /// Events behind a position, oldest first, at most `limit`.
    ///
    /// # Errors
    /// The storage's.
    pub async fn events_after(&mut self, after: StreamId, limit: u32) -> Result<Vec<EventRow>, Error> {
        let query = format!("{EVENT} WHERE (millis, number) > (?1, ?2) ORDER BY millis, number LIMIT ?3");
        self.sql
            .rows(&query, values![after.millis, after.number, limit])
            .await?
            .iter()
            .map(event_row)
            .collect()
    }

    /// The newest position.
    ///
    /// # Errors
    /// The storage's.
    pub async fn event_head(&mut self) -> Result<StreamId, Error> {
        let row = self.sql.row("SELECT millis, number FROM event_head WHERE id = 1", Vec::new()).await?;
        row.map_or(Ok(StreamId::default()), |row| {
            Ok(StreamId { millis: row.number(0)?, number: row.number(1)? })
        })
    }

    /// Topics that active tasks wait for, by name; at most 10 000 tasks are looked at.
    ///
    /// # Errors
    /// The storage's.
    pub async fn topics(&mut self, owner: Option<&str>) -> Result<Vec<Topic>, Error> {
        let fixed = "SELECT expression, id FROM tasks WHERE kind = 'event' AND status = 'active'";
        let order = "ORDER BY expression, id LIMIT 10000";
        let rows = match owner {
            None => self.sql.rows(&format!("{fixed} {order}"), Vec::new()).await?,
            Some(owner) => {
                self.sql.rows(&format!("{fixed} AND created_by = ?1 {order}"), values![owner]).await?
            }
        };
        let mut topics: Vec<Topic> = Vec::new();
        for row in &rows {
            let (topic, task) = (row.text(0)?, TaskId::from_bytes(row.bytes(1)?));
            match topics.last_mut() {
                Some(last) if last.topic == topic => last.tasks.push(task),
                _ => topics.push(Topic { topic: topic.to_owned(), tasks: vec![task] }),
            }
        }
        Ok(topics)
    }
}
