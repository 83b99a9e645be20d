//! The file that says which programs are which agents. Everything unknown in it is an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use interlock_directory::{Algorithm, SubjectRule, WorkloadTrust, Workloads};
use interlock_model::AgentId;
use serde::Deserialize;

use super::{Config, ConfigError};

/// Longest file that is read, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    issuer: Vec<Trusted>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Trusted {
    issuer: String,
    audience: String,
    jwks_uri: Option<String>,
    #[serde(default = "usual_algorithms")]
    algorithms: Vec<String>,
    #[serde(default = "hour")]
    longest_minutes: u64,
    #[serde(default)]
    once: bool,
    ca_file: Option<PathBuf>,
    #[serde(default)]
    rule: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    subject: String,
    #[serde(default)]
    claims: BTreeMap<String, String>,
    agent: String,
}

fn usual_algorithms() -> Vec<String> {
    vec!["RS256".to_owned(), "ES256".to_owned()]
}

const fn hour() -> u64 {
    60
}

fn read(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?.len();
    if length > MAX_BYTES {
        return Err("is longer than 1 MiB".to_owned());
    }
    std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))
}

fn trust(issuer: Trusted) -> Result<WorkloadTrust, String> {
    let name = issuer.issuer;
    let wrong = |what: String| format!("issuer '{name}': {what}");
    let mut algorithms = Vec::new();
    for text in &issuer.algorithms {
        let known = Algorithm::named(text);
        algorithms.push(
            known.ok_or_else(|| {
                wrong(format!("'{text}' is no algorithm; take RS256, PS256, ES256 or EdDSA"))
            })?,
        );
    }
    let mut rules = Vec::new();
    for rule in issuer.rule {
        let id: AgentId = rule.agent.parse().map_err(|_| {
            wrong(format!("'{}' is no agent's id; `interlock agent list` shows them", rule.agent))
        })?;
        rules.push(SubjectRule { subject: rule.subject, claims: rule.claims, principal: id.to_string() });
    }
    let ca_pem = issuer.ca_file.as_deref().map(read).transpose();
    let ca_pem = ca_pem.map_err(|reason| wrong(format!("its ca_file {reason}")))?;
    Ok(WorkloadTrust {
        jwks_uri: issuer.jwks_uri,
        audience: issuer.audience,
        rules,
        algorithms,
        longest: Duration::from_secs(issuer.longest_minutes.saturating_mul(60)),
        once: issuer.once,
        ca_pem,
        issuer: name,
    })
}

impl Config {
    /// The programs that may come with a token of their surroundings.
    pub(super) fn workloads(&self) -> Result<Vec<WorkloadTrust>, ConfigError> {
        let Some(path) = self.filled("workloads.file") else { return Ok(Vec::new()) };
        let read = || -> Result<Vec<WorkloadTrust>, String> {
            let file: File = toml::from_str(&read(Path::new(&path))?).map_err(|error| error.to_string())?;
            let trusts = file.issuer.into_iter().map(trust).collect::<Result<Vec<_>, _>>()?;
            if trusts.is_empty() {
                return Err("names no [[issuer]]".to_owned());
            }
            Workloads::new(trusts.clone()).map_err(|error| error.reason())?;
            Ok(trusts)
        };
        read().map_err(|reason| self.bad("workloads.file", format!("{path}: {reason}")))
    }
}
