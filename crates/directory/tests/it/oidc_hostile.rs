//! Providers that lie, hang, flood or redirect; each check of a sign-in failed by itself.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use interlock_directory::{DirectoryError, Oidc, Outcome, PendingFlow, Refusal, TokenFault};
use interlock_model::time::TestEntropy;
use jsonwebtoken::EncodingKey;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

use crate::provider::{CLIENT, Key, NOW, Provider, Reply, parameter, unsigned};
use crate::{refused, step};

/// Makes an ID token for a nonce.
type Forge<'a> = Box<dyn Fn(&str) -> String + 'a>;
/// Makes the answer of a browser for a state.
type Query = fn(&str) -> String;
/// Changes claims before they are signed.
type Change = fn(&mut Value);

#[tokio::test]
async fn a_good_answer_signs_in() {
    let provider = Provider::start().await;

    let signed_in = provider.sign_in(|_, _| {}).await.expect("signed in");

    assert_eq!(signed_in.identity.subject, format!("oidc:{}#u-1", provider.issuer));
    assert_eq!(signed_in.identity.name, "ana");
    assert_eq!(signed_in.identity.roles, ["operator"]);
    let sent = &provider.asked("/token")[0].body;
    assert!(
        sent.contains("grant_type=authorization_code")
            && sent.contains("code=c0de")
            && sent.contains("code_verifier=")
    );
    assert!(provider.asked("/me").is_empty(), "the ID token says everything");
}

#[tokio::test]
async fn each_claim_of_an_id_token_is_checked() {
    let hash = URL_SAFE_NO_PAD.encode(&Sha256::digest(b"at")[..16]);
    let code_hash = URL_SAFE_NO_PAD.encode(&Sha256::digest(b"c0de")[..16]);
    let now = NOW.seconds();
    let good: [(&str, Value); 9] = [
        ("at_hash", json!(hash)),
        ("c_hash", json!(code_hash)),
        ("aud", json!([CLIENT])),
        ("azp", json!(CLIENT)),
        ("exp", json!(now - 29)),
        ("iat", json!(now + 30)),
        ("iat", json!(now - 30)),
        ("nbf", json!(now)),
        ("acr", json!("anything")),
    ];
    for (name, value) in good {
        let provider = Provider::start().await;
        let result = provider.sign_in(|_, claims| claims[name] = value.clone()).await;
        assert!(result.is_ok(), "{name} {value}: {result:?}");
    }
    let bad: [(&str, Value, TokenFault); 28] = [
        ("iss", json!("https://evil.example"), TokenFault::Issuer),
        ("iss", Value::Null, TokenFault::Issuer),
        ("aud", json!("another"), TokenFault::Audience),
        ("aud", Value::Null, TokenFault::Audience),
        ("aud", json!([CLIENT, "another"]), TokenFault::AuthorizedParty),
        ("azp", json!("another"), TokenFault::AuthorizedParty),
        ("exp", json!(now - 30), TokenFault::Expired),
        ("exp", json!("9999999999"), TokenFault::Malformed),
        ("exp", Value::Null, TokenFault::Malformed),
        ("iat", json!(now + 31), TokenFault::NotYet),
        ("iat", json!(now - 31), TokenFault::Age),
        ("iat", json!([]), TokenFault::Malformed),
        ("nbf", json!(now + 31), TokenFault::NotYet),
        ("nonce", json!("another"), TokenFault::Nonce),
        ("nonce", json!(""), TokenFault::Nonce),
        ("nonce", Value::Null, TokenFault::Nonce),
        ("at_hash", json!("AAAA"), TokenFault::Hash),
        ("at_hash", json!(7), TokenFault::Hash),
        ("at_hash", Value::Null, TokenFault::Hash),
        ("c_hash", json!("AAAA"), TokenFault::Hash),
        ("c_hash", json!(hash), TokenFault::Hash),
        ("sub", json!(""), TokenFault::Subject),
        ("sub", json!("x".repeat(256)), TokenFault::Subject),
        ("sub", json!("a\nb"), TokenFault::Subject),
        ("sub", json!(7), TokenFault::Subject),
        ("sub", Value::Null, TokenFault::Subject),
        ("events", json!({}), TokenFault::Kind),
        ("events", Value::Null, TokenFault::Kind),
    ];
    for (name, value, fault) in bad {
        let provider = Provider::start().await;
        let result = provider.sign_in(|_, claims| claims[name] = value.clone()).await;
        assert_eq!(refused(result), Refusal::Token(fault), "{name} {value}");
    }
    for (name, fault) in [
        ("iss", TokenFault::Issuer),
        ("aud", TokenFault::Audience),
        ("exp", TokenFault::Expired),
        ("iat", TokenFault::Age),
        ("nonce", TokenFault::Nonce),
        ("sub", TokenFault::Subject),
    ] {
        let provider = Provider::start().await;
        let result =
            provider.sign_in(|_, claims| drop(claims.as_object_mut().expect("claims").remove(name))).await;
        assert_eq!(refused(result), Refusal::Token(fault), "without {name}");
    }
}

