//! Signing in and out, and what a token is worth.

use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::{Answer, Lab, password};

fn form(name: &str, word: &str) -> String {
    format!("username={name}&password={}", word.replace(' ', "+"))
}

fn without_id_and_time(answer: &Answer) -> Value {
    let mut body = answer.json();
    for member in ["request_id", "timestamp"] {
        assert!(body.as_object_mut().expect("an object").remove(member).is_some(), "{member}");
    }
    body
}

#[tokio::test]
async fn one_signs_in_with_a_form_or_with_json() {
    let lab = Lab::start().await;
    let word = password("zoe");

    let by_form = lab
        .post("/auth/login")
        .typed("application/x-www-form-urlencoded", form("zoe", word.expose()))
        .send()
        .await;
    let by_json =
        lab.post("/auth/login").json(&json!({ "username": "zoe", "password": word.expose() })).send().await;
    let untyped = lab
        .post("/auth/login")
        .bare(json!({ "username": "zoe", "password": word.expose() }).to_string())
        .send()
        .await;

    for answer in [by_form, by_json, untyped] {
        let body = answer.ok();
        let mut keys: Vec<&String> = body.as_object().expect("an object").keys().collect();
        keys.sort();
        assert_eq!(keys, ["access_token", "expires_in", "refresh_token", "roles", "token_type", "user"]);
        assert_eq!(body["token_type"], "bearer");
        assert_eq!(body["expires_in"], 3600);
        assert_eq!(body["user"], "zoe");
        assert_eq!(body["roles"], json!(["admin", "operator", "viewer"]));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let token = body["access_token"].as_str().expect("a token");
        lab.get("/auth/me").signed(token).send().await.ok();
    }
}

#[tokio::test]
async fn a_name_is_the_same_in_any_case() {
    let lab = Lab::start().await;

    let answer = lab
        .post("/auth/login")
        .json(&json!({ "username": "ANA", "password": password("ana").expose() }))
        .send()
        .await;

    assert_eq!(answer.ok()["user"], "ana");
}

#[tokio::test]
async fn a_token_says_what_the_contract_lists() {
    use base64::Engine as _;
    let lab = Lab::start().await;
    let token = lab.token("zoe").await;
    let part = |index: usize| -> Value {
        let part = token.split('.').nth(index).expect("three parts");
        serde_json::from_slice(
            &base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).expect("base64"),
        )
        .expect("json")
    };

    let (header, claims) = (part(0), part(1));

    assert_eq!(header["alg"], "HS256");
    assert!(header["kid"].is_string());
    for claim in ["sub", "type", "scopes", "roles", "name", "iat", "exp", "jti", "iss", "aud", "nbf"] {
        assert!(!claims[claim].is_null(), "{claim}");
    }
    assert_eq!(claims["type"], "access");
    assert_eq!(claims["sub"], "zoe");
    assert_eq!(claims["exp"].as_i64().expect("exp") - claims["iat"].as_i64().expect("iat"), 3600);
}

