//! Tokens that are nearly right. Each is refused, in the same words.

use std::collections::BTreeSet;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::lab::{Lab, SECRET, SigningKey};

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn mac(key: &[u8], text: &str) -> String {
    encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()))
}

/// Makes tokens with the server's own key, so that only what is changed can be why they are refused.
struct Mint {
    key: SigningKey,
    header: Value,
    claims: Value,
    token: String,
    refresh: String,
}

impl Mint {
    async fn of(lab: &Lab) -> Self {
        let (id, secret) = lab.agent(&["runs:read", "audit:read"]).await;
        let (token, refresh) = lab.pair(&id, &secret).await;
        let part = |at: usize| -> Value {
            let part = token.split('.').nth(at).expect("three parts");
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64")).expect("json")
        };
        Self { key: lab.key.clone(), header: part(0), claims: part(1), token: token.clone(), refresh }
    }

    fn signature(&self, text: &str) -> String {
        match &self.key {
            SigningKey::Secret(secret) => mac(secret.as_bytes(), text),
            SigningKey::Ed25519(pkcs8) => {
                encode(Ed25519KeyPair::from_pkcs8(pkcs8).expect("a key").sign(text.as_bytes()))
            }
        }
    }

    /// A token of exactly these texts, rightly signed.
    fn raw(&self, header: &str, claims: &str) -> String {
        let text = format!("{}.{}", encode(header), encode(claims));
        let signature = self.signature(&text);
        format!("{text}.{signature}")
    }

    /// The good token with these claims instead; null does not take one away.
    fn claims(&self, change: &Value) -> String {
        let mut claims = self.claims.clone();
        for (name, value) in change.as_object().expect("an object") {
            claims[name] = value.clone();
        }
        self.raw(&self.header.to_string(), &claims.to_string())
    }

    fn without(&self, name: &str) -> String {
        let mut claims = self.claims.clone();
        claims.as_object_mut().expect("an object").remove(name).expect("the claim");
        self.raw(&self.header.to_string(), &claims.to_string())
    }

    /// The good token with these header members instead.
    fn header(&self, change: &Value) -> String {
        let mut header = self.header.clone();
        for (name, value) in change.as_object().expect("an object") {
            header[name] = value.clone();
        }
        self.raw(&header.to_string(), &self.claims.to_string())
    }
}

type Mutations = Vec<(String, String)>;

