//! Sign-in with a real provider: the package oidc-provider, with these tests as the browser.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use interlock_directory::{
    Algorithm, Begun, ClientAuth, DirectoryError, Oidc, OidcConfig, Outcome, Refusal, RoleMap, SignedIn,
};
use interlock_model::secret::Secret;
use interlock_model::time::TestEntropy;
use interlock_model::{Entropy, Timestamp};
use serde_json::Value;
use url::Url;

use crate::{refused, step};

/// What `tools/oidc-provider start` printed.
fn server() -> Value {
    let text = std::env::var("INTERLOCK_TEST_OIDC").expect(
        "INTERLOCK_TEST_OIDC is not set: run ./check, which starts a provider of its own, or set it to the output of \
         `tools/oidc-provider start DIR`",
    );
    serde_json::from_str(&text).expect("INTERLOCK_TEST_OIDC is the JSON that tools/oidc-provider prints")
}

fn text(name: &str) -> String {
    server()[name].as_str().expect(name).to_owned()
}

fn ca() -> String {
    std::fs::read_to_string(text("ca")).expect("the CA")
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    Timestamp::from_seconds(i64::try_from(since.as_secs()).expect("seconds"))
}

/// States, nonces and assertion ids must differ between tests and runs: the provider remembers.
fn entropy() -> impl Entropy {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    TestEntropy::seeded(u64::try_from(since.as_nanos()).expect("before 2554"))
}

fn config(client: &str) -> OidcConfig {
    let auth = match client {
        "basic" => ClientAuth::Secret(Secret::new(text("basic_secret"))),
        "post" => ClientAuth::Secret(Secret::new(text("post_secret"))),
        "keyed" => ClientAuth::PrivateKey {
            pem: Secret::new(std::fs::read_to_string(text("client_key")).expect("a key")),
            algorithm: Algorithm::Es256,
            kid: Some("client".to_owned()),
        },
        _ => ClientAuth::Public,
    };
    let mut config = OidcConfig::new(text("issuer"), client, auth, text("redirect_uri"));
    config.ca_pem = Some(ca());
    config.scopes = OidcConfig::read_scopes("profile email groups");
    config.roles = RoleMap::for_names("lab-ops=operator;site=viewer").expect("a map");
    config
}

/// A browser with cookies that stops before it would leave the provider.
struct Browser {
    http: reqwest::Client,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    fn of(who: &str) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let trusted = reqwest::Certificate::from_pem(ca().as_bytes()).expect("the CA");
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tls_certs_only([trusted])
            .build()
            .expect("a client");
        Self { http, cookies: BTreeMap::from([("who".to_owned(), who.to_owned())]) }
    }

    /// Follows from page to page; gives the query that comes back to us.
    async fn go(&mut self, begun: &Begun) -> String {
        let mut url = Url::parse(&begun.url).expect("an address");
        for _ in 0..10 {
            let cookies: Vec<String> =
                self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let response = self
                .http
                .get(url.clone())
                .header("cookie", cookies.join("; "))
                .send()
                .await
                .expect("an answer");
            for cookie in response.headers().get_all("set-cookie") {
                let pair = cookie.to_str().expect("text").split(';').next().unwrap_or("");
                let (name, value) = pair.split_once('=').expect("a cookie");
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            let Some(location) = location.map(str::to_owned) else {
                panic!("{url} answers {}: {}", response.status(), response.text().await.unwrap_or_default());
            };
            let next = url.join(&location).expect("an address");
            if next.as_str().starts_with(&text("redirect_uri")) {
                return next.query().expect("a query").to_owned();
            }
            url = next;
        }
        panic!("the provider goes round in circles");
    }
}

async fn sign_in(config: OidcConfig, who: &str) -> Result<SignedIn, DirectoryError> {
    let oidc = Oidc::new(config).expect("settings");
    let begun = oidc.begin(now(), &entropy()).await?;
    let query = Browser::of(who).go(&begun).await;
    oidc.finish(now(), &entropy(), begun.flow, &query).await
}

#[tokio::test]
async fn people_sign_in_with_every_way_to_prove_the_client_and_every_algorithm() {
    for client in ["basic", "post", "public", "keyed"] {
        let signed_in =
            sign_in(config(client), "ana").await.unwrap_or_else(|error| panic!("{client}: {error:?}"));

        let identity = signed_in.identity;
        assert_eq!(identity.subject, format!("oidc:{}#ana", text("issuer")), "{client}");
        assert_eq!((identity.name.as_str(), identity.display_name.as_deref()), ("ana", Some("Ana Lovelace")));
        assert_eq!(identity.mail.as_deref(), Some("ana@lab.example"));
        assert_eq!(identity.groups, ["lab-ops", "site"]);
        assert_eq!(identity.roles, ["operator", "viewer"]);
    }
}

#[tokio::test]
async fn somebody_in_no_group_has_no_role_and_an_unchecked_address_is_not_theirs() {
    let identity = sign_in(config("basic"), "ben").await.expect("signed in").identity;

    assert!(identity.roles.is_empty() && identity.groups.is_empty());
    assert_eq!((identity.name.as_str(), identity.mail), ("ben", None));
}

