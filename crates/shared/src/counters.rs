//! Counters of rate limits: one script, one round trip.

use std::sync::LazyLock;

use interlock_model::rate::{Full, Limits, Verdict, Which};
use redis::Script;
use redis::aio::MultiplexedConnection;

use crate::Link;
use crate::link::Away;

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("counters.lua")));
/// What all counters' names begin with.
const PREFIX: &str = "interlock:limit:";

impl Link {
    /// Decides on one request that counts for every one of `clients`: it is counted for all of them, or for none when one
    /// refuses. One verdict each, in their order.
    ///
    /// # Errors
    /// [`Away`] when Redis does not answer within the deadline, or is known to be away. It may have counted.
    pub async fn take(&self, clients: &[(&str, Limits)]) -> Result<Vec<Verdict>, Away> {
        self.ask(async |mut connection| take_at(&mut connection, None, clients).await).await
    }
}

/// As [`Link::take`], at a time in milliseconds or by Redis' clock.
async fn take_at(
    connection: &mut MultiplexedConnection,
    now: Option<u64>,
    clients: &[(&str, Limits)],
) -> redis::RedisResult<Vec<Verdict>> {
    let mut call = SCRIPT.prepare_invoke();
    call.arg(now.map_or_else(String::new, |now| now.to_string()));
    for (client, limits) in clients {
        call.key(format!("{PREFIX}{client}")).arg(limits.minute).arg(limits.hour);
    }
    let numbers: Vec<u64> = call.invoke_async(connection).await?;
    let verdicts: Vec<Verdict> = numbers.as_chunks::<4>().0.iter().filter_map(verdict).collect();
    if verdicts.len() == clients.len() {
        Ok(verdicts)
    } else {
        Err((redis::ErrorKind::UnexpectedReturnType, "the script answered something else").into())
    }
}

fn verdict([why, wait, remaining, resets_in]: &[u64; 4]) -> Option<Verdict> {
    let refused = match why {
        0 => None,
        1 => Some(Full { which: Which::Minute, wait: *wait }),
        2 => Some(Full { which: Which::Hour, wait: *wait }),
        _ => return None,
    };
    Some(Verdict { refused, remaining: u32::try_from(*remaining).ok()?, resets_in: *resets_in })
}

#[cfg(test)]
#[path = "counters_tests.rs"]
mod tests;
