//! Sessions: refreshing, reuse, ending, revocation of every kind, keys that change; also after a restart and on other servers.

use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::{Answer, Lab, SigningKey, pair_of, password};

async fn refresh(lab: &Lab, token: &str) -> Answer {
    lab.post("/agents/auth/refresh").json(&json!({ "refresh_token": token })).send().await
}

async fn revoke(lab: &Lab, body: &Value) -> Value {
    lab.post("/agents/auth/revoke").json(body).send().await.ok()
}

async fn revoke_by(lab: &Lab, body: &Value) -> Answer {
    lab.post("/tokens/revoke").signed(&lab.sign_in("ada").await).json(body).send().await
}

fn claims(token: &str) -> Value {
    use base64::Engine as _;
    let part = token.split('.').nth(1).expect("claims");
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).expect("base64"))
        .expect("json")
}

#[tokio::test]
async fn refreshing_gives_a_new_pair_and_the_old_refresh_token_is_spent() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (first, refresh_one) = lab.pair(&id, &secret).await;
    lab.clock.advance(Duration::from_mins(1));

    let answer = refresh(&lab, &refresh_one).await;
    let (second, refresh_two) = pair_of(&answer.ok());

    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_ne!(refresh_one, refresh_two);
    assert!(lab.takes(&second).await && lab.takes(&first).await);
    assert_eq!(claims(&second)["fam"], claims(&first)["fam"]);
    // Proof of identity was when it was.
    assert_eq!(claims(&second)["auth_time"], claims(&first)["auth_time"]);
    assert_eq!(
        claims(&refresh_two)["exp"].as_i64().expect("exp")
            - claims(&refresh_two)["iat"].as_i64().expect("iat"),
        30 * 86_400
    );
    let entry = lab.trail_of("token.refreshed").await.pop().expect("an entry");
    assert_eq!(entry.draft.actor.as_ref(), Some(&id));
    assert_eq!(
        (&entry.draft.details["token_type"], &entry.draft.details["repeated"]),
        (&json!("access"), &json!(false))
    );
    assert_eq!(entry.draft.details["jti"], claims(&second)["jti"]);
}

#[tokio::test]
async fn the_same_client_that_repeats_within_ten_seconds_gets_the_identical_pair() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (_, token) = lab.pair(&id, &secret).await;

    let first = refresh(&lab, &token).await.ok();
    lab.clock.advance(Duration::from_secs(10));
    let again = refresh(&lab, &token).await.ok();

    assert_eq!(first, again);
    assert!(lab.takes(&pair_of(&again).0).await);
    refresh(&lab, &pair_of(&again).1).await.ok();
}

#[tokio::test]
async fn a_second_use_after_ten_seconds_kills_the_whole_session() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let other = lab.pair(&id, &secret).await;
    let (access, token) = lab.pair(&id, &secret).await;
    let (next, next_refresh) = pair_of(&refresh(&lab, &token).await.ok());
    lab.clock.advance(Duration::from_secs(11));

    refresh(&lab, &token).await.refused(401, "unauthorized");

    for dead in [&access, &next] {
        assert!(!lab.takes(dead).await);
    }
    refresh(&lab, &next_refresh).await.refused(401, "unauthorized");
    // Another session of the same agent is another story.
    assert!(lab.takes(&other.0).await);
    let entries = lab.trail_of("token.reuse_detected").await;
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].draft.subject.as_ref(), Some(&id));
    assert_eq!(entries[0].draft.details["session"], claims(&access)["fam"]);
    let lab = lab.restarted().await;
    assert!(!lab.takes(&next).await);
    assert!(lab.takes(&other.0).await);
    refresh(&lab, &next_refresh).await.refused(401, "unauthorized");
    lab.assert_chain().await;
}

#[tokio::test]
async fn another_client_that_repeats_is_a_thief_at_once() {
    for (address, agent) in [("10.0.0.9", "curl"), ("10.0.0.7", "another")] {
        let lab = Lab::start().await;
        let (id, secret) = lab.agent(&["runs:read"]).await;
        let (_, token) = lab.pair(&id, &secret).await;
        let body = json!({ "refresh_token": token });
        let ask = || lab.post("/agents/auth/refresh").json(&body);
        let (next, _) = pair_of(&ask().header("user-agent", "curl").send().await.ok());

        ask().from(address).header("user-agent", agent).send().await.refused(401, "unauthorized");

        assert!(!lab.takes(&next).await, "{address} {agent}");
        assert_eq!(lab.trail_of("token.reuse_detected").await.len(), 1);
    }
}

