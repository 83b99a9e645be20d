//! Second factors and fresh proof of identity.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use axum::http::Method;
use interlock_engine::Ambient;
use interlock_engine::auth::{Guard, StepUpPolicy};
use interlock_engine::devices::DeviceWorld;
use interlock_model::time::TestEntropy;
use interlock_store::Store as _;
use serde_json::{Value, json};

use crate::lab::{Answer, Lab, password};

/// What an authenticator app does, written apart from the server's code.
pub(crate) struct App {
    secret: Vec<u8>,
}

impl App {
    fn from_base32(text: &str) -> Self {
        let mut bits = text.bytes().flat_map(|c| {
            let value = if c.is_ascii_digit() { c - b'2' + 26 } else { c - b'A' };
            (0..5).rev().map(move |at| value >> at & 1)
        });
        let mut secret = Vec::new();
        while let [Some(first), rest @ ..] = std::array::from_fn::<_, 8, _>(|_| bits.next()) {
            let byte = rest.iter().try_fold(first, |byte, bit| bit.map(|bit| byte << 1 | bit));
            secret.extend(byte);
        }
        Self { secret }
    }

    /// The code that it shows now, or so many steps later.
    pub(crate) fn code(&self, lab: &Lab, later: i64) -> String {
        let step = lab.now().seconds() / 30 + later;
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &self.secret);
        let digest = hmac::sign(&key, &step.to_be_bytes());
        let at = usize::from(digest.as_ref()[19] & 15);
        let mut four = [0; 4];
        four.copy_from_slice(&digest.as_ref()[at..at + 4]);
        format!("{:06}", (u32::from_be_bytes(four) & 0x7fff_ffff) % 1_000_000)
    }

    /// Waits for the next code, which nobody has used.
    pub(crate) fn next_code(&self, lab: &Lab) -> String {
        lab.clock.advance(Duration::from_secs(30));
        self.code(lab, 0)
    }
}

pub(crate) async fn sign_in(lab: &Lab, name: &str, word: &str, code: Option<&str>) -> Answer {
    let mut body = json!({ "username": name, "password": word });
    if let Some(code) = code {
        body["otp"] = json!(code);
    }
    lab.post("/auth/login").json(&body).send().await
}

fn access(answer: &Answer) -> String {
    answer.ok()["access_token"].as_str().expect("a token").to_owned()
}

/// Sets up an app for somebody; the app and the recovery codes.
pub(crate) async fn enrol(lab: &Lab, name: &str) -> (App, Vec<String>) {
    let token = lab.sign_in(name).await;
    let made = lab.post("/auth/factors/totp").signed(&token).json(&json!({ "name": "phone" })).send().await;
    assert_eq!(made.status.as_u16(), 201, "{}", made.text());
    assert_eq!(made.header("cache-control"), Some("no-store"));
    let app = App::from_base32(made.json()["secret"].as_str().expect("a secret"));
    let body = json!({ "code": app.code(lab, 0) });
    let done = lab.post("/auth/factors/totp/confirm").signed(&token).json(&body).send().await.ok();
    let codes = done["recovery_codes"].as_array().expect("codes").iter();
    (app, codes.map(|code| code.as_str().expect("a code").to_owned()).collect())
}

/// A token of somebody who has shown both factors.
pub(crate) async fn full_token(lab: &Lab, name: &str, app: &App) -> String {
    let code = app.next_code(lab);
    access(&sign_in(lab, name, password(name).expose(), Some(&code)).await)
}

fn claims(token: &str) -> Value {
    use base64::Engine as _;
    let part = token.split('.').nth(1).expect("three parts");
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).expect("base64");
    serde_json::from_slice(&bytes).expect("json")
}

#[tokio::test]
async fn who_has_a_second_factor_is_asked_for_it_and_a_code_works_once() {
    let lab = Lab::start().await;
    let (app, codes) = enrol(&lab, "ana").await;
    let word = password("ana");

    assert_eq!(codes.len(), 10);
    let asked = sign_in(&lab, "ana", word.expose(), None).await;
    asked.refused(401, "second_factor_required");
    assert_eq!(asked.header("www-authenticate"), Some("Bearer"));
    // The code that confirmed the app is spent, and a wrong password hides whether a code was right.
    sign_in(&lab, "ana", word.expose(), Some(&app.code(&lab, 0)))
        .await
        .refused(401, "second_factor_required");
    let code = app.next_code(&lab);
    sign_in(&lab, "ana", "a wrong but long password", Some(&code)).await.refused(401, "unauthorized");
    let token = access(&sign_in(&lab, "ana", word.expose(), Some(&code)).await);
    assert_eq!(claims(&token)["amr"], json!(["pwd", "otp"]));
    sign_in(&lab, "ana", word.expose(), Some(&code)).await.refused(401, "second_factor_required");
    // One step early is taken, and then nothing before it.
    let early = app.code(&lab, 1);
    access(&sign_in(&lab, "ana", word.expose(), Some(&early)).await);
    lab.clock.advance(Duration::from_secs(30));
    sign_in(&lab, "ana", word.expose(), Some(&early)).await.refused(401, "second_factor_required");
    // Spaces do not matter: apps show them.
    let code = app.next_code(&lab);
    access(&sign_in(&lab, "ana", word.expose(), Some(&format!("{} {}", &code[..3], &code[3..]))).await);
    // Nobody else is asked.
    access(&sign_in(&lab, "ben", password("ben").expose(), None).await);
    lab.assert_chain().await;
}

