//! Rate limits, blocks and load shedding, in process.
//!
//! Each address (an IPv6 /64 counts as one) and each principal has two windows that open with their first request: a minute
//! and an hour. `/health` and `/device` have their own, signing in a smaller one. Whoever keeps hammering is refused for a minute. Probes,
//! metrics and the emergency stop are never limited.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use interlock_engine::auth::Origin;
use interlock_engine::security::{self, Event};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::RateLimits;
use crate::error::ApiError;

/// Counted clients at most; when more come, windows that are over are forgotten first.
const MAX_CLIENTS: usize = 200_000;
/// Sign-ins a minute from one address.
const SIGN_INS: u32 = 10;
/// Refusals within a minute after which an address is blocked.
const HAMMERING: u32 = 600;
/// Length of that block.
const BLOCK: Duration = Duration::from_mins(1);

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit");

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Address(IpAddr),
    Health(IpAddr),
    /// Watching a device must not use up what acting on it needs.
    Status(IpAddr),
    SignIn(IpAddr),
    Principal(String),
}

#[derive(Debug, Clone, Copy)]
struct Window {
    opened: Instant,
    count: u32,
}

#[derive(Debug)]
struct Entry {
    minute: Window,
    hour: Window,
    refused: Window,
    blocked_until: Option<Instant>,
}

/// How a client stands against its minute's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    limit: u32,
    remaining: u32,
    resets_in: u64,
}

/// Counts.
#[derive(Debug)]
pub struct Limiter {
    limits: RateLimits,
    entries: Mutex<HashMap<Key, Entry>>,
    slots: Arc<Semaphore>,
}

/// The unit in which addresses are counted.
pub(crate) fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[8..].fill(0);
            IpAddr::V6(octets.into())
        }
    }
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { opened: now, count: 0 }
    }

    /// Counts one; `Err` with the time until the window is over when the limit was reached before.
    fn take(&mut self, now: Instant, length: Duration, limit: u32) -> Result<(), Duration> {
        let open_for = now.saturating_duration_since(self.opened);
        if open_for >= length {
            *self = Self::new(now);
        } else if self.count >= limit {
            return Err(length.saturating_sub(open_for));
        }
        self.count += 1;
        Ok(())
    }
}

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// Routes where credentials are tried: they have a limit of their own.
fn is_sign_in(path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path);
    matches!(
        path,
        "/auth/login"
            | "/auth/refresh"
            | "/auth/invitations/accept"
            | "/agents/auth/token"
            | "/agents/auth/refresh"
            | "/agents/auth/revoke"
            | "/oauth/token"
            | "/oauth/revoke"
            | "/oauth/device_authorization"
    ) || path.starts_with("/agents/") && path.ends_with("/credentials")
}

