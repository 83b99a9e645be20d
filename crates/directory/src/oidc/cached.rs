//! Something fetched, kept, and fetched anew without a crowd.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::DirectoryError;

/// After this it is fetched anew; one caller does it, the others use what there is.
const FRESH: Duration = Duration::from_hours(1);
/// After this it is not used any more, even if the provider does not answer.
const USABLE: Duration = Duration::from_hours(24);
/// Shortest time between fetches because something was missing in what there is. Anyone can make something be missing.
const BETWEEN: Duration = Duration::from_mins(1);
/// Shortest time between fetches after one that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

type Held<T> = Option<(Arc<T>, Instant)>;

/// One cached value.
#[derive(Debug)]
pub(crate) struct Cached<T> {
    held: RwLock<Held<T>>,
    /// Held while fetching; when the last fetch began and whether it failed.
    fetching: Mutex<Option<(Instant, bool)>>,
}

impl<T> Cached<T> {
    pub(crate) fn new() -> Self {
        Self { held: RwLock::new(None), fetching: Mutex::new(None) }
    }

    fn held(&self) -> Held<T> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The value, fetched if there is none, if it is old, or if it is not `enough` and the last fetch is long enough ago. The
    /// answer may still be not enough. Safe to cancel.
    pub(crate) async fn get(
        &self,
        enough: impl Fn(&T) -> bool,
        fetch: impl AsyncFnOnce() -> Result<T, DirectoryError>,
    ) -> Result<Arc<T>, DirectoryError> {
        let usable = |held: Held<T>| held.filter(|(_, at)| at.elapsed() < USABLE);
        if let Some((value, at)) = usable(self.held()).filter(|(value, _)| enough(value)) {
            if at.elapsed() < FRESH {
                return Ok(value);
            }
            let Ok(mut last) = self.fetching.try_lock() else { return Ok(value) };
            if last.is_some_and(|(begun, failed)| failed && begun.elapsed() < AFTER_FAILURE) {
                return Ok(value);
            }
            return Ok(self.fetch(&mut last, fetch).await.unwrap_or(value));
        }
        let mut last = self.fetching.lock().await;
        // Somebody may have fetched while this caller waited.
        let held = usable(self.held());
        if let Some((value, _)) = &held {
            let recent = last.is_some_and(|(begun, failed)| {
                begun.elapsed() < if failed { AFTER_FAILURE } else { BETWEEN }
            });
            if recent || enough(value) {
                return Ok(Arc::clone(value));
            }
        } else if last.is_some_and(|(begun, failed)| failed && begun.elapsed() < AFTER_FAILURE) {
            return Err(DirectoryError::unavailable("the provider did not answer a moment ago"));
        }
        match (self.fetch(&mut last, fetch).await, held) {
            (Ok(value), _) | (Err(DirectoryError::Unavailable(_)), Some((value, _))) => Ok(value),
            (Err(error), _) => Err(error),
        }
    }

    async fn fetch(
        &self,
        last: &mut Option<(Instant, bool)>,
        fetch: impl AsyncFnOnce() -> Result<T, DirectoryError>,
    ) -> Result<Arc<T>, DirectoryError> {
        // Counts as failed until it has succeeded, also when this caller goes away in the middle.
        *last = Some((Instant::now(), true));
        let value = Arc::new(fetch().await?);
        *last = Some((Instant::now(), false));
        *self.held.write().unwrap_or_else(PoisonError::into_inner) =
            Some((Arc::clone(&value), Instant::now()));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    async fn ask(cached: &Cached<usize>, count: &AtomicUsize, enough: usize, answers: bool) -> Option<usize> {
        let got = cached
            .get(
                |value| *value >= enough,
                async || {
                    let next = count.fetch_add(1, Ordering::SeqCst) + 1;
                    if answers { Ok(next) } else { Err(DirectoryError::unavailable("gone")) }
                },
            )
            .await;
        got.ok().map(|value| *value)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_is_fetched_at_most_once_a_minute() {
        let (cached, count) = (Cached::new(), AtomicUsize::new(0));
        assert_eq!(ask(&cached, &count, 1, true).await, Some(1));
        for _ in 0..1000 {
            assert_eq!(ask(&cached, &count, 9, true).await, Some(1));
        }
        tokio::time::advance(Duration::from_secs(61)).await;
        for _ in 0..1000 {
            assert_eq!(ask(&cached, &count, 9, true).await, Some(2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_value_serves_while_the_provider_is_away_for_a_day_and_no_longer() {
        let (cached, count) = (Cached::new(), AtomicUsize::new(0));
        assert_eq!(ask(&cached, &count, 1, true).await, Some(1));
        tokio::time::advance(Duration::from_hours(3)).await;
        assert_eq!(ask(&cached, &count, 1, false).await, Some(1));
        assert_eq!(count.load(Ordering::SeqCst), 2);
        assert_eq!(ask(&cached, &count, 1, true).await, Some(1), "not asked again within 5 s of a failure");
        tokio::time::advance(Duration::from_hours(22)).await;
        assert_eq!(ask(&cached, &count, 1, false).await, None);
        assert_eq!(ask(&cached, &count, 1, true).await, None);
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(ask(&cached, &count, 1, true).await, Some(4));
    }
}
