//! `interlock trust`: looking at an installation's own authority, and taking it on.
//!
//! The fingerprint is what people carry from the server to the client, because it is short enough to be compared. Nothing is
//! taken on without one: neither `--yes` nor a script can say that a stranger is the right one.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Subcommand;
use interlock_client::{server_address, trust};
use interlock_server::tls::{self, Described};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::connect::same;
use super::contexts::{self, Context};
use super::failure::{Failure, exit};
use super::global::Global;
use super::sign_in::fresh_name;
use super::terminal::confirm;
use super::text::{line, time};
use super::ui::{Facts, Ui};

/// Where Debian and its kin read the authorities that an administrator adds.
const SYSTEM: &str = "/usr/local/share/ca-certificates";

/// The authority of an installation that makes its own certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum TrustCommand {
    /// Show the authority and the server's certificate
    Show {
        /// Address of a server; without it, the folder of --state
        #[arg(required_unless_present = "state", conflicts_with = "state")]
        address: Option<String>,
        /// State folder of a server on this machine
        #[arg(long)]
        state: Option<PathBuf>,
    },
    /// Print the authority's certificate in PEM form, for other programs
    Export {
        /// State folder of a server on this machine
        #[arg(long)]
        state: PathBuf,
        /// Write it to this file instead
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Trust a server's authority from now on
    Install {
        /// Its address
        address: String,
        /// SHA-256 fingerprint of the authority, as the server prints it; without it you are asked
        #[arg(long)]
        fingerprint: Option<String>,
        /// For every program on this machine, with update-ca-certificates; wants root
        #[arg(long)]
        system: bool,
    },
}

pub(crate) async fn trust(ui: &Ui, global: &Global, command: TrustCommand) -> Result<(), Failure> {
    match command {
        TrustCommand::Show { address: Some(address), .. } => {
            let chain = offered(&address).await?;
            let described = chain.iter().map(describe).collect::<Result<Vec<_>, _>>()?;
            show(ui, described.first(), described.iter().skip(1).find(|one| one.is_authority))
        }
        TrustCommand::Show { state, .. } => {
            let state = state.unwrap_or_default();
            let authority = describe(&authority_of(&state)?)?;
            let server = tls::first_certificate(&state.join("tls/server.pem")).ok();
            let server = server.as_ref().map(describe).transpose()?;
            show(ui, server.as_ref(), Some(&authority))
        }
        TrustCommand::Export { state, out } => {
            let text = tls::pem(&authority_of(&state)?);
            match out {
                None => ui.out(text.trim_end()),
                Some(path) => {
                    std::fs::write(&path, text).map_err(|error| {
                        Failure::file("cannot write", &path, &error, "check the folder and the disk")
                    })?;
                    ui.note(&format!("the authority is in {}", path.display()));
                    Ok(())
                }
            }
        }
        TrustCommand::Install { address, fingerprint, system } => {
            let authority = confirmed(ui, &address, fingerprint.as_deref()).await?;
            trust::fits(&address, &authority).await?;
            if system { install_for_all(ui, &authority) } else { install(ui, global, &address, &authority) }
        }
    }
}

/// The authority of an installation on this machine.
fn authority_of(state: &Path) -> Result<CertificateDer<'static>, Failure> {
    let file = state.join("tls/ca.pem");
    tls::first_certificate(&file).map_err(|error| {
        let hint = "give the folder of a server that was started with --tls internal";
        Failure::new(exit::NOT_FOUND, "there is no authority", hint).because(error.to_string())
    })
}

async fn offered(address: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    Ok(trust::offered(address).await?)
}

fn describe(certificate: &CertificateDer<'static>) -> Result<Described, Failure> {
    tls::describe(certificate).map_err(|error| {
        Failure::new(exit::UNREACHABLE, "a certificate cannot be read", "it is not one to trust")
            .because(error.to_string())
    })
}

fn document(described: &Described) -> Value {
    json!({
        "subject": described.subject, "names": described.names, "fingerprint": described.fingerprint,
        "starts_at": described.starts_at, "expires_at": described.expires_at,
    })
}

fn show(ui: &Ui, server: Option<&Described>, authority: Option<&Described>) -> Result<(), Failure> {
    let whole = json!({ "server": server.map(document), "authority": authority.map(document) });
    let facts = || {
        let mut facts = Facts::new();
        if let Some(server) = server {
            facts = facts
                .with("server", line(&server.names.join(", ")))
                .with("valid until", time(server.expires_at))
                .with("sha-256", &server.fingerprint);
        }
        match authority {
            Some(authority) => facts
                .with("authority", line(&authority.subject))
                .with("valid until", time(authority.expires_at))
                .with("sha-256", &authority.fingerprint),
            None => facts.with("authority", "not shown: the server has a certificate of somebody else's"),
        }
    };
    let name = authority.or(server).map_or("", |one| one.fingerprint.as_str());
    ui.one(&whole, facts, name)
}

