//! Tasks, their runs and the events between them: ids and the words for how they stand.
//!
//! A task is a durable definition; a run is one attempt to carry it out; an event may start runs of tasks that wait for its
//! topic. What is pure about them is here; storage and order are `store::orchestrator`, the rules are `engine`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::AgentId;
use crate::principal::BadAgentId;
use crate::time::{Entropy, Timestamp};

/// The text is not a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID such as 018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d")]
pub struct BadUuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// A UUID (RFC 9562), canonical lower case out, hyphenated or plain in.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// A new id, time-ordered (version 7).
            pub fn new(now: Timestamp, entropy: &dyn Entropy) -> Self {
                Self(*crate::RunId::new(now, entropy).as_bytes())
            }

            /// From its 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&AgentId::from_bytes(self.0), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = BadUuid;

            fn from_str(text: &str) -> Result<Self, BadUuid> {
                let id: AgentId = text.parse().map_err(|BadAgentId| BadUuid)?;
                Ok(Self(*id.as_bytes()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// A task.
    TaskId;
    /// One attempt to carry out a task.
    TaskRunId;
    /// A published event.
    EventId;
    /// A question to a person.
    ApprovalId;
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident = $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$word_doc])* #[serde(rename = $text)] $word,)*
        }

        impl $name {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$word,)*];

            /// The wire and storage form.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$word => $text,)*
                }
            }

            /// From the wire and storage form.
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|word| word.as_str() == text)
            }
        }
    )*};
}

words! {
    /// Whether a task runs by itself.
    TaskStatus {
        /// It does.
        Active = "active",
        /// Not until it is resumed; runs that wait do not begin.
        Paused = "paused",
        /// Never again.
        Canceled = "canceled",
    }

    /// When a task runs.
    ScheduleKind {
        /// At the times of five cron fields.
        Cron = "cron",
        /// At the times of an RFC 5545 recurrence rule.
        Rrule = "rrule",
        /// At one time.
        Once = "once",
        /// At each event of a topic.
        Event = "event",
        /// At each event for which an expression holds.
        Condition = "condition",
        /// When somebody asks for it.
        Manual = "manual",
    }

    /// How long to wait before the next attempt.
    Backoff {
        /// Twice as long each time, with a random part.
        ExponentialJitter = "exponential_jitter",
        /// One second more each time.
        Linear = "linear",
        /// Always one second.
        Fixed = "fixed",
    }

    /// What becomes of due times that nobody was there for, when the first server is back.
    Misfire {
        /// One run, for the latest of them.
        RunOnce = "run_once",
        /// One run for each of them.
        RunAll = "run_all",
        /// None; the next due time counts.
        Skip = "skip",
    }

    /// What made a run.
    Trigger {
        /// A due time.
        Schedule = "schedule",
        /// Somebody asked for it.
        Manual = "manual",
        /// An event.
        Event = "event",
    }

    /// Where a run is.
    TaskRunState {
        /// It waits for its turn.
        Queued = "queued",
        /// A worker holds it and has not begun it.
        Leased = "leased",
        /// It waits for a person's word and holds no worker.
        WaitingForApproval = "waiting_for_approval",
        /// Its steps are carried out.
        Running = "running",
        /// Every step ended well.
        Succeeded = "succeeded",
        /// A step failed.
        Failed = "failed",
        /// Somebody ended it.
        Cancelled = "cancelled",
        /// A step did not end in time.
        TimedOut = "timed_out",
        /// A step that must not be repeated was begun, and nobody can know how it ended. It is never retried.
        Uncertain = "uncertain",
    }

    /// How a question to a person stands.
    ApprovalState {
        /// Nobody has decided.
        Pending = "pending",
        /// Once, for exactly these parameters.
        Approved = "approved",
        /// No.
        Denied = "denied",
        /// Nobody decided in time.
        Expired = "expired",
        /// The run went on with it; it is good for nothing more.
        Used = "used",
        /// The run ended before anybody decided.
        Withdrawn = "withdrawn",
    }
}

impl TaskRunId {
    /// The first attempt for a due time: the same whoever computes it, so that a due time is one run.
    ///
    /// `digest` is a SHA-256 over task and due time. The id sorts by the due time (a UUID of version 8, RFC 9562).
    pub fn of_due(due: Timestamp, digest: &[u8; 32]) -> Self {
        let mut bytes = [0_u8; 16];
        bytes.copy_from_slice(&digest[..16]);
        let millis = u64::try_from(due.micros() / 1000).unwrap_or(0).to_be_bytes();
        bytes[..6].copy_from_slice(&millis[2..]);
        bytes[6] = (bytes[6] & 0x0f) | 0x80;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }
}

impl TaskRunState {
    /// Whether the run is over. A final state is never left.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::TimedOut | Self::Uncertain)
    }

    /// How clients of the earlier system read it: unknown until the run ends, and for [`TaskRunState::Uncertain`].
    pub const fn success(self) -> Option<bool> {
        match self {
            Self::Succeeded => Some(true),
            Self::Failed | Self::Cancelled | Self::TimedOut => Some(false),
            _ => None,
        }
    }
}

