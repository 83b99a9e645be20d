//! How an agent proves who it is: its secrets, their life, and what everyone without one is told.

use std::time::Duration;

use serde_json::{Value, json};

use crate::agents::{SYSTEM, UNKNOWN, set_secret, sign_in};
use crate::lab::{Lab, pair_of, password};
use crate::service::with_metrics;

/// Passes the policy for secrets.
const SUPPLIED: &str = "eleven green centrifuges";

#[tokio::test]
async fn an_agent_signs_in_with_its_secret() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read", "tasks:*"]).await;

    let answer = sign_in(&lab, &id, &secret).await;
    let body = answer.ok();

    let mut keys: Vec<&String> = body.as_object().expect("an object").keys().collect();
    keys.sort();
    assert_eq!(keys, ["access_token", "expires_in", "refresh_token", "scope", "token_type"]);
    assert_eq!((&body["token_type"], &body["expires_in"]), (&json!("bearer"), &json!(3600)));
    assert_eq!(body["scope"], "runs:read tasks:*");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let me = lab.get("/auth/me").signed(&pair_of(&body).0).send().await.ok();
    assert_eq!((&me["user"], &me["kind"], &me["roles"]), (&json!(id), &json!("agent"), &json!([])));
    let entry = lab.trail_of("agent.authenticated").await.pop().expect("an entry");
    assert_eq!((entry.draft.actor.as_ref(), entry.draft.subject.as_ref()), (Some(&id), Some(&id)));
    assert_eq!(entry.draft.details["method"], "secret");
    assert_eq!(entry.draft.details["result"], "success");
    let trail = serde_json::to_string(
        &lab.trail().await.iter().map(|entry| &entry.draft.details).collect::<Vec<_>>(),
    )
    .expect("json");
    for hidden in [secret.as_str(), &pair_of(&body).0, &pair_of(&body).1] {
        assert!(!trail.contains(hidden), "a secret is in the audit trail");
    }
}

