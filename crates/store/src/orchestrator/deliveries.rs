//! Outcomes that are to be told to agents: an outbox, filled in the write that ends a run.
//!
//! Whoever takes a delivery has it until a time; its attempts are counted when they begin, so that one that kills its server is
//! not tried for ever. Telling may happen more than once, with the same id each time.

use interlock_model::Timestamp;
use interlock_model::task::TaskRunId;

use super::runs::{Ended, OVER, run_row};
use super::{Changes, Reads, TaskRunRow, word};
use crate::sql::{Each, Kind, Row, Value, values};
use crate::{Error, Page, Paged, codec};

/// How telling an outcome stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// It is to be told, or is being told.
    Pending,
    /// The receiver has taken it.
    Delivered,
    /// Nobody tries any more.
    Failed,
}

impl DeliveryState {
    const ALL: [Self; 3] = [Self::Pending, Self::Delivered, Self::Failed];

    /// The wire and storage form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }

    /// From the wire and storage form.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A delivery as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryRow {
    /// The run whose outcome is told.
    pub run: TaskRunId,
    /// To whom.
    pub agent: String,
    /// How it stands.
    pub state: DeliveryState,
    /// Attempts that were begun.
    pub attempts: u32,
    /// When the next attempt is made, while it is pending.
    pub next_at: Timestamp,
    /// When the run ended.
    pub created_at: Timestamp,
    /// When the last attempt ended.
    pub tried_at: Option<Timestamp>,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

/// A delivery in somebody's hands, with what is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// To whom.
    pub agent: String,
    /// Which attempt this is, from 1.
    pub number: u32,
    /// The run.
    pub run: TaskRunRow,
}

/// Most agents that [`Changes::take_deliveries`] can leave out.
const LEFT_OUT: usize = 32;

const LINE_UP: Each = Each {
    statement: "INSERT INTO deliveries (run, agent, state, attempts, next_at, holder, created_at, tried_at, error) \
                SELECT given.run, webhooks.agent, 'pending', 0, given.at, NULL, given.at, NULL, NULL \
                FROM webhooks JOIN {given} ON webhooks.agent = given.owner",
    given: &[("run", Kind::Bytes), ("owner", Kind::Text), ("at", Kind::Number)],
};

const DELIVERY: &str =
    "SELECT run, agent, state, attempts, next_at, created_at, tried_at, error FROM deliveries";

fn delivery_row(row: &Row) -> Result<DeliveryRow, Error> {
    Ok(DeliveryRow {
        run: TaskRunId::from_bytes(row.bytes(0)?),
        agent: row.text(1)?.to_owned(),
        state: word(DeliveryState::parse(row.text(2)?), "state of a delivery")?,
        attempts: row.small(3)?,
        next_at: row.time(4)?,
        created_at: row.time(5)?,
        tried_at: row.optional_time(6)?,
        error: row.optional_text(7)?,
    })
}

