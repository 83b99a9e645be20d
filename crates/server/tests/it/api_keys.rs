//! API keys, custom roles, and the answer to "why may they".

use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::{Answer, Lab};

async fn make(lab: &Lab, token: &str, body: &Value) -> Answer {
    lab.post("/auth/keys").signed(token).json(body).send().await
}

async fn key(lab: &Lab, token: &str, scopes: &[&str]) -> (String, String) {
    let answer = make(lab, token, &json!({ "name": "script", "scopes": scopes })).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let body = answer.json();
    (body["id"].as_str().expect("an id").to_owned(), body["key"].as_str().expect("a key").to_owned())
}

#[tokio::test]
async fn a_key_does_what_it_names_and_no_more() {
    let lab = Lab::start().await;
    let zoe = lab.token("zoe").await;

    let answer = make(&lab, &zoe, &json!({ "name": "mixer", "scopes": ["devices:execute:fake/mix", "runs:read"], "expires_in_days": 7 })).await;

    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let made = answer.json();
    let text = made["key"].as_str().expect("a key");
    assert!(text.starts_with("ilk_"));
    assert_eq!(made["expires_at"], lab.now().plus(Duration::from_hours(24 * 7)).to_string());
    assert_eq!(
        (&made["principal"], &made["created_by"], &made["kind"]),
        (&json!("zoe"), &json!("zoe"), &json!("user"))
    );
    lab.get("/runs").signed(text).send().await.ok();
    lab.post("/execute/mix").signed(text).json(&json!({ "volume": 5 })).send().await.ok();
    lab.post("/execute/upload").signed(text).json(&json!({})).send().await.refused(403, "forbidden");
    for path in ["/users", "/audit", "/agents", "/tasks"] {
        lab.get(path).signed(text).send().await.refused(403, "forbidden");
    }
    let me = lab.get("/auth/me").signed(text).send().await.ok();
    assert_eq!((&me["user"], &me["roles"]), (&json!("zoe"), &json!([])));
    let listed = lab.get("/auth/keys").signed(&zoe).send().await;
    assert!(!listed.text().contains(text) && !listed.text().contains("digest"));
    let entry = lab.trail_of("api_key.created").await.pop().expect("an entry");
    assert_eq!(entry.draft.subject.as_deref(), made["id"].as_str());
    assert!(!entry.draft.details.to_string().contains(text));
    let lab = lab.restarted().await;
    lab.get("/runs").signed(text).send().await.ok();
}

#[tokio::test]
async fn a_key_holds_at_most_what_its_maker_holds_and_loses_it_with_them() {
    let lab = Lab::start().await;
    let (ana, ada) = (lab.token("ana").await, lab.token("ada").await);

    for scope in ["users:manage", "admin", "audit:read", "devices:*", "devices:release"] {
        make(&lab, &ana, &json!({ "name": "k", "scopes": [scope] })).await.refused(403, "forbidden");
    }
    let (_, text) = key(&lab, &ana, &["runs:read", "devices:execute"]).await;
    lab.ask("PATCH".parse().expect("method"), "/users/ana")
        .signed(&ada)
        .json(&json!({ "roles": ["auditor"] }))
        .send()
        .await
        .ok();

    lab.get("/runs").signed(&text).send().await.ok();
    lab.post("/execute/mix")
        .signed(&text)
        .json(&json!({ "volume": 5 }))
        .send()
        .await
        .refused(403, "forbidden");
    lab.ask("PATCH".parse().expect("method"), "/users/ana")
        .signed(&ada)
        .json(&json!({ "disabled": true }))
        .send()
        .await
        .ok();
    assert!(!lab.takes(&text).await);
    lab.ask("PATCH".parse().expect("method"), "/users/ana")
        .signed(&ada)
        .json(&json!({ "disabled": false }))
        .send()
        .await
        .ok();
    assert!(!lab.takes(&text).await, "what died stays dead");
}

