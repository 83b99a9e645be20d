//! Puts Redis behind the port of the limiter, and Redis and PostgreSQL behind that of the news. The only place that names them
//! all.

use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use interlock_engine::Ambient;
use interlock_engine::news::News;
use interlock_engine::orchestrator::{EventMirror, EventRow, MirrorError};
use interlock_engine::security::{self, Event};
use interlock_model::rate::{Limits, Verdict};
use interlock_model::task::StreamId;
use interlock_server::perimeter::limits::{Away, SharedCounters};
use interlock_shared::{Entry, Link, RedisConfig, Stream};
use interlock_store::postgres;
use serde_json::json;
use tokio::sync::watch;

/// A Redis that servers share.
pub(crate) struct Shared {
    link: Link,
    place: String,
}

impl Shared {
    /// Connects, and says which database is used.
    ///
    /// # Errors
    /// When Redis refuses. One that is not there is a warning: the limits then hold on this server alone.
    pub(crate) async fn open(config: &RedisConfig, ambient: &Ambient) -> anyhow::Result<Arc<Self>> {
        let name = interlock_model::id::random_hex(&*ambient.entropy, 8);
        let link = Link::open(config, &name).await.context("use the Redis of REDIS_URL")?;
        let place = config.place().to_owned();
        tracing::info!(
            redis = place,
            database = config.db(),
            tls = config.tls(),
            answers = link.is_up(),
            "limits and news are shared"
        );
        Ok(Arc::new(Self { link, place }))
    }

    /// `host:port/db`.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Says that this server ends. Call it when nothing is served any more.
    pub(crate) async fn leave(&self) {
        self.link.leave().await;
    }

    /// Everything that must run beside the server.
    pub(crate) fn background(self: &Arc<Self>) -> [std::pin::Pin<Box<dyn Future<Output = ()> + Send>>; 4] {
        let link = || self.link.clone();
        [
            Box::pin(link().keep()),
            Box::pin(link().tell()),
            Box::pin(link().listen()),
            Box::pin(Arc::clone(self).observe()),
        ]
    }

    /// Tells log, metrics and security log when Redis goes and comes.
    async fn observe(self: Arc<Self>) {
        let mut up = self.link.up();
        let mut known = true;
        loop {
            let now = *up.borrow_and_update();
            metrics::gauge!("interlock_redis_up").set(if now { 1.0 } else { 0.0 });
            if now != known {
                let event = if now { Event::SharedStateBack } else { Event::SharedStateLost };
                let details = json!({ "redis": self.place, "servers": self.link.servers() });
                security::event(event, None, None, details);
            }
            known = now;
            if up.changed().await.is_err() {
                return;
            }
        }
    }
}

#[async_trait]
impl SharedCounters for Shared {
    async fn take(&self, client: &str, limits: Limits) -> Result<Verdict, Away> {
        let verdicts = self.link.take(&[(client, limits)]).await.map_err(|_| Away)?;
        verdicts.first().copied().ok_or(Away)
    }

    fn is_up(&self) -> bool {
        self.link.is_up()
    }

    fn servers(&self) -> u32 {
        self.link.servers()
    }
}

/// Every way to tell the other servers something, all used at once: one is enough.
pub(crate) struct Heralds {
    redis: Option<Arc<Shared>>,
    postgres: Option<postgres::News>,
    heard: watch::Sender<u64>,
}

impl Heralds {
    /// `None` where there is nobody to tell: one server on a file.
    pub(crate) fn new(redis: Option<&Arc<Shared>>, postgres: Option<&postgres::News>) -> Option<Arc<Self>> {
        (redis.is_some() || postgres.is_some()).then(|| {
            let (redis, postgres) = (redis.cloned(), postgres.cloned());
            Arc::new(Self { redis, postgres, heard: watch::Sender::new(0) })
        })
    }

    /// Everything that must run beside the server.
    pub(crate) fn background(self: &Arc<Self>) -> Vec<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>> {
        let mut tasks: Vec<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>> = Vec::new();
        if let Some(shared) = &self.redis {
            tasks.push(Box::pin(Arc::clone(self).pass_on(shared.link.news())));
        }
        if let Some(news) = &self.postgres {
            tasks.push(Box::pin(Arc::clone(self).pass_on(news.subscribe())));
            tasks.push(Box::pin(news.clone().keep()));
            tasks.push(Box::pin(observe_postgres(news.up())));
        }
        tasks
    }

    async fn pass_on(self: Arc<Self>, mut source: watch::Receiver<u64>) {
        while source.changed().await.is_ok() {
            self.heard.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

async fn observe_postgres(mut up: watch::Receiver<bool>) {
    loop {
        let now = *up.borrow_and_update();
        metrics::gauge!("interlock_postgres_news_up").set(if now { 1.0 } else { 0.0 });
        if up.changed().await.is_err() {
            return;
        }
    }
}

impl News for Heralds {
    fn publish(&self) {
        if let Some(shared) = &self.redis {
            shared.link.publish();
        }
        if let Some(news) = &self.postgres {
            news.publish();
        }
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        self.heard.subscribe()
    }
}

/// A Redis Stream into which events are copied.
pub(crate) struct Mirror(Stream);

impl Mirror {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// What of the settings cannot be used.
    pub(crate) fn new(config: &RedisConfig, name: &str, length: u64) -> anyhow::Result<Self> {
        Ok(Self(Stream::new(config, name, length).context("EVENTS_MIRROR_STREAM")?))
    }
}

fn failed(error: impl std::fmt::Display) -> MirrorError {
    MirrorError(error.to_string())
}

#[async_trait]
impl EventMirror for Mirror {
    async fn last(&self) -> Result<StreamId, MirrorError> {
        let (millis, number) = self.0.last().await.map_err(failed)?;
        let signed = |part: u64| i64::try_from(part).unwrap_or(i64::MAX);
        Ok(StreamId { millis: signed(millis), number: signed(number) })
    }

    async fn add(&self, events: &[EventRow]) -> Result<(), MirrorError> {
        let entry = |event: &EventRow| {
            let StreamId { millis, number } = event.position;
            let id = (u64::try_from(millis).map_err(failed)?, u64::try_from(number).map_err(failed)?);
            let fields = vec![
                ("event_id", event.id.to_string()),
                ("topic", event.topic.clone()),
                ("payload", event.payload.to_string()),
                ("source_agent_id", event.source.clone()),
                ("published_by", event.published_by.clone()),
                ("published_at", event.published_at.to_string()),
            ];
            Ok(Entry { id, fields })
        };
        let entries: Vec<Entry> = events.iter().map(entry).collect::<Result<_, MirrorError>>()?;
        self.0.add(&entries).await.map_err(failed)
    }
}

/// That there is work, by PostgreSQL alone: a database that is not shared has nobody to tell.
pub(crate) struct WorkHerald(pub(crate) postgres::News);

impl News for WorkHerald {
    fn publish(&self) {
        self.0.publish();
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}
