//! Entries of the audit log as other systems read them: RFC 5424, CEF and OCSF; and how they get there, over TLS (RFC 5425).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use interlock_model::audit::AuditEntry;
use interlock_model::id::hexadecimal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// Syslog with structured data (RFC 5424)
    Rfc5424,
    /// Common Event Format
    Cef,
    /// Open Cybersecurity Schema Framework 1.4, JSON
    Ocsf,
}

/// Facility "log audit".
const FACILITY: u8 = 13;
/// Longest wait for a connection, for a write, and for the receiver to have taken everything.
const PATIENCE: Duration = Duration::from_secs(15);
/// The number that is set aside for examples (RFC 5612): this project has none of its own.
const ENTERPRISE: u32 = 32_473;
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Whether the entry tells of something that was refused or is dangerous.
fn warns(entry: &AuditEntry) -> bool {
    let action = entry.draft.action.as_str();
    let said = entry.draft.details.get("result").and_then(Value::as_str);
    matches!(said, Some("failed" | "denied" | "refused"))
        || ["denied", "failed", "refused", "reuse", "tampered", "blocked", "stop"]
            .iter()
            .any(|word| action.contains(word))
}

/// One line of this form, without an end.
pub(crate) fn line(entry: &AuditEntry, form: Form) -> String {
    match form {
        Form::Rfc5424 => rfc5424(entry),
        Form::Cef => cef(entry),
        Form::Ocsf => ocsf(entry).to_string(),
    }
}

/// As [`line`], as a syslog message.
fn message(entry: &AuditEntry, form: Form) -> String {
    match form {
        Form::Rfc5424 => rfc5424(entry),
        Form::Cef => format!("{} - {}", head(entry), cef(entry)),
        Form::Ocsf => format!("{} - {}", head(entry), ocsf(entry)),
    }
}

/// `<PRI>1 TIME HOST APP PROCESS MESSAGE-ID`.
fn head(entry: &AuditEntry) -> String {
    let priority = FACILITY * 8 + if warns(entry) { 4 } else { 6 };
    let id: String = entry.draft.action.chars().filter(char::is_ascii_graphic).take(32).collect();
    let id = if id.is_empty() { "-" } else { &id };
    format!("<{priority}>1 {} - interlock - {id}", entry.draft.at)
}

fn rfc5424(entry: &AuditEntry) -> String {
    use std::fmt::Write as _;
    let mut text = format!("{} [audit@{ENTERPRISE}", head(entry));
    let hash = hexadecimal(&entry.hash);
    let draft = &entry.draft;
    for (name, value) in [
        ("id", Some(entry.seq.to_string())),
        ("actor", draft.actor.clone()),
        ("subject", draft.subject.clone()),
        ("client_ip", draft.client_ip.clone()),
        ("request_id", draft.request_id.clone()),
        ("hash", Some(hash)),
    ] {
        if let Some(value) = value {
            let _ = write!(text, " {name}=\"");
            for c in value.chars() {
                match c {
                    '"' | '\\' | ']' => text.extend(['\\', c]),
                    c if c.is_control() => text.push('?'),
                    c => text.push(c),
                }
            }
            text.push('"');
        }
    }
    // JSON has no control characters of its own, so the line stays one.
    let _ = write!(text, "] \u{feff}{}", draft.details);
    text
}

fn cef(entry: &AuditEntry) -> String {
    let draft = &entry.draft;
    let escaped = |text: &str, specials: &[char]| -> String {
        text.chars()
            .flat_map(|c| match c {
                '\n' | '\r' => vec!['\\', 'n'],
                c if specials.contains(&c) => vec!['\\', c],
                c if c.is_control() => vec!['?'],
                c => vec![c],
            })
            .collect()
    };
    let action = escaped(&draft.action, &['\\', '|']);
    let severity = if warns(entry) { 6 } else { 2 };
    let mut members = vec![
        format!("rt={}", draft.at.micros() / 1_000),
        format!("externalId={}", entry.seq),
        format!("cs3Label=hash cs3={}", hexadecimal(&entry.hash)),
    ];
    for (name, value) in [
        ("suser=", &draft.actor),
        ("src=", &draft.client_ip),
        ("cs1Label=subject cs1=", &draft.subject),
        ("cs2Label=requestId cs2=", &draft.request_id),
    ] {
        if let Some(value) = value {
            members.push(format!("{name}{}", escaped(value, &['\\', '='])));
        }
    }
    members.push(format!("msg={}", escaped(&draft.details.to_string(), &['\\', '='])));
    format!("CEF:0|Interlock|interlock|{VERSION}|{action}|{action}|{severity}|{}", members.join(" "))
}

