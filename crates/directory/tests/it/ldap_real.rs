//! Sign-in against OpenLDAP.

use std::time::Duration;

use interlock_directory::{DirectoryError, Identity, Ldap, LdapConfig, Outcome, Refusal, RoleMap};
use interlock_model::secret::Secret;
use serde_json::Value;

use crate::{outcomes, refused, step};

/// What `tools/slapd start` printed.
fn server() -> Value {
    let text = std::env::var("INTERLOCK_TEST_LDAP").expect(
        "INTERLOCK_TEST_LDAP is not set: run ./check, which starts an OpenLDAP of its own, or set it to the output of \
         `tools/slapd start DIR`",
    );
    serde_json::from_str(&text).expect("INTERLOCK_TEST_LDAP is the JSON that tools/slapd prints")
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().expect(name).to_owned()
}

fn config(scheme: &str) -> LdapConfig {
    let server = server();
    let base = text(&server, "base");
    let mut config = LdapConfig::new(text(&server, scheme), format!("ou=people,{base}"));
    config.ca_pem = Some(std::fs::read_to_string(text(&server, "ca")).expect("the CA"));
    config.bind_dn = Some(text(&server, "bind_dn"));
    config.bind_password = Some(Secret::new(text(&server, "bind_password")));
    config.group_base = Some(format!("ou=groups,{base}"));
    config.roles = RoleMap::for_dns(&format!(
        "cn=lab-ops,ou=groups,{base}=operator; cn=site,ou=groups,{base}=viewer; cn=chain-9,ou=groups,{base}=viewer; \
         cn=chain-10,ou=groups,{base}=admin"
    ))
    .expect("a map");
    config
}

async fn sign_in(config: LdapConfig, name: &str, password: &str) -> Result<Identity, DirectoryError> {
    Ldap::new(config).expect("settings").authenticate(name, &Secret::new(password)).await
}

fn short(groups: &[String]) -> Vec<&str> {
    groups.iter().filter_map(|dn| dn.split(',').next()?.strip_prefix("cn=")).collect()
}

#[tokio::test]
async fn a_person_signs_in_over_ldaps_and_over_start_tls() {
    for scheme in ["ldaps", "ldap"] {
        let identity = sign_in(config(scheme), "ana", "sesame of ana").await.expect("signed in");

        assert_eq!(identity.name, "ana");
        assert_eq!(identity.display_name.as_deref(), Some("Ana Lovelace"));
        assert_eq!(identity.mail.as_deref(), Some("ana@lab.example"));
        assert_eq!(short(&identity.groups), ["instruments", "lab-ops", "site"], "groups in groups count");
        assert_eq!(identity.roles, ["operator", "viewer"]);
        assert!(
            identity.subject.starts_with("entryuuid:") && identity.subject.len() == 46,
            "{}",
            identity.subject
        );
    }
}

#[tokio::test]
async fn the_same_person_has_the_same_subject_however_the_name_is_typed() {
    let one = sign_in(config("ldaps"), "ana", "sesame of ana").await.expect("signed in");
    let other = sign_in(config("ldaps"), "ANA", "sesame of ana").await.expect("signed in");

    assert_eq!(one, other);
}

#[tokio::test]
async fn groups_are_walked_eight_levels_deep_and_circles_end() {
    let identity = sign_in(config("ldaps"), "ben", "sesame of ben").await.expect("signed in");

    assert!(short(&identity.groups).contains(&"circle-b"));
    assert!(short(&identity.groups).contains(&"chain-9") && !short(&identity.groups).contains(&"chain-10"));
    assert_eq!(identity.roles, ["viewer"]);

    let mut flat = config("ldaps");
    flat.nested_depth = 0;
    let identity = sign_in(flat, "ben", "sesame of ben").await.expect("signed in");
    assert_eq!(short(&identity.groups), ["chain-1", "circle-a"]);
}

#[tokio::test]
async fn without_a_base_for_groups_the_server_s_own_list_counts() {
    let mut config = config("ldaps");
    config.group_base = None;

    let identity = sign_in(config, "ana", "sesame of ana").await.expect("signed in");

    assert_eq!(short(&identity.groups), ["lab-ops"]);
    assert_eq!(identity.roles, ["operator"]);
}

#[tokio::test]
async fn a_group_with_the_right_name_in_another_place_gives_nothing() {
    let mut config = config("ldaps");
    config.group_base = Some(text(&server(), "base"));

    let identity = sign_in(config, "nogroup", "sesame of nogroup").await.expect("signed in");

    assert_eq!(short(&identity.groups), ["lab-ops"]);
    assert!(identity.roles.is_empty());
}

