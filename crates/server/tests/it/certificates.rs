//! People who sign in by client certificate, and everything that is no such certificate. Every handshake is a real one.

use std::time::Duration;

use interlock_engine::auth::{CertificateSignIn, Directories};
use interlock_server::tls::{ClientSources, Keeper, PeopleSources, PersonField, Sources};
use rcgen::string::{BmpString, Ia5String};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, OtherNameValue, SanType,
};
use serde_json::{Value, json};

use crate::factors::enrol;
use crate::lab::{Lab, password};
use crate::tls::{Authority, Dialler, Files, Issued, MIXER, agent_named, ask, claims, date};
use crate::wire::{Reply, Served};

/// The user principal name of Active Directory.
const UPN: [u64; 10] = [1, 3, 6, 1, 4, 1, 311, 20, 2, 3];

fn mail(address: &str) -> SanType {
    SanType::Rfc822Name(Ia5String::try_from(address).expect("ASCII"))
}

fn upn(name: &str) -> SanType {
    SanType::OtherName((UPN.to_vec(), OtherNameValue::Utf8String(name.to_owned())))
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("a name"))
}

fn named(value: DnValue) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, value);
    subject
}

/// A lab whose people have an authority of their own.
struct Mutual {
    lab: Lab,
    files: Files,
    people: Authority,
}

/// People in `lab.example`, who have accounts already.
fn known() -> CertificateSignIn {
    CertificateSignIn { domain: Some("lab.example".to_owned()), roles: vec![] }
}

impl Mutual {
    async fn start(sign_in: CertificateSignIn) -> Self {
        let directories = Directories { certificates: Some(sign_in), ..Directories::default() };
        let (lab, files, people) =
            (Lab::knowing(directories).await, Files::new(), Authority::named("people"));
        files.write("people.pem", &people.pem);
        let mutual = Self { lab, files, people };
        mutual.revoke(&[]);
        mutual
    }

    /// The lists of both authorities.
    fn revoke(&self, serials: &[u64]) {
        let lists = self.files.authority.revokes(&[], None) + &self.people.revokes(serials, None);
        self.files.write("clients.crl", &lists);
    }

    fn sources(&self, field: PersonField) -> Sources {
        Sources {
            clients: Some(ClientSources {
                machines: Some(self.files.path("clients.pem")),
                people: Some(PeopleSources { authorities: self.files.path("people.pem"), field }),
                revocations: Some(self.files.path("clients.crl")),
                required: false,
            }),
            ..self.files.sources()
        }
    }

    async fn serve(&self, field: PersonField) -> (Served, std::sync::Arc<Keeper>) {
        self.files.serve(&self.lab, self.sources(field)).await
    }

    /// What a certificate of the people's authority looks like that has these names and this serial number.
    fn person(&self, names: Vec<SanType>, serial: u64) -> Issued {
        self.with(|params| {
            params.subject_alt_names = names;
            params.serial_number = Some(serial.into());
        })
    }

    fn with(&self, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        self.people.issue_with(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            change(params);
        })
    }

    fn showing(&self, issued: &Issued) -> Dialler {
        self.files.showing(issued)
    }

    /// Why the last sign-in was refused, as the audit trail has it.
    async fn reason(&self) -> Value {
        let trail = self.lab.trail_of("device.login").await;
        trail.last().expect("an entry").draft.details["reason"].clone()
    }
}

impl Dialler {
    async fn sign_in(&self, served: &Served, body: &Value) -> Reply {
        let head = "POST /auth/certificate HTTP/1.1\r\nContent-Type: application/json";
        self.ask(served, head, &body.to_string()).await.expect("an answer")
    }

    async fn refused(&self, served: &Served, what: &str) {
        let answer = self.sign_in(served, &json!({})).await;
        assert_eq!((answer.status, &answer.json()["code"]), (401, &json!("unauthorized")), "{what}");
    }
}

fn token_of(answer: &Reply, name: &str) -> String {
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()[name].as_str().expect("a token").to_owned()
}

