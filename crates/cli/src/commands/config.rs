//! `interlock config check|show|explain`: what is in force and why.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;

use crate::config::{Config, SETTINGS};
use crate::print_out;

/// Options of `config`.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check the settings in force; exit code 0 if a server would start with them
    Check {
        /// Settings file, TOML
        #[arg(long, env = "INTERLOCK_CONFIG")]
        config: Option<PathBuf>,
    },
    /// Show the settings in force, secrets redacted
    Show {
        /// Settings file, TOML
        #[arg(long, env = "INTERLOCK_CONFIG")]
        config: Option<PathBuf>,
        /// Also where each value came from
        #[arg(long)]
        origin: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Explain one setting
    Explain {
        /// Name in the file, or environment variable
        key: String,
    },
}

/// Carries it out.
///
/// # Errors
/// Settings that cannot be used.
pub(crate) fn config(command: &ConfigCommand) -> anyhow::Result<()> {
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    match command {
        ConfigCommand::Check { config } => {
            Config::load(config.as_deref(), &environment, &[])?.server()?;
            print_out("The settings are good.\n");
        }
        ConfigCommand::Show { config, origin, json } => {
            let config = Config::load(config.as_deref(), &environment, &[])?;
            if *json {
                let all: serde_json::Map<String, serde_json::Value> = config
                    .shown()
                    .map(|(setting, value, from)| {
                        (
                            setting.key.to_owned(),
                            serde_json::json!({ "value": value, "origin": from.to_string() }),
                        )
                    })
                    .collect();
                print_out(&format!("{}\n", serde_json::to_string_pretty(&all)?));
            } else {
                for (setting, value, from) in config.shown() {
                    let from = if *origin { format!("   # {from}") } else { String::new() };
                    print_out(&format!("{} = {value:?}{from}\n", setting.key));
                }
            }
        }
        ConfigCommand::Explain { key } => {
            let found = SETTINGS
                .iter()
                .find(|setting| setting.key == key || setting.variables.contains(&key.as_str()));
            let Some(setting) = found else {
                bail!("there is no setting {key:?}; `interlock config show` lists all")
            };
            let config = Config::load(None, &environment, &[])?;
            let in_force = config.shown().find(|(shown, _, _)| shown.key == setting.key);
            print_out(&format!(
                "{}\n  {}\n  variables: {}\n  default: {:?}\n",
                setting.key,
                setting.doc,
                setting.variables.join(", "),
                setting.default
            ));
            if let Some((_, value, from)) = in_force {
                print_out(&format!("  in force: {value:?} from {from}\n"));
            }
        }
    }
    Ok(())
}
