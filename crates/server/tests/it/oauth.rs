//! OAuth as its clients speak it: grants, client authentication, revocation, introspection, metadata and keys.

use aws_lc_rs::signature;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use interlock_model::policy::ROLES;
use serde_json::{Value, json};

use crate::assertions::Pair;
use crate::lab::{AUDIENCE, Answer, ISSUER, Lab, SigningKey, pair_of};

pub(crate) async fn token(lab: &Lab, pairs: &[(&str, &str)]) -> Answer {
    lab.post("/oauth/token").form(pairs).send().await
}

/// An error in the form of RFC 6749 section 5.2.
#[track_caller]
pub(crate) fn refused(answer: &Answer, status: u16, error: &str) -> Value {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    let body = answer.json();
    assert_eq!(body["error"], error, "{body}");
    assert!(body["error_description"].is_string(), "{body}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    body
}

fn basic(id: &str, secret: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")))
}

#[tokio::test]
async fn a_client_gets_a_token_for_its_credentials() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read", "audit:read"]).await;
    let grant = ("grant_type", "client_credentials");

    let by_body = token(&lab, &[grant, ("client_id", &id), ("client_secret", &secret)]).await;
    let by_header =
        lab.post("/oauth/token").header("authorization", basic(&id, &secret)).form(&[grant]).send().await;
    let narrowed =
        token(&lab, &[grant, ("client_id", &id), ("client_secret", &secret), ("scope", "runs:read")]).await;

    for (answer, scope) in
        [(&by_body, "audit:read runs:read"), (&by_header, "audit:read runs:read"), (&narrowed, "runs:read")]
    {
        let body = answer.ok();
        assert_eq!(
            (&body["token_type"], &body["scope"], &body["expires_in"]),
            (&json!("bearer"), &json!(scope), &json!(3600))
        );
        // A client that can ask again needs none (RFC 6749 section 4.4.3).
        assert_eq!(body.get("refresh_token"), None);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert!(lab.takes(body["access_token"].as_str().expect("a token")).await);
    }
    let narrow = narrowed.ok()["access_token"].as_str().expect("a token").to_owned();
    lab.get("/audit").signed(&narrow).send().await.refused(403, "forbidden");
    lab.get("/runs").signed(&narrow).send().await.ok();
    // What is narrow makes nothing wide.
    lab.post("/auth/keys")
        .signed(&narrow)
        .json(&json!({ "name": "k", "scopes": ["audit:read"] }))
        .send()
        .await
        .refused(403, "forbidden");
}

#[tokio::test]
async fn a_client_is_refused_as_the_standard_says() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let grant = ("grant_type", "client_credentials");
    let (me, word) = (("client_id", id.as_str()), ("client_secret", secret.as_str()));

    refused(&token(&lab, &[grant, me, ("client_secret", "wrong")]).await, 400, "invalid_client");
    refused(&token(&lab, &[grant, me]).await, 400, "invalid_client");
    refused(&token(&lab, &[grant, word]).await, 400, "invalid_client");
    refused(&token(&lab, &[grant, ("client_id", "no uuid"), word]).await, 400, "invalid_client");
    refused(
        &token(&lab, &[grant, ("client_id", "11111111-2222-4333-8444-555555555555"), word]).await,
        400,
        "invalid_client",
    );
    refused(&token(&lab, &[grant, me, word, ("scope", "audit:read")]).await, 400, "invalid_scope");
    refused(&token(&lab, &[grant, me, word, ("scope", "no:such")]).await, 400, "invalid_scope");
    refused(&token(&lab, &[grant, me, word, ("scope", "admin")]).await, 400, "invalid_scope");
    for other in [
        "password",
        "authorization_code",
        "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "",
        "Client_Credentials",
    ] {
        refused(&token(&lab, &[("grant_type", other), me, word]).await, 400, "unsupported_grant_type");
    }
    refused(&token(&lab, &[me, word]).await, 400, "invalid_request");
    refused(&token(&lab, &[grant, grant, me, word]).await, 400, "invalid_request");
    refused(&token(&lab, &[grant, me, me, word]).await, 400, "invalid_request");
    refused(&token(&lab, &[grant, me, word, ("x", "1"), ("x", "2")]).await, 400, "invalid_request");
    refused(&token(&lab, &[("grant_type", "refresh_token")]).await, 400, "invalid_request");
    for broken in
        ["grant_type=client_credentials&client_id=%", "grant_type=%ff", "grant_type=%zz", "\u{0}", ""]
    {
        let answer = lab
            .post("/oauth/token")
            .typed("application/x-www-form-urlencoded", broken.to_owned())
            .send()
            .await;
        refused(&answer, 400, "invalid_request");
    }
    lab.post("/oauth/token")
        .json(&json!({ "grant_type": "client_credentials" }))
        .send()
        .await
        .refused(415, "unsupported_media_type");

    let by_header =
        lab.post("/oauth/token").header("authorization", basic(&id, "wrong")).form(&[grant]).send().await;
    refused(&by_header, 401, "invalid_client");
    assert_eq!(by_header.header("www-authenticate"), Some("Basic realm=\"interlock\""));
    for header in [
        "Basic",
        "Basic !!!",
        "Basic YQ==",
        "Bearer x",
        &format!("Basic {}", "A".repeat(9000)),
        &format!("Basic {}", STANDARD.encode(b"\xff:\xfe")),
    ] {
        refused(
            &lab.post("/oauth/token").header("authorization", header).form(&[grant]).send().await,
            401,
            "invalid_client",
        );
    }
    // One way of authentication only, even if both are right.
    let twice = lab
        .post("/oauth/token")
        .header("authorization", basic(&id, &secret))
        .form(&[grant, me, word])
        .send()
        .await;
    refused(&twice, 400, "invalid_request");
    let twice = lab
        .post("/oauth/token")
        .header("authorization", basic(&id, &secret))
        .header("authorization", basic(&id, &secret))
        .form(&[grant])
        .send()
        .await;
    refused(&twice, 400, "invalid_request");
    let differs = lab
        .post("/oauth/token")
        .header("authorization", basic(&id, &secret))
        .form(&[grant, ("client_id", "other")])
        .send()
        .await;
    refused(&differs, 401, "invalid_client");
}