#[tokio::test]
async fn a_person_signs_in_and_everything_that_follows_is_bound_to_the_certificate() {
    let mutual = Mutual::start(known()).await;
    let (served, _) = mutual.serve(PersonField::Mail).await;
    let ends = date(5);
    let shown = mutual.with(|params| {
        params.subject_alt_names = vec![mail("Ana@Lab.example")];
        params.not_after = ends;
    });
    let dialler = mutual.showing(&shown);

    let answer = dialler.sign_in(&served, &json!({})).await;

    let (access, refresh) = (token_of(&answer, "access_token"), token_of(&answer, "refresh_token"));
    assert_eq!((&answer.json()["user"], &answer.json()["roles"]), (&json!("ana"), &json!(["operator"])));
    assert_eq!(claims(&access)["amr"], json!(["swk"]));
    assert_eq!(claims(&refresh)["exp"], json!(ends.unix_timestamp()), "no session outlives its certificate");
    let stranger = mutual.files.dialler();
    let renewed = mutual.showing(&mutual.person(vec![mail("ana@lab.example")], 2));
    assert_eq!(dialler.me(&served, &access).await, 200);
    assert_eq!(stranger.me(&served, &access).await, 401, "without the certificate");
    assert_eq!(renewed.me(&served, &access).await, 401, "with another one of the same person");
    let again = json!({ "refresh_token": refresh }).to_string();
    let head = "POST /auth/refresh HTTP/1.1\r\nContent-Type: application/json";
    for other in [&stranger, &renewed] {
        assert_eq!(other.ask(&served, head, &again).await.expect("an answer").status, 401);
    }
    token_of(&dialler.ask(&served, head, &again).await.expect("an answer"), "access_token");
    let trail = mutual.lab.trail_of("device.login").await;
    let opened = &trail.last().expect("an entry").draft;
    assert_eq!(
        (opened.actor.as_deref(), &opened.details["result"], &opened.details["method"]),
        (Some("ana"), &json!("success"), &json!("certificate"))
    );
    mutual.lab.assert_chain().await;
}

