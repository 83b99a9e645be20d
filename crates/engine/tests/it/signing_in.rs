//! Guessing in parallel.

use std::time::Duration;

use interlock_engine::auth::SignInError;
use interlock_model::secret::Secret;

use crate::bench::{Bench, Scripted, fresh, origin, password};

async fn guesses(bench: &Bench, name: &str, count: usize) -> (usize, usize) {
    let attempts = (0..count).map(|guess| {
        bench.identity.sign_ins.person(name, Secret::new(format!("guess {guess}")), None, &SHARED)
    });
    let answers = futures::future::join_all(attempts).await;
    let refused = answers.iter().filter(|answer| matches!(answer, Err(SignInError::Refused))).count();
    let waiting = answers
        .iter()
        .filter(|answer| matches!(answer, Err(SignInError::Wait(wait)) if *wait >= Duration::from_millis(1)))
        .count();
    (refused, waiting)
}

static SHARED: std::sync::LazyLock<interlock_engine::auth::Origin> = std::sync::LazyLock::new(origin);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn guesses_that_come_at_once_do_not_slip_past_the_delay() {
    let (_folder, bench) = fresh(Scripted::prompt()).await;
    bench.user("ana", &["operator"]).await;

    for name in ["ana", "nobody"] {
        assert_eq!(guesses(&bench, name, 40).await, (5, 35), "{name}");
    }
    // A wait that was told is a wait that ends: the right password passes afterwards.
    bench.clock.advance(Duration::from_secs(1));
    assert!(bench.identity.sign_ins.person("ana", password("ana"), None, &origin()).await.is_ok());
}

#[tokio::test]
async fn a_hundred_failures_cost_a_quarter_of_an_hour_each() {
    let (_folder, bench) = fresh(Scripted::prompt()).await;
    let mut counted = 0;
    let mut seconds = 0;
    while counted < 100 {
        match bench.identity.sign_ins.person("nobody", Secret::new("guess"), None, &origin()).await {
            Err(SignInError::Refused) => counted += 1,
            Err(SignInError::Wait(wait)) => {
                seconds += wait.as_secs();
                bench.clock.advance(wait);
            }
            other => panic!("{other:?}"),
        }
    }

    let Err(SignInError::Wait(wait)) =
        bench.identity.sign_ins.person("nobody", Secret::new("guess"), None, &origin()).await
    else {
        panic!("the hundred and first guess must wait");
    };

    assert_eq!(wait, Duration::from_mins(15));
    assert!(seconds > 3_000, "{seconds}");
}

#[tokio::test]
async fn a_password_that_changes_during_the_check_gives_no_living_token() {
    let (_folder, bench) = fresh(Scripted::prompt()).await;
    bench.user("ana", &["operator"]).await;
    let root = interlock_engine::auth::SystemPermit::root("console");
    let console = bench.users.console(&root);

    let (here, there) = (origin(), password("ana"));
    let (signed_in, changed) = tokio::join!(
        bench.identity.sign_ins.person("ana", there, None, &here),
        console.set_password("ana", Secret::new("nine yellow burettes"))
    );

    changed.expect("changed");
    let epoch = bench.principals.user("ana").expect("there").tokens_valid_from;
    if let Ok(session) = signed_in {
        let caller = bench.guard.authenticate(Some(session.issued.access.expose()), &origin());
        assert!(caller.is_err(), "a token of the old password outlived {epoch}");
    }
}
