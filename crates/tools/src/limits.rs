//! How often tools are used: a rate for each address or group of addresses.
//!
//! A call over its rate waits for its turn as long as the step's time limit leaves room; then it fails as one that never
//! began, which may be tried again. The rate holds for this process: several servers each have their own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use interlock_engine::tools::{Call, Done, Failure, Tool, Toolbox};
use interlock_model::pipeline::{Effect, Known, Misuse};
use tokio::time::Instant;

/// A rate of calls.
#[derive(Debug)]
struct Rate {
    /// An address, or its beginning.
    pattern: String,
    /// Time between two calls.
    every: Duration,
    /// How many may come at once.
    burst: u32,
    /// When the next call would be due if none came at once (GCRA).
    due: Mutex<Option<Instant>>,
}

/// A toolbox whose tools keep to rates.
pub struct Limited<T> {
    inner: T,
    rates: Vec<Arc<Rate>>,
}

impl<T> std::fmt::Debug for Limited<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limited").field("rates", &self.rates).finish_non_exhaustive()
    }
}

/// A rate cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a rate such as http.request=120 or mcp.search.*=10 (calls a minute, 1 to 100000)")]
pub struct BadRate(String);

impl<T: Toolbox> Limited<T> {
    /// Puts rates before a toolbox. Each is `address=calls a minute`, with `*` at the end of an address for all that begin so; the
    /// first that fits counts. A sixth of a minute's calls may come at once.
    ///
    /// # Errors
    /// The entry that cannot be read.
    pub fn new<S: AsRef<str>>(inner: T, rates: &[S]) -> Result<Self, BadRate> {
        let read = |text: &S| {
            let text = text.as_ref();
            let (pattern, minute) = text.split_once('=')?;
            let minute: u32 = minute.trim().parse().ok().filter(|minute| (1..=100_000).contains(minute))?;
            let every = Duration::from_mins(1) / minute;
            let rate = Rate {
                pattern: pattern.trim().to_owned(),
                every,
                burst: (minute / 6).max(1),
                due: Mutex::default(),
            };
            (!rate.pattern.is_empty()).then(|| Arc::new(rate))
        };
        let rates = rates.iter().map(|text| read(text).ok_or_else(|| BadRate(text.as_ref().to_owned())));
        Ok(Self { inner, rates: rates.collect::<Result<_, _>>()? })
    }

    fn limited(&self, address: &str, tool: Arc<dyn Tool>) -> Arc<dyn Tool> {
        let rate = self.rates.iter().find(|rate| rate.covers(address));
        rate.map_or(Arc::clone(&tool), |rate| Arc::new(LimitedTool { tool, rate: Arc::clone(rate) }))
    }
}

impl Rate {
    fn covers(&self, address: &str) -> bool {
        match self.pattern.strip_suffix('*') {
            Some(beginning) => address.starts_with(beginning),
            None => address == self.pattern,
        }
    }

    /// How long the next call has to wait, and its place in the row; None if that is longer than `most`.
    fn reserve(&self, now: Instant, most: Duration) -> Option<Duration> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let next = due.map_or(now, |due| due.max(now));
        let wait = next.saturating_duration_since(now).saturating_sub(self.every * (self.burst - 1));
        if wait > most {
            return None;
        }
        *due = Some(next + self.every);
        Some(wait)
    }
}

impl<T: Toolbox> Toolbox for Limited<T> {
    fn tool(&self, address: &str) -> Option<Arc<dyn Tool>> {
        self.inner.tool(address).map(|tool| self.limited(address, tool))
    }

    fn all(&self) -> BTreeMap<String, Arc<dyn Tool>> {
        let all = self.inner.all().into_iter();
        all.map(|(address, tool)| {
            let tool = self.limited(&address, tool);
            (address, tool)
        })
        .collect()
    }
}

struct LimitedTool {
    tool: Arc<dyn Tool>,
    rate: Arc<Rate>,
}

#[async_trait]
impl Tool for LimitedTool {
    fn description(&self) -> String {
        self.tool.description()
    }

    fn check(&self, known: Known<'_>) -> Result<Effect, Misuse> {
        self.tool.check(known)
    }

    fn needs(&self, address: &str) -> Vec<String> {
        self.tool.needs(address)
    }

    fn grace(&self) -> Duration {
        self.tool.grace()
    }

    fn remembers(&self) -> Duration {
        self.tool.remembers()
    }

    async fn call(&self, mut call: Call<'_>) -> Result<Done, Failure> {
        let Some(wait) = self.rate.reserve(Instant::now(), call.timeout / 2) else {
            return Err(Failure::Unreached(format!("{} is used more often than it may be", call.address)));
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = call.cancel.cancelled() => return Err(Failure::Cancelled),
        }
        call.timeout = call.timeout.saturating_sub(wait);
        self.tool.call(call).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shelf;
    use crate::testing::{Bench, Echo};

    fn limited(rates: &[&str]) -> Limited<Shelf> {
        Limited::new(Shelf::default().with("a.one", Echo).with("a.two", Echo).with("b", Echo), rates)
            .expect("rates")
    }

    #[tokio::test(start_paused = true)]
    async fn calls_over_the_rate_wait_and_then_are_not_begun() {
        let tools = limited(&["a.*=12", "b=60"]);
        let bench = Bench::default();
        let begun = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..5 {
            // Both addresses share the rate of the group.
            bench.call(&tools, "a.one", &serde_json::json!({})).await.expect("a turn");
            waits.push(begun.elapsed().as_secs());
        }
        assert_eq!(waits, [0, 0, 5, 10, 15]);

        let input = serde_json::json!({});
        let calls = (0..8).map(|_| bench.call(&tools, "a.two", &input));
        let ended = futures::future::join_all(calls).await;
        let unreached = ended.iter().filter(|end| matches!(end, Err(Failure::Unreached(_)))).count();
        assert_eq!(unreached, 5, "{ended:?}");
        bench.call(&tools, "b", &serde_json::json!({})).await.expect("another rate");
    }

    #[test]
    fn what_is_no_rate_is_named() {
        for bad in ["", "a", "a=0", "a=x", "=5", "a=100001"] {
            assert_eq!(Limited::new(Shelf::default(), &[bad]).expect_err("no rate"), BadRate(bad.to_owned()));
        }
    }
}