#[tokio::test]
async fn an_app_counts_only_after_its_first_code() {
    let lab = Lab::start().await;
    let token = lab.sign_in("ana").await;
    lab.post("/auth/factors/totp/confirm")
        .signed(&token)
        .json(&json!({ "code": "123456" }))
        .send()
        .await
        .refused(409, "conflict");
    let made = lab.post("/auth/factors/totp").signed(&token).json(&json!({})).send().await.json();
    let uri = made["uri"].as_str().expect("a link");
    let secret = made["secret"].as_str().expect("a secret");
    assert_eq!(
        uri,
        format!(
            "otpauth://totp/Interlock:ana?secret={secret}&issuer=Interlock&algorithm=SHA1&digits=6&period=30"
        )
    );

    lab.sign_in("ana").await;
    let shown = lab.get("/auth/factors").signed(&token).send().await.ok();
    assert_eq!(shown, json!({ "factors": [], "recovery_codes_left": 0 }));
    let app = App::from_base32(secret);
    for bad in ["", "12345", "abcdef", &app.code(&lab, 5)] {
        let answer =
            lab.post("/auth/factors/totp/confirm").signed(&token).json(&json!({ "code": bad })).send().await;
        answer.refused(422, "invalid_request");
    }
    lab.clock.advance(Duration::from_secs(5));
    let body = json!({ "code": app.code(&lab, 0) });
    lab.post("/auth/factors/totp/confirm").signed(&token).json(&body).send().await.ok();
    let shown = lab.get("/auth/factors").signed(&token).send().await.ok();
    assert_eq!(shown["factors"][0]["kind"], "totp");
    assert_eq!(shown["recovery_codes_left"], 10);
    assert!(!shown.to_string().contains(secret));
}

#[tokio::test]
async fn a_recovery_code_stands_in_for_the_app_once() {
    let lab = Lab::start().await;
    let (app, codes) = enrol(&lab, "ana").await;
    let word = password("ana");
    // 28 of 32 letters: 140 bits.
    for code in &codes {
        let letters: Vec<&str> = code.split('-').collect();
        assert!(letters.len() == 4 && letters.iter().all(|part| part.len() == 7), "{code}");
    }

    let typed = codes[3].to_uppercase().replace('-', " ");
    let token = access(&sign_in(&lab, "ana", word.expose(), Some(&typed)).await);
    sign_in(&lab, "ana", word.expose(), Some(&codes[3])).await.refused(401, "second_factor_required");
    assert_eq!(lab.get("/auth/factors").signed(&token).send().await.ok()["recovery_codes_left"], 9);
    let full = full_token(&lab, "ana", &app).await;
    let fresh = lab.post("/auth/factors/recovery-codes").signed(&full).send().await.ok();
    sign_in(&lab, "ana", word.expose(), Some(&codes[4])).await.refused(401, "second_factor_required");
    let next = fresh["recovery_codes"][0].as_str().expect("a code");
    access(&sign_in(&lab, "ana", word.expose(), Some(next)).await);
    // Codes of one person are worth nothing to another.
    let (_, others) = enrol(&lab, "ben").await;
    sign_in(&lab, "ana", word.expose(), Some(&others[0])).await.refused(401, "second_factor_required");
}

#[tokio::test]
async fn guessing_codes_is_slowed_like_guessing_passwords() {
    let lab = Lab::start().await;
    let (app, _) = enrol(&lab, "ana").await;
    let word = password("ana");

    for guess in 0..5 {
        let wrong =
            format!("{:06}", (app.code(&lab, 0).parse::<u32>().expect("digits") + 7 + guess) % 1_000_000);
        sign_in(&lab, "ana", word.expose(), Some(&wrong)).await.refused(401, "second_factor_required");
    }

    sign_in(&lab, "ana", word.expose(), Some(&app.code(&lab, 1))).await.refused(429, "rate_limited");
    full_token(&lab, "ana", &app).await;
}

