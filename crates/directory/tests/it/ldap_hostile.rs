//! LDAP servers that hang, lie, die or send what no server sends.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use interlock_directory::{DirectoryError, Identity, Ldap, LdapConfig, Outcome, Refusal};
use interlock_model::secret::Secret;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::{refused, step};

const BASE: &str = "ou=people,dc=lab,dc=example";
const PASSWORD: &str = "sesame of ana";

fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag, 0x84];
    out.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
    out.extend(value);
    out
}

fn message(id: u8, tag: u8, value: &[u8]) -> Vec<u8> {
    tlv(0x30, &[tlv(2, &[id]), tlv(tag, value)].concat())
}

fn result(code: u8, text: &str) -> Vec<u8> {
    [tlv(0x0A, &[code]), tlv(4, b""), tlv(4, text.as_bytes())].concat()
}

fn entry(dn: &str, attributes: &[(&str, &str)]) -> Vec<u8> {
    let list: Vec<u8> = attributes
        .iter()
        .flat_map(|(name, value)| {
            tlv(0x30, &[tlv(4, name.as_bytes()), tlv(0x31, &tlv(4, value.as_bytes()))].concat())
        })
        .collect();
    [tlv(4, dn.as_bytes()), tlv(0x30, &list)].concat()
}

/// One answer to a request.
#[derive(Clone)]
enum Act {
    /// Operation and value, with the id of the request.
    Say(u8, Vec<u8>),
    /// These bytes as they are.
    Raw(Vec<u8>),
    /// The same bytes until the connection breaks.
    Flood(Vec<u8>),
    Hang,
    Close,
}

type Script = Arc<dyn Fn(usize, u8, &[u8]) -> Vec<Act> + Send + Sync>;
/// Requests as they arrived: operation and whole message.
type Heard = Arc<Mutex<Vec<(u8, Vec<u8>)>>>;

/// What an honest server says about ana; `BIND` 0x60, `SEARCH` 0x63.
fn honest(op: u8, request: &[u8]) -> Vec<Act> {
    let is_for_groups = request.windows(6).any(|bytes| bytes == b"member");
    match op {
        0x60 => vec![Act::Say(0x61, result(0, ""))],
        0x63 if is_for_groups => vec![Act::Say(0x65, result(0, ""))],
        0x63 => vec![Act::Say(0x64, ana()), Act::Say(0x65, result(0, ""))],
        0x77 => vec![Act::Say(0x78, result(0, ""))],
        _ => vec![Act::Close],
    }
}

fn ana() -> Vec<u8> {
    entry(&format!("uid=ana,{BASE}"), &[("uid", "ana"), ("entryUUID", "0-1"), ("displayName", "Ana")])
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, script: Script, heard: Heard) {
    let mut buffer = Vec::new();
    let mut number = 0;
    loop {
        let mut chunk = [0; 4096];
        let Ok(count @ 1..) = stream.read(&mut chunk).await else { return };
        buffer.extend_from_slice(&chunk[..count]);
        // Requests of ours are short: one byte of length, or 0x81/0x82 and more.
        while let Some((header, length)) = match buffer.get(1) {
            Some(0x81) => buffer.get(2).map(|length| (3, usize::from(*length))),
            Some(0x82) => buffer.get(3).map(|low| (4, usize::from(buffer[2]) << 8 | usize::from(*low))),
            Some(length) => Some((2, usize::from(*length))),
            None => None,
        } {
            if buffer.len() < header + length {
                break;
            }
            let request: Vec<u8> = buffer.drain(..header + length).collect();
            // 02 01 id op
            let (id, op) = (request[header + 2], request[header + 3]);
            heard.lock().expect("the list").push((op, request.clone()));
            for act in script(number, op, &request) {
                let bytes = match act {
                    Act::Say(tag, value) => message(id, tag, &value),
                    Act::Raw(bytes) => bytes,
                    Act::Flood(bytes) => {
                        while stream.write_all(&bytes).await.is_ok() {}
                        return;
                    }
                    Act::Hang => std::future::pending().await,
                    Act::Close => return,
                };
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            number += 1;
        }
    }
}

/// A plain server with this script; its port and what it hears.
async fn server(script: impl Fn(usize, u8, &[u8]) -> Vec<Act> + Send + Sync + 'static) -> (u16, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (script, heard): (Script, Heard) = (Arc::new(script), Heard::default());
    let list = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(speak(stream, Arc::clone(&script), Arc::clone(&list)));
        }
    });
    (port, heard)
}