#[tokio::test]
async fn a_token_from_two_rotations_ago_is_reuse_even_within_ten_seconds() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (_, one) = lab.pair(&id, &secret).await;
    let two = pair_of(&refresh(&lab, &one).await.ok()).1;
    let three = pair_of(&refresh(&lab, &two).await.ok()).1;

    refresh(&lab, &one).await.refused(401, "unauthorized");
    refresh(&lab, &three).await.refused(401, "unauthorized");
}

#[tokio::test]
async fn a_refresh_token_ends_and_people_have_one_too() {
    let lab = Lab::start().await;
    let login = json!({ "username": "ana", "password": password("ana").expose() });
    let (access, token) = pair_of(&lab.post("/auth/login").json(&login).send().await.ok());
    let again = lab.post("/auth/refresh").json(&json!({ "refresh_token": token })).send().await;
    let body = again.ok();
    assert_eq!((&body["user"], &body["roles"]), (&json!("ana"), &json!(["operator"])));
    assert_eq!(again.header("cache-control"), Some("no-store"));
    let (fresh, token) = pair_of(&body);
    assert!(lab.takes(&access).await && lab.takes(&fresh).await);

    lab.clock.advance(Duration::from_secs(30 * 86_400 + 30));

    lab.post("/auth/refresh")
        .json(&json!({ "refresh_token": token }))
        .send()
        .await
        .refused(401, "unauthorized");
    assert!(lab.trail_of("token.reuse_detected").await.is_empty());
}

#[tokio::test]
async fn a_session_ends_after_90_days_however_often_it_is_refreshed() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let begun = lab.now().seconds();
    let (_, mut token) = lab.pair(&id, &secret).await;
    for _ in 0..4 {
        lab.clock.advance(Duration::from_hours(24 * 20));
        token = pair_of(&refresh(&lab, &token).await.ok()).1;
    }
    assert_eq!(claims(&token)["exp"], begun + 90 * 86_400);
    lab.clock.advance(Duration::from_mins(10 * 24 * 60 - 1));
    let (access, token) = pair_of(&refresh(&lab, &token).await.ok());
    assert_eq!(claims(&access)["exp"], begun + 90 * 86_400);

    lab.clock.advance(Duration::from_secs(90));

    assert!(!lab.takes(&access).await);
    refresh(&lab, &token).await.refused(401, "unauthorized");
    // Its secret opens another.
    lab.pair(&id, &secret).await;
}

#[tokio::test]
async fn many_refreshes_at_once_give_one_successor() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (_, token) = lab.pair(&id, &secret).await;

    let answers = futures::future::join_all((0..8).map(|_| refresh(&lab, &token))).await;

    let pairs: std::collections::BTreeSet<_> = answers.iter().map(|answer| pair_of(&answer.ok())).collect();
    assert_eq!(pairs.len(), 1);
    assert!(lab.takes(&pairs.first().expect("a pair").0).await);
}

#[tokio::test]
async fn revoking_truly_revokes_and_tells_nothing() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (by_access, still) = lab.pair(&id, &secret).await;
    let (other, by_refresh) = lab.pair(&id, &secret).await;
    let (named, _) = lab.pair(&id, &secret).await;
    let (kept, _) = lab.pair(&id, &secret).await;

    let mut told = vec![
        revoke(&lab, &json!({ "refresh_token": by_access })).await,
        revoke(&lab, &json!({ "refresh_token": by_refresh })).await,
        revoke(&lab, &json!({ "token": named })).await,
        // Twice is no error.
        revoke(&lab, &json!({ "token": named })).await,
        revoke(&lab, &json!({ "refresh_token": by_refresh })).await,
    ];
    for junk in ["", "x", "a.b.c", "\u{0}", "é", &id, &"x".repeat(1_000_000), &format!("{kept}x")] {
        told.push(revoke(&lab, &json!({ "refresh_token": junk })).await);
    }
    told.push(revoke(&lab, &json!({})).await);

    assert!(told.iter().all(|answer| *answer == told[0] && answer["success"] == true), "{told:?}");
    assert!(!told[0].to_string().contains(&id));
    for dead in [&by_access, &other, &named] {
        assert!(!lab.takes(dead).await);
    }
    assert!(lab.takes(&kept).await);
    refresh(&lab, &by_refresh).await.refused(401, "unauthorized");
    // An access token alone was revoked: its session goes on.
    let next = pair_of(&refresh(&lab, &still).await.ok()).0;
    let entries = lab.trail_of("token.revoked").await;
    assert!(entries.iter().any(|entry| entry.draft.details["jti"] == claims(&by_access)["jti"]));
    let lab = lab.restarted().await;
    for dead in [&by_access, &other, &named] {
        assert!(!lab.takes(dead).await);
    }
    assert!(lab.takes(&kept).await && lab.takes(&next).await);
    refresh(&lab, &by_refresh).await.refused(401, "unauthorized");
    lab.assert_chain().await;
}