/// Lowest number, which runs first.
pub const FIRST_PRIORITY: u8 = 1;
/// Highest number, which runs last.
pub const LAST_PRIORITY: u8 = 9;
/// How much longer each step of priority may make a run wait.
///
/// A run's place in the queue is the time from which it could run plus this for each step below the first priority. So 1 runs
/// first, and a run of priority 9 waits at most eight of these longer than one of priority 1 that came at the same time.
pub const PRIORITY_STEP: std::time::Duration = std::time::Duration::from_mins(1);

/// Place in the queue of a run of this priority that could begin at `ready`; smaller is earlier.
pub fn rank(ready: Timestamp, priority: u8) -> i64 {
    let steps = priority.clamp(FIRST_PRIORITY, LAST_PRIORITY) - FIRST_PRIORITY;
    ready.plus(PRIORITY_STEP * u32::from(steps)).micros()
}

/// Shortest and longest wait before another attempt, in milliseconds.
const BACKOFF: (u64, u64) = (1_000, 60_000);

impl Backoff {
    /// How long to wait after attempt number `attempt` (from 1) has failed, at most `longest`; `random` is a draw.
    ///
    /// Exponential waits lie between half of `2^(attempt-1)` seconds and all of it, so that what failed together does not come
    /// back together.
    pub fn delay(self, attempt: u32, random: u64, longest: std::time::Duration) -> std::time::Duration {
        let (base, cap) = BACKOFF;
        let cap = cap.min(u64::try_from(longest.as_millis()).unwrap_or(u64::MAX)).max(1);
        let attempt = u64::from(attempt.max(1));
        let millis = match self {
            Self::Fixed => base.min(cap),
            Self::Linear => base.saturating_mul(attempt).min(cap),
            Self::ExponentialJitter => {
                let whole = base.saturating_mul(1 << (attempt - 1).min(30)).min(cap);
                whole / 2 + random % (whole - whole / 2 + 1)
            }
        };
        std::time::Duration::from_millis(millis)
    }
}

/// Position of an event in the stream: milliseconds since the epoch and a number within them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StreamId {
    /// Milliseconds since the epoch. Never smaller than that of the event before.
    pub millis: i64,
    /// Counts from 0 within one millisecond.
    pub number: i64,
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.number)
    }
}

impl FromStr for StreamId {
    type Err = BadStreamId;

    fn from_str(text: &str) -> Result<Self, BadStreamId> {
        let plain =
            |part: &str| !part.is_empty() && part.len() <= 18 && part.bytes().all(|c| c.is_ascii_digit());
        let (millis, number) = text.split_once('-').ok_or(BadStreamId)?;
        if !plain(millis) || !plain(number) {
            return Err(BadStreamId);
        }
        Ok(Self {
            millis: millis.parse().map_err(|_| BadStreamId)?,
            number: number.parse().map_err(|_| BadStreamId)?,
        })
    }
}

/// The text is no position in the stream of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a position in the stream such as 1780000000000-0")]
pub struct BadStreamId;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_id_is_read_in_both_forms_and_written_in_one() {
        let text = "018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d";
        let id: TaskId = text.parse().expect("a UUID");

        assert_eq!(id.to_string(), text);
        assert_eq!(text.replace('-', "").parse(), Ok(id));
        assert_eq!("018f6b1e".parse::<TaskId>(), Err(BadUuid));
    }

    #[test]
    fn the_first_priority_runs_first_and_the_last_is_not_starved() {
        let ready = Timestamp::from_seconds(1_000);

        assert!(rank(ready, 1) < rank(ready, 9));
        assert!(rank(ready, 9) < rank(ready.plus(PRIORITY_STEP * 9), 1));
    }

    #[test]
    fn waits_grow_as_named_and_end_at_the_cap() {
        let minute = Duration::from_mins(1);
        for random in [0, 1, 499, 500, u64::MAX] {
            assert_eq!(Backoff::Fixed.delay(7, random, minute), Duration::from_secs(1));
            assert_eq!(Backoff::Linear.delay(7, random, minute), Duration::from_secs(7));
            assert_eq!(Backoff::Linear.delay(100, random, minute), minute);
            let third = Backoff::ExponentialJitter.delay(3, random, minute);
            assert!((Duration::from_secs(2)..=Duration::from_secs(4)).contains(&third), "{third:?}");
            let late = Backoff::ExponentialJitter.delay(u32::MAX, random, Duration::from_secs(5));
            assert!(late <= Duration::from_secs(5), "{late:?}");
        }
    }

    #[test]
    fn a_stream_id_survives_its_text_and_sorts_by_both_parts() {
        let id = StreamId { millis: 1_780_000_000_000, number: 12 };

        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id > "1780000000000-9".parse().expect("an id"));
        for bad in ["", "1", "1-", "-1", "1-2-3", "a-0", "99999999999999999999-0"] {
            assert_eq!(bad.parse::<StreamId>(), Err(BadStreamId), "{bad}");
        }
    }
}
