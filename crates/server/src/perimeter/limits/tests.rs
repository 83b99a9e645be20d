//! Tests of the limiter, with a clock that the test moves.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use async_trait::async_trait;
use interlock_model::Timestamp;
use interlock_model::rate::Verdict;
use interlock_model::time::TestClock;

use super::*;

fn origin(ip: &str) -> Origin {
    Origin {
        client_ip: ip.parse().expect("address"),
        request_id: "req-1".into(),
        user_agent: String::new(),
        certificate: None,
        trace: None,
    }
}

/// 60 a minute and 1000 an hour, at a time of day.
fn limiter_at(seconds: i64) -> Limiter {
    let clock = TestClock::at(Timestamp::from_micros(seconds * 1_000_000));
    Limiter::new(RateLimits { enabled: true, per_minute: 60, per_hour: 1000 }, 4, &clock)
}

fn limiter() -> Limiter {
    limiter_at(1_700_000_000)
}

async fn admitted(limiter: &Limiter, path: &str, origins: impl Iterator<Item = Origin>) -> usize {
    let mut count = 0;
    for origin in origins {
        count += usize::from(limiter.admit_address(path, path, &origin).await.is_ok());
    }
    count
}

async fn burst(limiter: &Limiter, requests: usize) -> usize {
    admitted(limiter, "/tasks", std::iter::repeat_with(|| origin("10.0.0.1")).take(requests)).await
}

#[tokio::test]
async fn the_limit_is_exact_and_each_address_has_its_own() {
    let limiter = limiter();
    let many = |ip: &'static str| (0..500).map(move |_| origin(ip));

    assert_eq!(admitted(&limiter, "/tasks", many("10.0.0.1")).await, 60);
    assert_eq!(admitted(&limiter, "/tasks", many("10.0.0.2")).await, 60);
    assert_eq!(admitted(&limiter, "/health", many("10.0.0.1")).await, 60);
    assert_eq!(admitted(&limiter, "/auth/login", many("10.0.0.1")).await, 10);
    let one_network = (0..500).map(|i| origin(&format!("2001:db8::{i:x}")));
    assert_eq!(admitted(&limiter, "/tasks", one_network).await, 60);
}

#[tokio::test(start_paused = true)]
async fn windows_end_by_the_monotonic_clock() {
    let limiter = limiter();
    assert_eq!(burst(&limiter, 100).await, 60);

    tokio::time::advance(Duration::from_millis(59_999)).await;
    assert_eq!(burst(&limiter, 10).await, 0);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(burst(&limiter, 100).await, 60);
}

#[tokio::test(start_paused = true)]
async fn the_hour_admits_a_thousand() {
    let limiter = limiter();
    let mut count = 0;
    for _ in 0..59 {
        count += burst(&limiter, 70).await;
        tokio::time::advance(Duration::from_mins(1)).await;
    }

    assert_eq!(count, 1000);
    tokio::time::advance(Duration::from_mins(1)).await;
    assert_eq!(burst(&limiter, 70).await, 60);
}

#[tokio::test]
async fn whoever_is_refused_six_hundred_times_a_minute_hammers() {
    let limiter = limiter();
    let mut over = Vec::new();
    for _ in 0..700 {
        over.extend(limiter.admit_address("/tasks", "/tasks", &origin("10.0.0.1")).await.err());
    }

    assert!(over[..600].iter().all(|over| matches!(over, Over::Wait(_))));
    assert_eq!(over[600..].iter().filter(|over| matches!(over, Over::Hammering(_))).count(), 40);
    assert!(limiter.is_exempt("/stop"));
}

#[test]
fn more_work_than_fits_is_shed() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _guard = runtime.enter();
    let limiter = limiter();
    let held: Vec<_> = (0..4).map(|_| limiter.slot().expect("room")).collect();

    assert_eq!(limiter.slot().map(drop).map_err(|e| e.status), Err(StatusCode::SERVICE_UNAVAILABLE));
    drop(held);
    assert!(limiter.slot().is_ok());
}

#[tokio::test]
async fn counters_survive_a_restart_in_a_file_of_the_owner() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("limits.json");
    let first = limiter();
    assert_eq!(burst(&first, 40).await, 40);
    first.save(&path).expect("written");
    assert_eq!(std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);

    let soon = limiter_at(1_700_000_005);
    assert_eq!(soon.restore(&path), 1);
    let late = limiter_at(1_700_000_061);
    assert_eq!(late.restore(&path), 1);
    let before = limiter_at(1_600_000_000);
    assert_eq!(before.restore(&path), 1);
    let next_day = limiter_at(1_700_086_400);
    assert_eq!(next_day.restore(&path), 0);

    assert_eq!(burst(&soon, 100).await, 20);
    assert_eq!(burst(&late, 100).await, 60);
    // A clock that went back gives nobody a fresh start.
    assert_eq!(burst(&before, 100).await, 20);
    assert_eq!(burst(&next_day, 100).await, 60);
}

