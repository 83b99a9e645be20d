//! What a worker sees of the host's environment.
//!
//! A robot script must not inherit the server's secrets. It gets what it may need to find its libraries and its devices.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use crate::HostConfig;

const HIDDEN_PREFIXES: [&str; 3] = ["INTERLOCK_", "JWT_", "BOOTSTRAP_"];
/// Addresses that often hold a password, whoever the host is.
const HIDDEN_NAMES: [&str; 2] = ["DATABASE_URL", "REDIS_URL"];
const HIDDEN_PARTS: [&str; 5] = ["SECRET", "TOKEN", "PASSWORD", "PASSPHRASE", "_KEY"];

/// Whether a variable of this name stays with the host: it is one of its own secrets, or its name looks like a secret.
fn is_hidden(name: &OsStr, own: &[&str]) -> bool {
    let name = name.to_string_lossy().to_ascii_uppercase();
    HIDDEN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || HIDDEN_PARTS.iter().any(|part| name.contains(part))
        || HIDDEN_NAMES
            .iter()
            .chain(own)
            .any(|own| name.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest == "_FILE"))
}

/// The worker's whole environment.
pub(crate) fn of_worker(
    config: &HostConfig,
    inherited: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<OsString, OsString> {
    let mut variables: BTreeMap<_, _> =
        inherited.filter(|(name, _)| !is_hidden(name, &config.secrets)).collect();
    for (name, value) in &config.environment {
        variables.insert(name.into(), value.into());
    }
    let mut path = config.python_path.clone().into_os_string();
    if let Some(rest) = variables.get(OsStr::new("PYTHONPATH")).filter(|rest| !rest.is_empty()) {
        path.push(":");
        path.push(rest);
    }
    variables.insert("PYTHONPATH".into(), path);
    for name in ["INTERLOCK_WORKER", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"] {
        variables.insert(name.into(), "1".into());
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn secrets_stay_with_the_host() {
        let inherited = [
            ("PATH", "/bin"),
            ("PYTHONPATH", "/lib/x"),
            ("INTERLOCK__SERVER__KEY", "1"),
            ("JWT_SECRET_KEY", "2"),
            ("BOOTSTRAP_ADMIN", "3"),
            ("DATABASE_URL", "4"),
            ("REDIS_URL", "5"),
            ("METRICS_TOKEN", "6"),
            ("AWS_SECRET_ACCESS_KEY", "7"),
            ("github_token", "8"),
            ("PGPASSWORD", "9"),
            ("MASTER_KEY_PREVIOUS", "10"),
            ("SSH_PASSPHRASE", "11"),
            ("REDIS_URL_FILE", "12"),
            ("TLS_PIN", "13"),
            ("TLS_PIN_FILE", "14"),
        ];
        let clock = Arc::new(interlock_model::time::TestClock::at(interlock_model::Timestamp::default()));
        let mut config = HostConfig::new("d", "f.py".into(), "/sdk".into(), "/s".into(), clock);
        config.secrets = vec!["TLS_PIN"];
        config.environment = vec![("ROBOT_TOKEN".into(), "given".into())];

        let seen = of_worker(&config, inherited.iter().map(|(n, v)| ((*n).into(), (*v).into())));

        let names: Vec<_> = seen.keys().map(|name| name.to_str().expect("text")).collect();
        let expected = [
            "INTERLOCK_WORKER",
            "PATH",
            "PYTHONDONTWRITEBYTECODE",
            "PYTHONPATH",
            "PYTHONUNBUFFERED",
            "ROBOT_TOKEN",
        ];
        assert_eq!(names, expected);
        assert_eq!(seen[OsStr::new("PYTHONPATH")], "/sdk:/lib/x");
    }
}
