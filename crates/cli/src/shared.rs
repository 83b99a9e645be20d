//! Puts Redis behind the ports of the limiter and of the news. The only place that names all three.

use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use interlock_engine::Ambient;
use interlock_engine::news::News;
use interlock_engine::security::{self, Event};
use interlock_model::rate::{Limits, Verdict};
use interlock_server::perimeter::limits::{Away, SharedCounters};
use interlock_shared::{Link, RedisConfig};
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

impl News for Shared {
    fn publish(&self) {
        self.link.publish();
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        self.link.news()
    }
}