impl Changes<'_> {
    /// Whether outcomes of an agent's runs are told from now on.
    ///
    /// # Errors
    /// The storage's.
    pub async fn set_told(&mut self, agent: &str, told: bool) -> Result<(), Error> {
        let statement = if told {
            "INSERT INTO webhooks (agent) VALUES (?1) ON CONFLICT (agent) DO NOTHING"
        } else {
            "DELETE FROM webhooks WHERE agent = ?1"
        };
        self.sql.change(statement, values![agent]).await.map(drop)
    }

    pub(super) async fn line_up_deliveries(&mut self, ended: &[Ended<'_>]) -> Result<(), Error> {
        let outcomes = ended.iter().filter(|end| !end.again);
        let rows = outcomes.map(|end| values![end.entry.run.as_bytes(), &end.entry.owner, end.finished_at]);
        self.sql.each(&LINE_UP, rows.collect()).await.map(drop)
    }

    /// Takes at most `limit` deliveries that are due, oldest first, until `until`; none of the agents in `without`, of which 32
    /// are looked at.
    ///
    /// # Errors
    /// The storage's.
    pub async fn take_deliveries(
        &mut self,
        holder: &str,
        (now, until): (Timestamp, Timestamp),
        limit: u32,
        without: &[String],
    ) -> Result<Vec<Attempt>, Error> {
        let places: Vec<String> = (5..5 + LEFT_OUT).map(|place| format!("?{place}")).collect();
        let query = format!(
            "UPDATE deliveries SET holder = ?1, next_at = ?3, attempts = attempts + 1 WHERE run IN \
             (SELECT run FROM deliveries WHERE state = 'pending' AND next_at <= ?2 AND agent NOT IN ({}) \
             ORDER BY next_at LIMIT ?4{}) RETURNING run, agent, attempts",
            places.join(", "),
            self.sql.lock_free("deliveries")
        );
        let mut bound = values![holder, now, until, limit];
        // No agent has an empty name.
        bound.extend(
            (0..LEFT_OUT).map(|at| Value::Text(without.get(at).map_or_else(String::new, Clone::clone))),
        );
        let mut taken = Vec::new();
        for row in self.sql.rows(&query, bound).await? {
            let run = TaskRunId::from_bytes(row.bytes(0)?);
            let found = self.sql.row(&format!("{OVER} WHERE id = ?1"), values![run.as_bytes()]).await?;
            // Deleted for its age: there is nothing to tell.
            let Some(found) = found else {
                self.sql.change("DELETE FROM deliveries WHERE run = ?1", values![run.as_bytes()]).await?;
                continue;
            };
            taken.push(Attempt {
                agent: row.text(1)?.to_owned(),
                number: row.small(2)?,
                run: run_row(&found)?,
            });
        }
        Ok(taken)
    }

    /// How attempt `number` went: `Ok` if the receiver has it; else why not, and when to try again. `false` if it was somebody
    /// else's by now.
    ///
    /// # Errors
    /// The storage's.
    pub async fn settle_delivery(
        &mut self,
        holder: &str,
        (run, number): (TaskRunId, u32),
        went: Result<(), (&str, Option<Timestamp>)>,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let (state, error, next) = match went {
            Ok(()) => (DeliveryState::Delivered, None, None),
            Err((why, None)) => (DeliveryState::Failed, Some(why), None),
            Err((why, Some(next))) => (DeliveryState::Pending, Some(why), Some(next)),
        };
        self.sql
            .change_one(
                "UPDATE deliveries SET state = ?4, error = ?5, next_at = coalesce(?6, next_at), tried_at = ?7, holder = NULL \
                 WHERE run = ?1 AND holder = ?2 AND attempts = ?3 AND state = 'pending'",
                values![run.as_bytes(), holder, number, state.as_str(), error, next, now],
            )
            .await
    }

    /// What a process at this place had taken is due at once: it is not there any more.
    ///
    /// # Errors
    /// The storage's.
    pub async fn free_deliveries(&mut self, place: &str, now: Timestamp) -> Result<u64, Error> {
        let holders = "SELECT DISTINCT holder FROM deliveries WHERE holder IS NOT NULL";
        let prefix = format!("{place}.");
        let mut freed = 0;
        for row in self.sql.rows(holders, Vec::new()).await? {
            let holder = row.text(0)?;
            if holder.starts_with(&prefix) {
                freed += self
                    .sql
                    .change(
                        "UPDATE deliveries SET holder = NULL, next_at = ?2 WHERE holder = ?1 AND state = 'pending'",
                        values![holder, now],
                    )
                    .await?;
            }
        }
        Ok(freed)
    }

    /// Has an outcome told once more, from the first attempt on; `false` if there is no such delivery of this agent, or it is
    /// being told.
    ///
    /// # Errors
    /// The storage's.
    pub async fn tell_again(&mut self, agent: &str, run: TaskRunId, now: Timestamp) -> Result<bool, Error> {
        self.sql
            .change_one(
                "UPDATE deliveries SET state = 'pending', attempts = 0, next_at = ?3 \
                 WHERE run = ?1 AND agent = ?2 AND holder IS NULL",
                values![run.as_bytes(), agent, now],
            )
            .await
    }
}

impl Reads<'_> {
    /// Deliveries to an agent, newest first.
    ///
    /// # Errors
    /// The storage's.
    pub async fn deliveries(
        &mut self,
        agent: &str,
        state: Option<DeliveryState>,
        page: Page,
    ) -> Result<Paged<DeliveryRow>, Error> {
        let state = state.map(DeliveryState::as_str);
        let wanted = "WHERE agent = ?1 AND (CAST(?2 AS TEXT) IS NULL OR state = ?2)";
        let count = format!("SELECT count(*) FROM deliveries {wanted}");
        let total = self.sql.row(&count, values![agent, state]).await?.map_or(Ok(0), |row| row.count(0))?;
        let query = format!("{DELIVERY} {wanted} ORDER BY run DESC LIMIT ?3 OFFSET ?4");
        let bound = values![agent, state, page.limit, codec::position(page.offset)];
        let items = self.sql.rows(&query, bound).await?.iter().map(delivery_row).collect::<Result<_, _>>()?;
        Ok(Paged { items, total })
    }

    /// When the next attempt is due.
    ///
    /// # Errors
    /// The storage's.
    pub async fn first_delivery(&mut self) -> Result<Option<Timestamp>, Error> {
        let query = "SELECT next_at FROM deliveries WHERE state = 'pending' ORDER BY next_at LIMIT 1";
        self.sql.row(query, Vec::new()).await?.map(|row| row.time(0)).transpose()
    }
}
