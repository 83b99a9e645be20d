//! Clients that prove who they are with a key of their own (`private_key_jwt`).

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::lab::{AUDIENCE, Answer, ISSUER, Lab};
use crate::oauth::{refused, token};

const BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A key pair with which a client signs its assertions.
pub(crate) enum Pair {
    Ed(signature::Ed25519KeyPair),
    Ec(signature::EcdsaKeyPair),
    Rsa(signature::RsaKeyPair),
}

impl Pair {
    pub(crate) fn ed() -> Self {
        Self::Ed(signature::Ed25519KeyPair::generate().expect("a key"))
    }

    pub(crate) fn all() -> [Self; 3] {
        let ec =
            signature::EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        let rsa = signature::RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).expect("a key");
        [Self::ed(), Self::Ec(ec), Self::Rsa(rsa)]
    }

    pub(crate) fn alg(&self) -> &'static str {
        match self {
            Self::Ed(_) => "EdDSA",
            Self::Ec(_) => "ES256",
            Self::Rsa(_) => "RS256",
        }
    }

    pub(crate) fn jwk(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Ed(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key().as_ref()) })
            }
            Self::Ec(pair) => {
                let point = pair.public_key().as_ref();
                json!({ "kty": "EC", "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..]) })
            }
            Self::Rsa(pair) => {
                let public = pair.public_key();
                let (n, e) = (public.modulus(), public.exponent());
                json!({ "kty": "RSA", "n": encode(n.big_endian_without_leading_zero()), "e": encode(e.big_endian_without_leading_zero()) })
            }
        }
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let text = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let random = SystemRandom::new();
        let signed = match self {
            Self::Ed(pair) => pair.sign(text.as_bytes()).as_ref().to_vec(),
            Self::Ec(pair) => pair.sign(&random, text.as_bytes()).expect("signed").as_ref().to_vec(),
            Self::Rsa(pair) => {
                let mut out = vec![0; pair.public_modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, text.as_bytes(), &mut out).expect("signed");
                out
            }
        };
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signed))
    }

    fn header(&self) -> Value {
        json!({ "alg": self.alg(), "typ": "JWT" })
    }

    /// A good assertion of this client.
    pub(crate) fn assertion(&self, lab: &Lab, id: &str, jti: &str) -> String {
        self.sign(&self.header(), &good(lab, id, jti))
    }
}

fn good(lab: &Lab, id: &str, jti: &str) -> Value {
    let now = lab.now().seconds();
    json!({ "iss": id, "sub": id, "aud": AUDIENCE, "iat": now, "exp": now + 60, "jti": jti })
}

pub(crate) async fn assert_with(lab: &Lab, assertion: &str) -> Answer {
    token(
        lab,
        &[
            ("grant_type", "client_credentials"),
            ("client_assertion_type", BEARER),
            ("client_assertion", assertion),
        ],
    )
    .await
}

pub(crate) async fn register(lab: &Lab, id: &str, keys: &Value) -> Answer {
    lab.put(&format!("/agents/{id}/keys"))
        .signed(&lab.token("zoe").await)
        .json(&json!({ "keys": keys }))
        .send()
        .await
}

#[tokio::test]
async fn an_assertion_may_name_the_issuer_or_its_token_endpoint_instead() {
    let lab = Lab::start().await;
    let (id, _) = lab.agent(&["runs:read"]).await;
    let pair = Pair::ed();
    register(&lab, &id, &json!([pair.jwk()])).await.ok();

    for (jti, aud, status) in [
        ("one", json!(ISSUER), 200),
        ("two", json!(format!("{ISSUER}/oauth/token")), 200),
        ("three", json!([ISSUER]), 200),
        ("four", json!(format!("{ISSUER}/")), 400),
        ("five", json!(format!("{ISSUER}.evil.example")), 400),
        ("six", json!("/oauth/token"), 400),
    ] {
        let mut claims = good(&lab, &id, jti);
        claims["aud"] = aud.clone();
        let answer = assert_with(&lab, &pair.sign(&pair.header(), &claims)).await;
        assert_eq!(answer.status, status, "{aud}");
    }
}

