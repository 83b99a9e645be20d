//! Tokens of workloads: who may come, and who may not.

use std::collections::BTreeMap;
use std::time::Duration;

use interlock_directory::{Algorithm, Refusal, SubjectRule, TokenFault, WorkloadTrust, Workloads};
use serde_json::{Value, json};

use crate::provider::{Key, NOW, Provider, Reply};
use crate::refused;

const US: &str = "interlock-lab-7";

fn trust(provider: &Provider) -> WorkloadTrust {
    WorkloadTrust {
        issuer: provider.issuer.clone(),
        jwks_uri: None,
        audience: US.to_owned(),
        rules: vec![
            SubjectRule {
                subject: "repo:acme/lab:ref:refs/heads/*".to_owned(),
                claims: BTreeMap::from([("owner_id".to_owned(), "42".to_owned())]),
                principal: "ci".to_owned(),
            },
            SubjectRule {
                subject: "system:serviceaccount:lab:runner".to_owned(),
                claims: BTreeMap::new(),
                principal: "k8s".to_owned(),
            },
        ],
        algorithms: vec![Algorithm::Es256],
        longest: Duration::from_hours(1),
        once: true,
        ca_pem: None,
    }
}

fn token(provider: &Provider, change: impl FnOnce(&mut Value, &mut Value)) -> String {
    let mut header = provider.key.header();
    let mut claims = json!({
        "iss": provider.issuer, "aud": US, "sub": "repo:acme/lab:ref:refs/heads/main", "owner_id": "42", "jti": "j",
        "iat": NOW.seconds(), "exp": NOW.seconds() + 300,
    });
    change(&mut header, &mut claims);
    provider.key.sign(&header, &claims)
}

#[tokio::test]
async fn a_workload_becomes_the_principal_of_its_rule() {
    let provider = Provider::start().await;
    let workloads = Workloads::new(vec![trust(&provider)]).expect("settings");

    let identity = workloads.validate(NOW, &token(&provider, |_, _| {})).await.expect("known");

    assert_eq!((identity.principal.as_str(), identity.once.as_deref()), ("ci", Some("j")));
    assert_eq!(identity.subject, format!("oidc:{}#repo:acme/lab:ref:refs/heads/main", provider.issuer));
    assert_eq!(identity.expires.seconds(), NOW.seconds() + 300);
    let other = token(&provider, |_, claims| claims["sub"] = json!("system:serviceaccount:lab:runner"));
    assert_eq!(workloads.validate(NOW, &other).await.expect("known").principal, "k8s");
    assert_eq!(provider.asked("/keys").len(), 1, "the keys are kept");
}

#[tokio::test]
async fn each_check_of_a_workload_s_token_counts() {
    let provider = Provider::start().await;
    let workloads = Workloads::new(vec![trust(&provider)]).expect("settings");
    let now = NOW.seconds();
    for (name, value, refusal) in [
        ("iss", json!("https://evil.example"), Refusal::Token(TokenFault::Issuer)),
        ("aud", json!("another"), Refusal::Token(TokenFault::Audience)),
        ("sub", json!("repo:acme/lab:pull_request"), Refusal::NoRule),
        ("sub", json!("repo:acme/lab:ref:refs/heads/a/b"), Refusal::NoRule),
        ("owner_id", json!("43"), Refusal::NoRule),
        ("owner_id", json!(42), Refusal::NoRule),
        ("exp", json!(now - 31), Refusal::Token(TokenFault::Expired)),
        ("exp", json!(now + 3601), Refusal::Token(TokenFault::Age)),
        ("iat", json!(now + 31), Refusal::Token(TokenFault::NotYet)),
        ("nbf", json!(now + 31), Refusal::Token(TokenFault::NotYet)),
        ("events", json!({}), Refusal::Token(TokenFault::Kind)),
        ("jti", json!(""), Refusal::Token(TokenFault::Claim)),
        ("jti", json!(7), Refusal::Token(TokenFault::Claim)),
        ("jti", json!("j".repeat(256)), Refusal::Token(TokenFault::Claim)),
    ] {
        let token = token(&provider, |_, claims| claims[name] = value.clone());
        assert_eq!(refused(workloads.validate(NOW, &token).await), refusal, "{name} {value}");
    }
    for (name, value, fault) in [
        ("alg", json!("none"), TokenFault::Algorithm),
        ("alg", json!("EdDSA"), TokenFault::Algorithm),
        ("typ", json!("logout+jwt"), TokenFault::Kind),
        ("crit", json!(["x"]), TokenFault::Critical),
    ] {
        let token = token(&provider, |header, _| header[name] = value.clone());
        assert_eq!(refused(workloads.validate(NOW, &token).await), Refusal::Token(fault), "{name} {value}");
    }
    let forged = Key::es256("one").sign(&provider.key.header(), &json!({"iss": provider.issuer, "aud": US}));
    assert_eq!(refused(workloads.validate(NOW, &forged).await), Refusal::Token(TokenFault::Signature));
}

#[tokio::test]
async fn tokens_of_strangers_cause_no_request() {
    let (provider, stranger) = (Provider::start().await, Provider::start().await);
    let workloads = Workloads::new(vec![trust(&provider)]).expect("settings");

    let result = workloads.validate(NOW, &token(&stranger, |_, _| {})).await;

    assert_eq!(refused(result), Refusal::Token(TokenFault::Issuer));
    assert!(stranger.all_asked().is_empty() && provider.all_asked().is_empty());
}

#[tokio::test]
async fn an_issuer_that_calls_itself_something_else_is_not_trusted() {
    let provider = Provider::start().await;
    let mut metadata = provider.metadata();
    metadata["issuer"] = json!("https://evil.example");
    provider.route("/.well-known/openid-configuration", Reply::Json(200, metadata));
    let workloads = Workloads::new(vec![trust(&provider)]).expect("settings");

    let error = workloads.validate(NOW, &token(&provider, |_, _| {})).await.expect_err("not trusted");

    assert!(error.reason().contains("calls itself"), "{error:?}");
    assert!(provider.asked("/keys").is_empty());
}