#[tokio::test]
async fn a_client_refreshes_and_only_its_own() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (other, other_secret) = lab.agent(&["runs:read"]).await;
    let (access, refresh) = lab.pair(&id, &secret).await;
    let grant = ("grant_type", "refresh_token");

    refused(
        &token(
            &lab,
            &[grant, ("refresh_token", &refresh), ("client_id", &other), ("client_secret", &other_secret)],
        )
        .await,
        400,
        "invalid_grant",
    );
    refused(&token(&lab, &[grant, ("refresh_token", &access)]).await, 400, "invalid_grant");
    refused(&token(&lab, &[grant, ("refresh_token", "x")]).await, 400, "invalid_grant");
    refused(
        &token(&lab, &[grant, ("refresh_token", &refresh), ("client_id", &id), ("client_secret", "wrong")])
            .await,
        400,
        "invalid_client",
    );
    assert!(lab.takes(&access).await, "none of this was a use");

    let first =
        token(&lab, &[grant, ("refresh_token", &refresh), ("client_id", &id), ("client_secret", &secret)])
            .await
            .ok();
    // A client that proves who it is may repeat from anywhere.
    let again = lab
        .post("/oauth/token")
        .from("10.9.9.9")
        .form(&[grant, ("refresh_token", &refresh), ("client_id", &id), ("client_secret", &secret)])
        .send()
        .await
        .ok();
    assert_eq!(first, again);
    assert!(lab.takes(&pair_of(&first).0).await);
    lab.clock.advance(std::time::Duration::from_secs(11));
    refused(&token(&lab, &[grant, ("refresh_token", &refresh)]).await, 400, "invalid_grant");
    assert!(!lab.takes(&pair_of(&first).0).await);
}

#[tokio::test]
async fn a_client_revokes_its_own_tokens_and_no_others() {
    let lab = Lab::start().await;
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let (other, other_secret) = lab.agent(&["runs:read"]).await;
    let (access, refresh) = lab.pair(&id, &secret).await;
    let revoke = async |text: &str, id: &str, secret: &str| {
        lab.post("/oauth/revoke")
            .form(&[("token", text), ("client_id", id), ("client_secret", secret)])
            .send()
            .await
    };

    refused(&revoke(&access, &id, "wrong").await, 400, "invalid_client");
    refused(
        &lab.post("/oauth/revoke").form(&[("client_id", &id), ("client_secret", &secret)]).send().await,
        400,
        "invalid_request",
    );
    for text in [access.as_str(), &refresh, "junk"] {
        assert_eq!(revoke(text, &other, &other_secret).await.status, 200);
    }
    assert!(lab.takes(&access).await);
    assert_eq!(revoke(&access, &id, &secret).await.status, 200);
    assert!(!lab.takes(&access).await);
    assert_eq!(revoke(&refresh, &id, &secret).await.status, 200);
    lab.post("/agents/auth/refresh")
        .json(&json!({ "refresh_token": refresh }))
        .send()
        .await
        .refused(401, "unauthorized");
}

