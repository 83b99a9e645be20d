//! Rate limits and load shedding.
//!
//! Each address (an IPv6 /64 counts as one) and each principal has two windows that open with their first request: a minute
//! and an hour. `/health` and `/device` have their own, signing in and reports of browsers smaller ones. Whoever keeps hammering is banned by `bans`. Probes,
//! metrics and the emergency stop are never limited.
//!
//! This process counts in memory. Where several servers share counters ([`SharedCounters`]) both must admit: nobody gets more
//! than the limit from all servers together, nor from this one, whatever the shared counters say or forget.

mod shared;
mod snapshot;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use interlock_engine::auth::Origin;
use interlock_engine::security::{self, Event};
use interlock_model::Clock;
use interlock_model::rate::{self, Full, Limits, Which, Window, Windows};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::config::RateLimits;
use crate::error::ApiError;

pub use shared::{Away, SharedCounters, WhenAway};

/// Counted clients at most; when more come, windows that are over are forgotten first, and then the rest share one budget.
const MAX_CLIENTS: usize = 200_000;
/// Milliseconds between two searches for windows that are over.
const PRUNING: u64 = 1_000;
/// Sign-ins a minute from one address.
const SIGN_INS: u32 = 10;
/// Reports of browsers a minute from one address.
const REPORTS: u32 = 10;
/// Refusals within a minute after which a client is told from one that waits.
const HAMMERING: u32 = 600;
/// A client that no request comes from (RFC 5737, TEST-NET-1): the start-up check counts by it.
const CHECKING: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 255));

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit");

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Address(IpAddr),
    Health(IpAddr),
    /// Watching a device must not use up what acting on it needs.
    Status(IpAddr),
    SignIn(IpAddr),
    /// What a browser reports must not use up what its owner needs.
    Report(IpAddr),
    Principal(String),
    /// Everybody for whom there is no room.
    Crowd,
}

impl Key {
    /// As it stands in files and in shared counters.
    fn text(&self) -> String {
        match self {
            Self::Address(address) => format!("address:{address}"),
            Self::Health(address) => format!("health:{address}"),
            Self::Status(address) => format!("status:{address}"),
            Self::SignIn(address) => format!("sign-in:{address}"),
            Self::Report(address) => format!("report:{address}"),
            Self::Principal(name) => format!("principal:{name}"),
            Self::Crowd => "crowd:".to_owned(),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let of_address: fn(IpAddr) -> Self = match kind {
            "address" => Self::Address,
            "health" => Self::Health,
            "status" => Self::Status,
            "sign-in" => Self::SignIn,
            "report" => Self::Report,
            "principal" => return Some(Self::Principal(rest.to_owned())),
            _ => return None,
        };
        rest.parse().ok().map(of_address)
    }
}

/// What the shared counters last said of a client.
#[derive(Debug, Clone, Copy)]
struct Heard {
    remaining: u32,
    /// When the shared minute is over.
    resets_at: u64,
    /// Until then the answer stays the same, so nobody asks.
    shut: Option<(Which, u64)>,
}

#[derive(Debug)]
struct Entry {
    windows: Windows,
    refused: Window,
    heard: Option<Heard>,
}

impl Entry {
    const fn new(windows: Windows, now: u64) -> Self {
        Self { windows, refused: Window::new(now), heard: None }
    }
}

/// A client over its limit.
#[derive(Debug)]
pub enum Over {
    /// It should wait.
    Wait(ApiError),
    /// It was told to wait again and again, and did not.
    Hammering(ApiError),
}

impl From<Over> for ApiError {
    fn from(over: Over) -> Self {
        match over {
            Over::Wait(refusal) | Over::Hammering(refusal) => refusal,
        }
    }
}

/// How a client stands against its minute's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    limit: u32,
    remaining: u32,
    resets_in: u64,
}

/// Why a request is not admitted.
enum Refused {
    Full(Full),
    /// Nobody can say, and so nobody gets in.
    Unknown,
}

