//! `interlock directory test`: tries a sign-in against LDAP or the OpenID provider, or the token of a program, and shows each
//! step.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use interlock_directory::{Outcome, Step};
use interlock_model::secret::Secret;

use super::net::NetArgs;
use crate::directories;

/// Directories of people.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum DirectoryCommand {
    /// Try a sign-in with the settings of this machine, step by step
    Test(TestArgs),
}

/// Options of `directory test`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TestArgs {
    /// ldap, oidc or workload
    #[arg(value_parser = ["ldap", "oidc", "workload"])]
    kind: String,
    /// Sign-in name to try (LDAP)
    #[arg(long)]
    user: Option<String>,
    /// Read the password from this file; without it no password is tried
    #[arg(long)]
    password_file: Option<PathBuf>,
    /// Read the token from this file (workload)
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Settings file, TOML
    #[arg(long, env = "INTERLOCK_CONFIG")]
    config: Option<PathBuf>,
}

/// Runs it and prints the steps, as JSON if wanted; `true` if none failed.
///
/// # Errors
/// When a setting cannot be used.
pub(crate) async fn directory(command: DirectoryCommand, as_json: bool) -> anyhow::Result<bool> {
    let DirectoryCommand::Test(args) = command;
    let net = NetArgs { config: args.config.clone(), ..NetArgs::default() };
    let settings = net.settings()?.server()?;
    let secret = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Ok::<_, anyhow::Error>(Secret::new(text.trim_end_matches(['\r', '\n'])))
    };
    let ambient = crate::ambient::ambient();
    let (steps, browser) = match args.kind.as_str() {
        "ldap" => {
            let user = args.user.as_deref().context("give the name to try with --user")?;
            let password = args.password_file.as_ref().map(secret).transpose()?;
            (directories::try_ldap(&settings, user, password.as_ref()).await?, None)
        }
        "workload" => {
            let token = args.token_file.as_ref().context("give the token to try with --token-file")?;
            (directories::try_workload(&settings, &ambient, &secret(token)?).await?, None)
        }
        _ => directories::try_oidc(&settings, &ambient).await?,
    };
    let good = !steps.iter().any(|step| step.outcome == Outcome::Failed);
    if as_json {
        let shown = serde_json::json!({ "ok": good, "steps": steps, "browser": browser });
        crate::print_out(&format!("{shown}\n"));
    } else {
        crate::print_out(&shown(&steps, browser.as_deref()));
    }
    Ok(good)
}

fn shown(steps: &[Step], next: Option<&str>) -> String {
    let mut text = String::new();
    for step in steps {
        let mark = match step.outcome {
            Outcome::Passed => "ok  ",
            Outcome::Failed => "FAIL",
            _ => "-   ",
        };
        let _ = writeln!(text, "{mark}  {:<28}  {}", step.name, step.detail);
        if let Some(remedy) = &step.remedy {
            let _ = writeln!(text, "      {remedy}");
        }
    }
    if let Some(url) = next {
        let _ = writeln!(text, "\nOpen this address in a browser to see the provider's page:\n{url}");
    }
    text
}
