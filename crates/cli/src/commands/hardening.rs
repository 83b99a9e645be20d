//! What `interlock doctor` says of settings, time and what is left on the disk: the items of the security checklists that can be
//! seen from inside. In production what is missing fails; elsewhere it is a note.

use std::path::{Path, PathBuf};
use std::time::Duration;

use interlock_engine::backup::Backups;
use interlock_model::{Clock as _, Timestamp};
use interlock_server::tls;

use super::doctor::Finding;
use crate::ambient::SystemClock;
use crate::config::Config;

const DAY: Duration = Duration::from_hours(24);
/// Backups are taken each night.
const BACKUP: Duration = Duration::from_hours(26);
/// Drills each month.
const DRILL: Duration = Duration::from_hours(24 * 35);
/// Certificates are renewed at least so long before their end.
const CERTIFICATE: Duration = Duration::from_hours(24 * 14);
/// Space below which a disk is nearly full, in bytes.
const SPACE: u64 = 1 << 30;

/// What must be so in production.
fn wanted(production: bool, good: bool, what: impl Into<String>, remedy: &str) -> Finding {
    Finding { good, note: !production, what: what.into(), remedy: remedy.to_owned() }
}

/// What the settings say.
pub(super) fn settings(config: &Config) -> Vec<Finding> {
    let production = config.text("server.environment") == "production";
    let is = |key| config.text(key).trim().eq_ignore_ascii_case("true");
    let set = |key| !config.text(key).trim().is_empty();
    let number = |key| config.text(key).trim().parse::<u64>().unwrap_or(0);
    let encrypted =
        set("tls.cert_file") || config.text("tls.mode") != "auto" || set("server.trusted_proxies");
    let database = config.text("database.url").to_owned();
    let days = number("audit.retention_days");
    vec![
        wanted(
            production,
            production,
            "the environment is production",
            "ENVIRONMENT=production: documents are for administrators only",
        ),
        wanted(
            production,
            encrypted,
            "traffic is encrypted here or by a listed proxy",
            "TLS_CERT_FILE and TLS_KEY_FILE, or TRUSTED_PROXIES",
        ),
        wanted(production, is("limits.enabled"), "rate limits are on", "RATE_LIMIT_ENABLED=true"),
        wanted(
            production,
            config.text("screening.patterns") != "false",
            "requests that look like an attack are refused",
            "BLOCK_SUSPICIOUS_PATTERNS=true",
        ),
        wanted(
            production,
            number("identity.access_token_expire_hours") <= 1
                && number("identity.access_token_expire_minutes") <= 60,
            "access tokens end within an hour",
            "ACCESS_TOKEN_EXPIRE_HOURS=1, JWT_ACCESS_TOKEN_EXPIRE_MINUTES=60",
        ),
        wanted(
            production,
            is("identity.require_mfa_for_admins"),
            "administrators need a second factor",
            "REQUIRE_MFA_FOR_ADMINS=true",
        ),
        wanted(
            production,
            !config.text("server.cors_allow_origins").split(',').any(|origin| origin.trim() == "*"),
            "no page of any origin may call",
            "CORS_ALLOW_ORIGINS: name the origins",
        ),
        wanted(
            production,
            !database.contains("sslmode=disable"),
            "the database is reached over TLS or on this machine",
            "DATABASE_URL with sslmode=verify-full",
        ),
        wanted(
            production,
            !is("redis.insecure_plaintext"),
            "Redis is reached over TLS or on this machine",
            "REDIS_URL=rediss://…",
        ),
        wanted(
            production,
            set("metrics.token") || set("server.internal_listen"),
            "metrics can be read by a collector",
            "METRICS_TOKEN_FILE, or INTERNAL_LISTEN",
        ),
        wanted(
            production,
            days == 0 || days >= 90,
            "audit entries are kept for 90 days at least",
            "AUDIT_RETENTION_DAYS=90",
        ),
        wanted(
            production,
            set("audit.anchor_file"),
            "checkpoints of the audit log are kept elsewhere",
            "AUDIT_ANCHOR_FILE on another machine's disk",
        ),
        wanted(
            production,
            set("backup.key"),
            "it is said whom backups are for",
            "interlock backup key FILE, then BACKUP_KEY",
        ),
        wanted(
            production,
            set("server.security_contact"),
            "whoever finds a hole knows whom to tell",
            "SECURITY_CONTACT=mailto:…",
        ),
    ]
}

/// What the folder and its disk say.
pub(super) fn folder(config: &Config, state: &Path) -> Vec<Finding> {
    let production = config.text("server.environment") == "production";
    let now = SystemClock.now();
    let mut findings = Vec::new();
    if let Ok(space) = rustix::fs::statvfs(state) {
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        findings.push(Finding {
            good: free >= SPACE,
            note: false,
            what: format!("{} MiB are free on the disk of the state folder", free >> 20),
            remedy: "make room: when it is full, changes are refused".to_owned(),
        });
    }
    let own = state.join("tls/server.crt");
    let configured =
        Some(PathBuf::from(config.text("tls.cert_file"))).filter(|path| !path.as_os_str().is_empty());
    for path in configured.into_iter().chain(Some(own).filter(|path| path.exists())) {
        let read = tls::first_certificate(&path).and_then(|certificate| tls::describe(&certificate));
        findings.push(match read {
            Ok(found) => wanted(
                production,
                found.expires_at > now.plus(CERTIFICATE) && found.starts_at <= now,
                format!("the certificate {} is valid until {}", path.display(), found.expires_at),
                "put a new one there; the server reads it by itself",
            ),
            Err(error) => Finding {
                good: false,
                note: false,
                what: format!("the certificate {}: {error}", path.display()),
                remedy: "put a certificate in PEM form there".to_owned(),
            },
        });
    }
    findings
}

/// What the database says of backups, and of the clock.
pub(super) fn past(config: &Config, backups: &Backups, newest: Option<Timestamp>) -> Vec<Finding> {
    let production = config.text("server.environment") == "production";
    let now = SystemClock.now();
    let told = |at: Option<Timestamp>| at.map_or_else(|| "never".to_owned(), |at| at.to_string());
    let fresh = |at: Option<Timestamp>, most| at.is_some_and(|at: Timestamp| at.plus(most) >= now);
    let (taken, tried) = (backups.taken_at, backups.tried_at);
    let mut findings = vec![
        wanted(
            production,
            fresh(taken, BACKUP),
            format!("last backup: {}", told(taken)),
            "interlock backup create FILE --state DIR, each night",
        ),
        wanted(
            production,
            fresh(tried, DRILL),
            format!("last drill with a backup: {}", told(tried)),
            "interlock backup verify FILE --private-key FILE --state DIR, each month",
        ),
    ];
    if let Some(newest) = newest {
        findings.push(Finding {
            good: newest <= now.plus(DAY),
            note: false,
            what: format!("the clock ({now}) is not behind the newest audit entry ({newest})"),
            remedy: "set the clock right: tokens and schedules go by it".to_owned(),
        });
    }
    findings
}
