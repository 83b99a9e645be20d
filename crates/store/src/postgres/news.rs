//! News between servers of one database, by LISTEN and NOTIFY: something was committed, look again.
//!
//! A notification says nothing more, so nothing can be forged but a look, and it may be lost: whoever must know looks at
//! intervals too. It is sent after the commit and never inside it, because PostgreSQL makes transactions that notify wait for
//! each other at their commit. A connection of its own, which no pool gives to anybody else: pools drop what arrives.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use futures::stream::{BoxStream, StreamExt as _};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_postgres::AsyncMessage;

use super::connect::{self, ANSWER};
use super::error::{broken, error};
use crate::Error;

/// Shortest time between two notifications: what happens meanwhile is told together.
const GATHERING: Duration = Duration::from_millis(10);
/// Between two attempts to listen.
const AGAIN: Duration = Duration::from_millis(500);
/// Silence after which the server is asked whether it is still there: a connection that a firewall forgot brings nothing.
const SILENCE: Duration = Duration::from_secs(10);

/// What the server sends on a connection.
pub(super) type Messages = BoxStream<'static, Result<AsyncMessage, tokio_postgres::Error>>;

struct Inner {
    url: String,
    channel: &'static str,
    heard: watch::Sender<u64>,
    up: watch::Sender<bool>,
    told: Notify,
}

/// News over one PostgreSQL database. Cheap to clone; nothing is told or heard until [`News::keep`] runs.
#[derive(Clone)]
pub struct News(Arc<Inner>);

impl std::fmt::Debug for News {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("News")
    }
}

impl News {
    /// News on a channel of their own.
    pub(super) fn new(url: &str, channel: &'static str) -> Self {
        Self(Arc::new(Inner {
            url: url.to_owned(),
            channel,
            heard: watch::Sender::new(0),
            up: watch::Sender::new(false),
            told: Notify::new(),
        }))
    }

    /// Tells everybody, this server included, that something was committed. Returns at once. What is told while the
    /// connection is away is told once when it is back.
    pub fn publish(&self) {
        self.0.told.notify_one();
    }

    /// Moves whenever somebody told something, and whenever something may have been missed.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.heard.subscribe()
    }

    /// Whether news are heard at this moment, and every change of that.
    pub fn up(&self) -> watch::Receiver<bool> {
        self.0.up.subscribe()
    }

    /// Listens and tells until dropped. Run it as a background task.
    pub async fn keep(self) {
        let mut complained = false;
        loop {
            let ended = self.follow(&mut complained).await;
            self.0.up.send_replace(false);
            if let Err(error) = ended
                && !complained
            {
                complained = true;
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "news by PostgreSQL are away; changes by other servers are looked for");
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn follow(&self, complained: &mut bool) -> Result<(), Error> {
        let (client, messages) = connect::alone(&self.0.url).await?;
        let hearing = self.hear(messages);
        let telling = async {
            let listen = format!("LISTEN {}", self.0.channel);
            let listening = timeout(ANSWER, client.batch_execute(&listen)).await;
            listening.map_err(|_| silent())?.map_err(error)?;
            // What was told before this. First of all, so that whoever waits for `up` has heard it.
            self.hear_one();
            self.0.up.send_replace(true);
            if std::mem::take(complained) {
                tracing::info!("news by PostgreSQL are heard again");
            }
            self.tell(&client).await
        };
        match select(std::pin::pin!(hearing), std::pin::pin!(telling)).await {
            Either::Left((ended, _)) | Either::Right((ended, _)) => ended,
        }
    }

    async fn hear(&self, mut messages: Messages) -> Result<(), Error> {
        while let Some(message) = messages.next().await {
            if let AsyncMessage::Notification(_) = message.map_err(error)? {
                self.hear_one();
            }
        }
        Err(broken("the database server ended the connection"))
    }

    fn hear_one(&self) {
        self.0.heard.send_modify(|count| *count = count.wrapping_add(1));
    }

    async fn tell(&self, client: &tokio_postgres::Client) -> Result<(), Error> {
        let notify = format!("NOTIFY {}", self.0.channel);
        loop {
            let told = timeout(SILENCE, self.0.told.notified()).await.is_ok();
            // NOTIFY to a database that is full of unread notifications fails, and harms nothing.
            let statement = if told { notify.as_str() } else { "" };
            timeout(ANSWER, client.batch_execute(statement)).await.map_err(|_| silent())?.map_err(error)?;
            tokio::time::sleep(GATHERING).await;
        }
    }
}

fn silent() -> Error {
    broken("the database does not answer in time")
}