#[tokio::test]
async fn wrong_passwords_and_unknown_people_are_refused() {
    assert_eq!(refused(sign_in(config("ldaps"), "ana", "sesame of ben").await), Refusal::WrongPassword);
    assert_eq!(refused(sign_in(config("ldaps"), "nobody", "sesame of ana").await), Refusal::UnknownUser);
    assert_eq!(refused(sign_in(config("ldaps"), "ana", "").await), Refusal::EmptyPassword);
    assert_eq!(refused(sign_in(config("ldaps"), "reader", "x").await), Refusal::UnknownUser);
}

#[tokio::test]
async fn names_with_the_signs_of_filters_find_nobody() {
    let ldap = Ldap::new(config("ldaps")).expect("settings");
    for name in [
        "*",
        "a*",
        "ana)(uid=*",
        "*)(objectClass=*",
        "ana)(|(uid=*",
        "ana\\2a",
        "\\61na",
        "ana,ou=people",
        "(ana)",
    ] {
        let result = ldap.authenticate(name, &Secret::new("sesame of ana")).await;
        assert_eq!(refused(result), Refusal::UnknownUser, "{name}");
    }
    for name in ["", " ana", "ana ", "ana\0", "ana\n", &"a".repeat(257)] {
        let result = ldap.authenticate(name, &Secret::new("sesame of ana")).await;
        assert_eq!(refused(result), Refusal::BadName, "{name:?}");
    }
}

#[tokio::test]
async fn a_spelling_that_only_the_directory_takes_for_the_name_is_refused() {
    // U+FF41 is a wide "a": OpenLDAP's comparison folds it, and each such spelling would be guessed at from zero.
    let result = sign_in(config("ldaps"), "\u{ff41}na", "sesame of ana").await;

    assert_eq!(refused(result), Refusal::ForeignEntry);
}

#[tokio::test]
async fn a_name_with_signs_in_it_is_an_ordinary_name() {
    let identity = sign_in(config("ldaps"), "o,x", "sesame of o,x").await.expect("signed in");
    assert_eq!((identity.name.as_str(), identity.display_name.as_deref()), ("o,x", Some("Odd \\2a Name")));

    let mut template = config("ldaps");
    template.user_dn_template = Some(format!("uid={{username}},ou=people,{}", text(&server(), "base")));
    template.bind_dn = None;
    template.bind_password = None;
    template.group_base = None;
    let identity = sign_in(template, "o,x", "sesame of o,x").await.expect("signed in");
    assert_eq!(identity.name, "o,x");
}

#[tokio::test]
async fn with_a_template_nobody_searches_and_the_person_reads_themselves() {
    let mut config = config("ldaps");
    config.user_dn_template = Some(format!("uid={{username}},ou=people,{}", text(&server(), "base")));
    config.bind_dn = None;
    config.bind_password = None;
    config.group_base = None;

    assert_eq!(sign_in(config.clone(), "ana", "sesame of ana").await.expect("signed in").roles, ["operator"]);
    assert_eq!(refused(sign_in(config.clone(), "ana", "wrong").await), Refusal::WrongPassword);
    assert_eq!(refused(sign_in(config.clone(), "ana,ou=people", "x").await), Refusal::WrongPassword);
    assert_eq!(refused(sign_in(config, "ana", "").await), Refusal::EmptyPassword);
}

#[tokio::test]
async fn disabled_and_locked_accounts_are_refused_with_the_right_password() {
    let mut config = config("ldaps");
    config.disabled_filter = Some("(|(employeeType=disabled)(pwdAccountLockedTime=*))".to_owned());

    for name in ["dora", "lena"] {
        let result = sign_in(config.clone(), name, &format!("sesame of {name}")).await;
        assert_eq!(refused(result), Refusal::Disabled, "{name}");
    }
    assert!(sign_in(config, "ana", "sesame of ana").await.is_ok());
}

#[tokio::test]
async fn an_account_that_an_administrator_locked_is_refused_though_the_server_would_let_it_bind() {
    // Without a password policy for the person OpenLDAP keeps the mark and does not act on it.
    let result = sign_in(config("ldaps"), "lena", "sesame of lena").await;

    assert_eq!(refused(result), Refusal::Disabled);
}

#[tokio::test]
async fn two_entries_are_nobody() {
    let mut config = config("ldaps");
    config.user_base = text(&server(), "base");
    assert_eq!(refused(sign_in(config.clone(), "twin", "sesame of twin").await), Refusal::Ambiguous);

    config.user_filter = "(|(uid={username})(mail={username}))".to_owned();
    assert_eq!(
        refused(sign_in(config.clone(), "both@lab.example", "sesame of twin").await),
        Refusal::Ambiguous
    );
    let identity =
        sign_in(config, "ana@lab.example", "sesame of ana").await.expect("referrals beside it do not matter");
    assert_eq!(identity.name, "ana");
}