#[tokio::test]
async fn each_part_of_a_header_is_checked() {
    for (name, value, fault) in [
        ("alg", json!("none"), TokenFault::Algorithm),
        ("alg", json!("HS256"), TokenFault::Algorithm),
        ("alg", json!("ES384"), TokenFault::Algorithm),
        ("alg", json!("EdDSA"), TokenFault::Algorithm),
        ("alg", json!("RS256"), TokenFault::Algorithm),
        ("kid", json!("another"), TokenFault::UnknownKey),
        ("kid", json!(["one"]), TokenFault::Malformed),
        ("crit", json!(["exp"]), TokenFault::Critical),
        ("crit", json!([]), TokenFault::Critical),
        ("typ", json!("logout+jwt"), TokenFault::Kind),
        ("typ", json!("at+jwt"), TokenFault::Kind),
    ] {
        let provider = Provider::start().await;
        let result = provider.sign_in(|header, _| header[name] = value.clone()).await;
        assert_eq!(refused(result), Refusal::Token(fault), "{name} {value}");
    }
}

#[tokio::test]
async fn tokens_that_the_provider_did_not_sign_are_refused() {
    let provider = Provider::start().await;
    let thief = Key::es256("one");
    let forgeries: Vec<Forge> = vec![
        // Another key under the same id.
        Box::new(|nonce| thief.sign(&provider.key.header(), &provider.claims(nonce))),
        // No signature, and one byte changed.
        Box::new(|nonce| format!("{}.", unsigned(&provider.key.header(), &provider.claims(nonce)))),
        Box::new(|nonce| {
            let token = provider.key.sign(&provider.key.header(), &provider.claims(nonce));
            let other = unsigned(&provider.key.header(), &json!({"sub": "root"}));
            format!("{other}.{}", token.rsplit_once('.').expect("a signature").1)
        }),
    ];
    for forge in forgeries {
        let result = provider.sign_in_with(&provider.oidc(), |nonce| json!({"id_token": forge(nonce)})).await;
        assert_eq!(refused(result), Refusal::Token(TokenFault::Signature));
    }
    // `none`, and HS256 with the public key as the secret.
    let none = |nonce: &str| json!({"id_token": format!("{}.", unsigned(&json!({"alg": "none"}), &provider.claims(nonce)))});
    assert_eq!(
        refused(provider.sign_in_with(&provider.oidc(), none).await),
        Refusal::Token(TokenFault::Algorithm)
    );
    let confused = |nonce: &str| {
        let text = unsigned(&json!({"alg": "HS256", "kid": "one"}), &provider.claims(nonce));
        let secret = EncodingKey::from_secret(provider.key.public());
        let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &secret, jsonwebtoken::Algorithm::HS256);
        json!({"id_token": format!("{text}.{}", signature.expect("signed"))})
    };
    assert_eq!(
        refused(provider.sign_in_with(&provider.oidc(), confused).await),
        Refusal::Token(TokenFault::Algorithm)
    );
}