#[expect(clippy::too_many_lines, reason = "a table")]
fn headers(mint: &Mint, other: &Mint, public: &[u8]) -> Mutations {
    let mut all = Mutations::new();
    let (_, rest) = mint.token.split_once('.').expect("parts");
    let payload = rest.split('.').next().expect("a payload");
    for alg in [
        "none", "None", "nOnE", "NONE", "", "HS384", "HS512", "RS256", "RS384", "PS256", "ES256", "ES384",
        "eddsa", "hs256", "Ed25519", "HS256 ", "dir",
    ] {
        all.push((format!("alg {alg}"), mint.header(&json!({ "alg": alg }))));
        let unsigned = format!("{}.{payload}.", encode(json!({ "alg": alg, "typ": "at+jwt" }).to_string()));
        all.push((format!("alg {alg}, unsigned"), unsigned));
    }
    for alg in [json!(null), json!(["EdDSA", "HS256"]), json!({}), json!(7), json!(true)] {
        all.push((format!("alg {alg}"), mint.header(&json!({ "alg": alg }))));
    }
    // The public key as a shared secret, in every form in which somebody may hold it.
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(public));
    for (form, secret) in [
        ("raw", public.to_vec()),
        ("hex", interlock_model::id::hexadecimal(public).into_bytes()),
        ("base64", encode(public).into_bytes()),
        ("pem", pem.into_bytes()),
        ("empty", Vec::new()),
    ] {
        for kid in [mint.header["kid"].clone(), other.header["kid"].clone()] {
            let text = format!(
                "{}.{payload}",
                encode(json!({ "alg": "HS256", "typ": "at+jwt", "kid": kid }).to_string())
            );
            all.push((
                format!("HS256 with the public key, {form}, {kid}"),
                format!("{text}.{}", mac(&secret, &text)),
            ));
        }
    }
    for kid in [
        json!("../../../../dev/null"),
        json!("/dev/null"),
        json!("keys/token-signing.pk8"),
        json!("' OR '1'='1"),
        json!("x' UNION SELECT 'a"),
        json!("; DROP TABLE identity"),
        json!("https://evil.example/jwks.json"),
        json!("file:///etc/passwd"),
        json!(""),
        json!("\u{0}"),
        json!("é"),
        json!("k".repeat(2000)),
        json!(0),
        json!(-1),
        json!(true),
        json!({}),
        json!([mint.header["kid"]]),
        json!("0000000000000000"),
        json!(format!("{} ", mint.header["kid"].as_str().expect("a kid"))),
        json!(mint.header["kid"].as_str().expect("a kid").to_uppercase() + "A"),
    ] {
        all.push((format!("kid {kid:.40}"), mint.header(&json!({ "kid": kid }))));
    }
    let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(public) });
    for (member, value) in [
        ("jku", json!("https://evil.example/jwks.json")),
        ("jwk", jwk),
        ("x5u", json!("https://evil.example/chain.pem")),
        ("x5c", json!([STANDARD.encode(public)])),
        ("x5t", json!("AAAA")),
        ("crit", json!(["exp"])),
        ("crit", json!([])),
        ("b64", json!(false)),
        ("cty", json!("JWT")),
        ("zip", json!("DEF")),
        ("enc", json!("A256GCM")),
        ("epk", json!({})),
        ("url", json!("x")),
        ("nonce", json!("x")),
        ("exp", json!(1)),
        ("unknown", json!(null)),
    ] {
        all.push((format!("header member {member} {value:.20}"), mint.header(&json!({ member: value }))));
    }
    for typ in [
        json!("rt+jwt"),
        json!("at+JWT"),
        json!("AT+JWT"),
        json!("jwt"),
        json!("application/at+jwt"),
        json!("secevent+jwt"),
        json!("dpop+jwt"),
        json!(""),
        json!(1),
        json!(["JWT"]),
    ] {
        all.push((format!("typ {typ}"), mint.header(&json!({ "typ": typ }))));
    }
    let claims = mint.claims.to_string();
    let inner = mint.header.to_string();
    let inner = inner.trim_matches(['{', '}']);
    for (name, text) in [
        ("an array", "[]".to_owned()),
        ("null", "null".to_owned()),
        ("a text", "\"EdDSA\"".to_owned()),
        ("nothing", String::new()),
        ("an empty object", "{}".to_owned()),
        ("no json", "{alg:EdDSA}".to_owned()),
        ("alg twice, wrong first", format!("{{\"alg\":\"none\",{inner}}}")),
        ("alg twice, wrong last", format!("{{{inner},\"alg\":\"none\"}}")),
        ("alg twice, both right", format!("{{{inner},\"alg\":{}}}", mint.header["alg"])),
        ("kid twice", format!("{{{inner},\"kid\":{}}}", mint.header["kid"])),
        ("something after it", format!("{{{inner}}}{{}}")),
        ("a byte order mark", format!("\u{feff}{{{inner}}}")),
        ("deep", format!("{{{inner},\"x\":{}1{}}}", "[".repeat(200), "]".repeat(200))),
    ] {
        all.push((format!("header: {name}"), mint.raw(&text, &claims)));
    }
    all
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn claims(mint: &Mint, other: &Mint) -> Mutations {
    let mut all = Mutations::new();
    for name in [
        "sub",
        "type",
        "principal",
        "scopes",
        "fam",
        "auth_time",
        "amr",
        "iat",
        "nbf",
        "exp",
        "jti",
        "iss",
        "aud",
        "epo",
    ] {
        all.push((format!("without {name}"), mint.without(name)));
        let text = mint.claims[name].is_string();
        let wrong = [
            json!(null),
            json!(1.5),
            json!(true),
            json!({}),
            json!([7]),
            json!([[]]),
            json!(1e300),
            json!(-1e300),
            if text { json!(5) } else { json!("9999999999") },
        ];
        for value in wrong {
            all.push((format!("{name} is {value}"), mint.claims(&json!({ name: value }))));
        }
    }
    let now = mint.claims["iat"].as_i64().expect("iat");
    for (name, value) in [
        ("exp", json!(now - 31)),
        ("exp", json!(0)),
        ("exp", json!(-1)),
        ("exp", json!(i64::MIN)),
        ("nbf", json!(now + 31)),
        ("nbf", json!(i64::MAX)),
        ("iat", json!(now + 31)),
        ("iat", json!(i64::MAX)),
        ("exp", json!(format!("{}", now + 1000))),
        ("exp", json!(u64::MAX)),
        ("sub", json!("")),
        ("sub", json!("nobody")),
        ("sub", json!("11111111-2222-4333-8444-555555555555")),
        ("sub", json!("ada")),
        ("sub", other.claims["sub"].clone()),
        ("sub", json!(format!("{}\u{0}", mint.claims["sub"].as_str().expect("sub")))),
        ("type", json!("refresh")),
        ("type", json!("Access")),
        ("type", json!("")),
        ("type", json!("id")),
        ("principal", json!("user")),
        ("principal", json!("Agent")),
        ("principal", json!("")),
        ("iss", json!("")),
        ("iss", json!("Interlock")),
        ("iss", json!("https://evil.example")),
        ("iss", json!(["interlock"])),
        ("aud", json!("")),
        ("aud", json!("interlock")),
        ("aud", json!("interlock:other")),
        ("aud", json!([mint.claims["aud"]])),
        ("aud", json!([mint.claims["aud"], "interlock:other"])),
        ("aud", json!({})),
        ("jti", json!("")),
        ("jti", json!("j".repeat(65))),
        ("epo", json!(0)),
        ("epo", json!(mint.claims["epo"].as_i64().expect("epo") + 1)),
        ("epo", json!(i64::MAX)),
        ("scopes", json!("runs:read audit:read")),
        ("roles", json!("admin")),
        ("limited", json!("no")),
    ] {
        all.push((format!("{name} is {value:.30}"), mint.claims(&json!({ name: value }))));
    }
    let header = mint.header.to_string();
    let inner = mint.claims.to_string();
    let inner = inner.trim_matches(['{', '}']);
    for (name, text) in [
        ("sub twice".to_owned(), format!("{{{inner},\"sub\":\"ada\"}}")),
        ("exp twice".to_owned(), format!("{{\"exp\":9999999999,{inner}}}")),
        ("scopes twice".to_owned(), format!("{{{inner},\"scopes\":[\"admin\"]}}")),
        ("aud twice".to_owned(), format!("{{\"aud\":\"interlock:other\",{inner}}}")),
        ("an array".to_owned(), "[]".to_owned()),
        ("null".to_owned(), "null".to_owned()),
        ("an empty object".to_owned(), "{}".to_owned()),
        ("nothing".to_owned(), String::new()),
        ("something after it".to_owned(), format!("{{{inner}}}x")),
        ("not a number".to_owned(), format!("{{{inner},\"nbf\":NaN}}")),
        ("a token inside".to_owned(), json!(mint.token).to_string()),
        ("a token as bytes".to_owned(), mint.token.clone()),
        ("broken utf-8".to_owned(), format!("{{{inner},\"name\":\"\u{fffd}\\ud800\"}}")),
    ] {
        all.push((format!("claims: {name}"), mint.raw(&header, &text)));
    }
    all
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn shapes(mint: &Mint, other: &Mint) -> Mutations {
    let token = mint.token.as_str();
    let parts: Vec<&str> = token.split('.').collect();
    let (h, p, s) = (parts[0], parts[1], parts[2]);
    let decoded = URL_SAFE_NO_PAD.decode(s).expect("base64");
    let standard = |part: &str, engine: &base64::engine::GeneralPurpose| {
        engine.encode(URL_SAFE_NO_PAD.decode(part).expect("base64"))
    };
    let flattened = json!({ "payload": p, "protected": h, "signature": s }).to_string();
    let general = json!({ "payload": p, "signatures": [{ "protected": h, "signature": s }] }).to_string();
    let mut all: Mutations = [
        ("nothing", String::new()),
        ("one dot", ".".into()),
        ("two dots", "..".into()),
        ("three dots", "...".into()),
        ("no signature", format!("{h}.{p}")),
        ("an empty signature", format!("{h}.{p}.")),
        ("an empty header", format!(".{p}.{s}")),
        ("empty claims", format!("{h}..{s}")),
        ("a dot at the end", format!("{token}.")),
        ("a dot at the beginning", format!(".{token}")),
        ("two signatures", format!("{token}.{s}")),
        ("five parts", format!("{h}.{p}.{s}.{p}.{s}")),
        ("five empty parts", format!("{h}....")),
        ("flattened json", flattened),
        ("general json", general),
        ("padding", format!("{h}.{p}.{s}=")),
        (
            "full padding",
            parts.iter().map(|part| standard(part, &URL_SAFE)).collect::<Vec<_>>().join(".") + "=",
        ),
        ("a padded header", format!("{h}=.{p}.{s}")),
        ("a space inside", format!("{h}. {p}.{s}")),
        ("a space in the middle", format!("{} {}", &token[..40], &token[40..])),
        ("a tab inside", format!("{h}.\t{p}.{s}")),
        ("the token twice", format!("{token} {token}")),
        ("the token twice with a comma", format!("{token},{token}")),
        ("quotes", format!("\"{token}\"")),
        ("percent-encoded", token.replace('.', "%2E")),
        ("cut", token[..token.len() - 1].to_owned()),
        ("cut in half", token[..token.len() / 2].to_owned()),
        ("one character more", format!("{token}A")),
        ("four characters more", format!("{token}AAAA")),
        ("huge", format!("{h}.{}.{s}", "A".repeat(20_000))),
        ("a huge signature", format!("{h}.{p}.{}", "A".repeat(8_000))),
        ("parts in another order", format!("{p}.{h}.{s}")),
        ("the header as the claims", format!("{h}.{h}.{s}")),
        ("lower case", token.to_lowercase()),
        ("upper case", token.to_uppercase()),
        ("backwards", token.chars().rev().collect()),
        ("a refresh token", mint.refresh.clone()),
        ("another server's token", other.token.clone()),
        (
            "another server's signature",
            format!("{h}.{p}.{}", other.token.rsplit('.').next().expect("a part")),
        ),
        ("another server's signature over this", {
            let text = format!("{h}.{p}");
            format!("{text}.{}", other.signature(&text))
        }),
        ("a signature of nothing", format!("{h}.{p}.{}", mint.signature(""))),
        ("a signature of the claims alone", format!("{h}.{p}.{}", mint.signature(p))),
        ("zeroes as a signature", format!("{h}.{p}.{}", encode(vec![0_u8; decoded.len()]))),
        ("a longer signature", format!("{h}.{p}.{}", encode([decoded.as_slice(), &[0]].concat()))),
        ("a shorter signature", format!("{h}.{p}.{}", encode(&decoded[..decoded.len() - 1]))),
        ("an api key", "ilk_00112233".into()),
        ("an agent's secret", "ils_00112233".into()),
        ("the agent's id", mint.claims["sub"].as_str().expect("sub").to_owned()),
        ("the session", mint.claims["fam"].as_str().expect("fam").to_owned()),
        ("the token's id", mint.claims["jti"].as_str().expect("jti").to_owned()),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), text))
    .collect();
    for (index, part) in parts.iter().enumerate() {
        let joined = |changed: String| {
            let mut all: Vec<String> = parts.iter().map(|&part| part.to_owned()).collect();
            all[index] = changed;
            all.join(".")
        };
        let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64");
        for at in [0, bytes.len() / 2, bytes.len() - 1] {
            for bit in [0, 3, 7] {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                all.push((format!("part {index}, byte {at}, bit {bit}"), joined(encode(flipped))));
            }
        }
        let plain = standard(part, &STANDARD_NO_PAD);
        if plain != **part {
            all.push((format!("part {index} in the standard alphabet"), joined(plain)));
        }
        // The bits that the last character has too many.
        if part.len() % 4 != 0 {
            let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let last = part.chars().last().and_then(|last| alphabet.find(last)).expect("a character");
            let next = alphabet.chars().nth(last ^ 1).expect("a character");
            all.push((
                format!("part {index} with a spare bit"),
                joined(format!("{}{next}", &part[..part.len() - 1])),
            ));
        }
    }
    all
}

