//! `interlock doctor`: looks at this machine and at an installation, and says what to mend.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::hardening;
use crate::config::Config;
use crate::local::{Kept, Local};
use crate::print_out;
use crate::python;

/// Options of `doctor`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DoctorArgs {
    /// State folder of an installation to look at
    #[arg(long)]
    state: Option<PathBuf>,
    /// Python interpreter
    #[arg(long, env = "INTERLOCK_PYTHON")]
    python: Option<PathBuf>,
}

/// What was seen.
pub(super) struct Finding {
    pub(super) good: bool,
    /// When it is not good, it is no failure here.
    pub(super) note: bool,
    pub(super) what: String,
    pub(super) remedy: String,
}

fn finding(good: bool, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { good, note: false, what: what.into(), remedy: remedy.into() }
}

fn unusable(error: &dyn std::fmt::Display) -> Finding {
    finding(
        false,
        format!("settings: {error}"),
        "mend the setting; `interlock config show --origin` tells where each comes from",
    )
}

/// Looks and reports. `Ok(false)` when something needs mending.
///
/// # Errors
/// Never for what it finds; those are findings.
pub(crate) async fn doctor(args: &DoctorArgs) -> anyhow::Result<bool> {
    let mut findings = vec![python_works(args.python.clone())];
    let environment = std::env::vars().collect();
    let config = Config::load(None, &environment, &[]);
    findings.push(match config.as_ref().map(|config| config.server().map(drop)) {
        Ok(Ok(())) => finding(true, "settings from the environment are usable", ""),
        Ok(Err(error)) => unusable(&error),
        Err(error) => unusable(error),
    });
    let config = config.unwrap_or_else(|_| Config::defaults());
    findings.extend(hardening::settings(&config));
    if let Some(state) = &args.state {
        findings.extend(look_at(&config, state).await);
    }
    for finding in &findings {
        let mark = match finding {
            Finding { good: true, .. } => "pass",
            Finding { note: true, .. } => "note",
            Finding { .. } => "FAIL",
        };
        print_out(&format!("{mark}  {}\n", finding.what));
        if !finding.good && !finding.remedy.is_empty() {
            print_out(&format!("      {}\n", finding.remedy));
        }
    }
    Ok(findings.iter().all(|finding| finding.good || finding.note))
}

fn python_works(told: Option<PathBuf>) -> Finding {
    let python = python::interpreter(told);
    let version =
        Command::new(&python).args(["-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"]).output();
    match version {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let mut numbers = text.split('.').filter_map(|part| part.parse::<u32>().ok());
            let good = numbers.next() == Some(3) && numbers.next().is_some_and(|minor| minor >= 7);
            finding(
                good,
                format!("Python {text} at {}", python.display()),
                "install Python 3.7 or later, or give --python",
            )
        }
        _ => finding(
            false,
            format!("{} does not run", python.display()),
            "install Python 3.7 or later, or give --python",
        ),
    }
}

async fn look_at(config: &Config, state: &Path) -> Vec<Finding> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut findings = Vec::new();
    let private = |path: &Path| {
        std::fs::metadata(path).map(|metadata| metadata.permissions().mode().trailing_zeros() >= 6)
    };
    match private(state) {
        Ok(good) => findings.push(finding(
            good,
            format!("state folder {} is private", state.display()),
            "chmod 700 it",
        )),
        Err(error) => {
            findings.push(finding(
                false,
                format!("state folder {}: {error}", state.display()),
                "give the folder that the server uses",
            ));
            return findings;
        }
    }
    for name in [
        "keys/token-signing.pk8",
        "keys/audit-signing.pk8",
        "keys/master.key",
        "interlock.db",
        "tls/ca.key",
        "tls/server.key",
    ] {
        let path = state.join(name);
        if path.exists() {
            let good = private(&path).unwrap_or(false);
            findings.push(finding(
                good,
                format!("{name} is private"),
                format!("chmod 600 {}", path.display()),
            ));
        }
    }
    findings.extend(hardening::folder(config, state));
    match Local::open(state).await {
        Err(error) => findings.push(finding(
            false,
            format!("database: {error:#}"),
            "start a server there once, or restore a backup",
        )),
        Ok(local) => {
            let verified = async {
                let own = local.audit_key().await?;
                Ok::<_, anyhow::Error>(local.verify_audit(vec![own], Kept::default()).await?)
            };
            match verified.await {
                Ok(report) => findings.push(finding(
                    true,
                    format!(
                        "audit log is as it was signed: entries {} to {}, {} checkpoints",
                        report.first, report.last, report.checkpoints
                    ),
                    "",
                )),
                Err(error) => findings.push(finding(
                    false,
                    format!("audit log: {error:#}"),
                    "treat it as an incident: keep a copy of the state folder before anything else",
                )),
            }
            match local.past().await {
                Ok((backups, newest)) => findings.extend(hardening::past(config, &backups, newest)),
                Err(error) => findings.push(finding(false, format!("backups: {error:#}"), "")),
            }
            match local.list().await {
                Ok(users) => {
                    let admins = users
                        .iter()
                        .filter(|user| !user.disabled && user.roles.iter().any(|role| role == "admin"))
                        .count();
                    findings.push(finding(
                        admins > 0,
                        format!("{admins} enabled administrators"),
                        "interlock user add NAME --role admin --state DIR",
                    ));
                }
                Err(error) => findings.push(finding(false, format!("users: {error:#}"), "")),
            }
            local.close().await;
        }
    }
    findings
}