#[tokio::test]
async fn keys_and_addresses_inside_a_token_are_not_looked_at() {
    let provider = Provider::start().await;
    let trap = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://127.0.0.1:{}/keys", trap.local_addr().expect("an address").port());
    let thief = Key::es256("theirs");
    let header = json!({"alg": "ES256", "kid": "theirs", "jku": address, "x5u": address, "jwk": thief.jwk()});

    let result = provider
        .sign_in_with(
            &provider.oidc(),
            |nonce| json!({"id_token": thief.sign(&header, &provider.claims(nonce))}),
        )
        .await;

    assert_eq!(refused(result), Refusal::Token(TokenFault::UnknownKey));
    let claims_elsewhere = provider
        .sign_in(|_, claims| {
            claims.as_object_mut().expect("claims").remove("groups");
            claims["_claim_names"] = json!({"groups": "src1"});
            claims["_claim_sources"] = json!({"src1": {"endpoint": address}});
        })
        .await;
    // The user info endpoint is asked for what is missing, and is not there.
    assert!(matches!(claims_elsewhere, Err(DirectoryError::Misconfigured(_))), "{claims_elsewhere:?}");
    let nobody = tokio::time::timeout(Duration::from_millis(50), trap.accept()).await;
    assert!(nobody.is_err(), "an address out of a token was asked");
}

#[tokio::test]
async fn a_code_of_another_sign_in_or_another_provider_is_never_sent() {
    let provider = Provider::start().await;
    let oidc = provider.oidc();
    provider.route("/token", Reply::Json(200, json!({})));
    for (query, refusal) in [
        ("code=c".to_owned(), Refusal::State),
        (provider.query("foreign"), Refusal::State),
        (provider.query(""), Refusal::State),
    ] {
        let begun = oidc.begin(NOW, &TestEntropy::seeded(1)).await.expect("begun");
        assert_eq!(
            refused(oidc.finish(NOW, &TestEntropy::seeded(2), begun.flow, &query).await),
            refusal,
            "{query}"
        );
    }
    let cases: [(Query, Refusal); 4] = [
        (|state| format!("code=c&state={state}"), Refusal::Issuer),
        (|state| format!("code=c&state={state}&iss=https%3A%2F%2Fevil.example"), Refusal::Issuer),
        (|state| format!("code=c&code=d&state={state}"), Refusal::Callback),
        (|state| format!("state={state}"), Refusal::Issuer),
    ];
    for (query, refusal) in cases {
        let begun = oidc.begin(NOW, &TestEntropy::seeded(1)).await.expect("begun");
        let query = query(&parameter(&begun, "state"));
        assert_eq!(
            refused(oidc.finish(NOW, &TestEntropy::seeded(2), begun.flow, &query).await),
            refusal,
            "{query}"
        );
    }
    let begun = oidc.begin(NOW, &TestEntropy::seeded(1)).await.expect("begun");
    let query = provider.query(&parameter(&begun, "state"));
    let late = begun.flow.expires();
    assert_eq!(
        refused(oidc.finish(late, &TestEntropy::seeded(2), begun.flow, &query).await),
        Refusal::FlowExpired
    );
    assert!(provider.asked("/token").is_empty(), "a code left the house");
}

#[tokio::test]
async fn a_used_code_is_refused_and_never_tried_again() {
    let provider = Provider::start().await;
    let oidc = provider.oidc();
    provider.route(
        "/token",
        Reply::Json(400, json!({"error": "invalid_grant", "error_description": "code was used"})),
    );
    let begun = oidc.begin(NOW, &TestEntropy::seeded(1)).await.expect("begun");
    let query = provider.query(&parameter(&begun, "state"));

    let result = oidc.finish(NOW, &TestEntropy::seeded(2), begun.flow, &query).await;

    assert_eq!(refused(result), Refusal::Code);
    assert_eq!(provider.asked("/token").len(), 1);
}

