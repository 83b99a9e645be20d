//! A Redis Stream whose entries have ids of our own. Redis takes ids in rising order only: what is there already is refused by itself,
//! whoever sends it again.
//!
//! It has a connection apart from [`crate::Link`]: a stream that is slow takes no time from the limits, and is not counted as a server.

use std::collections::HashMap;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult, Value};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::config::RedisConfig;
use crate::link::CONNECTING;

/// For the answer to a portion.
const ANSWERING: Duration = Duration::from_secs(5);
/// Bytes that are sent at once, if one entry is not larger.
const PORTION: usize = 1 << 20;

/// An entry: its id, `<milliseconds>-<number>`, and its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Above all before it.
    pub id: (u64, u64),
    /// Names and values.
    pub fields: Vec<(&'static str, String)>,
}

/// The stream cannot be used now.
#[derive(Debug, thiserror::Error)]
#[error("use the Redis Stream: {0}")]
pub struct StreamError(#[from] RedisError);

/// One stream.
pub struct Stream {
    client: Client,
    name: String,
    /// About how many entries are kept.
    length: u64,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the Redis Stream {}", self.name)
    }
}

fn parsed(text: &str) -> Option<(u64, u64)> {
    let (millis, number) = text.split_once('-')?;
    Some((millis.parse().ok()?, number.parse().ok()?))
}

fn says(error: &RedisError, words: &str) -> bool {
    error.detail().is_some_and(|detail| detail.contains(words))
}

fn strange(what: &'static str) -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, what))
}

impl Stream {
    /// The stream `name`, which keeps about `length` entries. Connects when it is first used.
    ///
    /// # Errors
    /// [`StreamError`] for settings that cannot be used.
    pub fn new(config: &RedisConfig, name: &str, length: u64) -> Result<Self, StreamError> {
        let client = config.client()?;
        Ok(Self { client, name: name.to_owned(), length, connection: Mutex::new(None) })
    }

    /// Asks on the connection that there is, or a new one. One that fails is not used again.
    async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, StreamError> {
        let slow = |_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        let mut kept = self.connection.lock().await;
        let mut connection = if let Some(connection) = kept.take() {
            connection
        } else {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(CONNECTING))
                .set_response_timeout(Some(ANSWERING));
            let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
            timeout(CONNECTING, connecting).await.map_err(slow)??
        };
        let answer = timeout(ANSWERING, question(&mut connection)).await.map_err(slow)??;
        *kept = Some(connection);
        Ok(answer)
    }

    /// The highest id that the stream ever had; `(0, 0)` for one that is not there.
    ///
    /// # Errors
    /// [`StreamError`]: it is away, or no stream.
    pub async fn last(&self) -> Result<(u64, u64), StreamError> {
        self.ask(async |connection| {
            // What was trimmed or deleted counts: it was there.
            let told: RedisResult<HashMap<String, Value>> =
                redis::cmd("XINFO").arg("STREAM").arg(&self.name).query_async(connection).await;
            let mut members = match told {
                Err(error) if says(&error, "no such key") => return Ok((0, 0)),
                told => told?,
            };
            let last = members.remove("last-generated-id").ok_or_else(|| strange("XINFO STREAM"))?;
            let last: String = redis::from_redis_value(last)?;
            parsed(&last).ok_or_else(|| strange("an id"))
        })
        .await
    }

    /// Adds entries in order. Those that are there already stay as they are.
    ///
    /// # Errors
    /// [`StreamError`]: it is away, full, or no stream; some of them may be there.
    pub async fn add(&self, entries: &[Entry]) -> Result<(), StreamError> {
        let mut rest = entries;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |entry: &&Entry| {
                let first = bytes == 0;
                bytes += 1 + entry.fields.iter().map(|(_, value)| value.len()).sum::<usize>();
                first || bytes <= PORTION
            };
            let (portion, later) = rest.split_at(rest.iter().take_while(fits).count());
            self.add_portion(portion).await?;
            rest = later;
        }
        Ok(())
    }

    async fn add_portion(&self, entries: &[Entry]) -> Result<(), StreamError> {
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for Entry { id: (millis, number), fields } in entries {
            let add = pipeline.cmd("XADD").arg(&self.name).arg("MAXLEN").arg("~").arg(self.length);
            add.arg(format!("{millis}-{number}"));
            for (name, value) in fields {
                add.arg(*name).arg(value);
            }
        }
        let told = self
            .ask(async |connection| pipeline.query_async::<Vec<RedisResult<String>>>(connection).await)
            .await?;
        let refused = told.into_iter().filter_map(Result::err);
        match refused
            .into_iter()
            .find(|error| !says(error, "equal or smaller than the target stream top item"))
        {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
