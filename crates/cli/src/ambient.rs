//! The real clock and the operating system's randomness. Nothing else may ask the system for either.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use interlock_engine::Ambient;
use interlock_model::time::Settled;
use interlock_model::{Clock, Entropy, Timestamp};

/// The system's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let now = std::time::SystemTime::now();
        let micros = match now.duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
        };
        Timestamp::from_micros(micros)
    }

    fn settled(&self) -> Timestamp {
        static SETTLED: LazyLock<(Instant, Mutex<Settled>)> =
            LazyLock::new(|| (Instant::now(), Mutex::new(Settled::new(SystemClock.now(), Duration::ZERO))));
        let (start, settled) = &*SETTLED;
        settled.lock().unwrap_or_else(PoisonError::into_inner).at(self.now(), start.elapsed())
    }
}

/// The operating system's generator.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        aws_lc_rs::rand::fill(buffer).expect("the operating system gives randomness");
    }
}

/// Both.
pub(crate) fn ambient() -> Ambient {
    // From here on it is known which time was believed at first.
    SystemClock.settled();
    Ambient { clock: Arc::new(SystemClock), entropy: Arc::new(SystemEntropy) }
}
