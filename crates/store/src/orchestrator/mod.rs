//! Tasks, the queue of their runs, finished runs, events, questions to people.
//!
//! [`Changes`] is what a write can do, [`Reads`] what a read can ask; both are the same code on every backend, over [`crate::sql`].
//! Rules that hold whatever crashes, tried by `conformance::orchestrator`:
//!
//! * A due time is one run: the due time moves and its run is queued in one transaction, and the run's id is made of both.
//! * A run belongs to one worker at a time. Each claim has a fencing number; what comes late with an old one changes nothing.
//! * A concurrency key is held by one run, from when it is ready until it is over.
//! * The outcome of a run of an agent with a webhook, and that it is to be told, are one write.
//! * Positions of events rise in the order of commits.

mod approvals;
mod deliveries;
mod events;
mod keys;
mod notes;
mod queue;
mod retention;
mod runs;
mod steps;
mod tasks;
mod work;

use futures::future::BoxFuture;
use interlock_model::Timestamp;

pub use self::approvals::{ApprovalRow, NewApproval};
pub use self::deliveries::{Attempt, DeliveryRow, DeliveryState};
pub use self::events::{EventRow, Topic};
pub use self::notes::RunNote;
pub use self::queue::{Claimed, NewRun, Removed};
pub use self::runs::{RunFigures, RunsFilter, TaskRunRow};
pub use self::tasks::{Due, TaskRow, TasksFilter};
pub use self::work::{Finished, Retry, Suspended, WorkerRow};
use crate::sql::Sql;
use crate::{Error, Store};

/// What a write can do. From [`crate::Tx::orchestrator`].
pub struct Changes<'t> {
    sql: &'t mut dyn Sql,
}

impl std::fmt::Debug for Changes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changes")
    }
}

impl<'t> Changes<'t> {
    pub(crate) fn new(sql: &'t mut dyn Sql) -> Self {
        Self { sql }
    }

    pub(crate) fn sql(&mut self) -> &mut dyn Sql {
        &mut *self.sql
    }

    /// Reads inside the write.
    pub fn reads(&mut self) -> Reads<'_> {
        Reads { sql: &mut *self.sql }
    }
}

/// What a read can ask. From [`ask`] or [`Changes::reads`].
pub struct Reads<'q> {
    sql: &'q mut dyn Sql,
}

impl std::fmt::Debug for Reads<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reads")
    }
}

impl<'q> Reads<'q> {
    /// What the clock says that all servers of this database share; `None` where there is none but the server's own.
    ///
    /// # Errors
    /// The storage's.
    pub async fn time(&mut self) -> Result<Option<Timestamp>, Error> {
        let Some(query) = self.sql.clock() else { return Ok(None) };
        self.sql.row(query, Vec::new()).await?.map(|row| row.time(0)).transpose()
    }

    pub(crate) fn new(sql: &'q mut dyn Sql) -> Self {
        Self { sql }
    }

    pub(crate) fn sql(&mut self) -> &mut dyn Sql {
        &mut *self.sql
    }
}

/// A read, boxed. It may await nothing but what it is given.
pub type Question = Box<dyn for<'q> FnOnce(Reads<'q>) -> BoxFuture<'q, Result<(), Error>> + Send>;

/// Asks `question` and carries its answer out.
///
/// # Errors
/// What `question` returned, or the storage's own.
pub async fn ask<T, F>(store: &dyn Store, question: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: for<'q> FnOnce(Reads<'q>) -> BoxFuture<'q, Result<T, Error>> + Send + 'static,
{
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    store
        .ask(Box::new(move |reads| {
            Box::pin(async move {
                let answer = question(reads).await?;
                // Whoever gave up wants no answer.
                drop(sender.send(answer));
                Ok(())
            })
        }))
        .await?;
    receiver.try_recv().map_err(|_| Error::Closed)
}

/// A stored word.
fn word<T>(parsed: Option<T>, what: &str) -> Result<T, Error> {
    parsed.ok_or_else(|| Error::Corrupt(format!("an unknown {what}")))
}