async fn refuses_all(key: SigningKey) -> usize {
    let lab = Lab::signing(key.clone(), |_| {}).await;
    let foreign_key = match key {
        SigningKey::Secret(_) => SigningKey::Secret("zyxwvutsrqponmlkjihgfedcba9876543210"),
        SigningKey::Ed25519(_) => SigningKey::new(),
    };
    let foreign = Lab::signing(foreign_key, |_| {}).await;
    // Both draw the same random numbers: the second agent there is none here.
    foreign.agent(&[]).await;
    let (mint, other) = (Mint::of(&lab).await, Mint::of(&foreign).await);
    let public = match &lab.key {
        SigningKey::Secret(secret) => secret.as_bytes()[1..].to_vec(),
        SigningKey::Ed25519(pkcs8) => {
            Ed25519KeyPair::from_pkcs8(pkcs8).expect("a key").public_key().as_ref().to_vec()
        }
    };
    // The mint is right: what it makes without a change is taken, also without the optional members.
    for good in [
        mint.claims(&json!({})),
        mint.header(&json!({ "typ": "JWT" })),
        mint.claims(&json!({ "unknown": 1, "jti": "other" })),
    ] {
        assert!(lab.takes(&good).await, "{good}");
    }
    let plain = lab.get("/auth/me").signed("x").send().await.refused(401, "unauthorized");

    let all = [headers(&mint, &other, &public), claims(&mint, &other), shapes(&mint, &other)].concat();
    let distinct: BTreeSet<&String> = all.iter().map(|(_, token)| token).collect();
    let mut taken = Vec::new();
    for (name, token) in &all {
        assert_ne!(*token, mint.token, "{name} changes nothing");
        let answer = lab.get("/auth/me").signed(token).send().await;
        if answer.status == 200 {
            taken.push(name);
            continue;
        }
        let body = answer.refused(401, "unauthorized");
        assert_eq!(body["detail"], plain["detail"], "{name}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"invalid_token\""), "{name}");
        assert_eq!(
            body.as_object().map(serde_json::Map::len),
            plain.as_object().map(serde_json::Map::len),
            "{name}"
        );
    }
    assert!(taken.is_empty(), "{taken:?}");
    // None of them has harmed the good one.
    assert!(lab.takes(&mint.token).await);
    distinct.len()
}