#[tokio::test]
async fn credentials_in_the_query_are_refused_even_if_they_are_right() {
    let lab = Lab::start().await;
    let word = password("ana");
    let encoded = word.expose().replace(' ', "%20");

    for path in [
        format!("/auth/login?username=ana&password={encoded}"),
        format!("/auth/login?x=1&PASSWORD={encoded}"),
    ] {
        for ask in
            [lab.post(&path), lab.post(&path).json(&json!({ "username": "ana", "password": word.expose() }))]
        {
            let answer = ask.send().await;
            answer.refused(400, "invalid_request");
            assert!(!answer.text().contains("purple"), "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn wrong_unknown_and_disabled_are_alike() {
    let lab = Lab::start().await;
    let admin = lab.token("ada").await;
    lab.ask("PATCH".parse().expect("method"), "/users/ben")
        .signed(&admin)
        .json(&json!({ "disabled": true }))
        .send()
        .await
        .ok();
    let attempt = |name: &'static str, word: String| {
        lab.post("/auth/login").json(&json!({ "username": name, "password": word })).send()
    };

    let answers = [
        attempt("ana", "a wrong but long password".to_owned()).await,
        attempt("nobody", "a wrong but long password".to_owned()).await,
        attempt("ben", password("ben").expose().to_owned()).await,
        attempt("no such name! <script>", "x".to_owned()).await,
        attempt("vic", "x".repeat(5000)).await,
        attempt("", String::new()).await,
    ];

    for answer in &answers {
        answer.refused(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert_eq!(without_id_and_time(answer), without_id_and_time(&answers[0]));
        assert_eq!(answer.headers.len(), answers[0].headers.len());
    }
}

#[tokio::test]
async fn guessing_becomes_slow_for_known_and_unknown_names_alike() {
    let lab = Lab::start().await;
    let attempt = |name: &str, word: &str, from: &str| {
        lab.post("/auth/login").from(from).json(&json!({ "username": name, "password": word })).send()
    };

    for name in ["ana", "nobody"] {
        for _ in 0..5 {
            attempt(name, "a wrong but long password", "10.0.0.1").await.refused(401, "unauthorized");
        }
        let limited = attempt(name, "a wrong but long password", "10.0.0.1").await;
        let body = limited.refused(429, "rate_limited");
        assert_eq!(limited.header("retry-after"), Some("1"));
        assert_eq!(body["retry_after"], 1);
    }
    // Not even the right password passes before its time, and the owner elsewhere is not kept waiting.
    attempt("ana", password("ana").expose(), "10.0.0.1").await.refused(429, "rate_limited");
    attempt("ana", password("ana").expose(), "10.0.0.2").await.ok();
    lab.clock.advance(Duration::from_secs(1));
    attempt("ana", password("ana").expose(), "10.0.0.1").await.ok();
}

#[tokio::test]
async fn a_sign_in_body_is_read_strictly() {
    let lab = Lab::start().await;
    let login =
        |media_type: &'static str, body: &'static str| lab.post("/auth/login").typed(media_type, body).send();

    login("text/plain", "username=ana&password=x").await.refused(415, "unsupported_media_type");
    login("multipart/form-data", "x").await.refused(415, "unsupported_media_type");
    login("application/json; charset=latin-1", "{}").await.refused(415, "unsupported_media_type");
    login("application/json", "").await.refused(422, "invalid_request");
    login("application/json", "[]").await.refused(422, "invalid_request");
    login("application/json", r#"{"username":"ana","username":"ada","password":"x"}"#)
        .await
        .refused(422, "invalid_request");
    login("application/x-www-form-urlencoded", "username=ana&username=ada&password=x")
        .await
        .refused(422, "invalid_request");
    login("application/x-www-form-urlencoded", "username=%ff&password=x")
        .await
        .refused(422, "invalid_request");
    let missing = login("application/json", r#"{"username":"ana"}"#).await.refused(422, "invalid_request");
    assert_eq!(missing["errors"][0]["loc"], json!(["body", "password"]));
    let mistyped = login("application/json", r#"{"username":["hunter2"],"password":"hunter2"}"#).await;
    mistyped.refused(422, "invalid_request");
    assert!(!mistyped.text().contains("hunter2"), "{}", mistyped.text());
}

#[tokio::test]
async fn a_missing_token_is_asked_for_and_a_bad_one_is_named_so() {
    let lab = Lab::start().await;
    let good = lab.token("ana").await;

    let missing = lab.get("/auth/me").send().await;
    let refusal = missing.refused(401, "unauthorized");
    assert_eq!(missing.header("www-authenticate"), Some("Bearer"));

    let long = "a".repeat(5000);
    let tampered = format!("{}x", &good[..good.len() - 1]);
    for sent in [
        "Bearer invalid-token",
        "Bearer 4b3c1c6e-8f0a-4f39-9f5d-2b6d1e0a9c11",
        "Bearer ",
        "Bearer",
        "Basic YW5hOnB3",
        "bearer a.b.c",
        &format!("Bearer {tampered}"),
        &format!("Bearer {good} {good}"),
        &format!("Bearer {long}"),
        "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZGEifQ.",
        &format!("Token {good}"),
        &good,
    ] {
        let answer = lab.get("/auth/me").header("authorization", sent).send().await;
        let body = answer.refused(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"invalid_token\""), "{sent}");
        assert_eq!(body["detail"], refusal["detail"], "{sent}");
    }
    // The scheme's name has no case (RFC 9110 section 11.1).
    lab.get("/auth/me").header("authorization", format!("bEARER {good}")).send().await.ok();
}

#[tokio::test]
async fn bytes_that_are_no_text_are_no_token() {
    let lab = Lab::start().await;

    let answer = lab.get("/auth/me").header("authorization", b"Bearer \xff\xfe").send().await;

    answer.refused(401, "unauthorized");
}

#[tokio::test]
async fn two_authorization_headers_are_refused_even_if_both_are_right() {
    let lab = Lab::start().await;
    let token = lab.token("ana").await;

    let answer = lab.get("/auth/me").signed(&token).signed(&token).send().await;

    answer.refused(401, "unauthorized");
}

#[tokio::test]
async fn a_token_dies_when_its_time_is_over() {
    let lab = Lab::start().await;
    let token = lab.token("ana").await;

    lab.clock.advance(Duration::from_secs(3600 + 29));
    lab.get("/auth/me").signed(&token).send().await.ok();
    lab.clock.advance(Duration::from_secs(1));

    lab.get("/auth/me").signed(&token).send().await.refused(401, "unauthorized");
    lab.mix("ben").await.send().await.ok();
    lab.post("/execute/mix")
        .signed(&token)
        .json(&json!({ "volume": 1 }))
        .send()
        .await
        .refused(401, "unauthorized");
    assert_eq!(lab.device.calls().len(), 1);
}

#[tokio::test]
async fn signing_out_kills_this_token_and_no_other() {
    let lab = Lab::start().await;
    let (one, two) = (lab.sign_in("ana").await, lab.sign_in("ana").await);

    let body = lab.post("/auth/logout").signed(&one).send().await.ok();

    assert_eq!(body["success"], true);
    assert!(body["message"].is_string());
    lab.get("/auth/me").signed(&one).send().await.refused(401, "unauthorized");
    lab.post("/auth/logout").signed(&one).send().await.refused(401, "unauthorized");
    lab.get("/auth/me").signed(&two).send().await.ok();
}

#[tokio::test]
async fn a_role_taken_away_is_gone_on_the_next_request() {
    let lab = Lab::start().await;
    let (admin, token) = (lab.token("ada").await, lab.token("zoe").await);
    lab.mix("zoe").await.send().await.ok();

    lab.ask("PATCH".parse().expect("method"), "/users/zoe")
        .signed(&admin)
        .json(&json!({ "roles": ["viewer"] }))
        .send()
        .await
        .ok();

    lab.mix("zoe").await.send().await.refused(403, "forbidden");
    lab.get("/tasks").signed(&token).send().await.ok();
    assert_eq!(lab.get("/auth/me").signed(&token).send().await.ok()["roles"], json!(["viewer"]));
    assert_eq!(lab.device.calls().len(), 1);
}

#[tokio::test]
async fn a_role_that_is_given_later_is_not_in_an_older_token() {
    let lab = Lab::start().await;
    let (admin, old) = (lab.token("ada").await, lab.token("vic").await);

    lab.ask("PATCH".parse().expect("method"), "/users/vic")
        .signed(&admin)
        .json(&json!({ "roles": ["viewer", "operator"] }))
        .send()
        .await
        .ok();

    lab.post("/execute/mix")
        .signed(&old)
        .json(&json!({ "volume": 1 }))
        .send()
        .await
        .refused(403, "forbidden");
    let new = lab.sign_in("vic").await;
    lab.post("/execute/mix").signed(&new).json(&json!({ "volume": 1 })).send().await.ok();
}

#[tokio::test]
async fn a_new_password_kills_every_older_token() {
    let lab = Lab::start().await;
    let (admin, token) = (lab.token("ada").await, lab.token("ana").await);

    lab.post("/users/ana/password")
        .signed(&admin)
        .json(&json!({ "password": "nine yellow burettes" }))
        .send()
        .await
        .ok();

    lab.get("/auth/me").signed(&token).send().await.refused(401, "unauthorized");
    let old = json!({ "username": "ana", "password": password("ana").expose() });
    lab.post("/auth/login").json(&old).send().await.refused(401, "unauthorized");
    lab.post("/auth/login")
        .json(&json!({ "username": "ana", "password": "nine yellow burettes" }))
        .send()
        .await
        .ok();
}

#[tokio::test]
async fn disabling_kills_tokens_for_good() {
    let lab = Lab::start().await;
    let (admin, token) = (lab.token("ada").await, lab.token("ana").await);
    let set = |disabled: bool| {
        lab.ask("PATCH".parse().expect("method"), "/users/ana")
            .signed(&admin)
            .json(&json!({ "disabled": disabled }))
            .send()
    };

    set(true).await.ok();
    lab.get("/auth/me").signed(&token).send().await.refused(401, "unauthorized");
    set(false).await.ok();

    lab.get("/auth/me").signed(&token).send().await.refused(401, "unauthorized");
    lab.sign_in("ana").await;
}

#[tokio::test]
async fn who_one_is_is_told() {
    let lab = Lab::start().await;

    let body = lab.get("/auth/me").signed(&lab.token("vic").await).send().await.ok();

    assert_eq!(
        body,
        json!({
            "user": "vic", "roles": ["viewer"], "kind": "user",
            "scopes": ["actions:read", "approvals:read", "devices:read", "devices:stop", "events:read", "runs:read", "tasks:read"],
            "expires_at": lab.now().plus(Duration::from_hours(1)),
        })
    );
}

#[tokio::test]
async fn a_session_is_limited_to_what_its_program_asks_for() {
    let lab = Lab::start().await;
    let sign_in = |extra: Value| {
        let mut body = json!({ "username": "zoe", "password": password("zoe").expose() });
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        lab.post("/auth/login").json(&body).send()
    };

    let narrow = sign_in(json!({ "scope": "runs:read  users:read" })).await.ok();
    let token = narrow["access_token"].as_str().expect("a token");
    let me = lab.get("/auth/me").signed(token).send().await.ok();
    assert_eq!((&me["scopes"], &me["roles"]), (&json!(["runs:read", "users:read"]), &json!([])));
    lab.get("/users").signed(token).send().await.ok();
    lab.get("/audit").signed(token).send().await.refused(403, "forbidden");
    let new = json!({ "current": password("zoe").expose(), "new": "nine yellow burettes" });
    lab.post("/auth/password").signed(token).json(&new).send().await.refused(403, "forbidden");
    // Refreshing widens nothing.
    let again = json!({ "refresh_token": narrow["refresh_token"] });
    let again = lab.post("/auth/refresh").json(&again).send().await.ok();
    let again = again["access_token"].as_str().expect("a token");
    lab.get("/audit").signed(again).send().await.refused(403, "forbidden");

    sign_in(json!({ "scope": "runs:read roles:burn" })).await.refused(400, "invalid_scope");
    sign_in(json!({ "scope": "devices:attention tokens:introspect" })).await.ok();
    let vic = json!({ "username": "vic", "password": password("vic").expose(), "scope": "users:read" });
    lab.post("/auth/login").json(&vic).send().await.refused(400, "invalid_scope");
    // A page needs no refresh token, and gets none.
    let brief = sign_in(json!({ "refresh": false })).await.ok();
    assert_eq!(brief.get("refresh_token"), None);
    assert!(lab.takes(brief["access_token"].as_str().expect("a token")).await);
}