#[tokio::test]
async fn administrators_revoke_by_id_session_principal_or_time() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let one = lab.pair(&id, &secret).await;
    let two = lab.pair(&id, &secret).await;
    let three = lab.pair(&id, &secret).await;
    let text = |token: &str, claim: &str| claims(token)[claim].as_str().expect("a text").to_owned();

    revoke_by(&lab, &json!({ "jti": text(&one.0, "jti") })).await.ok();
    assert!(!lab.takes(&one.0).await && lab.takes(&two.0).await);
    // The id of a refresh token counts as well.
    revoke_by(&lab, &json!({ "jti": text(&one.1, "jti") })).await.ok();
    refresh(&lab, &one.1).await.refused(401, "unauthorized");
    revoke_by(&lab, &json!({ "session": text(&two.0, "fam") })).await.ok();
    assert!(!lab.takes(&two.0).await && lab.takes(&three.0).await);
    refresh(&lab, &two.1).await.refused(401, "unauthorized");
    revoke_by(&lab, &json!({ "principal": id })).await.ok();
    assert!(!lab.takes(&three.0).await);
    refresh(&lab, &three.1).await.refused(401, "unauthorized");
    // Its secret was not what was revoked.
    lab.clock.advance(Duration::from_millis(500));
    let four = lab.pair(&id, &secret).await;
    let ana = lab.sign_in("ana").await;
    revoke_by(&lab, &json!({ "principal": "ANA" })).await.ok();
    assert!(!lab.takes(&ana).await && lab.takes(&four.0).await);

    // Everything of this second and before; half a second counts as before.
    lab.clock.advance(Duration::from_millis(1300));
    revoke_by(&lab, &json!({ "issued_before": lab.now() })).await.ok();
    assert!(!lab.takes(&four.0).await);
    refresh(&lab, &four.1).await.refused(401, "unauthorized");
    lab.clock.advance(Duration::from_secs(1));
    let five = lab.pair(&id, &secret).await;
    assert!(lab.takes(&five.0).await);
    // It never moves back, and never into the future.
    revoke_by(&lab, &json!({ "issued_before": "2020-01-01T00:00:00Z" })).await.ok();
    assert!(!lab.takes(&four.0).await);
    lab.clock.advance(Duration::from_secs(1));
    let six = lab.pair(&id, &secret).await;
    revoke_by(&lab, &json!({ "issued_before": "2099-01-01T00:00:00Z" })).await.ok();
    lab.clock.advance(Duration::from_secs(1));
    let seven = lab.pair(&id, &secret).await;
    let lab = lab.restarted().await;
    for dead in [&one.0, &two.0, &three.0, &four.0, &five.0, &six.0, &ana] {
        assert!(!lab.takes(dead).await);
    }
    assert!(lab.takes(&seven.0).await);
}

#[tokio::test]
async fn what_shall_be_revoked_is_named_once_and_well() {
    let lab = Lab::unscreened().await;
    for body in [
        json!({}),
        json!({ "jti": "a", "session": "b" }),
        json!({ "jti": "" }),
        json!({ "jti": "j".repeat(65) }),
        json!({ "jti": "a\u{0}" }),
        json!({ "session": "a\u{0}" }),
        json!({ "session": "" }),
        json!({ "session": "x' OR '1'='1" }),
        json!({ "issued_before": "yesterday" }),
        json!({ "principal": 7 }),
        json!({ "principal": "a\u{0}" }),
        json!({ "principal": "" }),
    ] {
        revoke_by(&lab, &body).await.refused(422, "invalid_request");
    }
    revoke_by(&lab, &json!({ "session": "none" })).await.refused(404, "session_not_found");
    for name in ["nobody", "11111111-2222-4333-8444-555555555555"] {
        revoke_by(&lab, &json!({ "principal": name })).await.refused(404, "principal_not_found");
    }
}