#[tokio::test]
async fn a_malformed_key_is_not_made() {
    let lab = Lab::unscreened().await;
    let zoe = lab.token("zoe").await;
    for body in [
        json!({ "name": "", "scopes": ["runs:read"] }),
        json!({ "name": "n".repeat(101), "scopes": ["runs:read"] }),
        json!({ "name": "a\u{0}", "scopes": ["runs:read"] }),
        json!({ "name": "k", "scopes": [] }),
        json!({ "name": "k", "scopes": ["no:such"] }),
        json!({ "name": "k" }),
        json!({ "name": "k", "scopes": ["runs:read"], "expires_in_days": 0 }),
        json!({ "name": "k", "scopes": ["runs:read"], "expires_in_days": 367 }),
        json!({ "name": "k", "scopes": ["runs:read"], "expires_in_days": u64::MAX }),
        json!({ "name": "k", "scopes": ["runs:read"], "expires_in_days": -1 }),
        json!({ "name": "k", "scopes": ["runs:read"], "agent_id": "x" }),
    ] {
        make(&lab, &zoe, &body).await.refused(422, "invalid_request");
    }
    assert_eq!(lab.get("/auth/keys").signed(&zoe).send().await.ok(), json!([]));
}

#[tokio::test]
async fn a_key_ends_at_its_time_or_when_it_is_revoked() {
    let lab = Lab::start().await;
    let zoe = lab.token("zoe").await;
    let (id, revoked) = key(&lab, &zoe, &["runs:read"]).await;
    let (_, kept) = key(&lab, &zoe, &["runs:read"]).await;
    assert!(lab.takes(&revoked).await);

    lab.delete(&format!("/auth/keys/{id}")).signed(&zoe).send().await.ok();

    assert!(!lab.takes(&revoked).await && lab.takes(&kept).await);
    // Again is no error; the record stays for reviews.
    lab.delete(&format!("/auth/keys/{id}")).signed(&zoe).send().await.ok();
    let listed = lab.get("/auth/keys").signed(&zoe).send().await.ok();
    let shown = listed
        .as_array()
        .expect("keys")
        .iter()
        .find(|key| key["id"] == id.as_str())
        .expect("the key")
        .clone();
    assert_eq!(shown["revoked_at"], lab.now().to_string());
    lab.clock.advance(Duration::from_hours(24 * 30));
    assert!(!lab.takes(&kept).await);
    let lab = lab.restarted().await;
    assert!(!lab.takes(&revoked).await);
}

#[tokio::test]
async fn somebody_elses_key_is_not_there() {
    let lab = Lab::start().await;
    let (ana, ben, ada) = (lab.token("ana").await, lab.token("ben").await, lab.token("ada").await);
    let (id, text) = key(&lab, &ana, &["runs:read"]).await;

    assert_eq!(lab.get("/auth/keys").signed(&ben).send().await.ok(), json!([]));
    let foreign =
        lab.delete(&format!("/auth/keys/{id}")).signed(&ben).send().await.refused(404, "key_not_found");
    let absent = lab.delete("/auth/keys/none").signed(&ben).send().await.refused(404, "key_not_found");
    assert_eq!(foreign["detail"], absent["detail"]);
    assert!(lab.takes(&text).await);
    assert_eq!(lab.get("/auth/keys").signed(&ada).send().await.ok().as_array().map(Vec::len), Some(1));
    lab.delete(&format!("/auth/keys/{id}")).signed(&ada).send().await.ok();
    assert!(!lab.takes(&text).await);
}

#[tokio::test]
async fn a_key_makes_no_key_and_has_no_session_to_end() {
    let lab = Lab::start().await;
    let (_, text) = key(&lab, &lab.token("zoe").await, &["runs:read"]).await;

    make(&lab, &text, &json!({ "name": "k", "scopes": ["runs:read"] })).await.refused(403, "forbidden");
    lab.post("/auth/logout").signed(&text).send().await.refused(400, "invalid_request");

    assert!(lab.takes(&text).await);
}

#[tokio::test]
async fn whatever_ends_the_tokens_of_somebody_ends_their_keys() {
    let lab = Lab::start().await;
    let ada = lab.token("ada").await;
    let (id, _) = lab.agent(&["runs:read"]).await;
    let for_agent =
        make(&lab, &lab.token("zoe").await, &json!({ "name": "k", "scopes": ["runs:read"], "agent_id": id }))
            .await
            .json();
    let for_agent = for_agent["key"].as_str().expect("a key");
    let ends = [
        ("/tokens/revoke".to_owned(), json!({ "principal": "ana" })),
        ("/users/ana/password".to_owned(), json!({ "password": "nine yellow burettes" })),
    ];
    let mut token = lab.sign_in("ana").await;
    for (path, body) in ends {
        let (_, text) = key(&lab, &token, &["runs:read"]).await;
        assert!(lab.takes(&text).await);
        lab.clock.advance(Duration::from_secs(1));
        lab.post(&path).signed(&ada).json(&body).send().await.ok();
        assert!(!lab.takes(&text).await, "{path}");
        lab.clock.advance(Duration::from_secs(1));
        if path == "/tokens/revoke" {
            token = lab.sign_in("ana").await;
        }
    }
    assert!(lab.takes(for_agent).await);
    lab.post("/tokens/revoke").signed(&ada).json(&json!({ "issued_before": lab.now() })).send().await.ok();
    assert!(!lab.takes(for_agent).await);
}