#[tokio::test]
async fn errors_of_a_provider_are_told_apart_and_its_words_are_not_repeated() {
    let provider = Provider::start().await;
    let oidc = provider.oidc();
    for (error, expected) in [
        ("access_denied", "refused"),
        ("login_required", "refused"),
        ("<script>", "refused"),
        ("server_error", "unavailable"),
        ("invalid_scope", "misconfigured"),
    ] {
        let begun = oidc.begin(NOW, &TestEntropy::seeded(1)).await.expect("begun");
        let state = parameter(&begun, "state");
        let query = format!("error={error}&error_description=hunter2&state={state}&iss={}", provider.issuer);
        let error =
            oidc.finish(NOW, &TestEntropy::seeded(2), begun.flow, &query).await.expect_err("an error");
        let kind = match &error {
            DirectoryError::Refused(_) => "refused",
            DirectoryError::Unavailable(_) => "unavailable",
            DirectoryError::Misconfigured(_) => "misconfigured",
        };
        assert_eq!(kind, expected);
        assert!(!format!("{error:?} {}", error.reason()).contains("hunter2"));
    }
    for (status, body) in [
        (401, json!({"error": "invalid_client"})),
        (200, json!({"token_type": "Bearer", "access_token": "at"})),
        (200, json!({"token_type": "mac", "id_token": "x"})),
        (200, json!([])),
        (404, json!({})),
    ] {
        provider.route("/token", Reply::Json(status, body));
        let begun = oidc.begin(NOW, &TestEntropy::seeded(1)).await.expect("begun");
        let query = provider.query(&parameter(&begun, "state"));
        let error =
            oidc.finish(NOW, &TestEntropy::seeded(2), begun.flow, &query).await.expect_err("an error");
        assert!(matches!(error, DirectoryError::Misconfigured(_)), "{status}: {error:?}");
    }
}

#[tokio::test]
async fn endpoints_that_redirect_hang_flood_or_break_end_the_sign_in_in_bounded_time_and_space() {
    let trap = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let to = format!("http://127.0.0.1:{}/", trap.local_addr().expect("an address").port());
    let gigabyte = 1 << 30;
    let replies = [
        (Reply::Redirect(to), "redirects, which is not followed"),
        (Reply::Long(gigabyte, true), "longer than 65536 bytes"),
        (Reply::Long(gigabyte, false), "longer than 65536 bytes"),
        (Reply::Silence, "no answer"),
        (Reply::Json(503, json!({})), "503"),
        (Reply::Json(200, json!([])), ""),
    ];
    for path in ["/.well-known/openid-configuration", "/keys", "/token"] {
        for (reply, says) in &replies {
            let provider = Provider::start().await;
            let mut config = provider.config();
            let silent = matches!(reply, Reply::Silence);
            config.timeout = Duration::from_millis(if silent { 500 } else { 20_000 });
            let oidc = Oidc::new(config).expect("settings");
            let begun = if path.ends_with("configuration") {
                None
            } else {
                oidc.begin(NOW, &TestEntropy::seeded(1)).await.ok()
            };
            let nonce = begun.as_ref().map_or_else(String::new, |begun| parameter(begun, "nonce"));
            let token = provider.key.sign(&provider.key.header(), &provider.claims(&nonce));
            provider.route("/token", Reply::Json(200, json!({"id_token": token})));
            provider.route(path, reply.clone());

            let result = tokio::time::timeout(Duration::from_mins(1), async {
                let Some(begun) = begun else {
                    return oidc.begin(NOW, &TestEntropy::seeded(1)).await.map(|_| ());
                };
                let query = provider.query(&parameter(&begun, "state"));
                oidc.finish(NOW, &TestEntropy::seeded(2), begun.flow, &query).await.map(|_| ())
            });

            match result.await.expect("it ends") {
                Err(DirectoryError::Unavailable(reason) | DirectoryError::Misconfigured(reason)) => {
                    assert!(reason.contains(says), "{path}: {reason}");
                }
                other => panic!("{path} {says}: {other:?}"),
            }
        }
    }
    let nobody = tokio::time::timeout(Duration::from_millis(50), trap.accept()).await;
    assert!(nobody.is_err(), "a redirect was followed");
}