#[tokio::test]
async fn sessions_are_listed_and_ended_by_their_owner_or_an_administrator() {
    let lab = Lab::unscreened().await;
    let one = lab
        .ask("POST".parse().expect("method"), "/auth/login")
        .header("user-agent", "panel")
        .json(&json!({ "username": "ana", "password": password("ana").expose() }))
        .send()
        .await
        .ok();
    lab.clock.advance(Duration::from_secs(1));
    let (two, three) = (lab.sign_in("ana").await, lab.sign_in("ben").await);
    let one = pair_of(&one);

    let own = lab.get("/auth/sessions").signed(&two).send().await.ok();
    let own = own.as_array().expect("an array");
    assert_eq!(own.len(), 2);
    assert_eq!((&own[0]["current"], &own[1]["current"]), (&json!(true), &json!(false)));
    assert_eq!(
        (&own[1]["user_agent"], &own[1]["method"], &own[1]["client_ip"]),
        (&json!("panel"), &json!("password"), &json!("10.0.0.7"))
    );
    assert_eq!(own[1]["amr"], json!(["pwd"]));
    // Asking for everybody's gives one's own to those who do not manage them.
    let asked = lab.get("/auth/sessions?all=true").signed(&two).send().await.ok();
    assert_eq!(asked.as_array().map(Vec::len), Some(2));
    let all = lab.get("/auth/sessions?all=true").signed(&lab.token("ada").await).send().await.ok();
    assert!(all.as_array().expect("an array").iter().any(|session| session["principal"] == "ben"));

    let session_of = |token: &str| claims(token)["fam"].as_str().expect("fam").to_owned();
    let path = format!("/auth/sessions/{}", session_of(&three));
    lab.delete(&path).signed(&two).send().await.refused(404, "session_not_found");
    assert!(lab.takes(&three).await);
    lab.delete(&format!("/auth/sessions/{}", session_of(&one.0))).signed(&two).send().await.ok();
    assert!(!lab.takes(&one.0).await);
    lab.post("/auth/refresh")
        .json(&json!({ "refresh_token": one.1 }))
        .send()
        .await
        .refused(401, "unauthorized");
    lab.delete(&path).signed(&lab.token("ada").await).send().await.ok();
    assert!(!lab.takes(&three).await);
    lab.delete("/auth/sessions/a%27%20OR%201").signed(&two).send().await.refused(404, "session_not_found");

    let four = lab.sign_in("ana").await;
    assert_eq!(
        lab.delete("/auth/sessions?keep_current=true").signed(&four).send().await.ok()["details"]["sessions"],
        1
    );
    assert!(!lab.takes(&two).await && lab.takes(&four).await);
    lab.delete("/auth/sessions").signed(&four).send().await.ok();
    let lab = lab.restarted().await;
    for dead in [&one.0, &two, &three, &four] {
        assert!(!lab.takes(dead).await);
    }
}

#[tokio::test]
async fn what_one_server_revokes_is_dead_on_the_others() {
    let lab = Lab::signing(SigningKey::new(), |_| {}).await;
    let other = lab.beside(SigningKey::new()).await;
    lab.catch_up().await;
    let (id, secret) = lab.agent(&["runs:read", "audit:read"]).await;
    other.catch_up().await;
    let here = lab.pair(&id, &secret).await;
    let there = other.pair(&id, &secret).await;
    let session = other.pair(&id, &secret).await;

    // A token of one is good on both.
    assert!(other.takes(&here.0).await && lab.takes(&there.0).await);
    let moved = pair_of(&refresh(&lab, &there.1).await.ok());
    assert!(other.takes(&moved.0).await);

    revoke(&lab, &json!({ "token": here.0 })).await;
    revoke(&lab, &json!({ "refresh_token": session.1 })).await;
    other.catch_up().await;
    assert!(!other.takes(&here.0).await && !other.takes(&session.0).await);
    refresh(&other, &session.1).await.refused(401, "unauthorized");
    // One that was down meanwhile knows it when it starts.
    let late = lab.beside(SigningKey::new()).await;
    assert!(!late.takes(&here.0).await && !late.takes(&session.0).await && late.takes(&moved.0).await);

    // Scopes and deletion travel as well.
    lab.put(&format!("/agents/{id}"))
        .signed(&lab.token("zoe").await)
        .json(&json!({ "scopes": ["runs:read"] }))
        .send()
        .await
        .ok();
    other.catch_up().await;
    other.get("/audit").signed(&moved.0).send().await.refused(403, "forbidden");
    lab.delete(&format!("/agents/{id}")).signed(&lab.token("zoe").await).send().await.ok();
    other.catch_up().await;
    assert!(!other.takes(&moved.0).await);
}