#[tokio::test]
async fn nothing_that_proves_identity_is_stored_in_the_clear() {
    let lab = Lab::start().await;
    let token = lab.sign_in("ana").await;
    let made = lab.post("/auth/factors/totp").signed(&token).json(&json!({})).send().await.json();
    let secret = made["secret"].as_str().expect("a secret");
    let app = App::from_base32(secret);
    let body = json!({ "code": app.code(&lab, 0) });
    let done = lab.post("/auth/factors/totp/confirm").signed(&token).json(&body).send().await.ok();

    let record = lab.store.record("second_factors", "ana").await.expect("readable").expect("there");
    let stored = format!("{}{:?}", record.data, lab.trail().await);

    let hexadecimal = interlock_model::id::hexadecimal(&app.secret);
    assert!(!stored.contains(secret) && !stored.contains(&hexadecimal));
    for code in done["recovery_codes"].as_array().expect("codes") {
        assert!(!stored.contains(code.as_str().expect("a code")));
    }
}

#[tokio::test]
async fn changing_factors_wants_a_fresh_proof() {
    let lab = Lab::start().await;
    let token = lab.sign_in("ana").await;
    lab.clock.advance(Duration::from_mins(16));

    let asked = lab.post("/auth/factors/totp").signed(&token).json(&json!({})).send().await;
    asked.refused(403, "step_up_required");
    assert_eq!(
        asked.header("www-authenticate"),
        Some("Bearer error=\"insufficient_user_authentication\", max_age=\"900\"")
    );
    for (body, loc) in [
        (json!({ "password": "a wrong but long password" }), json!(["body", "current"])),
        (json!({}), json!(["body"])),
        (json!({ "otp": "123456" }), json!(["body"])),
        (json!({ "otp": "123456", "password": password("ana").expose() }), json!(["body"])),
    ] {
        let refused =
            lab.post("/auth/step-up").signed(&token).json(&body).send().await.refused(422, "invalid_request");
        assert_eq!(refused["errors"][0]["loc"], loc);
    }
    let body = json!({ "password": password("ana").expose() });
    let raised = access(&lab.post("/auth/step-up").signed(&token).json(&body).send().await);

    lab.get("/auth/me").signed(&token).send().await.refused(401, "unauthorized");
    let made = lab.post("/auth/factors/totp").signed(&raised).json(&json!({})).send().await;
    assert_eq!(made.status.as_u16(), 201);
}

#[tokio::test]
async fn dangerous_acts_want_the_second_factor_of_those_who_have_one() {
    let lab = Lab::start().await;
    let plain = lab.sign_in("ada").await;
    let key = lab
        .post("/auth/keys")
        .signed(&plain)
        .json(&json!({ "name": "k", "scopes": ["users:manage"] }))
        .send()
        .await;
    let key = key.json()["key"].as_str().expect("a key").to_owned();
    let edit = |token: String| {
        let ask = lab.ask(Method::PATCH, "/users/ben").signed(&token).json(&json!({ "roles": ["viewer"] }));
        async move { ask.send().await }
    };
    lab.clock.advance(Duration::from_mins(20));
    edit(plain.clone()).await.ok();
    let (app, _) = enrol(&lab, "ada").await;

    // The session that knew the password only, and a key, are not enough any more; looking still is.
    edit(plain.clone()).await.refused(403, "step_up_required");
    edit(key).await.refused(403, "step_up_required");
    lab.get("/users").signed(&plain).send().await.ok();
    lab.post("/stop").signed(&plain).send().await.ok();
    lab.post("/stop/release")
        .signed(&plain)
        .json(&json!({ "reason": "safe" }))
        .send()
        .await
        .refused(403, "step_up_required");
    // The password is no second factor.
    let body = json!({ "password": password("ada").expose() });
    lab.post("/auth/step-up").signed(&plain).json(&body).send().await.refused(422, "invalid_request");
    let body = json!({ "otp": app.next_code(&lab) });
    let raised = lab.post("/auth/step-up").signed(&plain).json(&body).send().await;
    let token = access(&raised);
    edit(token.clone()).await.ok();
    lab.post("/auth/step-up").signed(&token).json(&body).send().await.refused(422, "invalid_request");
    // It lasts 15 minutes, also over a refresh.
    lab.clock.advance(Duration::from_mins(14));
    let next = raised.ok()["refresh_token"].clone();
    let refreshed = lab.post("/auth/refresh").json(&json!({ "refresh_token": next })).send().await;
    edit(access(&refreshed)).await.ok();
    lab.clock.advance(Duration::from_mins(2));
    edit(access(&refreshed)).await.refused(403, "step_up_required");
    let denied = lab.trail_of("authorization.denied").await;
    assert!(denied.iter().any(|entry| entry.draft.subject.as_deref() == Some("user.updated")), "{denied:?}");
    lab.assert_chain().await;
}