#[tokio::test]
async fn a_mistyped_key_is_refused_like_any_credential() {
    let lab = Lab::start().await;
    let (_, text) = key(&lab, &lab.token("zoe").await, &["runs:read"]).await;
    let plain = lab.get("/auth/me").signed("x").send().await.refused(401, "unauthorized");
    for wrong in [
        text[..text.len() - 1].to_owned(),
        format!("{text}0"),
        text.replace("ilk_", "ils_"),
        text.to_uppercase(),
        "ilk_".to_owned(),
        format!("ilk_{}", "0".repeat(4000)),
        text.replacen('_', "-", 2),
    ] {
        let told = lab.get("/auth/me").signed(&wrong).send().await.refused(401, "unauthorized");
        assert_eq!(told["detail"], plain["detail"]);
    }
}

#[tokio::test]
async fn the_last_use_of_a_key_is_noted() {
    let lab = Lab::start().await;
    let zoe = lab.token("zoe").await;
    let (_, text) = key(&lab, &zoe, &["runs:read"]).await;
    let noting = lab
        .app
        .identity
        .api_keys
        .clone()
        .note_use_forever(interlock_engine::auth::SystemPermit::root("system"), Duration::from_millis(5));
    let noting = tokio::spawn(noting);
    lab.clock.advance(Duration::from_secs(90));
    let used = lab.now();
    lab.get("/runs").signed(&text).send().await.ok();

    crate::lab::eventually("the last use is stored", async || {
        let listed = lab.get("/auth/keys").signed(&zoe).send().await.ok();
        listed[0]["last_used_at"] == used.to_string()
    })
    .await;
    noting.abort();
    assert!(lab.takes(&text).await);
}

#[tokio::test]
async fn one_principal_has_at_most_32_live_keys() {
    let lab = Lab::start().await;
    let vic = lab.token("vic").await;
    let (id, _) = key(&lab, &vic, &["runs:read"]).await;
    for _ in 1..32 {
        key(&lab, &vic, &["runs:read"]).await;
    }
    make(&lab, &vic, &json!({ "name": "k", "scopes": ["runs:read"] })).await.refused(409, "conflict");
    lab.delete(&format!("/auth/keys/{id}")).signed(&vic).send().await.ok();
    key(&lab, &vic, &["runs:read"]).await;
}

#[tokio::test]
async fn a_custom_role_acts_at_once_and_ends_at_once() {
    let lab = Lab::start().await;
    let ada = lab.token("ada").await;
    let role = json!({ "description": "Washes", "scopes": ["devices:execute:fake/mix", "runs:read"] });
    let made = lab.put("/roles/washer").signed(&ada).json(&role).send().await.ok();
    assert_eq!((&made["scopes"], &made["custom"]), (&role["scopes"], &json!(true)));
    lab.ask("PATCH".parse().expect("method"), "/users/vic")
        .signed(&ada)
        .json(&json!({ "roles": ["viewer", "washer"] }))
        .send()
        .await
        .ok();
    let vic = lab.sign_in("vic").await;
    let mix = || lab.post("/execute/mix").signed(&vic).json(&json!({ "volume": 5 })).send();
    mix().await.ok();
    lab.post("/execute/upload").signed(&vic).json(&json!({})).send().await.refused(403, "forbidden");

    lab.put("/roles/washer").signed(&ada).json(&json!({ "scopes": ["runs:read"] })).send().await.ok();
    mix().await.refused(403, "forbidden");
    lab.put("/roles/washer").signed(&ada).json(&role).send().await.ok();
    mix().await.ok();
    let listed = lab.get("/roles").signed(&ada).send().await.ok();
    assert_eq!(listed["washer"]["custom"], true);
    assert_eq!(listed["operator"]["custom"], false);
    lab.delete("/roles/washer").signed(&ada).send().await.ok();
    mix().await.refused(403, "forbidden");
    lab.delete("/roles/washer").signed(&ada).send().await.refused(404, "role_not_found");
    let entry = lab.trail_of("role.changed").await.remove(0);
    assert_eq!(
        (entry.draft.subject.as_deref(), &entry.draft.details["new_data"]),
        (Some("washer"), &role["scopes"])
    );
    assert_eq!(
        lab.trail_of("role.deleted")
            .await
            .iter()
            .filter(|entry| entry.draft.details["deleted"] == true)
            .count(),
        1
    );
    let lab = lab.restarted().await;
    assert!(lab.get("/roles").signed(&lab.token("ada").await).send().await.ok().get("washer").is_none());
}