#[tokio::test]
async fn a_discovery_that_lies_is_not_believed() {
    for (name, value) in [
        ("issuer", json!("https://accounts.other.example")),
        ("token_endpoint", json!("http://192.0.2.1/token")),
        ("token_endpoint", json!("http://127.0.0.1@192.0.2.1/token")),
        ("authorization_endpoint", json!("javascript:alert(1)")),
        ("jwks_uri", json!("file:///etc/passwd")),
        ("jwks_uri", Value::Null),
    ] {
        let provider = Provider::start().await;
        let mut metadata = provider.metadata();
        metadata[name] = value;
        provider.route("/.well-known/openid-configuration", Reply::Json(200, metadata));

        let error = provider.oidc().begin(NOW, &TestEntropy::seeded(1)).await.expect_err(name);

        assert!(matches!(error, DirectoryError::Misconfigured(_)), "{name}: {error:?}");
    }
}

#[tokio::test]
async fn keys_are_fetched_again_for_a_new_key_and_not_for_every_token_that_names_one() {
    let provider = Provider::start().await;
    let oidc = provider.oidc();
    let next = Key::eddsa("two");
    let good =
        |nonce: &str| json!({"id_token": provider.key.sign(&provider.key.header(), &provider.claims(nonce))});
    let of_next = |nonce: &str| json!({"id_token": next.sign(&next.header(), &provider.claims(nonce))});
    provider.sign_in_with(&oidc, good).await.expect("signed in");
    assert_eq!(provider.asked("/keys").len(), 1);

    // A flood of tokens with keys that do not exist: nothing is asked, because the last answer is less than a minute old.
    for number in 0..50 {
        let claims = json!({"iss": provider.issuer});
        let token =
            next.sign(&json!({"alg": "EdDSA", "typ": "logout+jwt", "kid": format!("k{number}")}), &claims);
        assert_eq!(
            refused(oidc.back_channel_logout(NOW, &token).await),
            Refusal::Token(TokenFault::UnknownKey)
        );
    }
    assert_eq!(provider.asked("/keys").len(), 1);

    provider.route("/keys", Reply::Json(200, json!({"keys": [provider.key.jwk(), next.jwk()]})));
    let fresh = provider.oidc();
    provider.sign_in_with(&fresh, of_next).await.expect("signed in with the new key");
    assert_eq!(provider.asked("/.well-known/openid-configuration").len(), 2, "one for each of the two");
}

#[tokio::test]
async fn the_user_info_counts_for_the_same_subject_only() {
    let missing =
        |_: &mut Value, claims: &mut Value| drop(claims.as_object_mut().expect("claims").remove("groups"));
    let provider = Provider::start().await;
    provider.route(
        "/me",
        Reply::Json(200, json!({"sub": "u-1", "groups": ["lab-ops"], "preferred_username": "root"})),
    );

    let identity = provider.sign_in(missing).await.expect("signed in").identity;

    assert_eq!((identity.name.as_str(), identity.roles.len()), ("ana", 1), "the ID token goes first");
    assert!(provider.asked("/me")[0].head.to_ascii_lowercase().contains("authorization: bearer at"));

    for body in [json!({"sub": "u-2", "groups": ["lab-ops"]}), json!({"groups": ["lab-ops"]})] {
        provider.route("/me", Reply::Json(200, body));
        assert_eq!(refused(provider.sign_in(missing).await), Refusal::UserInfo);
    }
}