/// Counts.
pub struct Limiter {
    limits: RateLimits,
    shared: Option<(Arc<dyn SharedCounters>, WhenAway)>,
    /// The monotonic clock's zero, and the time of day at it in milliseconds since 1970: time never jumps, and windows still
    /// mean something to the next process.
    epoch: (Instant, u64),
    entries: Mutex<HashMap<Key, Entry>>,
    pruned: AtomicU64,
    /// Whether something was counted since the last snapshot.
    moved: AtomicBool,
    slots: Arc<Semaphore>,
}

impl std::fmt::Debug for Limiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Limiter")
    }
}

/// The unit in which addresses are counted.
pub(crate) fn counted(address: IpAddr) -> IpAddr {
    interlock_engine::bans::unit(address).addr()
}

/// Routes where credentials are tried: they have a limit of their own.
fn is_sign_in(path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path);
    matches!(
        path,
        "/auth/login"
            | "/auth/certificate"
            | "/auth/refresh"
            | "/agents/auth/token"
            | "/agents/auth/refresh"
            | "/agents/auth/revoke"
            | "/oauth/token"
            | "/oauth/revoke"
            | "/auth/invitations/accept"
            | "/oauth/device_authorization"
            | "/auth/oidc/login"
            | "/auth/oidc/callback"
            | "/auth/oidc/exchange"
            | "/auth/oidc/logout"
            | "/auth/passkeys/begin"
            | "/auth/passkeys/sign-in"
    ) || path.starts_with("/agents/") && path.ends_with("/credentials")
}

impl Limiter {
    /// With these limits and room for `in_flight` requests at once.
    pub fn new(limits: RateLimits, in_flight: usize, clock: &dyn Clock) -> Self {
        let at = u64::try_from(clock.now().micros() / 1_000).unwrap_or(0);
        Self {
            limits,
            shared: None,
            epoch: (Instant::now(), at),
            entries: Mutex::default(),
            pruned: AtomicU64::new(0),
            moved: AtomicBool::new(false),
            slots: Arc::new(Semaphore::new(in_flight)),
        }
    }

    /// Also asks counters that several servers share.
    #[must_use]
    pub fn sharing(mut self, counters: Arc<dyn SharedCounters>, when_away: WhenAway) -> Self {
        self.shared = Some((counters, when_away));
        self
    }