#[tokio::test]
async fn beside_a_second_factor_a_password_may_be_shorter_and_then_the_factor_stays() {
    let lab = Lab::start().await;
    let (app, _) = enrol(&lab, "ana").await;
    let token = full_token(&lab, "ana", &app).await;
    let change = |token: String, current: String, new: &'static str| {
        let ask = lab.post("/auth/password").signed(&token).json(&json!({ "current": current, "new": new }));
        async move { ask.send().await }
    };

    change(token.clone(), password("ana").expose().to_owned(), "gr4vel")
        .await
        .refused(422, "invalid_request");
    let token = access(&change(token, password("ana").expose().to_owned(), "gr4vel&ink").await);
    let factors = lab.get("/auth/factors").signed(&token).send().await.ok();
    let path = format!("/auth/factors/{}", factors["factors"][0]["id"].as_str().expect("an id"));
    let refused = lab.ask(Method::DELETE, &path).signed(&token).send().await.refused(409, "conflict");
    assert!(refused["detail"].as_str().is_some_and(|text| text.contains("15 characters")), "{refused}");
    let token = access(&change(token, "gr4vel&ink".to_owned(), "eleven silent centrifuges").await);
    lab.ask(Method::DELETE, "/auth/factors/none")
        .signed(&token)
        .send()
        .await
        .refused(404, "factor_not_found");
    lab.ask(Method::DELETE, &path).signed(&token).send().await.ok();

    access(&sign_in(&lab, "ana", "eleven silent centrifuges", None).await);
    let left = lab.get("/auth/factors").signed(&token).send().await.ok();
    assert_eq!(left, json!({ "factors": [], "recovery_codes_left": 0 }));
}

#[tokio::test]
async fn an_administrator_helps_who_has_lost_everything() {
    let lab = Lab::start().await;
    enrol(&lab, "ana").await;
    let admin = lab.token("ada").await;

    lab.ask(Method::DELETE, "/users/nobody/factors")
        .signed(&admin)
        .send()
        .await
        .refused(404, "user_not_found");
    lab.ask(Method::DELETE, "/users/ana/factors").signed(&admin).send().await.ok();

    access(&sign_in(&lab, "ana", password("ana").expose(), None).await);
    let trail = lab.trail_of("user.factors_reset").await;
    assert_eq!(trail.last().map(|entry| &entry.draft.details), Some(&json!({ "removed": 1 })));
}

/// The same server under another policy.
fn with_policy(mut lab: Lab, step_up: StepUpPolicy) -> Lab {
    let world = DeviceWorld { device: Arc::clone(&lab.device) as _, name: "fake".to_owned() };
    let ambient = Ambient { clock: Arc::clone(&lab.clock) as _, entropy: Arc::new(TestEntropy::seeded(9)) };
    let sessions = Arc::clone(&lab.app.identity.sessions);
    let guard = Guard::new(sessions, lab.recorder.clone(), Arc::new(world), ambient).with_step_up(step_up);
    lab.app = lab.app.edited(|services| services.guard = Arc::new(guard));
    lab.router = interlock_server::router(lab.app.clone());
    lab
}

#[tokio::test]
async fn administrators_can_be_made_to_have_a_second_factor() {
    let policy = StepUpPolicy { required: true, admins_need_second_factor: true };
    let lab = with_policy(Lab::start().await, policy);
    let body = json!({ "name": "eve", "password": "eleven silent centrifuges", "roles": ["viewer"] });
    let create = |token: String| {
        let ask = lab.post("/users").signed(&token).json(&body);
        async move { ask.send().await }
    };

    create(lab.token("ada").await).await.refused(403, "second_factor_missing");
    lab.mix("ana").await.send().await.ok();
    let (app, _) = enrol(&lab, "ada").await;
    let made = create(full_token(&lab, "ada", &app).await).await;

    assert_eq!(made.status.as_u16(), 201, "{}", made.text());
}

#[tokio::test]
async fn step_up_can_be_switched_off_but_not_for_the_factors_themselves() {
    let policy = StepUpPolicy { required: false, admins_need_second_factor: false };
    let lab = with_policy(Lab::start().await, policy);
    let plain = lab.sign_in("ada").await;
    enrol(&lab, "ada").await;

    lab.ask(Method::PATCH, "/users/ben")
        .signed(&plain)
        .json(&json!({ "roles": ["viewer"] }))
        .send()
        .await
        .ok();
    lab.post("/auth/factors/recovery-codes").signed(&plain).send().await.refused(403, "step_up_required");
}