#[tokio::test]
async fn everyone_who_cannot_prove_it_gets_the_same_answer() {
    let lab = Lab::start().await;
    let zoe = lab.token("zoe").await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (bare, _) = lab.agent(&["runs:read"]).await;
    let (gone, gone_secret) = lab.agent(&["runs:read"]).await;
    lab.delete(&format!("/agents/{gone}")).signed(&zoe).send().await.ok();
    let huge = "x".repeat(1_000_000);
    let attempts = [
        json!({ "agent_id": id, "agent_secret": "wrong" }),
        json!({ "agent_id": id }),
        json!({ "agent_id": id, "agent_secret": null }),
        json!({ "agent_id": id, "agent_secret": "" }),
        json!({ "agent_id": id, "agent_secret": huge }),
        json!({ "agent_id": UNKNOWN, "agent_secret": secret }),
        json!({ "agent_id": UNKNOWN }),
        json!({ "agent_id": "not-a-uuid", "agent_secret": secret }),
        json!({ "agent_id": "", "agent_secret": secret }),
        json!({ "agent_id": format!("{id}\u{0}"), "agent_secret": secret }),
        json!({ "agent_id": huge, "agent_secret": secret }),
        json!({ "agent_id": bare, "agent_secret": secret }),
        json!({ "agent_id": bare, "agent_secret": format!("{secret}\u{0}") }),
        json!({ "agent_id": gone, "agent_secret": gone_secret }),
        json!({ "agent_id": SYSTEM, "agent_secret": secret }),
        json!({ "agent_id": "ada", "agent_secret": password("ada").expose() }),
    ];
    let before = lab.trail_of("agent.authenticated").await.len();
    let mut first: Option<Value> = None;
    for (index, body) in attempts.iter().enumerate() {
        // Each from its own network: what is compared is the answer, not the delay.
        let answer = lab.post("/agents/auth/token").from(&format!("10.{index}.0.1")).json(body).send().await;
        let mut told = answer.refused(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        for member in ["request_id", "timestamp"] {
            told.as_object_mut().expect("an object").remove(member);
        }
        assert_eq!(*first.get_or_insert_with(|| told.clone()), told, "{index}");
    }
    let entries = lab.trail_of("agent.authenticated").await.split_off(before);
    assert_eq!(entries.len(), attempts.len());
    assert!(entries.iter().all(|entry| entry.draft.details["result"] == "failed"));
    // The id itself is no credential.
    lab.get("/auth/me").signed(&id).send().await.refused(401, "unauthorized");
    lab.get("/auth/me").signed(SYSTEM).send().await.refused(401, "unauthorized");
}

#[tokio::test]
async fn bodies_of_the_token_routes_are_read_strictly() {
    let lab = Lab::start().await;
    for path in ["/agents/auth/token", "/agents/auth/refresh", "/agents/auth/revoke", "/auth/refresh"] {
        let send = |kind: &'static str, body: Vec<u8>| lab.post(path).typed(kind, body).send();
        send("text/plain", b"{}".to_vec()).await.refused(415, "unsupported_media_type");
        send("application/x-www-form-urlencoded", b"agent_id=1&agent_id=2".to_vec())
            .await
            .refused(415, "unsupported_media_type");
        send("application/json", b"[]".to_vec()).await.refused(422, "invalid_request");
        send("application/json", b"{".to_vec()).await.refused(422, "invalid_request");
        send("application/json", b"{\"agent_id\":\"\xff\"}".to_vec()).await.refused(422, "invalid_request");
        let twice = br#"{"agent_id":"a","agent_id":"b","agent_secret":"hunter2","refresh_token":"a","refresh_token":"hunter2"}"#;
        let answer = send("application/json", twice.to_vec()).await;
        answer.refused(422, "invalid_request");
        assert!(!answer.text().contains("hunter2"));
        let mistyped =
            send("application/json", br#"{"agent_id":["hunter2"],"refresh_token":["hunter2"]}"#.to_vec())
                .await;
        mistyped.refused(422, "invalid_request");
        assert!(!mistyped.text().contains("hunter2"));
    }
}

#[tokio::test]
async fn credentials_in_the_url_are_refused_everywhere_even_if_they_are_right() {
    let lab = Lab::start().await;
    let zoe = lab.token("zoe").await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (_, refresh) = lab.pair(&id, &secret).await;
    let good = json!({ "agent_id": id, "agent_secret": secret });
    for query in [
        format!("agent_id={id}&agent_secret={secret}"),
        format!("AGENT_SECRET={secret}"),
        format!("agent%5Fsecret={secret}"),
        "a=1&Password=x".to_owned(),
    ] {
        let answer = lab.post(&format!("/agents/auth/token?{query}")).json(&good).send().await;
        answer.refused(400, "invalid_request");
        assert!(!answer.text().contains(&secret));
    }
    for path in ["/agents/auth/refresh", "/auth/refresh", "/agents/auth/revoke"] {
        let body = json!({ "refresh_token": refresh });
        lab.post(&format!("{path}?refresh_token={refresh}"))
            .json(&body)
            .send()
            .await
            .refused(400, "invalid_request");
    }
    let oauth = lab
        .post(&format!("/oauth/token?client_secret={secret}"))
        .form(&[("grant_type", "client_credentials"), ("client_id", &id), ("client_secret", &secret)])
        .send()
        .await;
    assert_eq!(oauth.status, 400);
    assert_eq!(oauth.json()["error"], "invalid_request");
    lab.post(&format!("/agents/{id}/credentials?password=x"))
        .signed(&zoe)
        .send()
        .await
        .refused(400, "invalid_request");
    // Nothing of this was done.
    assert!(
        lab.post("/agents/auth/refresh").json(&json!({ "refresh_token": refresh })).send().await.status
            == 200
    );
    sign_in(&lab, &id, &secret).await.ok();
}

#[tokio::test]
async fn guessing_an_agent_becomes_slow_whether_it_exists_or_not() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let attempt = |id: &str, secret: &str, from: &str| {
        lab.post("/agents/auth/token")
            .from(from)
            .json(&json!({ "agent_id": id, "agent_secret": secret }))
            .send()
    };
    let mut answers = Vec::new();
    for id in [id.as_str(), UNKNOWN, "no uuid"] {
        for _ in 0..5 {
            attempt(id, "wrong", "10.0.0.1").await.refused(401, "unauthorized");
        }
        let limited = attempt(id, "wrong", "10.0.0.1").await;
        assert_eq!(limited.header("retry-after"), Some("1"));
        answers.push(limited.refused(429, "rate_limited")["detail"].clone());
    }
    assert!(answers.iter().all(|text| *text == answers[0]));
    attempt(&id, &secret, "10.0.0.1").await.refused(429, "rate_limited");
    attempt(&id, &secret, "10.0.0.2").await.ok();
    lab.clock.advance(Duration::from_secs(1));
    attempt(&id, &secret, "10.0.0.1").await.ok();
}

#[tokio::test]
async fn a_made_secret_is_shown_once_and_a_new_one_kills_what_was_before() {
    let lab = Lab::start().await;
    let (id, first) = lab.agent(&["runs:read"]).await;
    let (access, refresh) = lab.pair(&id, &first).await;
    lab.clock.advance(Duration::from_secs(1));

    let answer = set_secret(&lab, &id, &json!({})).await;
    let body = answer.ok();

    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(body["agent_id"], id);
    let mut keys: Vec<&String> = body.as_object().expect("an object").keys().collect();
    keys.sort();
    assert_eq!(keys, ["agent_id", "agent_secret", "message"]);
    let second = body["agent_secret"].as_str().expect("a secret");
    assert_ne!(second, first);
    assert!(second.starts_with("ils_") && second.len() == 4 + 64 + 8, "{second}");
    assert!(!lab.takes(&access).await);
    lab.post("/agents/auth/refresh")
        .json(&json!({ "refresh_token": refresh }))
        .send()
        .await
        .refused(401, "unauthorized");
    sign_in(&lab, &id, &first).await.refused(401, "unauthorized");
    let fresh = lab.pair(&id, second).await.0;
    assert!(lab.takes(&fresh).await);
    let shown = lab.get(&format!("/agents/{id}")).signed(&lab.token("zoe").await).send().await;
    assert!(!shown.text().contains("argon2") && !shown.text().contains(second), "{}", shown.text());
    assert_eq!(shown.ok()["has_credentials"], true);
    let entry = lab.trail_of("agent.credentials_created").await.pop().expect("an entry");
    assert_eq!(entry.draft.details["created_by"], "zoe");
    let lab = lab.restarted().await;
    assert!(!lab.takes(&access).await);
    sign_in(&lab, &id, &first).await.refused(401, "unauthorized");
    sign_in(&lab, &id, second).await.ok();
}

#[tokio::test]
async fn a_secret_is_given_as_nothing_a_string_or_an_object() {
    let lab = Lab::start().await;
    let zoe = lab.token("zoe").await;
    let (id, _) = lab.agent(&["runs:read"]).await;
    let path = format!("/agents/{id}/credentials");

    for body in ["", "null", "{}", "{\"password\":null}"] {
        let made = lab.post(&path).signed(&zoe).text(body).send().await.ok();
        assert!(made["agent_secret"].is_string(), "{body}");
    }
    for body in [json!(SUPPLIED), json!({ "password": SUPPLIED })] {
        let answer = lab.post(&path).signed(&zoe).json(&body).send().await;
        assert_eq!(answer.ok()["agent_secret"], Value::Null);
        assert!(!answer.text().contains(SUPPLIED));
        sign_in(&lab, &id, SUPPLIED).await.ok();
    }
    for (bad, why) in [
        (json!("short"), "short"),
        (json!({ "password": "passwordpassword" }), "common"),
        (json!({ "password": "aaaaaaaaaaaaaaaaaaaaaaaa" }), "uniform"),
        (json!({ "password": "" }), "empty"),
        (json!(format!("{SUPPLIED}{}", "x".repeat(1025))), "over 1024 bytes"),
        (json!("é".repeat(513)), "over 1024 bytes in fewer characters"),
        (json!(7), "a number"),
        (json!([SUPPLIED]), "a list"),
        (json!({ "password": 7 }), "a number inside"),
        (json!({ "password": SUPPLIED, "overlap_seconds": -1 }), "a negative overlap"),
        (json!({ "password": SUPPLIED, "overlap_seconds": 604_801 }), "a long overlap"),
        (json!({ "password": SUPPLIED, "expires_at": "yesterday" }), "no time"),
        (json!({ "password": SUPPLIED, "expires_at": lab.now() }), "an end that is over"),
    ] {
        let answer = lab.post(&path).signed(&zoe).json(&bad).send().await;
        answer.refused(422, "invalid_request");
        assert!(!answer.text().contains(SUPPLIED), "{why}");
    }
    let long = format!("{SUPPLIED} {}", "ab cd ".repeat(170));
    let long = &long[..1024];
    lab.post(&path).signed(&zoe).json(&json!(long)).send().await.ok();
    sign_in(&lab, &id, long).await.ok();
    sign_in(&lab, &id, &long[..1023]).await.refused(401, "unauthorized");
    lab.post(&path)
        .signed(&zoe)
        .typed("application/x-www-form-urlencoded", "password=x")
        .send()
        .await
        .refused(415, "unsupported_media_type");
    lab.post(&path)
        .signed(&zoe)
        .text("{\"password\":\"a\",\"password\":\"b\"}")
        .send()
        .await
        .refused(422, "invalid_request");
}

#[tokio::test]
async fn during_an_overlap_two_secrets_and_their_tokens_live() {
    let lab = Lab::start().await;
    let (id, first) = lab.agent(&["runs:read"]).await;
    let access = lab.pair(&id, &first).await.0;
    lab.clock.advance(Duration::from_secs(10));

    let second = set_secret(&lab, &id, &json!({ "overlap_seconds": 600 })).await.ok()["agent_secret"]
        .as_str()
        .expect("a secret")
        .to_owned();

    assert!(lab.takes(&access).await);
    sign_in(&lab, &id, &first).await.ok();
    sign_in(&lab, &id, &second).await.ok();
    let shown = lab.get(&format!("/agents/{id}")).signed(&lab.token("zoe").await).send().await.ok();
    let secrets = shown["secrets"].as_array().expect("secrets").clone();
    assert_eq!(secrets.len(), 2);
    assert!(secrets.iter().all(|secret| !secret["last_used_at"].is_null()), "{secrets:?}");
    assert_eq!(secrets[0]["expires_at"], lab.now().plus(Duration::from_mins(10)).to_string());
    assert_eq!(secrets[1]["expires_at"], Value::Null);
    // A third takes the place of the oldest: never more than two.
    let third = set_secret(&lab, &id, &json!({ "overlap_seconds": 600 })).await.ok()["agent_secret"]
        .as_str()
        .expect("a secret")
        .to_owned();
    sign_in(&lab, &id, &first).await.refused(401, "unauthorized");
    sign_in(&lab, &id, &second).await.ok();
    lab.clock.advance(Duration::from_mins(10));
    sign_in(&lab, &id, &second).await.refused(401, "unauthorized");
    sign_in(&lab, &id, &third).await.ok();
    assert!(lab.takes(&access).await);
}

#[tokio::test]
async fn a_secret_ends_at_its_time() {
    let lab = Lab::start().await;
    let (id, _) = lab.agent(&["runs:read"]).await;
    let end = lab.now().plus(Duration::from_hours(1));
    let secret = set_secret(&lab, &id, &json!({ "expires_at": end })).await.ok()["agent_secret"]
        .as_str()
        .expect("a secret")
        .to_owned();

    lab.clock.advance(Duration::from_secs(3599));
    sign_in(&lab, &id, &secret).await.ok();
    lab.clock.advance(Duration::from_secs(1));
    sign_in(&lab, &id, &secret).await.refused(401, "unauthorized");
}

#[tokio::test]
async fn an_agent_that_was_silent_for_long_is_noticed() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    sign_in(&lab, &id, &secret).await.ok();
    lab.clock.advance(Duration::from_hours(24 * 29));
    sign_in(&lab, &id, &secret).await.ok();
    assert!(lab.trail_of("agent.dormant_active").await.is_empty());

    lab.clock.advance(Duration::from_hours(24 * 31));
    sign_in(&lab, &id, &secret).await.ok();

    let entries = lab.trail_of("agent.dormant_active").await;
    assert_eq!(entries.len(), 1);
    assert_eq!(
        (entries[0].draft.subject.as_ref(), &entries[0].draft.details),
        (Some(&id), &json!({ "silent_days": 31 }))
    );
}

