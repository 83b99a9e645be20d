//! The audit trail: complete, unbroken, readable by those who may.

use base64::Engine as _;
use interlock_model::device::Outcome;
use serde_json::{Value, json};

use crate::lab::{Lab, password};

#[tokio::test]
async fn every_deed_is_in_an_unbroken_chain() {
    let lab = Lab::start().await;
    let admin = lab.token("ada").await;
    lab.mix("ana").await.header("x-request-id", "deed-1").send().await.ok();
    lab.device.will(Outcome::Crashed { reason: "signal 9".to_owned() });
    lab.mix("ana").await.header("x-request-id", "deed-2").send().await.refused(500, "worker_crashed");
    lab.mix("vic").await.header("x-request-id", "deed-3").send().await.refused(403, "forbidden");
    lab.get("/tasks")
        .signed("garbage")
        .header("x-request-id", "deed-4")
        .send()
        .await
        .refused(401, "unauthorized");
    lab.post("/auth/login")
        .header("x-request-id", "deed-5")
        .json(&json!({ "username": "ana", "password": "x" }))
        .send()
        .await
        .refused(401, "unauthorized");
    lab.post("/auth/login")
        .header("x-request-id", "deed-6")
        .json(&json!({ "username": "hunter2", "password": "x" }))
        .send()
        .await
        .refused(401, "unauthorized");
    lab.get("/users").signed(&admin).header("x-request-id", "deed-7").send().await.ok();
    lab.post("/users")
        .signed(&admin)
        .header("x-request-id", "deed-8")
        .json(&json!({ "name": "ana", "password": "seven purple pipettes", "roles": ["viewer"] }))
        .send()
        .await
        .refused(409, "conflict");
    lab.post("/auth/logout")
        .signed(&lab.token("vic").await)
        .header("x-request-id", "deed-9")
        .send()
        .await
        .ok();

    let trail = lab.trail().await;

    let of = |request: &str| -> Vec<(String, Option<String>, Option<String>, Value)> {
        let entries = trail.iter().filter(|entry| entry.draft.request_id.as_deref() == Some(request));
        entries
            .map(|entry| {
                (
                    entry.draft.action.clone(),
                    entry.draft.actor.clone(),
                    entry.draft.subject.clone(),
                    entry.draft.details.clone(),
                )
            })
            .collect()
    };
    for (request, status) in [("deed-1", "succeeded"), ("deed-2", "failed")] {
        let deeds = of(request);
        assert_eq!(deeds.len(), 2, "{deeds:?}");
        for (action, actor, subject, _) in &deeds {
            assert_eq!(
                (action.as_str(), actor.as_deref(), subject.as_deref()),
                ("device.executed", Some("ana"), Some("mix"))
            );
        }
        let (intent, outcome) = (&deeds[0].3, &deeds[1].3);
        assert_eq!(intent["phase"], "intent");
        assert_eq!(intent["task"], "mix");
        assert_eq!(intent["parameter_names"], json!(["cycles", "volume"]));
        assert_eq!(outcome["phase"], "outcome");
        assert_eq!(outcome["status"], status);
        assert_eq!(outcome["run"], intent["run"]);
        assert_eq!(outcome["was_open"], true);
        assert!(outcome.as_object().expect("an object").contains_key("duration_ms"));
    }
    let denied = of("deed-3");
    assert_eq!(denied.len(), 1, "{denied:?}");
    assert_eq!(
        (denied[0].0.as_str(), denied[0].1.as_deref(), denied[0].2.as_deref()),
        ("authorization.denied", Some("vic"), Some("device.executed"))
    );
    assert_eq!(of("deed-4")[0].3, json!({ "result": "failed", "reason": "invalid_token" }));
    let failed = &of("deed-5")[0];
    assert_eq!((failed.0.as_str(), failed.1.as_deref()), ("device.login", Some("ana")));
    assert_eq!(failed.3["result"], "failed");
    // A name that is nobody's may be a password in the wrong field: it is not written down.
    let unknown = &of("deed-6")[0];
    assert_eq!((unknown.1.as_deref(), unknown.2.as_deref()), (None, None));
    assert!(!format!("{trail:?}").contains("hunter2"));
    assert_eq!(of("deed-7").iter().map(|deed| deed.0.as_str()).collect::<Vec<_>>(), ["users.listed"]);
    assert_eq!(of("deed-8")[0].3, json!({ "status": 409, "changed": false }));
    assert_eq!(of("deed-9").iter().map(|deed| deed.0.as_str()).collect::<Vec<_>>(), ["token.revoked"]);
    let logins = trail
        .iter()
        .filter(|entry| entry.draft.action == "device.login" && entry.draft.details["result"] == "success")
        .count();
    assert_eq!(logins, 3);
    lab.assert_chain().await;
}