    /// Milliseconds since 1970, by a clock that never jumps.
    fn now(&self) -> u64 {
        let passed = u64::try_from(self.epoch.0.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.epoch.1.saturating_add(passed)
    }

    /// Whether a path counts against its principal as well as its address.
    pub fn counts_for_principal(&self, path: &str) -> bool {
        path != "/device" && !self.is_exempt(path)
    }

    /// Whether a path is never limited, shed or blocked.
    pub fn is_exempt(&self, path: &str) -> bool {
        matches!(path, "/stop" | "/health/live" | "/health/ready" | "/metrics")
    }

    fn key(path: &str, origin: &Origin) -> Key {
        let address = counted(origin.client_ip);
        match path {
            "/health" => Key::Health(address),
            "/device" => Key::Status(address),
            path if is_sign_in(path) => Key::SignIn(address),
            path if path.strip_suffix('/').unwrap_or(path) == crate::api::reports::PATH => {
                Key::Report(address)
            }
            _ => Key::Address(address),
        }
    }

    fn limits_of(&self, key: &Key) -> Limits {
        let minute = match key {
            Key::SignIn(_) => SIGN_INS.min(self.limits.per_minute),
            Key::Report(_) => REPORTS.min(self.limits.per_minute),
            _ => self.limits.per_minute,
        };
        Limits { minute, hour: self.limits.per_hour }
    }

    /// Counts a request of an address. `endpoint` is the template of its route.
    pub(crate) async fn admit_address(
        &self,
        path: &str,
        endpoint: &str,
        origin: &Origin,
    ) -> Result<(), Over> {
        self.admit(Self::key(path, origin), endpoint, origin).await
    }

    /// Counts a request of a principal.
    pub(crate) async fn admit_principal(
        &self,
        name: &str,
        endpoint: &str,
        origin: &Origin,
    ) -> Result<(), Over> {
        self.admit(Key::Principal(name.to_owned()), endpoint, origin).await
    }

    async fn admit(&self, key: Key, endpoint: &str, origin: &Origin) -> Result<(), Over> {
        if !self.limits.enabled {
            return Ok(());
        }
        let refused = match (self.count(&key), &self.shared) {
            (Ok(_), None) => return Ok(()),
            (Ok(counted), Some((counters, when_away))) => {
                match self.ask(&**counters, *when_away, &key, &counted).await {
                    Ok(()) => return Ok(()),
                    Err(refused) => {
                        self.give_back(&key, &counted);
                        refused
                    }
                }
            }
            (Err(_), Some((counters, WhenAway::Allow)))
                if !counters.is_up() && !matches!(key, Key::SignIn(_)) =>
            {
                return Ok(());
            }
            (Err(full), _) => Refused::Full(full),
        };
        match refused {
            Refused::Full(full) => Err(self.refuse(&key, full, endpoint, origin)),
            Refused::Unknown => {
                metrics::counter!("orchestrator_blocked_requests_total", "reason" => "limits_unknown")
                    .increment(1);
                let text = "The request limits cannot be checked. Nothing was done.";
                Err(Over::Wait(
                    ApiError::client(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text).after(1),
                ))
            }
        }
    }

    /// Counts here, against the whole limit; how the windows stand then.
    fn count(&self, key: &Key) -> Result<Windows, Full> {
        let now = self.now();
        let mut entries = self.lock();
        if entries.len() >= MAX_CLIENTS
            && now.saturating_sub(self.pruned.swap(now, Ordering::AcqRel)) >= PRUNING
        {
            entries.retain(|_, entry| !entry.windows.is_over(now));
            if entries.len() >= MAX_CLIENTS {
                entries.retain(|_, entry| entry.windows.minute.left(now, rate::MINUTE) > 0);
            }
        }
        let is_new = !entries.contains_key(key);
        let place = if is_new && entries.len() >= MAX_CLIENTS { Key::Crowd } else { key.clone() };
        let entry = entries.entry(place).or_insert_with(|| Entry::new(Windows::new(now), now));
        if let Some((which, until)) =
            entry.heard.and_then(|heard| heard.shut).filter(|(_, until)| now < *until)
        {
            return Err(Full { which, wait: until - now });
        }
        let verdict = entry.windows.judge(now, self.limits_of(key));
        self.moved.store(true, Ordering::Release);
        verdict.refused.map_or(Ok(entry.windows), Err)
    }

    /// Asks the shared counters about a request that is counted here already.
    async fn ask(
        &self,
        counters: &dyn SharedCounters,
        when_away: WhenAway,
        key: &Key,
        counted: &Windows,
    ) -> Result<(), Refused> {
        let limits = self.limits_of(key);
        let Ok(verdict) = counters.take(&key.text(), limits).await else {
            let full = match (when_away, key) {
                (WhenAway::Local, _) | (_, Key::SignIn(_)) => {
                    over_share(counted, limits, counters.servers(), self.now())
                }
                (WhenAway::Deny, _) => return Err(Refused::Unknown),
                (WhenAway::Allow, _) => None,
            };
            return full.map_or(Ok(()), |full| Err(Refused::Full(full)));
        };
        let now = self.now();
        if let Some(entry) = self.lock().get_mut(key) {
            entry.heard = Some(Heard {
                remaining: verdict.remaining,
                resets_at: now + verdict.resets_in,
                shut: verdict.refused.map(|full| (full.which, now + full.wait)),
            });
        }
        verdict.refused.map_or(Ok(()), |full| Err(Refused::Full(full)))
    }

    fn give_back(&self, key: &Key, counted: &Windows) {
        if let Some(entry) = self.lock().get_mut(key) {
            entry.windows.give_back(counted);
        }
    }

    fn refuse(&self, key: &Key, full: Full, endpoint: &str, origin: &Origin) -> Over {
        let now = self.now();
        let refused = self.lock().get_mut(key).map(|entry| {
            entry.refused.renew(now, rate::MINUTE);
            entry.refused.count = entry.refused.count.saturating_add(1);
            entry.refused.count
        });
        let limit = match full.which {
            Which::Minute => "minute",
            Which::Hour => "hour",
        };
        metrics::counter!("orchestrator_rate_limit_violations_total", "endpoint" => endpoint.to_owned(), "limit" => limit).increment(1);
        metrics::counter!("orchestrator_blocked_requests_total", "reason" => "rate_limited").increment(1);
        // Every refusal is counted; of a client that goes on, the 1st, 2nd, 4th, 8th, … of a minute are told.
        let number = refused.unwrap_or(1);
        if number.is_power_of_two() {
            let details = json!({ "endpoint": endpoint, "limit": limit, "refused": number });
            security::event(Event::RateLimitExceeded, None, Some(origin), details);
        } else {
            security::count(Event::RateLimitExceeded);
        }
        let hammering = number > HAMMERING;
        let refusal = ApiError::client(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limited",
            "Too many requests. Wait, then try again.",
        )
        .after(full.wait / 1_000 + 1);
        if hammering { Over::Hammering(refusal) } else { Over::Wait(refusal) }
    }

    /// Counts a client that does not exist as one over its limit, so that its next request must be refused.
    pub(crate) fn begin_check(&self) -> IpAddr {
        let now = self.now();
        let mut entry = Entry::new(Windows::new(now), now);
        entry.windows.minute.count = u32::MAX;
        // The next refusal is its third, of which the log has none.
        entry.refused.count = 2;
        self.lock().insert(Key::Address(counted(CHECKING)), entry);
        CHECKING
    }

    /// Forgets that client.
    pub(crate) fn end_check(&self) {
        self.lock().remove(&Key::Address(counted(CHECKING)));
    }

    /// Whether requests are limited.
    pub(crate) const fn is_on(&self) -> bool {
        self.limits.enabled
    }

    /// Room for one more request, or 503.
    pub(crate) fn slot(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            metrics::counter!("orchestrator_blocked_requests_total", "reason" => "overloaded").increment(1);
            ApiError::client(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The server is busy. Nothing was done.",
            )
            .after(1)
        })
    }

    /// How the client stands, for the headers of a limited answer.
    pub(crate) fn standing(&self, path: &str, origin: &Origin) -> Option<Standing> {
        if !self.limits.enabled || self.is_exempt(path) {
            return None;
        }
        let now = self.now();
        let key = Self::key(path, origin);
        let limit = self.limits_of(&key).minute;
        let entries = self.lock();
        let entry = entries.get(&key)?;
        let mut minute = entry.windows.minute;
        minute.renew(now, rate::MINUTE);
        let (mut remaining, mut resets_in) =
            (limit.saturating_sub(minute.count), minute.left(now, rate::MINUTE));
        if let Some(heard) = entry.heard.filter(|heard| now < heard.resets_at && heard.remaining < remaining)
        {
            (remaining, resets_in) = (heard.remaining, heard.resets_at - now);
        }
        Some(Standing { limit, remaining, resets_in: resets_in / 1_000 })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What keeps a request out that is counted in `counted` already, when this server has its share only.
fn over_share(counted: &Windows, limits: Limits, servers: u32, now: u64) -> Option<Full> {
    let share = limits.share(servers);
    if counted.hour.count > share.hour {
        Some(Full { which: Which::Hour, wait: counted.hour.left(now, rate::HOUR).max(1) })
    } else if counted.minute.count > share.minute {
        Some(Full { which: Which::Minute, wait: counted.minute.left(now, rate::MINUTE).max(1) })
    } else {
        None
    }
}

/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10).
pub(super) fn describe(headers: &mut HeaderMap, standing: &Standing) {
    let Standing { limit, remaining, resets_in } = standing;
    if let Ok(value) = HeaderValue::from_str(&format!("\"default\";q={limit};w=60")) {
        headers.insert(POLICY, value);
    }
    if let Ok(value) = HeaderValue::from_str(&format!("\"default\";r={remaining};t={resets_in}")) {
        headers.insert(REMAINING, super::headers::passing(value));
    }
}

#[cfg(test)]
mod tests;