impl Limiter {
    /// With these limits and room for `in_flight` requests at once.
    pub fn new(limits: RateLimits, in_flight: usize) -> Self {
        Self { limits, entries: Mutex::default(), slots: Arc::new(Semaphore::new(in_flight)) }
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
            _ => Key::Address(address),
        }
    }

    fn per_minute(&self, key: &Key) -> u32 {
        match key {
            Key::SignIn(_) => SIGN_INS.min(self.limits.per_minute),
            _ => self.limits.per_minute,
        }
    }

    /// Counts a request of an address.
    pub(crate) fn admit_address(&self, path: &str, origin: &Origin) -> Result<(), ApiError> {
        self.admit(Self::key(path, origin), path, origin)
    }

    /// Counts a request of a principal.
    pub(crate) fn admit_principal(&self, name: &str, origin: &Origin) -> Result<(), ApiError> {
        self.admit(Key::Principal(name.to_owned()), "principal", origin)
    }

    fn admit(&self, key: Key, endpoint: &str, origin: &Origin) -> Result<(), ApiError> {
        if !self.limits.enabled {
            return Ok(());
        }
        let now = Instant::now();
        let per_minute = self.per_minute(&key);
        let mut entries = self.lock();
        if entries.len() >= MAX_CLIENTS {
            entries.retain(|_, entry| now.saturating_duration_since(entry.hour.opened) < HOUR);
            if entries.len() >= MAX_CLIENTS {
                entries.retain(|_, entry| now.saturating_duration_since(entry.minute.opened) < MINUTE);
            }
        }
        let entry = entries.entry(key).or_insert_with(|| Entry {
            minute: Window::new(now),
            hour: Window::new(now),
            refused: Window::new(now),
            blocked_until: None,
        });
        let taken =
            entry.minute.take(now, MINUTE, per_minute).map_err(|wait| (wait, "minute")).and_then(|()| {
                entry.hour.take(now, HOUR, self.limits.per_hour).map_err(|wait| (wait, "hour"))
            });
        let Err((wait, limit)) = taken else { return Ok(()) };
        let hammering = entry.refused.take(now, MINUTE, HAMMERING).is_err();
        if hammering && entry.blocked_until.is_none_or(|until| until <= now) {
            entry.blocked_until = Some(now + BLOCK);
            drop(entries);
            security::event(Event::IpBlocked, None, Some(origin), json!({ "seconds": BLOCK.as_secs() }));
            return Err(blocked(BLOCK));
        }
        drop(entries);
        // The label is a word of ours, not the path that was asked for.
        let endpoint = match endpoint {
            known @ ("/health" | "/auth/login" | "principal") => known,
            path if is_sign_in(path) => "sign_in",
            _ => "any",
        };
        metrics::counter!("orchestrator_rate_limit_violations_total", "endpoint" => endpoint.to_owned(), "limit" => limit).increment(1);
        metrics::counter!("orchestrator_blocked_requests_total", "reason" => "rate_limited").increment(1);
        security::event(
            Event::RateLimitExceeded,
            None,
            Some(origin),
            json!({ "endpoint": endpoint, "limit": limit }),
        );
        Err(ApiError::client(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limited",
            "Too many requests. Wait, then try again.",
        )
        .after(wait.as_secs() + 1))
    }

    /// Refuses addresses that hammered.
    pub(crate) fn not_blocked(&self, origin: &Origin) -> Result<(), ApiError> {
        if !self.limits.enabled {
            return Ok(());
        }
        let now = Instant::now();
        let address = counted(origin.client_ip);
        let entries = self.lock();
        for key in [Key::Address(address), Key::Health(address), Key::Status(address), Key::SignIn(address)] {
            if let Some(until) =
                entries.get(&key).and_then(|entry| entry.blocked_until).filter(|until| *until > now)
            {
                return Err(blocked(until - now));
            }
        }
        Ok(())
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
        let now = Instant::now();
        let key = Self::key(path, origin);
        let limit = self.per_minute(&key);
        let entries = self.lock();
        let minute = entries.get(&key)?.minute;
        let open_for = now.saturating_duration_since(minute.opened).min(MINUTE);
        Some(Standing {
            limit,
            remaining: limit.saturating_sub(minute.count),
            resets_in: MINUTE.saturating_sub(open_for).as_secs(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn blocked(rest: Duration) -> ApiError {
    metrics::counter!("orchestrator_blocked_requests_total", "reason" => "client_blocked").increment(1);
    ApiError::client(
        StatusCode::FORBIDDEN,
        "client_blocked",
        "Too many requests were sent in spite of refusals. Wait, then try again.",
    )
    .after(rest.as_secs() + 1)
}

/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10).
pub(super) fn describe(headers: &mut HeaderMap, standing: &Standing) {
    let Standing { limit, remaining, resets_in } = standing;
    if let Ok(value) = HeaderValue::from_str(&format!("\"default\";q={limit};w=60")) {
        headers.insert(POLICY, value);
    }
    if let Ok(value) = HeaderValue::from_str(&format!("\"default\";r={remaining};t={resets_in}")) {
        headers.insert(REMAINING, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(ip: &str) -> Origin {
        Origin {
            client_ip: ip.parse().expect("address"),
            request_id: "req-1".into(),
            user_agent: String::new(),
        }
    }

    fn limiter() -> Limiter {
        Limiter::new(RateLimits { enabled: true, per_minute: 60, per_hour: 1000 }, 4)
    }

    fn admitted(limiter: &Limiter, path: &str, origins: impl Iterator<Item = Origin>) -> usize {
        origins.filter(|origin| limiter.admit_address(path, origin).is_ok()).count()
    }

    #[test]
    fn the_limit_is_exact_and_each_address_has_its_own() {
        let limiter = limiter();

        assert_eq!(admitted(&limiter, "/tasks", (0..500).map(|_| origin("10.0.0.1"))), 60);
        assert_eq!(admitted(&limiter, "/tasks", (0..500).map(|_| origin("10.0.0.2"))), 60);
        assert_eq!(admitted(&limiter, "/health", (0..500).map(|_| origin("10.0.0.1"))), 60);
        assert_eq!(admitted(&limiter, "/auth/login", (0..500).map(|_| origin("10.0.0.1"))), 10);
        assert_eq!(admitted(&limiter, "/tasks", (0..500).map(|i| origin(&format!("2001:db8::{i:x}")))), 60);
    }

    #[test]
    fn hammering_leads_to_a_block_that_stop_ignores() {
        let limiter = limiter();
        admitted(&limiter, "/tasks", (0..700).map(|_| origin("10.0.0.1")));

        assert_eq!(limiter.not_blocked(&origin("10.0.0.1")).map_err(|e| e.code), Err("client_blocked"));
        assert!(limiter.not_blocked(&origin("10.0.0.2")).is_ok());
        assert!(limiter.is_exempt("/stop"));
    }

    #[test]
    fn more_work_than_fits_is_shed() {
        let limiter = limiter();
        let held: Vec<_> = (0..4).map(|_| limiter.slot().expect("room")).collect();

        assert_eq!(limiter.slot().map(drop).map_err(|e| e.status), Err(StatusCode::SERVICE_UNAVAILABLE));
        drop(held);
        assert!(limiter.slot().is_ok());
    }
}