#[tokio::test]
async fn a_client_proves_itself_with_a_signed_assertion_once() {
    let lab = Lab::start().await;
    for pair in Pair::all() {
        let (id, _) = lab.agent(&["runs:read"]).await;
        assert_eq!(register(&lab, &id, &json!([pair.jwk()])).await.ok()["keys"], 1);
        let assertion = pair.sign(&pair.header(), &good(&lab, &id, "one"));

        let body = assert_with(&lab, &assertion).await.ok();
        assert!(lab.takes(body["access_token"].as_str().expect("a token")).await, "{}", pair.alg());
        refused(&assert_with(&lab, &assertion).await, 400, "invalid_client");

        // Another token of the same id is the same assertion; another id is another.
        let renewed =
            json!({ "exp": lab.now().seconds() + 200, "jti": "one", "iss": id, "sub": id, "aud": AUDIENCE });
        refused(&assert_with(&lab, &pair.sign(&pair.header(), &renewed)).await, 400, "invalid_client");
        for aud in [json!(AUDIENCE), json!([AUDIENCE]), json!(format!("{AUDIENCE}/oauth/token"))] {
            let mut claims = good(&lab, &id, &format!("aud {aud}"));
            claims["aud"] = aud;
            assert_with(&lab, &pair.sign(&pair.header(), &claims)).await.ok();
        }
        // It also authenticates other requests of the client, once.
        let assertion = pair.sign(&pair.header(), &good(&lab, &id, "revoke"));
        let revoke = || {
            lab.post("/oauth/revoke")
                .form(&[("token", "x"), ("client_assertion_type", BEARER), ("client_assertion", &assertion)])
                .send()
        };
        assert_eq!(revoke().await.status, 200);
        refused(&revoke().await, 400, "invalid_client");
    }
    let entries = lab.trail_of("agent.authenticated").await;
    assert!(entries.iter().any(|entry| entry.draft.details["method"] == "private_key_jwt"));
    assert!(entries.iter().any(|entry| entry.draft.details["reason"] == "replayed_assertion"));
}

#[tokio::test]
async fn a_spent_assertion_stays_spent_after_a_restart() {
    let lab = Lab::start().await;
    let pair = Pair::ed();
    let (id, _) = lab.agent(&["runs:read"]).await;
    register(&lab, &id, &json!([pair.jwk()])).await.ok();
    let assertion = pair.sign(&pair.header(), &good(&lab, &id, "one"));
    assert_with(&lab, &assertion).await.ok();

    let lab = lab.restarted().await;

    refused(&assert_with(&lab, &assertion).await, 400, "invalid_client");
}

#[tokio::test]
async fn an_assertion_that_is_not_quite_right_is_refused() {
    let lab = Lab::start().await;
    for pair in [Pair::ed(), Pair::all().into_iter().nth(1).expect("a key")] {
        let (id, _) = lab.agent(&["runs:read"]).await;
        let (other, _) = lab.agent(&["runs:read"]).await;
        register(&lab, &id, &json!([pair.jwk()])).await.ok();
        let now = lab.now().seconds();
        let mut wrong = Vec::new();
        for (name, value) in [
            ("aud", json!("interlock:other")),
            ("aud", json!("interlock")),
            ("aud", json!([AUDIENCE, "https://other.example"])),
            ("aud", json!([])),
            ("aud", json!(format!("https://evil.example/{AUDIENCE}"))),
            ("aud", json!(null)),
            ("iss", json!(other)),
            ("iss", json!("")),
            ("sub", json!(other)),
            ("sub", json!("11111111-2222-4333-8444-555555555555")),
            ("sub", json!(7)),
            ("exp", json!(now - 31)),
            ("exp", json!(now + 331)),
            ("exp", json!(now + 100_000)),
            ("exp", json!("9999999999")),
            ("exp", json!(1.5e300)),
            ("exp", json!(i64::MAX)),
            ("exp", json!(i64::MIN)),
            ("nbf", json!(now + 31)),
            ("iat", json!(now + 31)),
            ("jti", json!("")),
            ("jti", json!("j".repeat(129))),
            ("jti", json!(7)),
        ] {
            let mut claims = good(&lab, &id, &format!("{name} {value}"));
            claims[name] = value.clone();
            wrong.push((format!("{name} {value}"), pair.sign(&pair.header(), &claims)));
        }
        for name in ["iss", "sub", "aud", "exp", "jti"] {
            let mut claims = good(&lab, &id, &format!("without {name}"));
            claims.as_object_mut().expect("an object").remove(name);
            wrong.push((format!("without {name}"), pair.sign(&pair.header(), &claims)));
        }
        let claims = good(&lab, &id, "header");
        for (name, value) in [
            ("crit", json!(["exp"])),
            ("crit", json!([])),
            ("alg", json!("none")),
            ("alg", json!("HS256")),
            ("alg", json!("RS256")),
            ("alg", json!("ES384")),
        ] {
            let mut header = pair.header();
            header[name] = value.clone();
            wrong.push((format!("{name} {value}"), pair.sign(&header, &claims)));
        }
        // A key of one's own in the header is not what was registered.
        let stranger = Pair::ed();
        let mut header = stranger.header();
        header["jwk"] = stranger.jwk();
        wrong.push(("a key in the header".to_owned(), stranger.sign(&header, &claims)));
        wrong.push(("a key that is not registered".to_owned(), stranger.sign(&stranger.header(), &claims)));
        for text in ["", "x", "a.b.c", "...."] {
            wrong.push((text.to_owned(), text.to_owned()));
        }
        wrong.push(("an access token".to_owned(), lab.agent_token(&["runs:read"]).await));
        wrong
            .push(("huge".to_owned(), format!("{}{}", pair.sign(&pair.header(), &claims), "A".repeat(5000))));
        for (at, (name, assertion)) in wrong.iter().enumerate() {
            let answer = lab
                .post("/oauth/token")
                .from(&format!("10.{at}.0.1"))
                .form(&[
                    ("grant_type", "client_credentials"),
                    ("client_assertion_type", BEARER),
                    ("client_assertion", assertion),
                ])
                .send()
                .await;
            assert_eq!(answer.status, 400, "{name}: {}", answer.text());
            refused(&answer, 400, "invalid_client");
        }
        let assertion = pair.sign(&pair.header(), &claims);
        let kind = ("client_assertion_type", BEARER);
        let grant = ("grant_type", "client_credentials");
        refused(&token(&lab, &[grant, ("client_assertion", &assertion)]).await, 400, "invalid_request");
        refused(
            &token(&lab, &[grant, ("client_assertion_type", "saml"), ("client_assertion", &assertion)]).await,
            400,
            "invalid_request",
        );
        refused(
            &token(&lab, &[grant, kind, ("client_assertion", &assertion), ("client_secret", "x")]).await,
            400,
            "invalid_request",
        );
        refused(
            &token(&lab, &[grant, kind, ("client_assertion", &assertion), ("client_id", &other)]).await,
            400,
            "invalid_client",
        );
        // It was good all the time.
        assert_with(&lab, &assertion).await.ok();
    }
}