#[tokio::test]
async fn hundreds_of_changed_tokens_are_refused_in_the_same_words_with_eddsa() {
    assert!(refuses_all(SigningKey::new()).await >= 300);
}

#[tokio::test]
async fn hundreds_of_changed_tokens_are_refused_in_the_same_words_with_hs256() {
    assert!(refuses_all(SigningKey::Secret(SECRET)).await >= 300);
}

#[tokio::test]
async fn more_scopes_in_a_token_than_its_owner_has_give_nothing() {
    let lab = Lab::start().await;
    let mint = Mint::of(&lab).await;

    let raised =
        mint.claims(&json!({ "scopes": ["admin", "devices:execute", "runs:read"], "jti": "raised" }));

    assert_eq!(
        lab.get("/auth/me").signed(&raised).send().await.ok()["scopes"],
        json!(["audit:read", "runs:read"])
    );
    lab.get("/agents").signed(&raised).send().await.refused(403, "forbidden");
    lab.post("/execute/mix")
        .signed(&raised)
        .json(&json!({ "volume": 1 }))
        .send()
        .await
        .refused(403, "forbidden");
}

#[tokio::test]
async fn a_refresh_token_is_no_access_token_and_the_reverse() {
    let lab = Lab::start().await;
    let mint = Mint::of(&lab).await;

    assert!(!lab.takes(&mint.refresh).await);
    for path in ["/agents/auth/refresh", "/auth/refresh"] {
        for text in [
            mint.token.as_str(),
            "",
            "x",
            "a.b.c",
            &mint.header(&json!({ "typ": "rt+jwt" })),
            &mint.claims(&json!({ "type": "refresh" })),
        ] {
            lab.post(path).json(&json!({ "refresh_token": text })).send().await.refused(401, "unauthorized");
        }
    }
    assert!(lab.takes(&mint.token).await, "a try must not end the session");
}

