//! Which ways to a token an agent may use, and what it must prove itself with.

use interlock_engine::auth::{AccessRules, ClientPolicy};
use serde_json::{Value, json};

use crate::agents::{set_secret, sign_in};
use crate::assertions::{Pair, assert_with, register};
use crate::lab::{Answer, Lab, SigningKey};
use crate::oauth::{refused, token};

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

async fn edit(lab: &Lab, id: &str, body: &Value) -> Answer {
    lab.put(&format!("/agents/{id}")).signed(&lab.token("zoe").await).json(body).send().await
}

async fn grants(lab: &Lab, id: &str, grants: &[&str]) {
    edit(lab, id, &json!({ "grant_types": grants })).await.ok();
}

async fn refresh(lab: &Lab, token: &str) -> Answer {
    lab.post("/agents/auth/refresh").json(&json!({ "refresh_token": token })).send().await
}

async fn by_secret(lab: &Lab, id: &str, secret: &str) -> Answer {
    token(lab, &[("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)]).await
}

async fn by_refresh(lab: &Lab, id: &str, secret: &str, refresh: &str) -> Answer {
    let pairs = [("grant_type", "refresh_token"), ("refresh_token", refresh)];
    token(lab, &[pairs[0], pairs[1], ("client_id", id), ("client_secret", secret)]).await
}

async fn is_active(lab: &Lab, token: &str) -> bool {
    let reader = lab.agent_token(&["tokens:introspect"]).await;
    let answer = lab.post("/oauth/introspect").signed(&reader).form(&[("token", token)]).send().await.ok();
    answer["active"] == true
}

async fn key_of(lab: &Lab, id: &str) -> Answer {
    let body = json!({ "name": "script", "scopes": ["runs:read"], "agent_id": id });
    lab.post("/auth/keys").signed(&lab.token("zoe").await).json(&body).send().await
}

#[tokio::test]
async fn an_agent_may_use_every_grant_unless_it_is_limited() {
    let lab = Lab::start().await;
    let zoe = lab.token("zoe").await;
    let make = |body: Value| lab.post("/agents").signed(&zoe).json(&body).send();

    let free = make(json!({ "name": "free", "scopes": [] })).await.json();
    let all = json!(["client_credentials", "refresh_token", JWT_BEARER, EXCHANGE]);
    assert_eq!((&free["grant_types"], &free["token_endpoint_auth_method"]), (&all, &Value::Null));

    let few = json!({ "name": "few", "scopes": [], "grant_types": ["refresh_token", "client_credentials", "refresh_token"], "token_endpoint_auth_method": "private_key_jwt" });
    let few = make(few).await.json();
    assert_eq!(few["grant_types"], json!(["client_credentials", "refresh_token"]));
    assert_eq!(few["token_endpoint_auth_method"], "private_key_jwt");
    let entry = lab.trail_of("agent.created").await.pop().expect("an entry");
    assert_eq!(entry.draft.details["grant_types"], few["grant_types"]);
    assert_eq!(entry.draft.details["token_endpoint_auth_method"], "private_key_jwt");

    let id = few["id"].as_str().expect("an id");
    let changed = edit(&lab, id, &json!({ "grant_types": [JWT_BEARER], "token_endpoint_auth_method": null }))
        .await
        .ok();
    assert_eq!(changed["grant_types"], json!([JWT_BEARER]));
    assert_eq!(changed["token_endpoint_auth_method"], Value::Null);
    assert_eq!(lab.get(&format!("/agents/{id}")).signed(&zoe).send().await.ok(), changed);
    let entry = lab.trail_of("agent.updated").await.pop().expect("an entry");
    let details = &entry.draft.details;
    assert_eq!(details["updated_fields"], json!(["grant_types", "token_endpoint_auth_method"]));
    assert_eq!(details["old_data"]["grant_types"], few["grant_types"]);
    assert_eq!(details["new_data"]["grant_types"], json!([JWT_BEARER]));
    lab.assert_chain().await;

    for (body, place) in [
        (json!({ "grant_types": ["refresh_token", "password"] }), json!(["body", "grant_types", "1"])),
        (json!({ "grant_types": [""] }), json!(["body", "grant_types", "0"])),
        (json!({ "grant_types": "refresh_token" }), json!(["body", "grant_types"])),
        (
            json!({ "token_endpoint_auth_method": "client_secret_basic" }),
            json!(["body", "token_endpoint_auth_method"]),
        ),
        (json!({ "token_endpoint_auth_method": "none" }), json!(["body", "token_endpoint_auth_method"])),
        (json!({ "token_endpoint_auth_method": 5 }), json!(["body", "token_endpoint_auth_method"])),
    ] {
        let told = edit(&lab, id, &body).await.refused(422, "invalid_request");
        assert_eq!(told["errors"][0]["loc"], place, "{body}");
        let mut new = body;
        new["name"] = json!("new");
        new["scopes"] = json!([]);
        let told = make(new).await.refused(422, "invalid_request");
        assert_eq!(told["errors"][0]["loc"], place);
    }
}

#[tokio::test]
async fn an_agent_without_refreshing_gets_no_refresh_token_and_the_one_it_has_is_dead() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (access, kept) = lab.pair(&id, &secret).await;
    assert!(is_active(&lab, &kept).await);

    grants(&lab, &id, &["client_credentials"]).await;

    let answer = sign_in(&lab, &id, &secret).await.ok();
    assert_eq!(answer.get("refresh_token"), None);
    assert!(lab.takes(answer["access_token"].as_str().expect("a token")).await);
    assert!(lab.takes(&access).await, "what it may still get goes on");
    refresh(&lab, &kept).await.refused(400, "unauthorized_client");
    refused(&by_refresh(&lab, &id, &secret, &kept).await, 400, "unauthorized_client");
    refused(
        &token(&lab, &[("grant_type", "refresh_token"), ("refresh_token", &kept)]).await,
        400,
        "unauthorized_client",
    );
    assert!(!is_active(&lab, &kept).await);
    // A stranger's or a wrong token is what it was.
    refresh(&lab, &access).await.refused(401, "unauthorized");
    refused(&by_refresh(&lab, &id, &secret, "x.y.z").await, 400, "invalid_grant");
}

#[tokio::test]
async fn an_agent_without_its_own_credentials_as_a_grant_gets_nothing_for_them_and_keeps_nothing() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (access, kept) = lab.pair(&id, &secret).await;
    let pair = Pair::ed();
    register(&lab, &id, &json!([pair.jwk()])).await.ok();
    let by_key = assert_with(&lab, &pair.assertion(&lab, &id, "one")).await.ok();
    let by_key = by_key["access_token"].as_str().expect("a token").to_owned();
    let key = key_of(&lab, &id).await.json()["key"].as_str().expect("a key").to_owned();

    grants(&lab, &id, &["refresh_token", JWT_BEARER, EXCHANGE]).await;

    assert!(!lab.takes(&access).await && !lab.takes(&by_key).await);
    refresh(&lab, &kept).await.refused(400, "unauthorized_client");
    // Twenty times: the right secret is no guess, so nobody has to wait.
    for _ in 0..20 {
        sign_in(&lab, &id, &secret).await.refused(400, "unauthorized_client");
    }
    refused(&by_secret(&lab, &id, &secret).await, 400, "unauthorized_client");
    refused(&assert_with(&lab, &pair.assertion(&lab, &id, "two")).await, 400, "unauthorized_client");
    assert!(lab.takes(&key).await, "an API key is no grant");
    // Who has not proved who it is learns nothing of that.
    sign_in(&lab, &id, "wrong").await.refused(401, "unauthorized");
    refused(&by_secret(&lab, &id, "wrong").await, 400, "invalid_client");
    let entries = lab.trail_of("agent.authenticated").await;
    assert!(entries.iter().any(|entry| entry.draft.details["reason"] == "grant_not_allowed"));

    // Another server that shares the database says the same, and so does this one after a restart.
    let other = lab.beside(SigningKey::new()).await;
    sign_in(&other, &id, &secret).await.refused(400, "unauthorized_client");
    grants(&lab, &id, &["client_credentials", "refresh_token"]).await;
    sign_in(&other, &id, &secret).await.refused(400, "unauthorized_client");
    other.catch_up().await;
    sign_in(&other, &id, &secret).await.ok();
    grants(&lab, &id, &[]).await;
    let lab = lab.restarted().await;
    sign_in(&lab, &id, &secret).await.refused(400, "unauthorized_client");
}

#[tokio::test]
async fn an_agent_that_must_show_a_key_has_nothing_else() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (access, kept) = lab.pair(&id, &secret).await;
    let key = key_of(&lab, &id).await.json()["key"].as_str().expect("a key").to_owned();
    let pair = Pair::ed();
    register(&lab, &id, &json!([pair.jwk()])).await.ok();

    let changed = edit(&lab, &id, &json!({ "token_endpoint_auth_method": "private_key_jwt" })).await.ok();

    assert_eq!((changed["secrets"].as_array().map(Vec::len), &changed["keys"]), (Some(0), &json!(1)));
    assert!(!lab.takes(&access).await && !lab.takes(&key).await);
    refresh(&lab, &kept).await.refused(401, "unauthorized");
    sign_in(&lab, &id, &secret).await.refused(401, "unauthorized");
    refused(&by_secret(&lab, &id, &secret).await, 400, "invalid_client");
    // No way leads back to a secret.
    set_secret(&lab, &id, &json!({})).await.refused(409, "conflict");
    key_of(&lab, &id).await.refused(409, "conflict");
    let answer = assert_with(&lab, &pair.assertion(&lab, &id, "one")).await.ok();
    let own = answer["access_token"].as_str().expect("a token").to_owned();
    assert!(lab.takes(&own).await);
    let body = json!({ "name": "own", "scopes": ["runs:read"] });
    lab.post("/auth/keys").signed(&own).json(&body).send().await.refused(409, "conflict");
    // The same again changes nothing.
    edit(&lab, &id, &json!({ "token_endpoint_auth_method": "private_key_jwt" })).await.ok();
    assert!(lab.takes(&own).await);

    // With a certificate alone the key is worth nothing, and what came of it is dead.
    edit(&lab, &id, &json!({ "token_endpoint_auth_method": "tls_client_auth" })).await.ok();
    assert!(!lab.takes(&own).await);
    refused(&assert_with(&lab, &pair.assertion(&lab, &id, "two")).await, 400, "invalid_client");

    // Whoever allows secrets again begins with a new one.
    edit(&lab, &id, &json!({ "token_endpoint_auth_method": null })).await.ok();
    sign_in(&lab, &id, &secret).await.refused(401, "unauthorized");
    assert!(!lab.takes(&key).await && !lab.takes(&access).await);
    let new = set_secret(&lab, &id, &json!({})).await.ok();
    sign_in(&lab, &id, new["agent_secret"].as_str().expect("a secret")).await.ok();
}