#[tokio::test]
async fn a_key_is_exchanged_without_ending_a_session_and_a_retired_one_ends() {
    let lab = Lab::signing(SigningKey::new(), |_| {}).await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (old, old_refresh) = lab.pair(&id, &secret).await;
    let keys = async || lab.get("/oauth/jwks").send().await.ok()["keys"].as_array().expect("keys").len();
    assert_eq!(keys().await, 1);

    let identity = &lab.app.identity;
    let SigningKey::Ed25519(next) = SigningKey::new() else { unreachable!() };
    identity.sessions.tokens().keys().exchange(&next).expect("exchanged");
    let system = interlock_engine::auth::SystemPermit::root("system");
    identity.publish_key(&system).await.expect("published");

    assert_eq!(keys().await, 2);
    assert!(lab.takes(&old).await);
    let (new, _) = pair_of(&refresh(&lab, &old_refresh).await.ok());
    assert!(lab.takes(&new).await);
    let kid = |token: &str| {
        use base64::Engine as _;
        let head = token.split('.').next().expect("a header");
        let head = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(head).expect("base64");
        serde_json::from_slice::<Value>(&head).expect("json")["kid"].as_str().expect("a kid").to_owned()
    };
    assert_ne!(kid(&old), kid(&new));
    let shown = lab.get("/.well-known/jwks.json").send().await.ok();
    assert!(shown["keys"].as_array().expect("keys").iter().any(|key| key["kid"] == kid(&new).as_str()));
    // Nothing of a private half is told.
    assert!(shown["keys"].as_array().expect("keys").iter().all(|key| key.get("d").is_none()));

    // The old key is given an end: what it signed before lives to its own end, nothing that would outlive the key is taken.
    let db = interlock_engine::auth::Db::new(
        std::sync::Arc::clone(&lab.store) as _,
        interlock_engine::Ambient {
            clock: std::sync::Arc::clone(&lab.app.clock),
            entropy: std::sync::Arc::clone(&lab.app.entropy),
        },
    );
    let end = interlock_engine::identity::retire(&db, &system, kid(&old), lab.now(), Duration::from_hours(1))
        .await
        .expect("retired");
    assert_eq!(end, Some(lab.now().plus(Duration::from_hours(1))));
    lab.catch_up().await;
    assert!(lab.takes(&old).await);
    // The refresh token of the old key would have lived on for a month.
    refresh(&lab, &old_refresh).await.refused(401, "unauthorized");
    lab.clock.advance(Duration::from_secs(3601));
    assert_eq!(keys().await, 1);
}

#[tokio::test]
async fn tokens_are_not_taken_by_another_installation() {
    let (lab, other) =
        (Lab::signing(SigningKey::new(), |_| {}).await, Lab::signing(SigningKey::new(), |_| {}).await);
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (access, token) = lab.pair(&id, &secret).await;

    assert!(!other.takes(&access).await);
    refresh(&other, &token).await.refused(401, "unauthorized");
    revoke(&other, &json!({ "token": access })).await;
    assert!(lab.takes(&access).await);
}

#[tokio::test]
async fn ending_sessions_wants_a_fresh_proof_and_signing_out_does_not() {
    let lab = Lab::start().await;
    let (one, two) = (lab.sign_in("ana").await, lab.sign_in("ana").await);
    let key = json!({ "name": "script", "scopes": ["runs:read"] });
    let key = lab.post("/auth/keys").signed(&one).json(&key).send().await.json();
    let key = key["key"].as_str().expect("a key");
    lab.clock.advance(Duration::from_mins(16));
    let other = format!("/auth/sessions/{}", claims(&two)["fam"].as_str().expect("fam"));

    for token in [&one, key] {
        lab.delete(&other).signed(token).send().await.refused(403, "step_up_required");
        lab.delete("/auth/sessions").signed(token).send().await.refused(403, "step_up_required");
        lab.get("/auth/sessions").signed(token).send().await.ok();
    }
    assert!(lab.takes(&one).await && lab.takes(&two).await);
    let proof = json!({ "password": password("ana").expose() });
    let fresh = lab.post("/auth/step-up").signed(&one).json(&proof).send().await.ok();
    let fresh = fresh["access_token"].as_str().expect("a token");
    lab.delete(&other).signed(fresh).send().await.ok();
    assert!(!lab.takes(&two).await);

    // What one holds one ends, however old it is; an agent has proved who it is with its token.
    lab.clock.advance(Duration::from_mins(16));
    lab.post("/auth/logout").signed(fresh).send().await.ok();
    assert!(!lab.takes(fresh).await);
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (mine, _) = lab.pair(&id, &secret).await;
    lab.clock.advance(Duration::from_mins(16));
    lab.delete("/auth/sessions").signed(&mine).send().await.ok();
    assert!(!lab.takes(&mine).await);
}
