//! News between servers: something changed, look again. Nothing more is said, so nothing can be forged but a look.

use std::time::Duration;

use futures::StreamExt as _;
use redis::RedisResult;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::Link;
use crate::link::CONNECTING;

const CHANNEL: &str = "interlock:news";
/// Shortest time between two publications: what happens meanwhile is told together.
const GATHERING: Duration = Duration::from_millis(10);
/// Between two attempts to listen.
const AGAIN: Duration = Duration::from_millis(500);

impl Link {
    /// Tells the other servers that something changed. Returns at once; best effort.
    pub fn publish(&self) {
        self.0.told.notify_one();
    }

    /// Moves whenever some server told news.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.0.heard.subscribe()
    }

    /// Sends what is published, until dropped. Run it as a background task.
    pub async fn tell(self) {
        loop {
            self.0.told.notified().await;
            let sent = self.ask(async |mut connection| {
                redis::cmd("PUBLISH").arg(CHANNEL).arg("").query_async::<u32>(&mut connection).await
            });
            if sent.await.is_err() {
                tracing::debug!("news could not be told; the others find out by looking");
            }
            tokio::time::sleep(GATHERING).await;
        }
    }

    /// Listens to news until dropped. Run it as a background task.
    pub async fn listen(self) {
        loop {
            if let Err(error) = self.follow().await {
                tracing::debug!(%error, "news cannot be heard");
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn follow(&self) -> RedisResult<()> {
        let connecting = async {
            let mut listening = self.0.client.get_async_pubsub().await?;
            listening.subscribe(CHANNEL).await?;
            Ok::<_, redis::RedisError>(listening)
        };
        let slow = |_| redis::RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        let mut listening = timeout(CONNECTING, connecting).await.map_err(slow)??;
        // What was told before this.
        self.0.heard.send_modify(|count| *count = count.wrapping_add(1));
        let mut messages = listening.on_message();
        while messages.next().await.is_some() {
            self.0.heard.send_modify(|count| *count = count.wrapping_add(1));
        }
        Ok(())
    }
}