#[tokio::test]
async fn a_role_is_named_plainly_and_gives_only_what_there_is_to_give() {
    let lab = Lab::start().await;
    let ada = lab.token("ada").await;
    let put = async |name: &str, scopes: Value| {
        lab.put(&format!("/roles/{name}")).signed(&ada).json(&json!({ "scopes": scopes })).send().await
    };
    for name in ["admin", "operator", "viewer", "auditor", "Washer", "a%20b", "r%C3%A9", &"r".repeat(33)] {
        put(name, json!(["runs:read"])).await.refused(422, "invalid_request");
    }
    for scope in ["admin", "system", "devices:*", "email.read"] {
        put("washer", json!([scope])).await.refused(403, "forbidden");
    }
    put("washer", json!(["no:such"])).await.refused(422, "invalid_request");
    put("washer", json!("runs:read")).await.refused(422, "invalid_request");
    for description in ["x".repeat(501), "a\u{0}b".to_owned()] {
        lab.put("/roles/washer")
            .signed(&ada)
            .json(&json!({ "scopes": [], "description": description }))
            .send()
            .await
            .refused(422, "invalid_request");
    }
    for name in ["ana", "vic", "odo"] {
        lab.put("/roles/washer")
            .signed(&lab.token(name).await)
            .json(&json!({ "scopes": [] }))
            .send()
            .await
            .refused(403, "forbidden");
    }
    assert!(lab.get("/roles").signed(&ada).send().await.ok().get("washer").is_none());
}

#[tokio::test]
async fn a_decision_is_explained_as_it_is_made() {
    let lab = Lab::start().await;
    let ada = lab.token("ada").await;
    let (id, secret) = lab.agent(&["devices:execute:fake/mix", "admin"]).await;
    let token = lab.pair(&id, &secret).await.0;
    let why = async |body: Value| lab.post("/policy/test").signed(&ada).json(&body).send().await;
    for (principal, action, allowed) in [
        ("ana", "mix", true),
        ("ada", "mix", false),
        ("vic", "mix", false),
        ("cal", "calibrate", true),
        ("ana", "calibrate", false),
        (id.as_str(), "mix", true),
        (id.as_str(), "upload", false),
    ] {
        let told = why(json!({ "principal": principal, "action": action })).await.ok();
        assert_eq!(told["allowed"], allowed, "{principal} {action}: {told}");
        assert_eq!(told["by"].is_string(), allowed);
        assert!(told["because"].as_str().is_some_and(|text| !text.is_empty()));
    }
    for (scope, path) in [("audit:read", "/audit"), ("users:read", "/users"), ("runs:read", "/runs")] {
        let told = why(json!({ "principal": id, "scope": scope })).await.ok();
        assert_eq!(told["allowed"], lab.get(path).signed(&token).send().await.status == 200);
    }
    assert_eq!(why(json!({ "principal": id, "scope": "users:manage" })).await.ok()["allowed"], false);
    why(json!({ "principal": "nobody", "scope": "audit:read" })).await.refused(404, "principal_not_found");
    for bad in [
        json!({ "principal": "ana" }),
        json!({ "principal": "ana", "scope": "audit:read", "action": "mix" }),
        json!({ "principal": "ana", "scope": "no:such" }),
        json!({ "scope": "audit:read" }),
    ] {
        why(bad).await.refused(422, "invalid_request");
    }
    lab.post("/policy/test")
        .signed(&lab.token("ana").await)
        .json(&json!({ "principal": "ana", "scope": "audit:read" }))
        .send()
        .await
        .refused(403, "forbidden");
}