#[test]
fn identity_is_counted_and_logged_under_the_names_that_alerts_use() {
    let capture = crate::service::Capture::default();
    let _installed = capture.install();
    let (rendered, id) = with_metrics(|handle| async move {
        interlock_engine::metrics::describe();
        let lab = Lab::start().await;
        let zoe = lab.token("zoe").await;
        let (id, secret) = lab.agent(&["runs:read"]).await;
        let (access, refresh) = lab.pair(&id, &secret).await;
        sign_in(&lab, &id, "wrong").await.refused(401, "unauthorized");
        assert!(!lab.takes("a.b.c").await);
        let next =
            lab.post("/agents/auth/refresh").json(&json!({ "refresh_token": refresh })).send().await.ok();
        lab.clock.advance(Duration::from_secs(11));
        lab.post("/agents/auth/refresh")
            .json(&json!({ "refresh_token": refresh }))
            .send()
            .await
            .refused(401, "unauthorized");
        lab.post("/agents/auth/refresh")
            .json(&json!({ "refresh_token": pair_of(&next).1 }))
            .send()
            .await
            .refused(401, "unauthorized");
        lab.post("/agents/auth/revoke").json(&json!({ "token": access })).send().await.ok();
        set_secret(&lab, &id, &json!({})).await.ok();
        lab.get("/audit").signed(&lab.token("vic").await).send().await.refused(403, "forbidden");
        lab.delete(&format!("/agents/{id}")).signed(&zoe).send().await.ok();
        (handle.render(), id)
    });
    let value = |line: &str| -> u64 {
        let found = rendered.lines().find(|text| text.starts_with(&format!("{line} ")));
        found
            .unwrap_or_else(|| panic!("{line} is missing"))
            .rsplit(' ')
            .next()
            .expect("a value")
            .parse()
            .expect("a number")
    };
    let attempts = |method: &str, result: &str| {
        value(&format!(
            "orchestrator_authentication_attempts_total{{method=\"{method}\",result=\"{result}\"}}"
        ))
    };
    assert_eq!(attempts("credentials", "success"), 1);
    assert_eq!(attempts("credentials", "failed"), 1);
    assert_eq!(attempts("token", "failed"), 1);
    assert_eq!(attempts("refresh", "success"), 1);
    assert_eq!(attempts("refresh", "failed"), 2);
    assert!(attempts("login", "success") >= 2);
    for reason in ["rotated", "reuse", "manual", "agent_disabled"] {
        assert_eq!(
            value(&format!("orchestrator_jwt_tokens_revoked_total{{reason=\"{reason}\"}}")),
            1,
            "{reason}"
        );
    }
    // The first secret that the agent was given counts too: it ends whatever was before.
    assert_eq!(value("orchestrator_jwt_tokens_revoked_total{reason=\"credentials\"}"), 2);
    assert_eq!(
        value(&format!("orchestrator_jwt_tokens_issued_total{{agent_id=\"{id}\",token_type=\"access\"}}")),
        2
    );
    assert_eq!(
        value(&format!("orchestrator_jwt_tokens_issued_total{{agent_id=\"{id}\",token_type=\"refresh\"}}")),
        2
    );
    for (event, severity) in [
        ("token_reuse_detected", "high"),
        ("authentication_failed", "medium"),
        ("authentication_succeeded", "low"),
        ("authorization_denied", "medium"),
        ("token_revoked", "low"),
        ("token_issued", "low"),
    ] {
        assert!(
            value(&format!(
                "orchestrator_security_events_total{{event_type=\"{event}\",severity=\"{severity}\"}}"
            )) > 0,
            "{event}"
        );
        assert!(capture.text().contains(event), "{event} is not in the log");
    }
    for hidden in ["ils_", "eyJ", "argon2"] {
        assert!(!capture.text().contains(hidden), "{hidden} is in the log");
    }
}

#[test]
fn the_labels_of_agents_are_bounded() {
    let rendered = with_metrics(|handle| async move {
        let lab = Lab::start().await;
        for _ in 0..60 {
            lab.agent_token(&["runs:read"]).await;
        }
        handle.render()
    });

    let series: Vec<&str> = rendered
        .lines()
        .filter(|line| {
            line.starts_with("orchestrator_jwt_tokens_issued_total{") && line.contains("\"access\"")
        })
        .collect();
    // Fifty by name, the others together, people together.
    assert!(series.len() <= 52, "{series:#?}");
    assert!(series.iter().any(|line| line.contains("agent_id=\"other\"")), "{series:#?}");
    for line in &series {
        assert!(line.contains("token_type=\"access\"") && line.matches('=').count() == 2, "{line}");
    }
}