#[tokio::test]
async fn introspection_tells_what_a_token_is_worth_now() {
    let lab = Lab::start().await;
    let ada = lab.token("ada").await;
    let (id, secret) = lab.agent(&["runs:read", "audit:read"]).await;
    let (access, refresh) = lab.pair(&id, &secret).await;
    let look = async |text: &str| {
        lab.post("/oauth/introspect").signed(&ada).form(&[("token", text)]).send().await.ok()
    };

    let told = look(&access).await;
    assert_eq!(
        (&told["active"], &told["scope"], &told["sub"], &told["client_id"], &told["token_type"]),
        (&json!(true), &json!("audit:read runs:read"), &json!(id), &json!(id), &json!("access"))
    );
    assert_eq!((&told["iss"], &told["aud"]), (&json!(ISSUER), &json!(AUDIENCE)));
    assert_eq!(look(&refresh).await["token_type"], "refresh");
    lab.put(&format!("/agents/{id}"))
        .signed(&lab.token("zoe").await)
        .json(&json!({ "scopes": ["runs:read"] }))
        .send()
        .await
        .ok();
    assert_eq!(look(&access).await["scope"], "runs:read");
    for dead in ["", "x", "a.b.c", &id, &"x".repeat(100_000)] {
        assert_eq!(look(dead).await, json!({ "active": false }));
    }
    lab.post("/agents/auth/revoke").json(&json!({ "token": access })).send().await.ok();
    assert_eq!(look(&access).await, json!({ "active": false }));
    let person = lab.sign_in("ana").await;
    assert_eq!(look(&person).await["sub"], "ana");
    lab.clock.advance(std::time::Duration::from_secs(3630));
    let ada = lab.sign_in("ada").await;
    let late = lab.post("/oauth/introspect").signed(&ada).form(&[("token", &person)]).send().await.ok();
    assert_eq!(late, json!({ "active": false }));
    let own = lab.pair(&id, &secret).await.0;
    lab.post("/oauth/introspect")
        .signed(&own)
        .form(&[("token", &own)])
        .send()
        .await
        .refused(403, "forbidden");
    lab.post("/oauth/introspect").form(&[("token", &own)]).send().await.refused(401, "unauthorized");
}

#[tokio::test]
async fn the_metadata_names_the_address_that_the_server_is_known_by() {
    let lab = Lab::with(|config| config.public_url = Some("https://robot.lab.example".to_owned())).await;

    let told = lab.get("/.well-known/oauth-authorization-server").send().await.ok();

    assert_eq!(told["token_endpoint"], "https://robot.lab.example/oauth/token");
    assert_eq!(told["jwks_uri"], "https://robot.lab.example/oauth/jwks");
    let begun = lab.post("/oauth/device_authorization").form(&[("client_id", "cli")]).send().await.ok();
    assert_eq!(begun["verification_uri"], "https://robot.lab.example/device-code");
}

#[tokio::test]
async fn the_metadata_says_what_is_true() {
    let lab = Lab::signing(SigningKey::new(), |_| {}).await;
    let told = lab.get("/.well-known/oauth-authorization-server").send().await.ok();
    let path = |name: &str| {
        let url = told[name].as_str().unwrap_or_else(|| panic!("{name}: {told}"));
        url.strip_prefix("http://localhost").expect("our own address").to_owned()
    };
    let table = interlock_server::routes(lab.app.clone());
    for (name, method) in [
        ("token_endpoint", "POST"),
        ("revocation_endpoint", "POST"),
        ("introspection_endpoint", "POST"),
        ("jwks_uri", "GET"),
    ] {
        assert!(
            table.table().iter().any(|route| route.path == path(name) && route.method == method),
            "{name}"
        );
    }
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let body =
        token(&lab, &[("grant_type", "client_credentials"), ("client_id", &id), ("client_secret", &secret)])
            .await
            .ok();
    let access = body["access_token"].as_str().expect("a token").to_owned();
    let part = |at: usize| -> Value {
        let part = access.split('.').nth(at).expect("a part");
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64")).expect("json")
    };
    assert_eq!((&part(1)["iss"], &part(1)["aud"]), (&told["issuer"], &told["interlock_audience"]));
    for grant in told["grant_types_supported"].as_array().expect("grants") {
        let answer = token(&lab, &[("grant_type", grant.as_str().expect("a text"))]).await;
        assert_ne!(answer.json()["error"], "unsupported_grant_type", "{grant}");
    }
    let algorithms: Vec<&str> = Pair::all().iter().map(Pair::alg).collect();
    assert_eq!(told["token_endpoint_auth_signing_alg_values_supported"], json!(algorithms));
    for scope in told["scopes_supported"].as_array().expect("scopes") {
        assert!(scope.as_str().expect("a text").parse::<interlock_model::scope::Scope>().is_ok());
    }
    assert!(
        ROLES
            .iter()
            .flat_map(|(_, scopes)| scopes.iter())
            // Tools are as many as there are addresses.
            .filter(|scope| !scope.starts_with("tool:"))
            .all(|scope| told["scopes_supported"].as_array().expect("scopes").contains(&json!(scope)))
    );

    // The published key verifies the token without us.
    let keys = lab.get(&path("jwks_uri")).send().await.ok();
    let key = keys["keys"]
        .as_array()
        .expect("keys")
        .iter()
        .find(|key| key["kid"] == part(0)["kid"])
        .expect("the key")
        .clone();
    let x = URL_SAFE_NO_PAD.decode(key["x"].as_str().expect("x")).expect("base64");
    let (text, mac) = access.rsplit_once('.').expect("a signature");
    let verifier = signature::UnparsedPublicKey::new(&signature::ED25519, x);
    verifier
        .verify(text.as_bytes(), &URL_SAFE_NO_PAD.decode(mac).expect("base64"))
        .expect("the signature is right");
    // With a shared secret there is nothing to publish.
    assert_eq!(Lab::start().await.get("/oauth/jwks").send().await.ok(), json!({ "keys": [] }));
}