fn ocsf(entry: &AuditEntry) -> Value {
    let draft = &entry.draft;
    let (noun, verb) = draft.action.split_once('.').unwrap_or((&draft.action, ""));
    let signing_in = matches!(draft.action.as_str(), "device.login" | "agent.authenticated")
        || noun == "token"
        || noun == "session";
    let account = matches!(noun, "user" | "agent" | "role" | "factor" | "key");
    let (class, category, activity) = if signing_in {
        (3002, 3, if verb.contains("revoked") || verb.contains("ended") { 2 } else { 1 })
    } else if account {
        (
            3001,
            3,
            match verb {
                "created" => 1,
                "deleted" => 6,
                _ => 99,
            },
        )
    } else {
        (
            6003,
            6,
            match verb {
                "created" => 1,
                "deleted" => 4,
                "updated" => 3,
                _ => 99,
            },
        )
    };
    let mut event = Map::new();
    let mut put = |name: &str, value: Value| {
        event.insert(name.to_owned(), value);
    };
    put("class_uid", json!(class));
    put("category_uid", json!(category));
    put("activity_id", json!(activity));
    put("type_uid", json!(class * 100 + activity));
    put("time", json!(draft.at.micros() / 1_000));
    put("severity_id", json!(if warns(entry) { 3 } else { 1 }));
    put("status_id", json!(if warns(entry) { 2 } else { 1 }));
    put("message", json!(draft.action));
    let product = json!({ "name": "interlock", "vendor_name": "Interlock", "version": VERSION });
    put(
        "metadata",
        json!({ "version": "1.4.0", "product": product, "uid": entry.seq.to_string(), "correlation_uid": draft.request_id }),
    );
    let actor = json!({ "name": draft.actor.as_deref().unwrap_or("unknown") });
    put("actor", json!({ "user": actor }));
    if class == 6003 {
        put("api", json!({ "operation": draft.action }));
    } else {
        let whose = draft.subject.as_deref().or(draft.actor.as_deref()).unwrap_or("unknown");
        put("user", json!({ "name": whose }));
    }
    put("src_endpoint", json!({ "ip": draft.client_ip.as_deref().unwrap_or("127.0.0.1") }));
    let hashes = (hexadecimal(&entry.hash), hexadecimal(&entry.prev_hash));
    put(
        "unmapped",
        json!({ "details": draft.details, "subject": draft.subject, "hash": hashes.0, "prev_hash": hashes.1 }),
    );
    Value::Object(event)
}

/// A receiver of syslog over TLS.
pub(crate) struct Receiver {
    stream: tokio_rustls::client::TlsStream<TcpStream>,
}

impl Receiver {
    /// Connects to `host:port`, which must show a certificate of one of the authorities in the file.
    ///
    /// # Errors
    /// Why it cannot be reached or is not believed.
    pub(crate) async fn connect(place: &str, authorities: &Path) -> anyhow::Result<Self> {
        let (host, _) = place.rsplit_once(':').context("give HOST:PORT; the usual port is 6514")?;
        let name =
            ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).context("the host is no name")?;
        let mut roots = rustls::RootCertStore::empty();
        let words = || format!("read the authorities in {}", authorities.display());
        for certificate in CertificateDer::pem_file_iter(authorities).with_context(words)? {
            roots.add(certificate.with_context(words)?).with_context(words)?;
        }
        if roots.is_empty() {
            bail!("{} holds no certificate", authorities.display());
        }
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connecting = async {
            let tcp = TcpStream::connect(place).await?;
            tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
        };
        let stream = tokio::time::timeout(PATIENCE, connecting)
            .await
            .with_context(|| format!("{place} did not answer within {} s", PATIENCE.as_secs()))?
            .with_context(|| format!("connect to {place}"))?;
        Ok(Self { stream })
    }

    /// Sends entries, each with its length before it.
    ///
    /// # Errors
    /// When the receiver does not take them in time.
    pub(crate) async fn send(&mut self, entries: &[AuditEntry], form: Form) -> anyhow::Result<()> {
        let mut frames = Vec::new();
        for entry in entries {
            let message = message(entry, form);
            frames.extend_from_slice(format!("{} ", message.len()).as_bytes());
            frames.extend_from_slice(message.as_bytes());
        }
        tokio::time::timeout(PATIENCE, self.stream.write_all(&frames))
            .await
            .context("the receiver takes nothing")?
            .context("send")
    }

    /// Ends the connection and waits until the receiver has ended it too: it has read everything then.
    ///
    /// # Errors
    /// When it does not. What was sent has to be sent again then.
    pub(crate) async fn finish(mut self) -> anyhow::Result<()> {
        let ended = async {
            self.stream.shutdown().await?;
            let mut rest = [0; 512];
            while self.stream.read(&mut rest).await? > 0 {}
            Ok::<_, std::io::Error>(())
        };
        tokio::time::timeout(PATIENCE, ended)
            .await
            .context("the receiver has not confirmed the end of the connection")?
            .context("end the connection")
    }
}