/// What may happen to a token on its way.
fn mutation() -> impl Strategy<Value = Vec<(usize, u8, u8)>> {
    prop::collection::vec((any::<usize>(), 0_u8..4, 0x21_u8..0x7f), 1..4)
}

fn mutate(token: &str, steps: &[(usize, u8, u8)]) -> String {
    let mut bytes = token.as_bytes().to_vec();
    for (at, kind, byte) in steps {
        let at = at % bytes.len();
        match kind {
            0 => bytes[at] = *byte,
            1 => bytes.insert(at, *byte),
            2 if bytes.len() > 1 => drop(bytes.remove(at)),
            _ => bytes.swap(at, byte.wrapping_mul(7) as usize % token.len().min(at + 1)),
        }
    }
    String::from_utf8(bytes).expect("ascii")
}

#[test]
fn no_mutation_of_a_valid_token_authenticates() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (labs, tokens) = runtime.block_on(async {
        let labs = [Lab::signing(SigningKey::new(), |_| {}).await, Lab::start().await];
        let tokens = [Mint::of(&labs[0]).await.token, Mint::of(&labs[1]).await.token];
        (labs, tokens)
    });
    let cases = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(cases, |(which in 0_usize..2, steps in mutation())| {
        let mutated = mutate(&tokens[which], &steps);
        prop_assume!(mutated != tokens[which]);
        let status = runtime.block_on(async { labs[which].get("/auth/me").signed(&mutated).send().await.status });
        prop_assert_eq!(status.as_u16(), 401, "{}", mutated);
    });
    runtime.block_on(async {
        for (lab, token) in labs.iter().zip(&tokens) {
            assert!(lab.takes(token).await);
        }
    });
}