#[tokio::test]
async fn a_key_that_was_taken_away_proves_nothing() {
    let lab = Lab::start().await;
    let (old, new) = (Pair::ed(), Pair::ed());
    let (id, _) = lab.agent(&["runs:read"]).await;
    register(&lab, &id, &json!([old.jwk(), new.jwk()])).await.ok();
    assert_with(&lab, &old.sign(&old.header(), &good(&lab, &id, "1"))).await.ok();
    assert_with(&lab, &new.sign(&new.header(), &good(&lab, &id, "2"))).await.ok();

    register(&lab, &id, &json!([new.jwk()])).await.ok();
    refused(&assert_with(&lab, &old.sign(&old.header(), &good(&lab, &id, "3"))).await, 400, "invalid_client");
    assert_with(&lab, &new.sign(&new.header(), &good(&lab, &id, "4"))).await.ok();
    lab.delete(&format!("/agents/{id}")).signed(&lab.token("zoe").await).send().await.ok();
    refused(&assert_with(&lab, &new.sign(&new.header(), &good(&lab, &id, "5"))).await, 400, "invalid_client");
}

#[tokio::test]
async fn only_public_keys_of_good_kinds_are_registered() {
    let lab = Lab::start().await;
    let (id, _) = lab.agent(&["runs:read"]).await;
    let [ed, ec, rsa] = Pair::all().map(|pair| pair.jwk());
    let with = |key: &Value, name: &str, value: Value| {
        let mut key = key.clone();
        key[name] = value;
        key
    };
    let short = URL_SAFE_NO_PAD.encode([0xff_u8; 128]);
    for (keys, why) in [
        (json!([with(&ed, "d", json!("AAAA"))]), "a private key"),
        (json!([with(&rsa, "p", json!("AAAA"))]), "half of a private key"),
        (json!([{ "kty": "oct", "k": "AAAA" }]), "a shared secret"),
        (json!([with(&ed, "crv", json!("X25519"))]), "a curve for key exchange"),
        (json!([with(&ec, "crv", json!("P-384"))]), "another curve"),
        (json!([with(&rsa, "n", json!(short))]), "a short modulus"),
        (json!([with(&rsa, "n", json!("A".repeat(4000)))]), "an endless modulus"),
        (json!([with(&ed, "x", json!(7))]), "a number"),
        (json!([with(&ed, "kid", json!("k".repeat(5000)))]), "an endless id"),
        (json!([{}]), "nothing"),
        (json!(["ssh-ed25519 AAAA"]), "a text"),
        (json!([null]), "null"),
        (json!([ed, ed, ed, ed, ed]), "five"),
        (json!({}), "no list"),
    ] {
        let answer = register(&lab, &id, &keys).await;
        assert_eq!(answer.status, 422, "{why}: {}", answer.text());
        assert!(!answer.text().contains("AAAA"), "{why}");
    }
    let private =
        register(&lab, &id, &json!([with(&ed, "d", json!("AAAA"))])).await.refused(422, "invalid_request");
    assert!(private["detail"].as_str().is_some_and(|text| text.contains("private")), "{private}");
    // What is no part of a key is not kept.
    assert_eq!(
        register(&lab, &id, &json!([with(&ed, "x5u", json!("https://evil.example/"))])).await.ok()["keys"],
        1
    );
    assert_eq!(register(&lab, &id, &json!([])).await.ok()["keys"], 0);
    register(&lab, "11111111-2222-4333-8444-555555555555", &json!([])).await.refused(404, "agent_not_found");
}
