//! The port through which servers tell each other that something changed.
//!
//! News say no more than "look again": what changed is read from the database, which alone is believed. Without news
//! everybody looks at intervals.

use std::time::Duration;

use tokio::sync::watch;

/// What comes within this time is one piece of news: however many are told, the database is asked so often at most.
const GATHERING: Duration = Duration::from_millis(10);

/// Tells, and hears.
pub trait News: Send + Sync {
    /// Tells the other servers that something was committed. Returns at once, and may be lost.
    fn publish(&self);

    /// Moves whenever a server told something.
    fn subscribe(&self) -> watch::Receiver<u64>;
}

/// What wakes whoever looks for changes.
#[derive(Debug)]
pub(crate) struct Waker(Option<watch::Receiver<u64>>);

impl Waker {
    pub(crate) fn new(news: Option<&dyn News>) -> Self {
        Self(news.map(News::subscribe))
    }

    /// Until there are news, or `period` is over.
    pub(crate) async fn wait(&mut self, period: Duration) {
        let pause = tokio::time::sleep(period);
        let Some(news) = &mut self.0 else { return pause.await };
        tokio::select! {
            () = pause => {}
            heard = news.changed() => if heard.is_err() {
                // Nobody will tell anything any more.
                self.0 = None;
            } else {
                tokio::time::sleep(GATHERING.min(period)).await;
                news.mark_unchanged();
            }
        }
    }
}

/// Acts of runs: no other server must look again for their sake, and there are many.
pub(crate) fn is_news(action: &str) -> bool {
    !["device.", "run.", "system.cleaned"].iter().any(|quiet| action.starts_with(quiet))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Told(watch::Sender<u64>);

    impl News for Told {
        fn publish(&self) {
            self.0.send_modify(|count| *count += 1);
        }

        fn subscribe(&self) -> watch::Receiver<u64> {
            self.0.subscribe()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn news_end_the_wait_and_silence_does_not() {
        let told = Told(watch::Sender::new(0));
        let mut waker = Waker::new(Some(&told));
        let begun = tokio::time::Instant::now();
        let hour = Duration::from_hours(1);

        told.publish();
        told.publish();
        waker.wait(hour).await;
        assert_eq!(begun.elapsed(), GATHERING);
        waker.wait(hour).await;
        assert_eq!(begun.elapsed(), hour + GATHERING);
        drop(told);
        waker.wait(hour).await;
        waker.wait(hour).await;
        assert!(begun.elapsed() >= hour * 2);
    }

    #[test]
    fn acts_of_runs_are_no_news() {
        assert!(is_news("ban.added") && is_news("token.revoked") && is_news("role.removed"));
        assert!(!is_news("device.executed") && !is_news("run.cancelled"));
    }
}