#[tokio::test]
async fn a_server_that_asks_all_agents_for_keys_takes_no_secret_of_any() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (access, kept) = lab.pair(&id, &secret).await;
    let key = key_of(&lab, &id).await.json()["key"].as_str().expect("a key").to_owned();
    let pair = Pair::ed();
    register(&lab, &id, &json!([pair.jwk()])).await.ok();

    let lab = lab
        .restarted_under(AccessRules { clients: ClientPolicy { keys_only: true }, ..AccessRules::default() })
        .await;

    assert!(!lab.takes(&access).await && !lab.takes(&key).await);
    refresh(&lab, &kept).await.refused(400, "unauthorized_client");
    sign_in(&lab, &id, &secret).await.refused(401, "unauthorized");
    refused(&by_secret(&lab, &id, &secret).await, 400, "invalid_client");
    set_secret(&lab, &id, &json!({})).await.refused(409, "conflict");
    key_of(&lab, &id).await.refused(409, "conflict");
    let answer = assert_with(&lab, &pair.assertion(&lab, &id, "one")).await.ok();
    assert!(lab.takes(answer["access_token"].as_str().expect("a token")).await);
    let told = lab.get("/.well-known/oauth-authorization-server").send().await.ok();
    assert_eq!(told["token_endpoint_auth_methods_supported"], json!(["private_key_jwt"]));
    // People are not agents: their passwords and keys go on.
    let zoe = lab.sign_in("zoe").await;
    let body = json!({ "name": "mine", "scopes": ["runs:read"] });
    let own = lab.post("/auth/keys").signed(&zoe).json(&body).send().await.json();
    assert!(lab.takes(own["key"].as_str().expect("a key")).await);

    // The setting taken back, what is in force by itself is in force again.
    let lab = lab.restarted_under(AccessRules::default()).await;
    sign_in(&lab, &id, &secret).await.ok();
}