#[tokio::test]
async fn every_token_is_on_record_by_its_id_and_none_in_itself() {
    let lab = Lab::start().await;
    let claim = |token: &str, name: &str| -> Value {
        let part = token.split('.').nth(1).expect("claims");
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).expect("base64");
        serde_json::from_slice::<Value>(&bytes).expect("json")[name].clone()
    };
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let mut issued = Vec::new();
    let (access, refresh) = lab.pair(&id, &secret).await;
    issued.push(("token.issued", id.clone(), access, Some(refresh.clone())));
    let renewed =
        lab.post("/agents/auth/refresh").json(&json!({ "refresh_token": refresh })).send().await.ok();
    let (access, refresh) = crate::lab::pair_of(&renewed);
    issued.push(("token.refreshed", id, access, Some(refresh)));
    let body = json!({ "username": "ana", "password": password("ana").expose() });
    let signed_in = lab.post("/auth/login").json(&body).send().await.ok();
    let (access, refresh) = crate::lab::pair_of(&signed_in);
    issued.push(("token.issued", "ana".to_owned(), access.clone(), Some(refresh)));
    let proof = json!({ "password": password("ana").expose() });
    let raised = lab.post("/auth/step-up").signed(&access).json(&proof).send().await.ok();
    let (access, refresh) = crate::lab::pair_of(&raised);
    issued.push(("token.issued", "ana".to_owned(), access.clone(), Some(refresh)));
    let change = json!({
        "current": password("ana").expose(), "new": "nine green graduated cylinders",
    });
    let changed = lab.post("/auth/password").signed(&access).json(&change).send().await.ok();
    let (access, refresh) = crate::lab::pair_of(&changed);
    issued.push(("token.issued", "ana".to_owned(), access, Some(refresh)));

    let trail = lab.trail().await;
    for (action, who, access, refresh) in &issued {
        let jti = claim(access, "jti");
        let found: Vec<_> = trail
            .iter()
            .map(|entry| &entry.draft)
            .filter(|draft| draft.action == *action && draft.details["jti"] == jti)
            .collect();
        assert_eq!(found.len(), 1, "{action} {who}");
        let details = &found[0].details;
        assert_eq!((found[0].actor.as_ref(), found[0].subject.as_ref()), (Some(who), Some(who)));
        assert_eq!((&details["token_type"], &details["session"]), (&json!("access"), &claim(access, "fam")));
        let refresh_jti = refresh.as_ref().map_or(Value::Null, |token| claim(token, "jti"));
        assert_eq!(details["refresh_jti"], refresh_jti);
    }
    let text = format!("{trail:?}");
    for (_, _, access, refresh) in &issued {
        assert!(!text.contains(access.as_str()) && !text.contains(refresh.as_deref().unwrap_or("-")));
    }
    lab.assert_chain().await;
}

#[tokio::test]
async fn a_caller_that_leaves_early_is_not_said_to_have_changed_nothing() {
    let lab = Lab::start().await;
    let admin = lab.token("ada").await;
    let ask = lab
        .post("/users")
        .signed(&admin)
        .header("x-request-id", "early")
        .json(&json!({ "name": "eve", "password": "seven purple pipettes", "roles": ["viewer"] }));
    {
        // Polled once: the request is under way when its client goes away.
        let mut sending = Box::pin(ask.send());
        let _ = futures::poll!(&mut sending);
    }
    crate::lab::eventually("the user was made", || async {
        lab.get("/users").signed(&admin).send().await.text().contains("\"eve\"")
    })
    .await;

    let trail = lab.trail().await;

    let told: Vec<&Value> = trail
        .iter()
        .filter(|entry| entry.draft.request_id.as_deref() == Some("early"))
        .map(|entry| &entry.draft.details)
        .collect();
    assert_eq!(told, [&json!({ "name": "eve", "roles": ["viewer"] })]);
}

