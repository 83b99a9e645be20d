//! A few threads with one connection each that answer reads.
//!
//! Dedicated threads, because a hop to a parked thread costs less than one through the runtime's blocking pool, and because
//! each keeps its compiled statements. Reads never wait for the writer: WAL gives each its own snapshot.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rusqlite::Connection;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::error::broken;
use super::open;
use crate::Error;

/// Reads that wait or run; further callers wait outside.
const QUEUE: usize = 256;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Held while a connection is closed. The last one out folds the log into the file and removes it; of two that leave at
    /// once, neither sees that it is the last.
    leaving: Mutex<()>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing inside the lock can panic half-way.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) -> Result<(), Error> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(Error::Closed);
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    fn take(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }

    fn leave(&self, connection: Connection) {
        let alone = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        drop(connection);
        drop(alone);
    }
}

/// The reader threads. Dropping it lets them finish what is queued and end.
pub(super) struct Readers {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    /// Ends when the last thread has.
    alive: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Readers {
    /// Opens the connections and starts a thread for each.
    pub(super) fn start(path: &Path) -> Result<Self, Error> {
        let (ends, alive) = mpsc::channel(1);
        let readers = Self {
            shared: Arc::default(),
            places: Arc::new(Semaphore::new(QUEUE)),
            alive: tokio::sync::Mutex::new(alive),
        };
        let count = thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4));
        for number in 1..=count {
            let mut connection = open::readable(path)?;
            let shared = Arc::clone(&readers.shared);
            let end = ends.clone();
            let name = format!("store-reader-{number}");
            thread::Builder::new()
                .name(name)
                .spawn(move || {
                    while let Some(job) = shared.take() {
                        answer(job, &mut connection);
                    }
                    shared.leave(connection);
                    drop(end);
                })
                .map_err(|error| Error::Database(Box::new(error)))?;
        }
        Ok(readers)
    }

    /// Runs `query` on a reader thread. If the caller gives up before it is its turn, it does not run.
    pub(super) async fn read<T, F>(&self, query: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T, Error> + Send + 'static,
    {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| Error::Closed)?;
        let (sender, receiver) = oneshot::channel();
        self.shared.push(Box::new(move |connection| {
            if !sender.is_closed() {
                let found = query(connection);
                drop(place);
                drop(sender.send(found));
            }
        }))?;
        receiver.await.unwrap_or_else(|_| Err(broken("the read panicked")))
    }

    /// Ends the threads after what is queued.
    pub(super) async fn close(&self) {
        self.shared.close();
        while self.alive.lock().await.recv().await.is_some() {}
    }
}

fn answer(job: Job, connection: &mut Connection) {
    // A panic costs its caller the answer, nobody else the thread. Transactions end as their guards unwind.
    if catch_unwind(AssertUnwindSafe(|| job(connection))).is_err() {
        tracing::error!("a read of the database panicked");
    }
}