#[tokio::test]
async fn two_people_make_an_agent_an_administrator() {
    let rules = AccessRules { two_people: true, ..AccessRules::default() };
    let lab = Lab::start().await.restarted_under(rules).await;
    let (ada, zoe) = (lab.sign_in("ada").await, lab.sign_in("zoe").await);
    let put = async |id: &str, by: &str, scopes: Value| {
        let body = json!({ "scopes": scopes });
        lab.put(&format!("/agents/{id}")).signed(by).json(&body).send().await.ok()
    };
    let boss = json!({ "name": "boss", "scopes": ["admin", "tasks:read", "agents:*"] });
    let made = lab.post("/agents").signed(&ada).json(&boss).send().await.json();
    let id = made["id"].as_str().expect("an id");
    assert_eq!((&made["scopes"], &made["waiting_by"]), (&json!(["tasks:read"]), &json!("ada")));
    assert_eq!(made["waiting_scopes"], json!(["admin", "agents:*"]));

    // Asking twice makes nobody two people, and a second person gives what both have asked for.
    let again = put(id, &ada, json!(["admin", "tasks:read"])).await;
    assert_eq!((&again["scopes"], &again["waiting_scopes"]), (&json!(["tasks:read"]), &json!(["admin"])));
    let given = put(id, &zoe, json!(["admin", "keys:manage", "tasks:read"])).await;
    assert_eq!(given["scopes"], json!(["admin", "tasks:read"]));
    assert_eq!((&given["waiting_scopes"], &given["waiting_by"]), (&json!(["keys:manage"]), &json!("zoe")));
    let details = lab.trail_of("agent.updated").await.pop().expect("an entry").draft.details;
    assert_eq!(details["new_data"]["waiting_scopes"], json!(["keys:manage"]));
    // What it has it keeps, and less needs no second person.
    assert_eq!(put(id, &ada, json!(["admin"])).await["waiting_scopes"], json!([]));
    assert_eq!(put(id, &ada, json!([])).await["scopes"], json!([]));

    // A day later, or from somebody who was dismissed, the first word is none.
    put(id, &ada, json!(["admin"])).await;
    lab.clock.advance(std::time::Duration::from_hours(25));
    let (ada, zoe) = (lab.sign_in("ada").await, lab.sign_in("zoe").await);
    assert_eq!(put(id, &zoe, json!(["admin"])).await["scopes"], json!([]));
    assert_eq!(put(id, &ada, json!(["admin"])).await["scopes"], json!(["admin"]));
    let (other, secret) = lab.agent(&["runs:read"]).await;
    put(&other, &ada, json!(["users:read"])).await;
    let gone = json!({ "disabled": true });
    lab.ask("PATCH".parse().expect("a method"), "/users/ada").signed(&zoe).json(&gone).send().await.ok();
    assert_eq!(put(&other, &zoe, json!(["users:read"])).await["waiting_by"], "zoe");

    // Software gives nothing of the kind, whatever it holds.
    let boss = set_secret(&lab, id, &json!({})).await.ok();
    let (boss, _) = lab.pair(id, boss["agent_secret"].as_str().expect("a secret")).await;
    let body = json!({ "scopes": ["users:read", "runs:read"] });
    lab.put(&format!("/agents/{other}")).signed(&boss).json(&body).send().await.refused(403, "forbidden");
    let body = json!({ "name": "heir", "scopes": ["admin"] });
    lab.post("/agents").signed(&boss).json(&body).send().await.refused(403, "forbidden");
    let body = json!({ "name": "helper", "scopes": ["runs:read"] });
    assert_eq!(lab.post("/agents").signed(&boss).json(&body).send().await.status.as_u16(), 201);
    let (token, _) = lab.pair(&other, &secret).await;
    lab.get("/users").signed(&token).send().await.refused(403, "forbidden");
}