#[tokio::test]
async fn an_address_that_nobody_checked_is_no_name() {
    let provider = Provider::start().await;
    for (verified, name) in [
        (json!(true), "ana@lab.example"),
        (json!(false), "u-1"),
        (json!("true"), "u-1"),
        (Value::Null, "u-1"),
    ] {
        for claim in ["preferred_username", "email"] {
            let mut config = provider.config();
            config.username_claim = claim.to_owned();
            let oidc = Oidc::new(config).expect("settings");
            provider.route("/me", Reply::Json(200, json!({"sub": "u-1"})));
            let result = provider
                .sign_in_with(&oidc, |nonce| {
                    let mut claims = provider.claims(nonce);
                    claims.as_object_mut().expect("claims").remove("preferred_username");
                    claims["email"] = json!("ana@lab.example");
                    claims["email_verified"] = verified.clone();
                    json!({"access_token": "at", "id_token": provider.key.sign(&provider.key.header(), &claims)})
                })
                .await;
            assert_eq!(result.expect("signed in").identity.name, name, "{claim} {verified}");
        }
    }
}

#[tokio::test]
async fn a_context_that_is_asked_for_must_be_there() {
    let provider = Provider::start().await;
    let mut config = provider.config();
    config.required_acr = vec!["urn:mfa".to_owned()];
    let oidc = Oidc::new(config).expect("settings");
    for (acr, accepted) in [(json!("urn:mfa"), true), (json!("urn:pwd"), false), (Value::Null, false)] {
        let result = provider
            .sign_in_with(&oidc, |nonce| {
                let mut claims = provider.claims(nonce);
                claims["acr"] = acr.clone();
                json!({"id_token": provider.key.sign(&provider.key.header(), &claims)})
            })
            .await;
        match result {
            Ok(_) => assert!(accepted, "{acr}"),
            Err(error) => {
                assert!(
                    !accepted
                        && matches!(error, DirectoryError::Refused(Refusal::Token(TokenFault::Context))),
                    "{error:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn only_the_provider_s_order_to_sign_out_is_obeyed_and_only_once() {
    let provider = Provider::start().await;
    let oidc = provider.oidc();
    let event = "http://schemas.openid.net/event/backchannel-logout";
    let order = |header: Value, change: &dyn Fn(&mut Value)| {
        let mut claims = json!({
            "iss": provider.issuer, "aud": CLIENT, "iat": NOW.seconds(), "exp": NOW.seconds() + 120, "jti": "j1",
            "sub": "u-1", "sid": "s1", "events": {event: {}},
        });
        change(&mut claims);
        provider.key.sign(&header, &claims)
    };
    let header = json!({"alg": "ES256", "kid": "one", "typ": "logout+jwt"});
    let good = order(header.clone(), &|_| {});

    let logout = oidc.back_channel_logout(NOW, &good).await.expect("an order");
    assert_eq!(logout.subject, Some(format!("oidc:{}#u-1", provider.issuer)));
    assert_eq!(logout.sid.as_deref(), Some("s1"));
    assert_eq!(refused(oidc.back_channel_logout(NOW, &good).await), Refusal::Replayed);

    let plain = json!({"alg": "ES256", "kid": "one"});
    assert_eq!(
        refused(oidc.back_channel_logout(NOW, &order(plain, &|_| {})).await),
        Refusal::Token(TokenFault::Kind)
    );
    let cases: [(Change, TokenFault); 12] = [
        (|c| c["iss"] = json!("https://evil.example"), TokenFault::Issuer),
        (|c| c["aud"] = json!("another"), TokenFault::Audience),
        (|c| c["nonce"] = json!("x"), TokenFault::Nonce),
        (|c| c["nonce"] = Value::Null, TokenFault::Nonce),
        (|c| drop(c.as_object_mut().expect("claims").remove("events")), TokenFault::Event),
        (|c| c["events"] = json!({"other": {}}), TokenFault::Event),
        (|c| c["events"] = json!(["http://schemas.openid.net/event/backchannel-logout"]), TokenFault::Event),
        (|c| c["exp"] = json!(NOW.seconds() - 31), TokenFault::Expired),
        (|c| c["exp"] = json!(NOW.seconds() + 3600), TokenFault::Age),
        (|c| drop(c.as_object_mut().expect("claims").remove("jti")), TokenFault::Claim),
        (|c| c["sub"] = json!(""), TokenFault::Subject),
        (
            |c| {
                c.as_object_mut().expect("claims").remove("sub");
                c["sid"] = json!("");
            },
            TokenFault::Subject,
        ),
    ];
    for (number, (change, fault)) in cases.into_iter().enumerate() {
        let token = order(header.clone(), &change);
        assert_eq!(refused(oidc.back_channel_logout(NOW, &token).await), Refusal::Token(fault), "{number}");
    }
    // An ID token of a sign-in must not sign anybody out.
    let id_token = provider.key.sign(&provider.key.header(), &provider.claims("n"));
    assert_eq!(refused(oidc.back_channel_logout(NOW, &id_token).await), Refusal::Token(TokenFault::Kind));
    let forged = Key::es256("one").sign(&header, &json!({"iss": provider.issuer}));
    assert_eq!(refused(oidc.back_channel_logout(NOW, &forged).await), Refusal::Token(TokenFault::Signature));
}

#[tokio::test]
async fn a_test_names_what_is_wrong_with_client_and_address() {
    let provider = Provider::start().await;
    let examine = async || provider.oidc().test(NOW, &TestEntropy::seeded(1)).await;

    provider.route("/token", Reply::Json(401, json!({"error": "invalid_client"})));
    let (steps, begun) = examine().await;
    assert_eq!(step(&steps, "client").outcome, Outcome::Failed);
    assert!(begun.is_none());

    provider.route("/token", Reply::Json(400, json!({"error": "invalid_grant"})));
    let (steps, _) = examine().await;
    assert!(
        step(&steps, "sign-in page").remedy.as_ref().is_some_and(|text| text.contains("OIDC_REDIRECT_URI")),
        "{steps:#?}"
    );

    provider.route(
        "/auth",
        Reply::Redirect("https://lab.example/cb?error=invalid_scope&error_description=hunter2".to_owned()),
    );
    let (steps, _) = examine().await;
    assert!(step(&steps, "sign-in page").detail.contains("invalid_scope"), "{steps:#?}");
    assert!(!format!("{steps:?}").contains("hunter2"));

    provider.route("/auth", Reply::Redirect(format!("{}/login", provider.issuer)));
    let (steps, begun) = examine().await;
    assert_eq!(step(&steps, "sign-in page").outcome, Outcome::Passed);
    assert!(begun.is_some());

    provider.route("/keys", Reply::Json(200, json!({"keys": []})));
    let (steps, _) = examine().await;
    assert_eq!(steps.last().map(|step| (step.name, step.outcome)), Some(("keys", Outcome::Failed)));
}

#[tokio::test]
async fn nothing_secret_shows_in_what_is_printed() {
    let provider = Provider::start().await;
    let begun = provider.oidc().begin(NOW, &TestEntropy::seeded(1)).await.expect("begun");
    let secrets = [parameter(&begun, "state"), parameter(&begun, "nonce")];

    let shown = format!("{:?}", begun.flow);
    assert!(secrets.iter().all(|secret| !shown.contains(secret)), "{shown}");
    let back = PendingFlow::from_stored(&begun.flow.into_stored()).expect("a flow");
    assert!(secrets.iter().all(|secret| !format!("{back:?}").contains(secret)));
    assert_eq!(provider.all_asked(), ["/.well-known/openid-configuration"]);
}