#[tokio::test]
async fn a_base_that_is_a_referral_is_not_followed() {
    let mut config = config("ldaps");
    config.user_base = format!("ou=away,{}", text(&server(), "base"));

    assert_eq!(refused(sign_in(config, "ana", "sesame of ana").await), Refusal::Referral);
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_ends_it_before_any_password() {
    let other = rcgen::generate_simple_self_signed(["other".to_owned()]).expect("a certificate").cert.pem();
    for scheme in ["ldaps", "ldap"] {
        let mut config = config(scheme);
        config.ca_pem = Some(other.clone());
        let error = sign_in(config, "ana", "sesame of ana").await.expect_err("not trusted");
        assert!(
            matches!(&error, DirectoryError::Misconfigured(reason) if reason.contains("not trusted")),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn plain_text_is_refused_by_the_server_and_named() {
    let mut config = config("ldap");
    config.insecure_plaintext = true;

    let steps = Ldap::new(config).expect("settings").test("ana", None).await;

    assert_eq!(step(&steps, "TLS").outcome, Outcome::Warning);
    assert!(step(&steps, "bind").detail.contains("TLS"), "{steps:#?}");
}

#[tokio::test]
async fn a_wrong_account_for_searching_is_a_fault_of_the_settings() {
    let mut config = config("ldaps");
    config.bind_password = Some(Secret::new("hunter2"));

    let error = sign_in(config, "ana", "sesame of ana").await.expect_err("no way in");

    assert!(
        matches!(&error, DirectoryError::Misconfigured(reason) if reason.contains("invalid credentials")),
        "{error:?}"
    );
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_test_tells_every_step_and_no_secret() {
    let ldap = Ldap::new(config("ldap")).expect("settings");

    let steps = ldap.test("ana", Some(&Secret::new("sesame of ana"))).await;

    let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
    assert_eq!(
        names,
        [
            "input", "resolve", "connect", "StartTLS", "TLS", "bind", "search", "account", "password",
            "bind", "groups", "roles", "identity"
        ]
    );
    assert!(steps.iter().all(|step| step.outcome == Outcome::Passed), "{steps:#?}");
    let tls = &step(&steps, "TLS").detail;
    assert!(
        tls.contains("TLSv1_3") && tls.contains("localhost, 127.0.0.1") && tls.contains("interlock-test-ca"),
        "{tls}"
    );
    let everything = serde_json::to_string(&steps).expect("JSON");
    assert!(!everything.contains("sesame") && !everything.contains(&text(&server(), "bind_password")));

    let steps = ldap.test("ana", None).await;
    assert!(outcomes(&steps).contains(&("password", Outcome::Skipped)), "{steps:#?}");
    assert_eq!(step(&steps, "roles").detail, "operator, viewer");
}

#[tokio::test]
async fn a_test_that_fails_says_where_and_what_to_do() {
    let steps = Ldap::new(config("ldaps")).expect("settings").test("ana", Some(&Secret::new("wrong"))).await;
    assert_eq!(steps.last().map(|step| (step.name, step.outcome)), Some(("password", Outcome::Failed)));

    let mut away = config("ldaps");
    away.user_base = format!("ou=nowhere,{}", text(&server(), "base"));
    let steps = Ldap::new(away).expect("settings").test("ana", None).await;
    let last = steps.last().expect("a step");
    assert!(
        last.name == "search" && last.detail.contains("LDAP_USER_BASE") && last.remedy.is_some(),
        "{last:?}"
    );

    let mut gone = config("ldaps");
    gone.url = "ldaps://127.0.0.1:9".to_owned();
    let steps = Ldap::new(gone).expect("settings").test("ana", None).await;
    assert_eq!(steps.last().map(|step| (step.name, step.outcome)), Some(("connect", Outcome::Failed)));
}

#[tokio::test]
async fn many_sign_ins_at_once_all_succeed() {
    let mut config = config("ldaps");
    config.timeout = Duration::from_secs(30);
    let ldap = std::sync::Arc::new(Ldap::new(config).expect("settings"));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let ldap = std::sync::Arc::clone(&ldap);
        tasks.spawn(async move { ldap.authenticate("ana", &Secret::new("sesame of ana")).await.is_ok() });
    }

    assert!(tasks.join_all().await.into_iter().all(|signed_in| signed_in));
}
