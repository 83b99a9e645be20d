//! Transport: what is negotiated, client certificates from the handshake to the caller, and files that change under way.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use interlock_model::Clock as _;
use interlock_server::tls::{ClientSources, Condition, Keeper, Sources};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::lab::{Lab, PATIENCE, epoch};
use crate::service::Capture;
use crate::wire::{Epoch, Reply, Served, listen, replies};

const DAY: i64 = 86_400;
pub(crate) const MIXER: &str = "mixer.lab.example";

pub(crate) fn date(days: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(epoch().seconds() + days * DAY).expect("a date")
}

/// An authority for clients and for servers.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A certificate with its key, PEM.
pub(crate) struct Issued {
    pub(crate) chain: String,
    pub(crate) key: String,
}

/// What a certificate says.
struct Wanted {
    names: Vec<SanType>,
    purpose: ExtendedKeyUsagePurpose,
    ends: i64,
    serial: u64,
    lists: Vec<String>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            names: vec![SanType::DnsName(MIXER.try_into().expect("a name"))],
            purpose: ExtendedKeyUsagePurpose::ClientAuth,
            ends: 30,
            serial: 1,
            lists: Vec::new(),
        }
    }
}

impl Authority {
    fn new() -> Self {
        Self::named("rcgen self signed cert")
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (date(-1), date(3650));
        params
    }