#[tokio::test]
async fn the_trail_is_read_in_pages_by_administrators_and_auditors() {
    let lab = Lab::unscreened().await;
    lab.mix("ana").await.send().await.ok();
    lab.trail().await;
    let auditor = lab.token("odo").await;
    let read = |query: &str| {
        let path = format!("/audit{query}");
        let (lab, auditor) = (&lab, &auditor);
        async move { lab.get(&path).signed(auditor).send().await }
    };

    let page = read("?action=device.executed&limit=1").await.ok();

    assert_eq!(page["total"], 2);
    assert_eq!(page["has_more"], true);
    let row = page["items"][0].as_object().expect("a row");
    let mut members: Vec<&str> = row.keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(
        members,
        [
            "action",
            "actor_agent_id",
            "at",
            "client_ip",
            "details",
            "hash",
            "id",
            "prev_hash",
            "request_id",
            "subject_id"
        ]
    );
    assert_eq!(row["details"]["phase"], "outcome");
    assert_eq!(row["client_ip"], "10.0.0.7");
    assert_eq!(row["hash"].as_str().map(str::len), Some(64));
    assert_eq!(read("?actor=ana&subject=mix").await.ok()["total"], 2);
    assert_eq!(read(&format!("?action=device.executed&since={}", lab.now())).await.ok()["total"], 2);
    assert_eq!(read(&format!("?action=device.executed&until={}", lab.now())).await.ok()["total"], 0);
    assert_eq!(read("?actor=%27%20OR%201%3D1%20--").await.ok()["total"], 0);
    let counted = lab.get("/audit/counts?by=actor&action=device.executed").signed(&auditor).send().await.ok();
    assert_eq!(counted, serde_json::json!([{ "value": "ana", "entries": 2 }]));
    assert_eq!(read("?source=10.0.0.7&action=device.executed&limit=200").await.ok()["total"], 2);
    assert_eq!(read("?source=10.0.0.8").await.ok()["total"], 0);
    for query in ["/counts", "/counts?by=hash", "/counts?by=actor&limit=201", "/counts?by=actor&since=x"] {
        read(query).await.refused(422, "invalid_request");
    }
    for query in ["?since=yesterday", "?limit=0", "?offset=x"] {
        read(query).await.refused(422, "invalid_request");
    }
    lab.get("/audit").signed(&lab.token("ada").await).send().await.ok();
    for name in ["ana", "vic", "cal"] {
        lab.get("/audit").signed(&lab.token(name).await).send().await.refused(403, "forbidden");
    }
}

#[tokio::test]
async fn throttled_guesses_are_on_record() {
    let lab = Lab::start().await;
    for _ in 0..6 {
        lab.post("/auth/login").json(&json!({ "username": "ana", "password": "x" })).send().await;
    }
    lab.clock.advance(std::time::Duration::from_secs(1));
    lab.post("/auth/login")
        .json(&json!({ "username": "ana", "password": password("ana").expose() }))
        .send()
        .await
        .ok();

    let trail = lab.trail_of("device.login").await;

    let told: Vec<&Value> =
        trail.iter().map(|entry| entry.draft.details.get("reason").unwrap_or(&Value::Null)).collect();
    assert_eq!(told.iter().filter(|reason| **reason == "invalid_credentials").count(), 5);
    assert_eq!(told.iter().filter(|reason| **reason == "throttled").count(), 1);
    assert_eq!(told.iter().filter(|reason| reason.is_null()).count(), 1);
    lab.assert_chain().await;
}

#[tokio::test]
async fn every_read_is_on_record_by_its_request_also_where_reads_share_an_entry() {
    let lab = Lab::start().await;
    let (ana, vic) = (lab.token("ana").await, lab.token("vic").await);
    let mut asked = Vec::new();
    for number in 0..40 {
        let (who, token) = if number % 4 == 0 { ("vic", &vic) } else { ("ana", &ana) };
        let answer = lab.get("/auth/me").signed(token).send().await;
        asked.push((who.to_owned(), answer.header("x-request-id").expect("an id").to_owned()));
    }

    let mut told = Vec::new();
    for entry in lab.trail_of("session.read").await {
        let actor = entry.draft.actor.expect("an actor");
        let others = entry.draft.details["other_requests"].as_array().cloned().unwrap_or_default();
        assert_eq!(entry.draft.details["times"].as_u64().unwrap_or(1), others.len() as u64 + 1);
        let others = others.iter().map(|id| id.as_str().expect("an id").to_owned());
        told.extend(entry.draft.request_id.into_iter().chain(others).map(|id| (actor.clone(), id)));
    }

    told.sort();
    asked.sort();
    assert_eq!(told, asked);
    lab.assert_chain().await;
}