/// The authority that the server shows, once a fingerprint or a person has said that it is the right one.
async fn confirmed(ui: &Ui, address: &str, told: Option<&str>) -> Result<CertificateDer<'static>, Failure> {
    let chain = offered(address).await?;
    let authority =
        chain.into_iter().skip(1).find(|one| tls::describe(one).is_ok_and(|one| one.is_authority));
    let authority = authority.ok_or_else(|| {
        let hint = "carry its CA file here another way: interlock context add NAME ADDRESS FILE";
        Failure::new(exit::NOT_FOUND, "the server shows no authority of its own", hint)
    })?;
    let described = describe(&authority)?;
    match told {
        Some(told) if plain(told) == plain(&described.fingerprint) => Ok(authority),
        Some(_) => {
            let hint = "do not go on: compare with what the server printed at its start, or `interlock trust show --state DIR` there";
            let error = "the server's authority is another one than you said";
            Err(Failure::new(exit::UNREACHABLE, error, hint)
                .because(format!("it shows {}", described.fingerprint)))
        }
        None if ui.interactive && !ui.yes => {
            let question = format!(
                "{} shows the authority\n  {}\nIs that what the server printed at its start?",
                line(address),
                described.fingerprint
            );
            if confirm(ui, &question).await {
                Ok(authority)
            } else {
                Err(Failure::new(exit::ERROR, "nothing was changed", "ask who runs the server"))
            }
        }
        None => Err(Failure::usage(
            "the fingerprint is needed, and there is nobody to ask",
            "interlock trust install ADDRESS --fingerprint SHA256:…, as the server printed it",
        )),
    }
}

/// Without colons, spaces, case and the name of the hash.
fn plain(fingerprint: &str) -> String {
    let text = fingerprint.trim().to_ascii_lowercase();
    let digits = text.strip_prefix("sha256:").or_else(|| text.strip_prefix("sha-256:")).unwrap_or(&text);
    digits.chars().filter(|c| !matches!(c, ':' | ' ' | '-')).collect()
}

/// Eight digits that tell files apart.
fn short(fingerprint: &str) -> String {
    plain(fingerprint).chars().take(8).collect()
}

/// For the command line and the SDK of this person.
fn install(
    ui: &Ui,
    global: &Global,
    address: &str,
    authority: &CertificateDer<'static>,
) -> Result<(), Failure> {
    let described = describe(authority)?;
    let file = contexts::keep_authority(&short(&described.fingerprint), &tls::pem(authority))?;
    let url = server_address(address)?;
    let mut name = global.context.clone();
    contexts::change(|all| {
        let known = all.contexts.iter().find(|(_, context)| same(&context.url, address));
        let chosen = name.take().or_else(|| known.map(|(name, _)| name.clone()));
        let chosen = chosen.unwrap_or_else(|| fresh_name(url.host_str().unwrap_or("server"), all));
        let first = all.current.is_none();
        let context = all.contexts.entry(chosen.clone()).or_insert_with(|| Context {
            url: url.as_str().trim_end_matches('/').to_owned(),
            ..Context::default()
        });
        context.ca_file = Some(file.clone());
        if first {
            all.current = Some(chosen.clone());
        }
        name = Some(chosen);
    })?;
    let name = name.unwrap_or_default();
    let whole = json!({ "context": name, "ca_file": file, "authority": document(&described) });
    let facts = || {
        Facts::new()
            .with("trusted", &described.fingerprint)
            .with("context", &name)
            .with("next", format!("interlock login --context {name}"))
    };
    ui.one(&whole, facts, &name)
}

/// For everybody on this machine.
fn install_for_all(ui: &Ui, authority: &CertificateDer<'static>) -> Result<(), Failure> {
    let described = describe(authority)?;
    let file = Path::new(SYSTEM).join(format!("interlock-{}.crt", short(&described.fingerprint)));
    std::fs::write(&file, tls::pem(authority)).map_err(|error| {
        Failure::file("cannot write", &file, &error, "run it as root; other systems: interlock trust export")
    })?;
    let updated = Command::new("update-ca-certificates").output();
    let failed = |cause: String| {
        let hint = format!("{} is written; run update-ca-certificates by hand", file.display());
        Failure::new(exit::ERROR, "the system's authorities could not be updated", hint).because(cause)
    };
    let updated = updated.map_err(|error| failed(error.to_string()))?;
    if !updated.status.success() {
        return Err(failed(String::from_utf8_lossy(&updated.stderr).trim().to_owned()));
    }
    let whole = json!({ "ca_file": file, "authority": document(&described) });
    let facts = || {
        Facts::new().with("trusted by all", &described.fingerprint).with("file", file.display().to_string())
    };
    ui.one(&whole, facts, &described.fingerprint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_compared_however_they_are_written() {
        for text in ["AB:CD:01", "ab:cd:01", "SHA256:abcd01", "sha-256: AB CD 01", " abcd01 "] {
            assert_eq!(plain(text), "abcd01", "{text}");
        }
        assert_ne!(plain("AB:CD:02"), "abcd01");
    }
}