fn config(port: u16) -> LdapConfig {
    let mut config = LdapConfig::new(format!("ldap://127.0.0.1:{port}"), BASE);
    config.insecure_plaintext = true;
    config.bind_dn = Some("cn=reader".to_owned());
    config.bind_password = Some(Secret::new("reader's secret"));
    config.group_base = Some("ou=groups,dc=lab,dc=example".to_owned());
    config.timeout = Duration::from_millis(500);
    config
}

async fn sign_in(config: LdapConfig) -> Result<Identity, DirectoryError> {
    Ldap::new(config).expect("settings").authenticate("ana", &Secret::new(PASSWORD)).await
}

#[track_caller]
fn unavailable(result: Result<Identity, DirectoryError>) -> String {
    match result {
        Err(DirectoryError::Unavailable(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_script_of_these_tests_lets_an_honest_sign_in_through() {
    let (port, heard) = server(|_, op, request| honest(op, request)).await;

    let identity = sign_in(config(port)).await.expect("signed in");

    assert_eq!((identity.name.as_str(), identity.subject.as_str()), ("ana", "entryuuid:0-1"));
    let ops: Vec<u8> = heard.lock().expect("the list").iter().map(|(op, _)| *op).collect();
    assert_eq!(ops[..5], [0x60, 0x63, 0x60, 0x60, 0x63], "service, person, password, service, groups");
}

#[tokio::test]
async fn a_server_that_hangs_or_dies_at_any_step_ends_in_bounded_time() {
    for at in 0..5 {
        for act in [Act::Hang, Act::Close] {
            let hangs = matches!(act, Act::Hang);
            let (port, _) = server(
                move |number, op, request| {
                    if number == at { vec![act.clone()] } else { honest(op, request) }
                },
            )
            .await;

            let result =
                tokio::time::timeout(Duration::from_secs(20), sign_in(config(port))).await.expect("it ends");

            let reason = unavailable(result);
            assert_eq!(reason.contains("no answer within"), hangs, "step {at}: {reason}");
        }
    }
    // It accepts, and says nothing at all; a handshake of TLS hangs likewise.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut tls = config(port);
    tls.url = format!("ldaps://127.0.0.1:{port}");
    tls.insecure_plaintext = false;
    tls.ca_pem = Some(authority().0);
    assert!(unavailable(sign_in(tls).await).contains("no answer within"));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);

    assert!(unavailable(sign_in(config(port)).await).contains("no connection"));
}

#[tokio::test]
async fn an_empty_password_never_reaches_a_server_that_would_say_yes() {
    let (port, heard) = server(|_, op, request| honest(op, request)).await;
    let ldap = Ldap::new(config(port)).expect("settings");

    let result = ldap.authenticate("ana", &Secret::new("")).await;

    assert_eq!(refused(result), Refusal::EmptyPassword);
    assert!(heard.lock().expect("the list").is_empty());
}

#[tokio::test]
async fn entries_that_were_not_asked_for_are_nobody() {
    let foreign = [
        entry(&format!("uid=root,{BASE}"), &[("uid", "root")]),
        entry(&format!("uid=ana,{BASE}"), &[]),
        entry("uid=ana,ou=people,dc=evil", &[("uid", "ana")]),
        entry("", &[("uid", "ana")]),
        entry("nonsense", &[("uid", "ana")]),
    ];
    for one in foreign {
        let (port, heard) = server(move |_, op, request| match op {
            0x63 => vec![Act::Say(0x64, one.clone()), Act::Say(0x65, result(0, ""))],
            _ => honest(op, request),
        })
        .await;

        assert_eq!(refused(sign_in(config(port)).await), Refusal::ForeignEntry);
        let told = heard
            .lock()
            .expect("the list")
            .iter()
            .any(|(_, bytes)| bytes.windows(13).any(|part| part == PASSWORD.as_bytes()));
        assert!(!told, "the password was sent all the same");
    }
}

#[tokio::test]
async fn two_entries_or_more_are_nobody_whatever_limit_the_server_keeps() {
    for count in [2, 3, 500] {
        let (port, _) = server(move |_, op, request| match op {
            0x63 => {
                let mut acts = vec![Act::Say(0x64, ana()); count];
                acts.push(Act::Say(0x65, result(0, "")));
                acts
            }
            _ => honest(op, request),
        })
        .await;
        assert_eq!(refused(sign_in(config(port)).await), Refusal::Ambiguous, "{count}");
    }
}

#[tokio::test]
async fn referrals_are_not_followed() {
    let trap = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let to = format!("ldap://127.0.0.1:{}/", trap.local_addr().expect("an address").port());
    let mut referral = result(10, "");
    referral.extend(tlv(0xA3, &tlv(4, to.as_bytes())));
    for op in [0x60_u8, 0x63] {
        let (value, reference) = (referral.clone(), tlv(4, to.as_bytes()));
        let (port, _) = server(move |number, asked, request| match asked {
            // The bind as the person is the third request.
            0x60 if op == 0x60 && number == 2 => vec![Act::Say(0x61, value.clone())],
            0x63 if op == 0x63 => vec![Act::Say(0x73, reference.clone()), Act::Say(0x65, value.clone())],
            _ => honest(asked, request),
        })
        .await;
        assert_eq!(refused(sign_in(config(port)).await), Refusal::Referral, "{op:x}");
    }
    let nobody = tokio::time::timeout(Duration::from_millis(50), trap.accept()).await;
    assert!(nobody.is_err(), "somebody followed");
}

#[tokio::test]
async fn what_no_server_sends_ends_the_sign_in_and_nothing_else() {
    let nested: Vec<u8> = {
        // 200 000 levels: read by recursion this overflows any stack.
        let mut bytes = Vec::new();
        for _ in 0..200_000 {
            bytes.extend([0x30, 0x83, 0x0f, 0xff, 0x00]);
        }
        bytes
    };
    let wrong: Vec<Vec<Act>> = vec![
        vec![Act::Raw(nested.clone())],
        vec![Act::Raw(tlv(0x30, &nested))],
        vec![Act::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())],
        vec![Act::Raw(vec![0x30, 0x84, 0x7f, 0xff, 0xff, 0xff])],
        vec![Act::Raw(vec![0x30, 0x80, 0, 0])],
        vec![Act::Raw(vec![0x30, 0x00])],
        vec![Act::Raw(tlv(0x30, &[tlv(2, &[1]), tlv(2, &[1])].concat()))],
        vec![Act::Raw(message(0, 0x78, &result(52, "")))],
        vec![Act::Raw(message(99, 0x61, &result(0, "")))],
        vec![Act::Say(0x64, ana())],
        vec![Act::Say(0x65, result(0, ""))],
        vec![Act::Say(0x61, Vec::new())],
        vec![Act::Say(0x61, tlv(0x0A, &[0]))],
        vec![Act::Say(0x61, [tlv(0x0A, &[]), tlv(4, b""), tlv(4, b"")].concat())],
        vec![Act::Say(0x61, vec![0x0A, 0x01])],
        vec![Act::Flood(vec![0xff; 1 << 16])],
    ];
    for (number, acts) in wrong.into_iter().enumerate() {
        let (port, _) = server(move |_, _, _| acts.clone()).await;
        let result =
            tokio::time::timeout(Duration::from_secs(20), sign_in(config(port))).await.expect("it ends");
        assert!(!unavailable(result).is_empty(), "{number}");
    }
    let entries: Vec<Vec<u8>> = vec![
        Vec::new(),
        tlv(4, b"\xff\xfe"),
        tlv(4, b"uid=ana"),
        [tlv(4, b"uid=ana"), tlv(0x30, &tlv(0x30, &tlv(4, b"uid")))].concat(),
        [tlv(4, b"uid=ana"), tlv(0x30, &tlv(0x30, &[tlv(4, b"\xff"), tlv(0x31, b"")].concat()))].concat(),
        [tlv(4, b"uid=ana"), tlv(0x30, &tlv(4, b"uid"))].concat(),
        [tlv(4, b"uid=ana"), tlv(0x30, &tlv(0x30, &[tlv(4, b"uid"), tlv(0x31, &tlv(0x30, b""))].concat()))]
            .concat(),
    ];
    for value in entries {
        let (port, _) = server(move |_, op, request| match op {
            0x63 => vec![Act::Say(0x64, value.clone())],
            _ => honest(op, request),
        })
        .await;
        assert_eq!(unavailable(sign_in(config(port)).await), "the server does not speak LDAP");
    }
}

#[tokio::test]
async fn results_without_end_are_cut_off() {
    // Entries for ever, and one entry of more than the bound.
    let groups = Act::Flood(message(5, 0x64, &entry("cn=g,ou=groups,dc=lab,dc=example", &[])).repeat(100));
    let fat = Act::Say(0x64, entry(&format!("uid=ana,{BASE}"), &[("uid", &"x".repeat(2 << 20))]));
    for (act, at) in [(groups, 4), (fat, 1)] {
        let (port, _) = server(
            move |number, op, request| if number == at { vec![act.clone()] } else { honest(op, request) },
        )
        .await;
        let mut config = config(port);
        config.timeout = Duration::from_secs(30);
        // The groups end with the first thousand, or with the bound on bytes, whichever is seen first.
        match sign_in(config).await {
            Ok(identity) => assert!(at == 4 && identity.groups.len() == 1),
            Err(DirectoryError::Unavailable(reason)) => {
                assert!(reason.contains("more than a sign-in needs"), "{reason}");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn references_without_end_are_cut_off_long_before_the_time_is_over() {
    let references = message(2, 0x73, &tlv(4, b"ldap://elsewhere/")).repeat(1000);
    let (port, _) =
        server(
            move |_, op, request| {
                if op == 0x63 { vec![Act::Flood(references.clone())] } else { honest(op, request) }
            },
        )
        .await;
    let mut config = config(port);
    config.timeout = Duration::from_mins(1);

    assert!(unavailable(sign_in(config).await).contains("more than a sign-in needs"));
}

#[tokio::test]
async fn what_the_server_writes_is_never_repeated() {
    for code in [0x31, 0x35, 0x50] {
        let (port, _) = server(move |number, op, request| {
            let echo = format!("\u{1b}[31m your password {PASSWORD} is wrong, data 52e");
            if op == 0x60 && number == 2 {
                vec![Act::Say(0x61, result(code, &echo))]
            } else {
                honest(op, request)
            }
        })
        .await;
        let ldap = Ldap::new(config(port)).expect("settings");

        let error = ldap.authenticate("ana", &Secret::new(PASSWORD)).await.expect_err("refused");
        let steps = ldap.test("ana", Some(&Secret::new(PASSWORD))).await;

        let shown = format!("{error:?} {error} {} {steps:?}", error.reason());
        assert!(
            !shown.contains("sesame") && !shown.contains("your password") && !shown.contains('\u{1b}'),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn active_directory_s_codes_are_understood() {
    for (data, expected) in [
        ("52e", Refusal::WrongPassword),
        ("525", Refusal::UnknownUser),
        ("533", Refusal::Disabled),
        ("701", Refusal::Disabled),
        ("773", Refusal::PasswordExpired),
        ("775", Refusal::Disabled),
    ] {
        let (port, _) = server(move |number, op, request| {
            let text = format!(
                "80090308: LdapErr: DSID-0C090400, comment: AcceptSecurityContext error, data {data}, v4563"
            );
            if op == 0x60 && number == 2 {
                vec![Act::Say(0x61, result(49, &text))]
            } else {
                honest(op, request)
            }
        })
        .await;
        assert_eq!(refused(sign_in(config(port)).await), expected, "{data}");
    }
}

#[tokio::test]
async fn a_disabled_account_of_active_directory_is_refused_even_if_the_filter_lets_it_through() {
    for (name, value) in [("userAccountControl", "514"), ("nsAccountLock", "TRUE"), ("loginDisabled", "true")]
    {
        let (port, heard) = server(move |_, op, request| match op {
            0x63 => {
                let found = entry(&format!("uid=ana,{BASE}"), &[("uid", "ana"), (name, value)]);
                vec![Act::Say(0x64, found), Act::Say(0x65, result(0, ""))]
            }
            _ => honest(op, request),
        })
        .await;
        assert_eq!(refused(sign_in(config(port)).await), Refusal::Disabled, "{name}");
        assert_eq!(heard.lock().expect("the list").len(), 2, "no bind with the password");
    }
}

/// An authority, and a certificate with key for `localhost` and 127.0.0.1 or for another name: PEM.
fn authority() -> (String, (String, String), (String, String)) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().expect("a key");
    let ca = params.self_signed(&key).expect("an authority");
    let issuer = rcgen::Issuer::new(params, key);
    let leaf = |names: &[&str]| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params =
            rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let certificate = params.expect("names").signed_by(&key, &issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    };
    (ca.pem(), leaf(&["localhost", "127.0.0.1"]), leaf(&["ldap.other.example"]))
}

/// A server that speaks TLS from the start, or after an answer to StartTLS and whatever else is in it.
async fn tls_server(certificate: (String, String), before: Option<Vec<u8>>) -> (u16, Heard) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let chain = CertificateDer::pem_slice_iter(certificate.0.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .expect("a chain");
    let key = PrivateKeyDer::from_pem_slice(certificate.1.as_bytes()).expect("a key");
    let config =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("a server");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let heard = Heard::default();
    let list = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if let Some(before) = &before {
                let mut request = [0; 31];
                if stream.read_exact(&mut request).await.is_err() {
                    continue;
                }
                list.lock().expect("the list").push((request[5], request.to_vec()));
                stream.write_all(before).await.expect("written");
            }
            if let Ok(stream) = acceptor.accept(stream).await {
                let script: Script = Arc::new(|_, op, request| honest(op, request));
                tokio::spawn(speak(stream, script, Arc::clone(&list)));
            }
        }
    });
    (port, heard)
}

fn over_tls(port: u16, scheme: &str, ca: &str) -> LdapConfig {
    let mut config = config(port);
    config.url = format!("{scheme}://localhost:{port}");
    config.insecure_plaintext = false;
    config.ca_pem = Some(ca.to_owned());
    config.timeout = Duration::from_secs(10);
    config
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_and_shown() {
    let (ca, good, other) = authority();
    let (port, _) = tls_server(good, None).await;
    assert!(sign_in(over_tls(port, "ldaps", &ca)).await.is_ok());

    let (port, heard) = tls_server(other, None).await;
    let steps = Ldap::new(over_tls(port, "ldaps", &ca))
        .expect("settings")
        .test("ana", Some(&Secret::new(PASSWORD)))
        .await;

    let tls = step(&steps, "TLS");
    assert!(
        tls.outcome == Outcome::Failed
            && tls.detail.contains("other names")
            && tls.detail.contains("ldap.other.example"),
        "{tls:?}"
    );
    assert!(heard.lock().expect("the list").is_empty(), "nothing was said");
}

#[tokio::test]
async fn nothing_is_said_before_tls_stands() {
    let (ca, good, _) = authority();
    let yes = message(1, 0x78, &result(0, ""));
    let (port, heard) = tls_server(good.clone(), Some(yes.clone())).await;
    assert!(sign_in(over_tls(port, "ldap", &ca)).await.is_ok());
    assert_eq!(heard.lock().expect("the list")[0].0, 0x77, "StartTLS comes first");

    // Answers that were slipped in before TLS, a refusal, an answer to something else.
    let injected = [yes, message(1, 0x61, &result(0, "")), message(2, 0x61, &result(0, ""))].concat();
    for before in
        [injected, message(1, 0x78, &result(52, "")), message(1, 0x61, &result(0, "")), b"junk".repeat(50)]
    {
        let (port, heard) = tls_server(good.clone(), Some(before)).await;
        assert!(sign_in(over_tls(port, "ldap", &ca)).await.is_err());
        assert_eq!(heard.lock().expect("the list").len(), 1, "nothing but StartTLS was said");
    }
}

#[tokio::test]
async fn a_refusal_waits_for_the_next_step_whether_the_name_or_the_password_is_wrong() {
    let (wrong_password, _) = server(|number, op, request| {
        if op == 0x60 && number == 2 { vec![Act::Say(0x61, result(49, ""))] } else { honest(op, request) }
    })
    .await;
    let (unknown_name, _) =
        server(
            |_, op, request| {
                if op == 0x63 { vec![Act::Say(0x65, result(0, ""))] } else { honest(op, request) }
            },
        )
        .await;
    for (port, expected) in [(wrong_password, Refusal::WrongPassword), (unknown_name, Refusal::UnknownUser)] {
        let begun = std::time::Instant::now();

        assert_eq!(refused(sign_in(config(port)).await), expected);

        assert!(begun.elapsed() >= Duration::from_millis(250), "{expected:?}");
    }
}