#[tokio::test]
async fn a_certificate_that_does_not_name_one_person_in_one_way_signs_nobody_in() {
    let mutual = Mutual::start(known()).await;
    let (served, _) = mutual.serve(PersonField::Mail).await;
    let admin = mutual.lab.sign_in("zoe").await;
    let off = json!({ "disabled": true });
    let path = "/users/ben";
    mutual.lab.ask("PATCH".parse().expect("method"), path).signed(&admin).json(&off).send().await.ok();
    let ana = || mail("ana@lab.example");

    for (what, shown, reason) in [
        ("a disabled user", mutual.person(vec![mail("ben@lab.example")], 1), "disabled"),
        ("nobody's account", mutual.person(vec![mail("eve@lab.example")], 2), "no_account"),
        (
            "two addresses",
            mutual.person(vec![ana(), mail("zoe@lab.example")], 3),
            "certificate_names_several",
        ),
        ("the same twice", mutual.person(vec![ana(), ana()], 4), "certificate_names_several"),
        ("no address", mutual.person(vec![dns("ana.lab.example")], 5), "certificate_names_nobody"),
        ("the wrong field", mutual.person(vec![upn("ana@lab.example")], 6), "certificate_names_nobody"),
        ("a NUL behind", mutual.person(vec![mail("ana@lab.example\0.evil.example")], 7), "name_not_allowed"),
        ("a NUL before", mutual.person(vec![mail("ana\0x@lab.example")], 8), "name_not_allowed"),
        ("another domain", mutual.person(vec![mail("ana@evil.example")], 9), "name_not_allowed"),
        ("two domains", mutual.person(vec![mail("ana@evil.example@lab.example")], 10), "name_not_allowed"),
        ("a part of ours", mutual.person(vec![mail("ana@lab.example.evil.example")], 11), "name_not_allowed"),
        ("no domain", mutual.person(vec![mail("ana")], 12), "name_not_allowed"),
        ("no account part", mutual.person(vec![mail("@lab.example")], 13), "name_not_allowed"),
        ("a comment", mutual.person(vec![mail("ana(x)@lab.example")], 14), "name_not_allowed"),
        ("the sealed account", mutual.person(vec![mail("break-glass@lab.example")], 15), "name_not_allowed"),
        (
            "an address of 300 characters",
            mutual.person(vec![mail(&format!("{}@lab.example", "a".repeat(300)))], 16),
            "certificate_name_too_long",
        ),
        (
            "no purpose",
            mutual.with(|params| {
                params.subject_alt_names = vec![ana()];
                params.extended_key_usages = vec![];
            }),
            "certificate_purpose",
        ),
        (
            "an agent's certificate",
            mutual.files.authority.issue_with(|params| {
                params.subject_alt_names = vec![dns(MIXER), ana()];
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
            "certificate_of_no_person",
        ),
    ] {
        mutual.showing(&shown).refused(&served, what).await;
        assert_eq!(mutual.reason().await, reason, "{what}");
    }
    mutual.files.dialler().refused(&served, "nothing").await;
    assert_eq!(mutual.reason().await, "no_certificate");
    // The same certificate is good where it says just that.
    assert_eq!(
        mutual.showing(&mutual.person(vec![ana()], 20)).sign_in(&served, &json!({})).await.status,
        200
    );
}

#[tokio::test]
async fn a_certificate_that_is_not_good_gets_no_connection_and_one_that_was_gets_no_further() {
    let mutual = Mutual::start(known()).await;
    mutual.revoke(&[66]);
    let (served, keeper) = mutual.serve(PersonField::Mail).await;
    let ana = || vec![mail("ana@lab.example")];
    let changed = |change: fn(&mut CertificateParams)| {
        mutual.with(|params| {
            params.subject_alt_names = ana();
            change(params);
        })
    };

    for (what, shown) in [
        ("revoked", mutual.person(ana(), 66)),
        ("ended", changed(|params| params.not_after = date(-1))),
        ("not begun", changed(|params| params.not_before = date(1))),
        (
            "for servers",
            changed(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        ),
        (
            "of an authority of that name with another key",
            Authority::named("people").issue_with(|params| {
                params.subject_alt_names = ana();
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
        ),
    ] {
        assert!(!mutual.showing(&shown).is_served(&served).await, "a certificate that is {what} is taken");
    }

    let dialler = mutual.showing(&mutual.person(ana(), 7));
    let access = token_of(&dialler.sign_in(&served, &json!({})).await, "access_token");
    let mut open = dialler.dial(&served).await.expect("a handshake");
    let head = format!("GET /auth/me HTTP/1.1\r\nAuthorization: Bearer {access}");
    assert_eq!(ask(&mut open, &head, "").await.expect("an answer").status, 200);
    mutual.revoke(&[66, 7]);
    keeper.refresh();
    let refused = ask(&mut open, &head, "").await.expect("an answer");
    assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("client_certificate")));
    assert!(!dialler.is_served(&served).await);
    assert!(!mutual.lab.takes(&access).await, "the token is nothing without the certificate");
}

#[tokio::test]
async fn what_vouches_for_machines_vouches_for_no_person_and_the_other_way_round() {
    let mutual = Mutual::start(known()).await;
    // The authority of people is itself one that the machines' authority has certified.
    let below = mutual.files.authority.certifies("people below machines");
    mutual.files.write("people.pem", &below.pem);
    let lists = mutual.files.authority.revokes(&[], None) + &below.revokes(&[], None);
    mutual.files.write("clients.crl", &lists);
    let (served, _) = mutual.serve(PersonField::Mail).await;
    let shown = below.issue_with(|params| {
        params.subject_alt_names = vec![mail("ana@lab.example")];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let alone = mutual.showing(&shown);
    let chain = Issued { chain: format!("{}{}", shown.chain, below.pem), key: shown.key.clone() };
    assert_eq!(
        alone.sign_in(&served, &json!({})).await.status,
        200,
        "nothing leads to the machines' authority"
    );
    mutual.showing(&chain).refused(&served, "both vouch for it").await;
    assert_eq!(mutual.reason().await, "certificate_of_a_machine");

    // A person's certificate with the name of an agent is no agent's.
    let mixer = agent_named(&mutual.lab, MIXER).await;
    let posing = below.issue_with(|params| {
        params.subject_alt_names = vec![dns(MIXER)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let form = format!("grant_type=client_credentials&client_id={mixer}");
    assert_eq!(mutual.showing(&posing).oauth(&served, &form).await.json()["error"], "invalid_client");
    assert_eq!(
        mutual.showing(&mutual.files.authority.client(MIXER, 1)).oauth(&served, &form).await.status,
        200
    );

    // One authority for both is a mistake that stops the start.
    mutual.files.write("people.pem", &mutual.files.authority.pem);
    let opened =
        Keeper::open(mutual.sources(PersonField::Mail), std::sync::Arc::clone(&mutual.lab.clock) as _);
    assert!(
        opened.expect_err("one authority for both").to_string().contains("every machine could be a person")
    );
}

#[tokio::test]
async fn the_field_that_names_people_is_the_one_that_is_set() {
    let whole = CertificateSignIn { domain: None, roles: vec![] };
    let mutual = Mutual::start(whole).await;
    let (by_upn, _) = mutual.serve(PersonField::PrincipalName).await;
    let (by_name, _) = mutual.serve(PersonField::CommonName).await;
    let subject = |value| mutual.with(|params| params.distinguished_name = named(value));
    let utf8 = |text: &str| DnValue::Utf8String(text.to_owned());

    for (served, shown, user) in [
        (&by_upn, mutual.person(vec![upn("vic")], 1), "vic"),
        (&by_upn, mutual.person(vec![mail("ana@lab.example"), upn("vic"), dns("zoe")], 2), "vic"),
        (&by_name, subject(utf8("ana")), "ana"),
        (&by_name, subject(DnValue::PrintableString("Ana".try_into().expect("text"))), "ana"),
    ] {
        let answer = mutual.showing(&shown).sign_in(served, &json!({})).await;
        assert_eq!(token_of(&answer, "user"), user);
    }
    for (served, shown, reason) in [
        (&by_upn, mutual.person(vec![upn("vic"), upn("zoe")], 3), "certificate_names_several"),
        (&by_upn, mutual.person(vec![mail("ana")], 4), "certificate_names_nobody"),
        (&by_upn, mutual.person(vec![upn("vic\0")], 5), "name_not_allowed"),
        (&by_upn, mutual.person(vec![upn("v\u{456}c")], 6), "name_not_allowed"),
        (&by_name, mutual.person(vec![dns("ana")], 7), "certificate_names_nobody"),
        (&by_name, subject(utf8("Ana Lopez")), "name_not_allowed"),
        (
            &by_name,
            subject(DnValue::BmpString(BmpString::try_from("ana").expect("text"))),
            "certificate_encoding",
        ),
        (
            &by_name,
            subject(DnValue::Ia5String(Ia5String::try_from("ana").expect("text"))),
            "certificate_encoding",
        ),
    ] {
        mutual.showing(&shown).refused(served, reason).await;
        assert_eq!(mutual.reason().await, reason);
    }
}

#[tokio::test]
async fn a_second_factor_is_asked_for_beside_a_certificate_and_guesses_at_it_are_slowed() {
    let mutual = Mutual::start(known()).await;
    let (served, _) = mutual.serve(PersonField::Mail).await;
    let (app, _) = enrol(&mutual.lab, "ana").await;
    let dialler = mutual.showing(&mutual.person(vec![mail("ana@lab.example")], 1));

    let asked = dialler.sign_in(&served, &json!({})).await;
    assert_eq!((asked.status, &asked.json()["code"]), (401, &json!("second_factor_required")));
    let answer = dialler.sign_in(&served, &json!({ "otp": app.next_code(&mutual.lab) })).await;
    let access = token_of(&answer, "access_token");
    assert_eq!(claims(&access)["amr"], json!(["swk", "otp"]));

    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(dialler.sign_in(&served, &json!({ "otp": "000000" })).await.status);
    }
    assert!(statuses.starts_with(&[401]) && statuses.ends_with(&[429]), "{statuses:?}");
}

#[tokio::test]
async fn guesses_at_a_password_lock_nobody_out_who_has_a_certificate() {
    let mutual = Mutual::start(known()).await;
    let (served, _) = mutual.serve(PersonField::Mail).await;
    let dialler = mutual.showing(&mutual.person(vec![mail("ana@lab.example")], 1));
    let wrong = json!({ "username": "ana", "password": "wrong wrong wrong" }).to_string();
    let head = "POST /auth/login HTTP/1.1\r\nContent-Type: application/json";
    let mut last = 0;
    for _ in 0..8 {
        last = mutual.files.dialler().ask(&served, head, &wrong).await.expect("an answer").status;
    }

    assert_eq!(last, 429);
    assert_eq!(dialler.sign_in(&served, &json!({})).await.status, 200);
}

#[tokio::test]
async fn an_account_is_made_where_the_settings_say_so_and_is_then_like_any_other() {
    let making = CertificateSignIn { roles: vec!["viewer".to_owned()], ..known() };
    let mutual = Mutual::start(making).await;
    let (served, _) = mutual.serve(PersonField::Mail).await;
    let eve = mutual.showing(&mutual.person(vec![mail("eve@lab.example")], 1));

    let answer = eve.sign_in(&served, &json!({})).await;
    assert_eq!((token_of(&answer, "user"), &answer.json()["roles"]), ("eve".to_owned(), &json!(["viewer"])));
    assert_eq!(mutual.lab.trail_of("user.provisioned").await.len(), 1);
    // Whoever was there keeps the roles that administrators gave.
    let ana = mutual.showing(&mutual.person(vec![mail("ana@lab.example")], 2));
    assert_eq!(ana.sign_in(&served, &json!({})).await.json()["roles"], json!(["operator"]));
    let admin = mutual.lab.sign_in("zoe").await;
    let off = json!({ "disabled": true });
    mutual
        .lab
        .ask("PATCH".parse().expect("method"), "/users/eve")
        .signed(&admin)
        .json(&off)
        .send()
        .await
        .ok();
    eve.refused(&served, "disabled since").await;
    let access = token_of(&answer, "access_token");
    assert_eq!(eve.me(&served, &access).await, 401, "the token of before is dead too");
    assert_eq!(mutual.lab.trail_of("user.provisioned").await.len(), 1);
}

#[tokio::test]
async fn signing_in_by_certificate_is_offered_where_it_is_set_up_and_to_pages_of_ours_only() {
    let mutual = Mutual::start(known()).await;
    let (served, _) = mutual.serve(PersonField::Mail).await;
    let dialler = mutual.showing(&mutual.person(vec![mail("ana@lab.example")], 1));
    assert_eq!(mutual.lab.get("/auth/methods").send().await.json()["certificate"], true);
    // What a page of another origin can have a browser send without asking first.
    for kind in ["Content-Type: text/plain", "Content-Type: application/x-www-form-urlencoded", "Accept: */*"]
    {
        let head = format!("POST /auth/certificate HTTP/1.1\r\n{kind}");
        for body in ["{}", ""] {
            let answer = dialler.ask(&served, &head, body).await.expect("an answer");
            assert_eq!(answer.status, 415, "{kind} {body:?}");
        }
    }

    let plain = Lab::start().await;
    assert_eq!(plain.get("/auth/methods").send().await.json()["certificate"], false);
    plain.post("/auth/certificate").json(&json!({})).send().await.refused(404, "not_found");
    let known = json!({ "username": "ana", "password": password("ana").expose() });
    plain.post("/auth/login").json(&known).send().await.ok();
}

#[tokio::test]
async fn a_fresh_proof_by_certificate_is_worth_as_long_as_any_other() {
    let mutual = Mutual::start(known()).await;
    let (served, _) = mutual.serve(PersonField::Mail).await;
    let dialler = mutual.showing(&mutual.person(vec![mail("ana@lab.example")], 1));
    let access = token_of(&dialler.sign_in(&served, &json!({})).await, "access_token");
    let head = |token: &str| {
        format!(
            "POST /auth/factors/totp HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json"
        )
    };
    let body = json!({ "name": "phone" }).to_string();

    mutual.lab.clock.advance(Duration::from_mins(30));
    let stale = dialler.ask(&served, &head(&access), &body).await.expect("an answer");
    assert_eq!((stale.status, &stale.json()["code"]), (403, &json!("step_up_required")));
    let fresh = token_of(&dialler.sign_in(&served, &json!({})).await, "access_token");
    assert_eq!(dialler.ask(&served, &head(&fresh), &body).await.expect("an answer").status, 201);
}