#[tokio::test]
async fn somebody_who_says_no_is_refused() {
    assert_eq!(refused(sign_in(config("basic"), "nobody").await), Refusal::Denied);
}

#[tokio::test]
async fn a_code_counts_once_and_only_with_the_verifier_of_its_sign_in() {
    let oidc = Oidc::new(config("basic")).expect("settings");
    let begun = oidc.begin(now(), &entropy()).await.expect("begun");
    let stored = begun.flow.into_stored();
    let flow = || interlock_directory::PendingFlow::from_stored(&stored).expect("a flow");
    let query = Browser::of("ana").go(&Begun { url: begun.url.clone(), flow: flow() }).await;

    assert!(oidc.finish(now(), &entropy(), flow(), &query).await.is_ok());
    assert_eq!(refused(oidc.finish(now(), &entropy(), flow(), &query).await), Refusal::Code, "a second time");

    // The code of somebody else's sign-in, put into the answer to ours.
    let (mine, theirs) = (
        oidc.begin(now(), &entropy()).await.expect("begun"),
        oidc.begin(now(), &entropy()).await.expect("begun"),
    );
    let (my_query, their_query) = (Browser::of("ana").go(&mine).await, Browser::of("ben").go(&theirs).await);
    let part = |query: &str, name: &str| {
        url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).expect(name).1.into_owned()
    };
    let injected = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("code", &part(&their_query, "code"))
        .append_pair("state", &part(&my_query, "state"))
        .append_pair("iss", &part(&my_query, "iss"))
        .finish();
    assert_eq!(refused(oidc.finish(now(), &entropy(), mine.flow, &injected).await), Refusal::Code);
}

#[tokio::test]
async fn a_wrong_secret_is_a_fault_of_the_settings() {
    let mut config = config("basic");
    config.client_auth = ClientAuth::Secret(Secret::new("hunter2"));

    let error = sign_in(config.clone(), "ana").await.expect_err("no way in");
    assert!(matches!(&error, DirectoryError::Misconfigured(_)), "{error:?}");

    let (steps, begun) = Oidc::new(config).expect("settings").test(now(), &entropy()).await;
    assert_eq!(step(&steps, "client").outcome, Outcome::Failed);
    assert!(begun.is_none() && !format!("{steps:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_provider_with_another_name_or_authority_is_not_trusted() {
    let mut other_name = config("basic");
    other_name.issuer = other_name.issuer.replace("localhost", "127.0.0.1");
    let error = sign_in(other_name, "ana").await.expect_err("another name");
    assert!(error.reason().contains("calls itself"), "{error:?}");

    let mut other_authority = config("basic");
    other_authority.ca_pem =
        Some(rcgen::generate_simple_self_signed(["other".to_owned()]).expect("a certificate").cert.pem());
    let error = sign_in(other_authority, "ana").await.expect_err("another authority");
    assert!(
        matches!(&error, DirectoryError::Misconfigured(reason) if reason.contains("not trusted")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_test_tells_every_step_and_goes_on_in_a_browser() {
    let oidc = Oidc::new(config("keyed")).expect("settings");

    let (steps, begun) = oidc.test(now(), &entropy()).await;

    let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
    assert_eq!(names, ["discovery", "TLS", "metadata", "PKCE", "keys", "client", "sign-in page"]);
    assert!(steps.iter().all(|step| step.outcome == Outcome::Passed), "{steps:#?}");
    assert!(step(&steps, "TLS").detail.contains("interlock-test-ca"), "{steps:#?}");
    let begun = begun.expect("a sign-in to go through");
    let query = Browser::of("ana").go(&begun).await;
    let steps = oidc.test_finish(now(), &entropy(), begun.flow, &query).await;
    let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
    assert_eq!(
        names,
        ["discovery", "answer", "code", "ID token", "user info", "groups", "roles", "identity"]
    );
    assert!(steps.iter().all(|step| step.outcome == Outcome::Passed), "{steps:#?}");
    assert!(!format!("{steps:?}").contains(&query));
}

#[tokio::test]
async fn a_redirect_address_that_is_not_registered_is_found_by_the_test() {
    let mut config = config("basic");
    config.redirect_uri = "https://interlock.example/elsewhere".to_owned();

    let (steps, _) = Oidc::new(config).expect("settings").test(now(), &entropy()).await;

    let page = step(&steps, "sign-in page");
    assert!(page.outcome == Outcome::Failed && page.remedy.is_some(), "{page:?}");
}

#[tokio::test]
async fn signing_out_goes_to_the_provider_with_the_id_token() {
    let oidc = Oidc::new(config("basic")).expect("settings");
    let begun = oidc.begin(now(), &entropy()).await.expect("begun");
    let mut browser = Browser::of("ana");
    let query = browser.go(&begun).await;
    let session = oidc.finish(now(), &entropy(), begun.flow, &query).await.expect("signed in").session;

    let url = oidc
        .logout_url(Some(&session.id_token), Some("https://interlock.example/"), Some("bye"))
        .await
        .expect("known")
        .expect("a place to sign out");

    let cookies: Vec<String> =
        browser.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let response =
        browser.http.get(url).header("cookie", cookies.join("; ")).send().await.expect("an answer");
    assert_eq!(response.status(), 200, "the provider asks whether to sign out");
}