#[tokio::test]
async fn a_damaged_file_is_ignored() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("limits.json");
    for text in ["", "{", "{\"version\":1}", "{\"version\":2,\"clients\":[]}", "[1,2]", "\u{0}\u{0}"] {
        std::fs::write(&path, text).expect("written");
        let limiter = limiter();
        assert_eq!(limiter.restore(&path), 0, "{text:?}");
        assert_eq!(burst(&limiter, 100).await, 60);
    }
    let odd = "{\"version\":1,\"clients\":[[\"address:10.0.0.1\",0,9,18446744073709551615,4294967295],[\"x\",1,1,1,1]]}";
    std::fs::write(&path, odd).expect("written");
    let limiter = limiter();
    limiter.restore(&path);
    assert_eq!(burst(&limiter, 100).await, 0, "a full hour from the future is a full hour now");
}

/// Counters of two servers in one place, which can go away.
#[derive(Default)]
struct Together {
    windows: Mutex<HashMap<String, Windows>>,
    away: AtomicBool,
    asked: AtomicU32,
}

#[async_trait]
impl SharedCounters for Together {
    async fn take(&self, client: &str, limits: Limits) -> Result<Verdict, Away> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.away.load(Ordering::Acquire) {
            return Err(Away);
        }
        let mut windows = self.windows.lock().expect("lock");
        Ok(windows.entry(client.to_owned()).or_insert_with(|| Windows::new(7)).judge(7, limits))
    }

    fn is_up(&self) -> bool {
        !self.away.load(Ordering::Acquire)
    }

    fn servers(&self) -> u32 {
        3
    }
}

fn two_servers(when_away: WhenAway) -> (Arc<Together>, [Limiter; 2]) {
    let together = Arc::new(Together::default());
    let server = || limiter().sharing(Arc::clone(&together) as Arc<dyn SharedCounters>, when_away);
    let servers = [server(), server()];
    (together, servers)
}

#[tokio::test]
async fn two_servers_admit_the_limit_together_and_stop_asking_when_it_is_reached() {
    let (together, [one, two]) = two_servers(WhenAway::Local);

    assert_eq!(burst(&one, 40).await + burst(&two, 100).await + burst(&one, 100).await, 60);

    // One question each told them that the window is full.
    assert_eq!(together.asked.load(Ordering::Relaxed), 60 + 2);
    let standing = two.standing("/tasks", &origin("10.0.0.1")).expect("a standing");
    assert_eq!(standing.remaining, 0);
}

#[tokio::test(start_paused = true)]
async fn without_the_shared_counters_each_server_admits_its_share() {
    let (together, [one, two]) = two_servers(WhenAway::Local);
    assert_eq!(burst(&one, 15).await, 15);
    together.away.store(true, Ordering::Release);

    // A third of 60 each; what was admitted before counts.
    assert_eq!((burst(&one, 100).await, burst(&two, 100).await), (5, 20));
    assert_eq!(admitted(&two, "/auth/login", (0..50).map(|_| origin("10.0.0.1"))).await, 3);
    tokio::time::advance(Duration::from_mins(1)).await;
    assert_eq!(burst(&one, 100).await, 20);
}

#[tokio::test]
async fn shared_counters_that_forget_give_nobody_more_than_the_limit_of_a_server() {
    let (together, [one, two]) = two_servers(WhenAway::Local);
    assert_eq!(burst(&one, 60).await, 60);
    together.windows.lock().expect("lock").clear();

    assert_eq!((burst(&one, 100).await, burst(&two, 100).await), (0, 60));
}

#[tokio::test]
async fn denying_and_allowing_are_choices_and_signing_in_has_its_share_in_both() {
    for (when_away, expected) in [(WhenAway::Deny, 0), (WhenAway::Allow, 500)] {
        let (together, [one, _]) = two_servers(when_away);
        together.away.store(true, Ordering::Release);

        assert_eq!(burst(&one, 500).await, expected);
        assert_eq!(admitted(&one, "/auth/login", (0..50).map(|_| origin("10.0.0.1"))).await, 3);
        let refusal =
            one.admit_address("/tasks", "/tasks", &origin("10.0.0.1")).await.err().map(ApiError::from);
        assert_eq!(
            refusal.map(|error| error.status),
            (when_away == WhenAway::Deny).then_some(StatusCode::SERVICE_UNAVAILABLE)
        );
    }
}