#[cfg(test)]
mod tests {
    use interlock_model::Timestamp;
    use interlock_model::audit::AuditDraft;

    use super::*;

    fn entry(action: &str, actor: &str) -> AuditEntry {
        let draft = AuditDraft {
            at: Timestamp::from_seconds(1_800_000_000),
            actor: Some(actor.to_owned()),
            action: action.to_owned(),
            subject: Some("mix|\"a]b\\=c".to_owned()),
            details: json!({ "x": "two\nlines=1" }),
            client_ip: Some("192.0.2.7".to_owned()),
            request_id: None,
        };
        AuditEntry::link(7, [0; 32], draft)
    }

    #[test]
    fn syslog_keeps_every_value_inside_its_quotes_and_every_entry_on_one_line() {
        let text = line(&entry("device.executed", "eve\"] <0>1\n"), Form::Rfc5424);

        assert!(text.starts_with("<110>1 2027-01-15T08:00:00"), "{text}");
        assert!(
            text.contains(" - interlock - device.executed [audit@32473 id=\"7\" actor=\"eve\\\"\\] <0>1?\""),
            "{text}"
        );
        assert!(text.contains("subject=\"mix|\\\"a\\]b\\\\=c\" client_ip=\"192.0.2.7\" hash=\""), "{text}");
        assert!(text.ends_with("] \u{feff}{\"x\":\"two\\nlines=1\"}") && !text.contains('\n'), "{text}");
        assert!(line(&entry("request.denied", "eve"), Form::Rfc5424).starts_with("<108>1 "));
    }

    #[test]
    fn cef_escapes_its_own_marks() {
        let text = line(&entry("device.executed", "a=b"), Form::Cef);

        assert!(
            text.starts_with(&format!(
                "CEF:0|Interlock|interlock|{VERSION}|device.executed|device.executed|2|rt=1800000000000 "
            )),
            "{text}"
        );
        assert!(text.contains("suser=a\\=b src=192.0.2.7 cs1Label=subject cs1=mix|\"a]b\\\\\\=c "), "{text}");
        assert!(text.contains("msg={\"x\":\"two\\\\nlines\\=1\"}") && !text.contains('\n'), "{text}");
    }

    #[test]
    fn ocsf_names_the_classes_of_its_schema() {
        for (action, class, kind) in [
            ("device.login", 3002, 300_201),
            ("token.revoked", 3002, 300_202),
            ("agent.created", 3001, 300_101),
            ("task.deleted", 6003, 600_304),
            ("device.executed", 6003, 600_399),
        ] {
            let event: Value = serde_json::from_str(&line(&entry(action, "ana"), Form::Ocsf)).expect("JSON");
            assert_eq!((&event["class_uid"], &event["type_uid"]), (&json!(class), &json!(kind)), "{action}");
            assert_eq!(event["category_uid"], json!(class / 1000));
            assert_eq!(event["time"], json!(1_800_000_000_000_i64));
            assert_eq!(
                (&event["actor"]["user"]["name"], &event["src_endpoint"]["ip"]),
                (&json!("ana"), &json!("192.0.2.7"))
            );
            assert_eq!(event["unmapped"]["details"]["x"], json!("two\nlines=1"));
            assert!(event["metadata"]["product"]["name"].is_string() && event["severity_id"].is_u64());
        }
    }
}
