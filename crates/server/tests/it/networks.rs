//! Where administration is allowed: from the listed networks, judged by the resolved address, on every request.

use interlock_engine::auth::AccessRules;
use serde_json::{Value, json};

use crate::lab::{Answer, Lab};

const INSIDE: &str = "192.0.2.7";
const OUTSIDE: &str = "198.51.100.9";

async fn lab() -> Lab {
    let rules = AccessRules {
        admin_networks: vec!["192.0.2.0/24".parse().expect("a network")],
        ..AccessRules::default()
    };
    Lab::start().await.restarted_under(rules).await
}

async fn users(lab: &Lab, token: &str, from: &str) -> Answer {
    lab.get("/users").signed(token).from(from).send().await
}

#[tokio::test]
async fn a_session_administers_where_it_may_and_nowhere_else() {
    let lab = lab().await;
    let token = lab.sign_in("zoe").await;

    users(&lab, &token, INSIDE).await.ok();
    for elsewhere in [OUTSIDE, "127.0.0.1", "192.0.3.1", "2001:db8::1"] {
        let told = users(&lab, &token, elsewhere).await.refused(403, "forbidden");
        assert_eq!(told["detail"], "Administration is not allowed from this network", "{elsewhere}");
    }
    // IPv4 in the clothes of IPv6 is IPv4.
    users(&lab, &token, "::ffff:192.0.2.7").await.ok();
    users(&lab, &token, INSIDE).await.ok();

    let ask = |method: &str, path: &str, body: Value| {
        lab.ask(method.parse().expect("a method"), path).signed(&token).from(OUTSIDE).json(&body).send()
    };
    for (method, path, body) in [
        ("POST", "/users", json!({ "name": "eve", "password": "nine yellow burettes", "roles": ["admin"] })),
        ("PATCH", "/users/ana", json!({ "roles": ["admin"] })),
        ("POST", "/users/ana/reset", json!({ "what": "password" })),
        ("POST", "/agents", json!({ "name": "a", "scopes": ["admin"] })),
        ("PUT", "/roles/all", json!({ "scopes": ["runs:read"] })),
        ("POST", "/tokens/revoke", json!({ "principal": "ana" })),
        ("POST", "/bans", json!({ "network": "203.0.113.0/24", "reason": "scans" })),
        ("GET", "/security/lockouts", json!({})),
    ] {
        ask(method, path, body).await.refused(403, "forbidden");
    }
    // What is asked inside a use case is the same question: nobody else's sessions and keys are seen or ended.
    let other = lab.sign_in("ana").await;
    let seen = ask("GET", "/auth/sessions?all=true", json!({})).await.ok();
    assert!(seen.as_array().expect("sessions").iter().all(|session| session["name"] == "zoe"), "{seen}");
    let all = lab.get("/auth/sessions?all=true").signed(&token).from(INSIDE).send().await.ok();
    let theirs = all.as_array().expect("sessions").iter().find(|session| session["name"] == "ana");
    let theirs = format!("/auth/sessions/{}", theirs.expect("hers")["id"].as_str().expect("an id"));
    ask("DELETE", &theirs, json!({})).await.refused(404, "session_not_found");
    assert!(lab.takes(&other).await);
    // A key that is made out there holds no more than its maker does there.
    let key = json!({ "name": "k", "scopes": ["users:read"] });
    ask("POST", "/auth/keys", key).await.refused(403, "forbidden");
}

#[tokio::test]
async fn what_is_no_administration_works_everywhere_and_so_does_the_stop() {
    let lab = lab().await;
    let token = lab.sign_in("zoe").await;

    lab.get("/runs").signed(&token).from(OUTSIDE).send().await.ok();
    lab.get("/auth/sessions").signed(&token).from(OUTSIDE).send().await.ok();
    lab.post("/stop").signed(&token).from(OUTSIDE).json(&json!({ "reason": "smoke" })).send().await.ok();
    lab.post("/stop/release")
        .signed(&token)
        .from(OUTSIDE)
        .json(&json!({ "reason": "it was steam" }))
        .send()
        .await
        .ok();
    // Nobody is told more or less by signing in from elsewhere.
    let me = lab.get("/auth/me").signed(&token).from(OUTSIDE).send().await.ok();
    let holds = |me: &Value, scope: &str| me["scopes"].as_array().expect("scopes").contains(&json!(scope));
    assert!(!holds(&me, "users:manage") && holds(&me, "runs:read"), "{me}");
    assert_eq!(me["roles"], json!(["admin", "operator", "viewer"]));
}

#[tokio::test]
async fn an_agent_with_admin_is_an_ordinary_one_elsewhere() {
    let lab = lab().await;
    let zoe = lab.sign_in("zoe").await;
    let body = json!({ "name": "boss", "scopes": ["admin", "runs:read"] });
    let made = lab.post("/agents").signed(&zoe).from(INSIDE).json(&body).send().await;
    assert_eq!(made.status.as_u16(), 201, "{}", made.text());
    let id = made.json()["id"].as_str().expect("an id").to_owned();
    let path = format!("/agents/{id}/credentials");
    let secret = lab.post(&path).signed(&zoe).from(INSIDE).send().await.ok();
    let secret = secret["agent_secret"].as_str().expect("a secret");
    let (token, _) = lab.pair(&id, secret).await;

    lab.get("/agents").signed(&token).from(INSIDE).send().await.ok();
    lab.get("/agents").signed(&token).from(OUTSIDE).send().await.refused(403, "forbidden");
    lab.get("/audit").signed(&token).from(OUTSIDE).send().await.refused(403, "forbidden");
    lab.get("/runs").signed(&token).from(OUTSIDE).send().await.ok();
    let key = json!({ "name": "k", "scopes": ["admin"] });
    lab.post("/auth/keys").signed(&token).from(OUTSIDE).json(&key).send().await.refused(403, "forbidden");
    let key = lab.post("/auth/keys").signed(&token).from(INSIDE).json(&key).send().await.json();
    let key = key["key"].as_str().expect("a key");
    lab.get("/agents").signed(key).from(INSIDE).send().await.ok();
    lab.get("/agents").signed(key).from(OUTSIDE).send().await.refused(403, "forbidden");
}

#[tokio::test]
async fn behind_a_proxy_the_client_counts_and_nobody_claims_to_be_inside() {
    let rules = AccessRules {
        admin_networks: vec!["192.0.2.0/24".parse().expect("a network")],
        ..AccessRules::default()
    };
    let lab = Lab::start().await.restarted_with(rules, |config| {
        config.trusted_proxies = vec!["10.0.0.0/8".parse().expect("a network")];
    });
    let lab = lab.await;
    let token = lab.sign_in("zoe").await;
    let through = |proxy: &'static str, client: &'static str| {
        lab.get("/users").signed(&token).from(proxy).header("x-forwarded-for", client).send()
    };

    through("10.0.0.2", INSIDE).await.ok();
    through("10.0.0.2", OUTSIDE).await.refused(403, "forbidden");
    through("10.0.0.2", "192.0.2.7, 198.51.100.9").await.refused(403, "forbidden");
    // What is no listed proxy is believed nothing.
    through(OUTSIDE, INSIDE).await.refused(403, "forbidden");
}