    pub(crate) fn named(name: &str) -> Self {
        let (key, params) = (KeyPair::generate().expect("a key"), Self::params(name));
        let pem = params.self_signed(&key).expect("an authority").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// An authority below this one.
    pub(crate) fn certifies(&self, name: &str) -> Self {
        let (key, params) = (KeyPair::generate().expect("a key"), Self::params(name));
        let pem = params.signed_by(&key, &self.issuer).expect("an authority").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn issue_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (date(-2), date(30));
        change(&mut params);
        let chain = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Issued { chain, key: key.serialize_pem() }
    }

    fn issue(&self, wanted: Wanted) -> Issued {
        self.issue_with(|params| {
            params.subject_alt_names = wanted.names;
            params.extended_key_usages = vec![wanted.purpose];
            params.serial_number = Some(SerialNumber::from(wanted.serial));
            params.crl_distribution_points =
                wanted.lists.into_iter().map(|uri| CrlDistributionPoint { uris: vec![uri] }).collect();
            params.not_after = date(wanted.ends);
        })
    }

    /// A client's certificate with this name and serial number.
    pub(crate) fn client(&self, name: &str, serial: u64) -> Issued {
        let names = vec![SanType::DnsName(name.try_into().expect("a name"))];
        self.issue(Wanted { names, serial, ..Wanted::default() })
    }

    fn server(&self) -> Issued {
        let names = vec![SanType::DnsName("localhost".try_into().expect("a name"))];
        self.issue(Wanted { names, purpose: ExtendedKeyUsagePurpose::ServerAuth, ..Wanted::default() })
    }

    /// The revocation list with these serial numbers, and the place that it says it is for.
    pub(crate) fn revokes(&self, serials: &[u64], place: Option<&str>) -> String {
        let revoked = |&serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date(-1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date(-1),
            next_update: date(30),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: place.map(|uri| CrlIssuingDistributionPoint {
                distribution_point: CrlDistributionPoint { uris: vec![uri.to_owned()] },
                scope: None,
            }),
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a list").pem().expect("a list")
    }
}

/// The files of a server.
pub(crate) struct Files {
    folder: TempDir,
    pub(crate) authority: Authority,
}

impl Files {
    /// A server's certificate, its authority for clients, and an empty revocation list.
    pub(crate) fn new() -> Self {
        let files = Self { folder: tempfile::tempdir().expect("a folder"), authority: Authority::new() };
        files.put_server(&files.authority.server());
        files.write("clients.pem", &files.authority.pem);
        files.write("clients.crl", &files.authority.revokes(&[], None));
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn put_server(&self, issued: &Issued) {
        self.write("server.pem", &issued.chain);
        self.write("server.key", &issued.key);
    }

    pub(crate) fn sources(&self) -> Sources {
        Sources::files(self.path("server.pem"), self.path("server.key"))
    }

    fn mutual(&self, required: bool) -> Sources {
        let (authorities, revocations) = (self.path("clients.pem"), Some(self.path("clients.crl")));
        Sources {
            clients: Some(ClientSources { machines: Some(authorities), people: None, revocations, required }),
            ..self.sources()
        }
    }

    /// A lab behind these files.
    pub(crate) async fn serve(&self, lab: &Lab, sources: Sources) -> (Served, Arc<Keeper>) {
        let keeper = Keeper::open(sources, Arc::clone(&lab.clock) as _).expect("certificates");
        (listen(lab, Some(Arc::clone(&keeper))).await, keeper)
    }

    pub(crate) fn dialler(&self) -> Dialler {
        Dialler { authority: self.authority.pem.clone(), shows: None, versions: None }
    }

    pub(crate) fn showing(&self, issued: &Issued) -> Dialler {
        Dialler { shows: Some((issued.chain.clone(), issued.key.clone())), ..self.dialler() }
    }
}

/// How a client connects.
pub(crate) struct Dialler {
    authority: String,
    shows: Option<(String, String)>,
    versions: Option<&'static rustls::SupportedProtocolVersion>,
}

impl Dialler {
    pub(crate) async fn dial(&self, served: &Served) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.as_bytes()).expect("PEM")).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_details(provider, Arc::new(Epoch));
        let builder = match self.versions {
            Some(version) => builder.with_protocol_versions(&[version]).expect("versions"),
            None => builder.with_safe_default_protocol_versions().expect("versions"),
        };
        let builder = builder.with_root_certificates(roots);
        let mut config = match &self.shows {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(|one| one.expect("PEM"));
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
                builder.with_client_auth_cert(chain.collect(), key).expect("a pair")
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = TcpStream::connect(served.address).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    /// One request over a connection of its own.
    pub(crate) async fn ask(&self, served: &Served, head: &str, body: &str) -> std::io::Result<Reply> {
        let mut stream = self.dial(served).await?;
        ask(&mut stream, &format!("{head}\r\nConnection: close"), body).await
    }

    pub(crate) async fn is_served(&self, served: &Served) -> bool {
        match self.ask(served, "GET /health/live HTTP/1.1", "").await {
            // The files may have changed between the handshake and the request.
            Ok(reply) => {
                assert!(matches!(reply.status, 200 | 403), "{reply:?}");
                reply.status == 200
            }
            Err(_) => false,
        }
    }

    pub(crate) async fn me(&self, served: &Served, token: &str) -> u16 {
        let head = format!("GET /auth/me HTTP/1.1\r\nAuthorization: Bearer {token}");
        self.ask(served, &head, "").await.expect("an answer").status
    }

    pub(crate) async fn oauth(&self, served: &Served, form: &str) -> Reply {
        let head = "POST /oauth/token HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded";
        self.ask(served, head, form).await.expect("an answer")
    }
}

/// One request over a connection that stays.
pub(crate) async fn ask(stream: &mut TlsStream<TcpStream>, head: &str, body: &str) -> std::io::Result<Reply> {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    stream.write_all(format!("{head}\r\nHost: localhost\r\n{length}\r\n{body}").as_bytes()).await?;
    let mut bytes = Vec::new();
    let reading = async {
        loop {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let text = String::from_utf8_lossy(&bytes);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Ok(replies(&text).remove(0));
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("an answer in time")
}

/// An agent whose certificates hold this name.
pub(crate) async fn agent_named(lab: &Lab, name: &str) -> String {
    let (id, _) = lab.agent(&["runs:read"]).await;
    let admin = lab.sign_in("zoe").await;
    let body = json!({ "names": [format!("dns:{name}")] });
    let path = format!("/agents/{id}/certificates");
    let shown = lab.put(&path).signed(&admin).json(&body).send().await.ok();
    assert_eq!(shown["certificate_names"], body["names"]);
    assert_eq!(shown["has_credentials"], true);
    id
}

pub(crate) fn claims(token: &str) -> Value {
    use base64::Engine as _;
    let payload = token.split('.').nth(1).expect("three parts");
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).expect("base64url");
    serde_json::from_slice(&bytes).expect("JSON")
}

#[tokio::test]
async fn tls_1_3_with_a_key_exchange_that_lasts_is_what_is_spoken() {
    let (lab, files) = (Lab::start().await, Files::new());
    let (strict, _) = files.serve(&lab, files.sources()).await;
    let (lenient, _) = files.serve(&lab, Sources { tls12: true, ..files.sources() }).await;
    let old = Dialler { versions: Some(&rustls::version::TLS12), ..files.dialler() };

    let stream = files.dialler().dial(&strict).await.expect("a handshake");
    let session = stream.get_ref().1;
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = session.negotiated_key_exchange_group().expect("a group");
    assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
    assert!(!old.is_served(&strict).await, "TLS 1.2 is spoken where nobody asked");
    assert!(old.is_served(&lenient).await);
    let modern = files.dialler().dial(&lenient).await.expect("a handshake");
    assert_eq!(modern.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[tokio::test]
async fn only_good_certificates_of_the_clients_authority_get_a_connection() {
    let (lab, files) = (Lab::start().await, Files::new());
    let place = "http://lists.lab.example/2.crl";
    files.write("clients.crl", &files.authority.revokes(&[66], Some(place)));
    let (served, _) = files.serve(&lab, files.mutual(true)).await;
    let issue = |wanted| files.showing(&files.authority.issue(wanted));
    // The list is the second of two places that these certificates name.
    let lists = || vec!["http://lists.lab.example/1.crl".to_owned(), place.to_owned()];
    let stranger = Authority::new().client(MIXER, 1);

    assert!(issue(Wanted { lists: lists(), ..Wanted::default() }).is_served(&served).await);
    for (what, dialler) in [
        ("none", files.dialler()),
        ("of another authority", files.showing(&stranger)),
        ("expired", issue(Wanted { ends: -1, lists: lists(), ..Wanted::default() })),
        (
            "of a server",
            issue(Wanted {
                purpose: ExtendedKeyUsagePurpose::ServerAuth,
                lists: lists(),
                ..Wanted::default()
            }),
        ),
        ("revoked", issue(Wanted { serial: 66, lists: lists(), ..Wanted::default() })),
        (
            "not covered by a list",
            issue(Wanted { lists: vec!["http://other.example/crl".to_owned()], ..Wanted::default() }),
        ),
    ] {
        assert!(!dialler.is_served(&served).await, "a certificate {what} is taken");
    }
}

#[tokio::test]
async fn where_certificates_are_optional_a_bad_one_is_still_refused() {
    let (lab, files) = (Lab::start().await, Files::new());
    let (served, _) = files.serve(&lab, files.mutual(false)).await;

    assert!(files.dialler().is_served(&served).await);
    assert!(files.showing(&files.authority.client(MIXER, 1)).is_served(&served).await);
    assert!(!files.showing(&Authority::new().client(MIXER, 1)).is_served(&served).await);
}

#[tokio::test]
async fn an_agent_signs_in_with_its_certificate_and_its_tokens_are_good_with_that_alone() {
    let (lab, files) = (Lab::start().await, Files::new());
    let (served, _) = files.serve(&lab, files.mutual(false)).await;
    let (mixer, other) = (agent_named(&lab, MIXER).await, agent_named(&lab, "reader.lab.example").await);
    let shown = files.authority.client(MIXER, 1);
    let dialler = files.showing(&shown);
    let form = |id: &str| format!("grant_type=client_credentials&client_id={id}");

    let opened = dialler.oauth(&served, &form(&mixer)).await;
    assert_eq!(opened.status, 200, "{}", opened.body);
    let token = opened.json()["access_token"].as_str().expect("a token").to_owned();
    let der = CertificateDer::from_pem_slice(shown.chain.as_bytes()).expect("PEM");
    let bound = interlock_engine::auth::ClientCertificate::new(&der, Vec::new(), epoch());
    assert_eq!(claims(&token)["cnf"], json!({ "x5t#S256": bound.thumbprint() }));

    assert_eq!(dialler.me(&served, &token).await, 200);
    assert_eq!(files.dialler().me(&served, &token).await, 401, "without the certificate");
    let renewed = files.showing(&files.authority.client(MIXER, 2));
    assert_eq!(renewed.me(&served, &token).await, 401, "with another certificate of the same name");
    assert_eq!(dialler.oauth(&served, &form(&other)).await.json()["error"], "invalid_client");
    assert_eq!(files.dialler().oauth(&served, &form(&mixer)).await.json()["error"], "invalid_client");

    let admin = lab.sign_in("ada").await;
    let asked = lab.post("/oauth/introspect").signed(&admin).form(&[("token", &token)]).send().await;
    assert_eq!(asked.ok()["cnf"], claims(&token)["cnf"]);
    let opened = lab.trail_of("agent.authenticated").await;
    assert!(
        opened.iter().any(|entry| entry.draft.details.to_string().contains("tls_client_auth")),
        "{opened:?}"
    );
}

#[tokio::test]
async fn a_session_goes_on_with_the_renewed_certificate_of_the_same_client_only() {
    let (lab, files) = (Lab::start().await, Files::new());
    let (served, _) = files.serve(&lab, files.mutual(false)).await;
    let mixer = agent_named(&lab, MIXER).await;
    let first = files.showing(&files.authority.client(MIXER, 1));
    let renewed = files.showing(&files.authority.client(MIXER, 2));
    let other = files.showing(&files.authority.client("reader.lab.example", 3));
    let head = "POST /agents/auth/token HTTP/1.1\r\nContent-Type: application/json";
    let body = json!({ "agent_id": mixer }).to_string();
    let opened = first.ask(&served, head, &body).await.expect("an answer").json();
    let refresh = opened["refresh_token"].as_str().expect("a token").to_owned();
    let again = |token: &str| format!("grant_type=refresh_token&refresh_token={token}");

    for stranger in [files.dialler(), other] {
        let refused = stranger.oauth(&served, &again(&refresh)).await;
        assert_eq!((refused.status, &refused.json()["error"]), (400, &json!("invalid_grant")));
    }
    let exchanged = renewed.oauth(&served, &again(&refresh)).await;
    assert_eq!(exchanged.status, 200, "{}", exchanged.body);
    let token = exchanged.json()["access_token"].as_str().expect("a token").to_owned();
    assert_eq!(renewed.me(&served, &token).await, 200);
    assert_eq!(first.me(&served, &token).await, 401);
}

#[tokio::test]
async fn a_revoked_or_ended_certificate_stops_on_the_connection_that_is_open() {
    let (lab, files) = (Lab::start().await, Files::new());
    let (served, keeper) = files.serve(&lab, files.mutual(true)).await;
    let (one, two) = (files.authority.client(MIXER, 1), files.authority.client("reader.lab.example", 2));
    let head = "GET /health/live HTTP/1.1";
    let mut first = files.showing(&one).dial(&served).await.expect("a handshake");
    let mut second = files.showing(&two).dial(&served).await.expect("a handshake");
    assert_eq!(ask(&mut first, head, "").await.expect("an answer").status, 200);
    assert_eq!(ask(&mut second, head, "").await.expect("an answer").status, 200);

    files.write("clients.crl", &files.authority.revokes(&[1], None));
    keeper.refresh();

    for _ in 0..2 {
        let refused = ask(&mut first, head, "").await.expect("an answer");
        assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("client_certificate")));
    }
    assert_eq!(ask(&mut second, head, "").await.expect("an answer").status, 200);
    assert!(!files.showing(&one).is_served(&served).await);
    lab.clock.advance(Duration::from_hours(24 * 31));
    assert_eq!(ask(&mut second, head, "").await.expect("an answer").status, 403);
}

#[tokio::test]
async fn a_proxy_s_certificate_is_not_its_clients() {
    let lab = Lab::with(|config| config.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a net")]).await;
    let files = Files::new();
    let (served, _) = files.serve(&lab, files.mutual(true)).await;
    let mixer = agent_named(&lab, MIXER).await;
    let proxy = files.showing(&files.authority.client(MIXER, 1));

    let refused = proxy.oauth(&served, &format!("grant_type=client_credentials&client_id={mixer}")).await;

    assert_eq!(refused.json()["error"], "invalid_client");
    let (id, secret) = lab.agent(&["runs:read"]).await;
    let form = format!("grant_type=client_credentials&client_id={id}&client_secret={secret}");
    let opened = proxy.oauth(&served, &form).await.json();
    assert!(claims(opened["access_token"].as_str().expect("a token")).get("cnf").is_none());
}

#[tokio::test]
async fn new_files_are_taken_and_broken_ones_leave_what_is_in_force() {
    let (lab, files) = (Lab::start().await, Files::new());
    let (served, keeper) = files.serve(&lab, files.sources()).await;
    let mut open = files.dialler().dial(&served).await.expect("a handshake");
    let shown = |stream: &TlsStream<TcpStream>| {
        stream.get_ref().1.peer_certificates().expect("a chain")[0].as_ref().to_vec()
    };
    let before = shown(&open);

    for (what, chain, key) in [
        ("nothing", String::new(), String::new()),
        ("half a file", files.authority.server().chain[..100].to_owned(), files.authority.server().key),
        ("another's key", files.authority.server().chain, files.authority.server().key),
        ("expired", files.authority.issue(Wanted { ends: -1, ..Wanted::default() }).chain, String::new()),
    ] {
        files.write("server.pem", &chain);
        files.write("server.key", &key);
        keeper.refresh();
        let now = files.dialler().dial(&served).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(shown(&now), before, "{what}");
    }
    std::fs::remove_file(files.path("server.pem")).expect("removed");
    keeper.refresh();
    assert_eq!(shown(&files.dialler().dial(&served).await.expect("a handshake")), before);

    let fresh = files.authority.server();
    files.put_server(&fresh);
    keeper.refresh();
    let now = shown(&files.dialler().dial(&served).await.expect("a handshake"));
    assert_ne!(now, before);
    assert_eq!(now, CertificateDer::from_pem_slice(fresh.chain.as_bytes()).expect("PEM").as_ref());
    assert_eq!(ask(&mut open, "GET /health/live HTTP/1.1", "").await.expect("an answer").status, 200);
}

/// Lists are found by the name of who issued a certificate, so that of two authorities with one name one could not be checked.
#[tokio::test]
async fn lists_of_two_authorities_with_one_name_are_refused_and_those_in_force_stay() {
    let (lab, files) = (Lab::start().await, Files::new());
    let (served, keeper) = files.serve(&lab, files.mutual(true)).await;
    let client = files.showing(&files.authority.client(MIXER, 1));
    let own = files.authority.revokes(&[], None);
    let (renewed, other) = (Authority::new(), Authority::named("other clients"));

    files.write("clients.crl", &format!("{own}{}", renewed.revokes(&[], None)));
    keeper.refresh();
    assert!(client.is_served(&served).await, "what was in force stays");
    let error = Keeper::open(files.mutual(true), Arc::clone(&lab.clock) as _).expect_err("two of one name");
    assert!(error.to_string().contains("Give the new authority another name"), "{error}");

    files.write("clients.pem", &format!("{}{}", files.authority.pem, other.pem));
    files.write("clients.crl", &format!("{own}{}", other.revokes(&[7], None)));
    keeper.refresh();
    assert!(client.is_served(&served).await);
    assert!(files.showing(&other.client("shaker", 6)).is_served(&served).await);
    assert!(!files.showing(&other.client("shaker", 7)).is_served(&served).await);
}

/// A list that another authority of the same name has signed vouches for nothing, and the log says so.
#[tokio::test]
async fn a_list_that_its_authority_has_not_signed_refuses_everybody() {
    let capture = Capture::default();
    let _captured = capture.install();
    let (lab, files) = (Lab::start().await, Files::new());
    files.write("clients.crl", &Authority::new().revokes(&[], None));
    let (served, _) = files.serve(&lab, files.mutual(true)).await;
    assert!(!files.showing(&files.authority.client(MIXER, 1)).is_served(&served).await);
    let told = async {
        while !capture.text().contains(r#""reason":"revocation_list""#) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the reason is in the security log");
}

#[tokio::test]
async fn the_watch_finds_new_files_by_itself() {
    let (lab, files) = (Lab::start().await, Files::new());
    let (served, keeper) = files.serve(&lab, files.mutual(true)).await;
    let client = files.showing(&files.authority.client(MIXER, 1));
    assert!(client.is_served(&served).await);
    let watching = tokio::spawn(Arc::clone(&keeper).watch());

    files.write("clients.crl", &files.authority.revokes(&[1], None));

    let gone = async {
        while client.is_served(&served).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the list is read");
    watching.abort();
}

#[tokio::test]
async fn the_end_of_a_certificate_is_told_in_time() {
    let (lab, files) = (Lab::start().await, Files::new());
    let (served, keeper) = files.serve(&lab, files.sources()).await;
    let ready = async || {
        files.dialler().ask(&served, "GET /health/ready HTTP/1.1", "").await.expect("an answer").json()
    };

    assert_eq!(ready().await["certificate"]["status"], "good");
    lab.clock.advance(Duration::from_hours(24 * 26));
    assert_eq!(
        (keeper.condition().0, &ready().await["certificate"]["status"]),
        (Condition::Soon, &json!("ends soon"))
    );
    assert_eq!(ready().await["certificate"]["expires_at"], json!(keeper.condition().1));
    lab.clock.advance(Duration::from_hours(24 * 5));
    assert_eq!(
        (keeper.condition().0, &ready().await["certificate"]["status"]),
        (Condition::Over, &json!("expired"))
    );
    assert!(lab.clock.now() > keeper.condition().1);
}

#[tokio::test]
async fn the_metadata_names_client_certificates_where_they_are_taken() {
    let (lab, files) = (Lab::start().await, Files::new());
    let (plain, _) = files.serve(&lab, files.sources()).await;
    let (mutual, _) = files.serve(&lab, files.mutual(false)).await;
    let path = "GET /.well-known/oauth-authorization-server HTTP/1.1";

    for (served, taken) in [(&plain, false), (&mutual, true)] {
        let told = files.dialler().ask(served, path, "").await.expect("an answer").json();
        assert_eq!(told["tls_client_certificate_bound_access_tokens"], taken);
        let methods = told["token_endpoint_auth_methods_supported"].as_array().expect("methods");
        assert_eq!(methods.contains(&json!("tls_client_auth")), taken);
    }
}

#[tokio::test]
async fn names_that_no_certificate_holds_cannot_be_registered() {
    let lab = Lab::start().await;
    let (id, _) = lab.agent(&["runs:read"]).await;
    let admin = lab.sign_in("zoe").await;
    let path = format!("/agents/{id}/certificates");

    for names in
        [json!(["mixer"]), json!(["dns:*.lab.example"]), json!(["dns:a", "dns:b", "dns:c", "dns:d", "dns:e"])]
    {
        let body = json!({ "names": names });
        lab.put(&path).signed(&admin).json(&body).send().await.refused(422, "invalid_request");
    }
    let viewer = lab.token("vic").await;
    lab.put(&path).signed(&viewer).json(&json!({ "names": [] })).send().await.refused(403, "forbidden");
}
