//! The connection: kept by a heartbeat, asked within a deadline, left alone while it is away.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, Script};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::config::RedisConfig;

static ALIVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("alive.lua")));
const SERVERS: &str = "interlock:servers";
/// Between two heartbeats.
const BEAT: Duration = Duration::from_millis(250);
/// A server that was silent for longer is not counted as one that takes a share.
const SILENT: Duration = Duration::from_secs(5);
/// For a new connection, TLS and password included.
pub(crate) const CONNECTING: Duration = Duration::from_secs(2);
/// Deadlines missed one after the other that mean: away.
const MISSES: u32 = 3;

/// Redis did not answer in time, or is known to be away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Redis does not answer")]
pub struct Away;

/// Why a server cannot begin with this Redis.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// It answered, and does not take us.
    #[error("Redis at {place} refuses this server: {reason}")]
    Refused {
        /// `host:port/db`.
        place: String,
        /// What it said.
        reason: String,
    },
}

pub(crate) struct Inner {
    pub(crate) client: Client,
    name: String,
    place: String,
    deadline: Duration,
    connection: Mutex<Option<MultiplexedConnection>>,
    misses: AtomicU32,
    servers: AtomicU32,
    leaving: AtomicBool,
    up: watch::Sender<bool>,
    /// Moves when another server tells news.
    pub(crate) heard: watch::Sender<u64>,
    pub(crate) told: Notify,
}

/// One Redis. Cheap to clone.
#[derive(Clone)]
pub struct Link(pub(crate) Arc<Inner>);

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redis at {}", self.0.place)
    }
}

/// Whether the other side answered and said no: waiting does not help, a person must.
fn is_refusal(error: &RedisError) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput};
    let source = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>());
    let io = source.and_then(|source| source.downcast_ref::<std::io::Error>());
    match io {
        // TLS: a certificate that nobody trusts.
        Some(io) => matches!(io.kind(), InvalidData | InvalidInput),
        None => !error.is_io_error() && !error.is_connection_refusal() && !error.is_timeout(),
    }
}

impl Link {
    /// Connects. `name` tells this server from the others. A Redis that is merely not there is no error: the link is then
    /// down until [`Link::keep`] finds it.
    ///
    /// # Errors
    /// [`SharedError`] when Redis answers and refuses: wrong password, database or certificate.
    pub async fn open(config: &RedisConfig, name: &str) -> Result<Self, SharedError> {
        let place = config.place().to_owned();
        let refused =
            |error: &RedisError| SharedError::Refused { place: place.clone(), reason: error.to_string() };
        let client = config.client().map_err(|error| refused(&error))?;
        let link = Self(Arc::new(Inner {
            client,
            name: name.to_owned(),
            place: place.clone(),
            deadline: config.deadline,
            connection: Mutex::new(None),
            misses: AtomicU32::new(0),
            servers: AtomicU32::new(1),
            leaving: AtomicBool::new(false),
            up: watch::Sender::new(false),
            heard: watch::Sender::new(0),
            told: Notify::new(),
        }));
        match link.connect().await {
            Err(error) if is_refusal(&error) => Err(refused(&error)),
            Ok(()) | Err(_) => Ok(link),
        }
    }

    /// Whether it answered last time, and every change of that.
    pub fn up(&self) -> watch::Receiver<bool> {
        self.0.up.subscribe()
    }

    /// Whether it answered last time.
    pub fn is_up(&self) -> bool {
        *self.0.up.borrow()
    }

    /// Servers that were alive when Redis last said so, this one included.
    pub fn servers(&self) -> u32 {
        self.0.servers.load(Ordering::Acquire).max(1)
    }

    fn connection(&self) -> Option<MultiplexedConnection> {
        self.0.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_up(&self, up: bool) {
        self.0.up.send_if_modified(|known| std::mem::replace(known, up) != up);
    }

    fn lose(&self, error: Option<&RedisError>) {
        *self.0.connection.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.0.misses.store(0, Ordering::Release);
        if self.is_up() {
            let reason = error.map_or_else(|| "it is too slow".to_owned(), ToString::to_string);
            tracing::warn!(redis = self.0.place, reason, "Redis is away");
        }
        self.set_up(false);
    }

    /// Asks within the deadline. Errors, and misses in a row, mean that Redis is away until a heartbeat finds it again.
    pub(crate) async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, Away> {
        let connection = self.connection().filter(|_| self.is_up()).ok_or(Away)?;
        match timeout(self.0.deadline, question(connection)).await {
            Ok(Ok(answer)) => {
                self.0.misses.store(0, Ordering::Release);
                Ok(answer)
            }
            Ok(Err(error)) => {
                self.lose(Some(&error));
                Err(Away)
            }
            Err(_) => {
                if self.0.misses.fetch_add(1, Ordering::AcqRel) + 1 >= MISSES {
                    self.lose(None);
                }
                Err(Away)
            }
        }
    }

    async fn connect(&self) -> RedisResult<()> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECTING))
            .set_response_timeout(Some(CONNECTING));
        let connecting = self.0.client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = timeout(CONNECTING, connecting).await.map_err(too_slow)??;
        // The first time the scripts are loaded; then it must be as quick as every question.
        timeout(CONNECTING, self.beat(&mut connection)).await.map_err(too_slow)??;
        timeout(self.0.deadline, self.beat(&mut connection)).await.map_err(too_slow)??;
        *self.0.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
        self.set_up(true);
        Ok(())
    }

    /// Says that this server is alive, and learns how many are.
    async fn beat(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        if self.0.leaving.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut call = ALIVE.key(SERVERS);
        let silent = u64::try_from(SILENT.as_millis()).unwrap_or(u64::MAX);
        let servers: u32 = call.arg(&self.0.name).arg(silent).invoke_async(connection).await?;
        self.0.servers.store(servers.max(1), Ordering::Release);
        Ok(())
    }

    /// Says that this server ends, so that the others do not leave it a share. Best effort, within the deadline.
    pub async fn leave(&self) {
        self.0.leaving.store(true, Ordering::Release);
        let left = self.ask(async |mut connection| {
            redis::cmd("ZREM").arg(SERVERS).arg(&self.0.name).query_async::<u32>(&mut connection).await
        });
        if left.await.is_err() {
            tracing::debug!("the others find out that this server has ended");
        }
    }

    /// Keeps the connection until dropped. Run it as a background task.
    pub async fn keep(self) {
        let mut complained = false;
        loop {
            tokio::time::sleep(BEAT).await;
            if self.is_up() {
                let beat = self.ask(async |mut connection| self.beat(&mut connection).await);
                complained &= beat.await.is_err();
            } else if let Err(error) = self.connect().await {
                if is_refusal(&error) && !complained {
                    tracing::error!(redis = self.0.place, %error, "Redis refuses this server");
                    complained = true;
                }
            } else {
                tracing::info!(redis = self.0.place, servers = self.servers(), "Redis answers again");
            }
        }
    }
}

fn too_slow(_: tokio::time::error::Elapsed) -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}
