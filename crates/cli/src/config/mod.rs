//! Settings: one table of names, defaults and meanings; layers that know where each value came from.
//!
//! Layers, later wins: defaults, file, environment, flags. The environment is taken as a map, so tests never set process
//! variables. An unknown name is an error that names the nearest known one.

mod table;
mod typed;
mod workloads;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use interlock_model::secret::Secret;

pub(crate) use table::{Kind, SETTINGS, Setting};
pub(crate) use typed::{ServerSettings, TlsMode};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The built-in default.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A command-line flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A name does not exist.
    #[error("unknown setting {name:?} in {origin}{}", nearest.as_ref().map(|n| format!(": did you mean {n:?}?")).unwrap_or_default())]
    Unknown {
        /// As written.
        name: String,
        /// Where.
        origin: Origin,
        /// The nearest known name.
        nearest: Option<String>,
    },
    /// A value cannot be used.
    #[error("{key} from {origin}: {reason}")]
    Value {
        /// The setting.
        key: &'static str,
        /// Where the value came from.
        origin: Origin,
        /// What is wrong and what is right.
        reason: String,
    },
    /// A file cannot be used.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A value and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Value {
    /// Text form; lists are separated by commas.
    text: Secret,
    /// Where it came from.
    pub(crate) origin: Origin,
}

/// Every setting with its value.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    values: BTreeMap<&'static str, Value>,
}

impl Config {
    /// The built-in defaults.
    pub(crate) fn defaults() -> Self {
        let values = SETTINGS
            .iter()
            .map(|setting| {
                (setting.key, Value { text: Secret::new(setting.default), origin: Origin::Default })
            })
            .collect();
        Self { values }
    }

    /// Layers the sources. `environment` is the process's environment as a map.
    ///
    /// # Errors
    /// [`ConfigError`] for unknown names, unreadable files and malformed values.
    pub(crate) fn load(
        file: Option<&Path>,
        environment: &BTreeMap<String, String>,
        flags: &[(&'static str, &'static str, Option<String>)],
    ) -> Result<Self, ConfigError> {
        let mut config = Self::defaults();
        if let Some(path) = file {
            config.read_file(path)?;
        }
        config.read_environment(environment)?;
        for (key, flag, value) in flags {
            if let Some(value) = value {
                config.set(key, value.clone(), Origin::Flag(flag));
            }
        }
        Ok(config)
    }

    fn set(&mut self, key: &'static str, text: String, origin: Origin) {
        self.values.insert(key, Value { text: Secret::new(text), origin });
    }

    fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let bad = |reason: String| ConfigError::File { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let table: toml::Table = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        for (section, value) in table {
            let toml::Value::Table(entries) = value else {
                return Err(unknown(&section, Origin::File(path.to_owned()), file_names()));
            };
            for (name, value) in entries {
                let full = format!("{section}.{name}");
                let origin = Origin::File(path.to_owned());
                let (key, is_file) = match table::by_key(&full) {
                    Some(setting) => (setting.key, false),
                    None => match full
                        .strip_suffix("_file")
                        .and_then(table::by_key)
                        .filter(|setting| setting.kind == Kind::Secret)
                    {
                        Some(setting) => (setting.key, true),
                        None => return Err(unknown(&full, origin, file_names())),
                    },
                };
                let text = flat(&value).ok_or_else(|| {
                    bad(format!("{full} must be a text, a number, true or false, or a list of texts"))
                })?;
                let text = if is_file { secret_file(key, Path::new(&text), &origin)? } else { text };
                self.set(key, text, origin);
            }
        }
        Ok(())
    }

    fn read_environment(&mut self, environment: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        for (name, text) in environment {
            let origin = Origin::Environment(name.clone());
            if let Some(setting) = table::by_variable(name) {
                self.set(setting.key, text.clone(), origin);
            } else if let Some(setting) =
                name.strip_suffix("_FILE").and_then(table::by_variable).filter(|s| s.kind == Kind::Secret)
            {
                let secret = secret_file(setting.key, Path::new(text), &origin)?;
                self.set(setting.key, secret, origin);
            } else if let Some(path) = name.strip_prefix("INTERLOCK__") {
                let key = path.to_ascii_lowercase().replace("__", ".");
                let setting =
                    table::by_key(&key).ok_or_else(|| unknown(&key, origin.clone(), file_names()))?;
                self.set(setting.key, text.clone(), origin);
            } else if name.len() >= 9 {
                // A name that is almost ours was meant for us: a limit that is silently off is worse than no start.
                let near = nearest(name, table::variables()).filter(|(_, distance)| *distance <= 1);
                if let Some((near, _)) = near {
                    return Err(ConfigError::Unknown { name: name.clone(), origin, nearest: Some(near) });
                }
            }
        }
        Ok(())
    }

    /// What a development server needs: a known administrator, and limits that do not hinder one person on one machine.
    pub(crate) fn for_development(&mut self, password: &Secret) {
        self.set("identity.bootstrap_admin_secret", password.expose().to_owned(), Origin::Default);
        for (key, value) in [("limits.requests_per_minute", "6000"), ("limits.requests_per_hour", "100000")] {
            if self.origin(key) == Origin::Default {
                self.set(key, value.to_owned(), Origin::Default);
            }
        }
    }

    /// The port of another profile, where nothing is said.
    pub(crate) fn default_port(&mut self, port: u16) {
        if self.origin("server.port") == Origin::Default {
            self.set("server.port", port.to_string(), Origin::Default);
        }
    }

    /// A value's text.
    pub(crate) fn text(&self, key: &'static str) -> &str {
        self.values.get(key).map_or("", |value| value.text.expose())
    }

    /// Where a value came from.
    pub(crate) fn origin(&self, key: &'static str) -> Origin {
        self.values.get(key).map_or(Origin::Default, |value| value.origin.clone())
    }

    /// The database server to use, if it is not a file in the state folder.
    pub(crate) fn database(&self) -> Option<Secret> {
        Some(Secret::new(self.text("database.url"))).filter(|url| !url.expose().is_empty())
    }

    /// Variables of the secrets that are set, but the one that is only for the first start.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let set = SETTINGS.iter().filter(|setting| {
            setting.kind == Kind::Secret
                && setting.key != "identity.bootstrap_admin_secret"
                && !self.text(setting.key).is_empty()
        });
        set.filter_map(|setting| setting.variables.first().map(|name| (*name).to_owned())).collect()
    }

    /// Every setting as it may be shown.
    pub(crate) fn shown(&self) -> impl Iterator<Item = (&'static Setting, String, &Origin)> {
        SETTINGS.iter().filter_map(|setting| {
            let value = self.values.get(setting.key)?;
            let text = value.text.expose();
            let shown = if setting.kind == Kind::Secret && !text.is_empty() {
                "[redacted]".to_owned()
            } else {
                redact_url(text)
            };
            Some((setting, shown, &value.origin))
        })
    }
}

/// A URL without its password.
fn redact_url(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let Some((user, host)) = rest.rsplit_once('@') else { return text.to_owned() };
    let name = user.split_once(':').map_or(user, |(name, _)| name);
    format!("{scheme}://{name}:[redacted]@{host}")
}

fn flat(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map(|v| v.join(",")),
        _ => None,
    }
}

fn secret_file(key: &'static str, path: &Path, origin: &Origin) -> Result<String, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end_matches(['\n', '\r']).to_owned()),
        Err(error) => Err(ConfigError::Value {
            key,
            origin: origin.clone(),
            reason: format!("{}: {error}", path.display()),
        }),
    }
}

fn file_names() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|setting| setting.key)
}

fn unknown(name: &str, origin: Origin, known: impl Iterator<Item = &'static str>) -> ConfigError {
    let nearest = nearest(name, known).filter(|(_, distance)| *distance <= 6).map(|(name, _)| name);
    ConfigError::Unknown { name: name.to_owned(), origin, nearest }
}

fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<(String, usize)> {
    known
        .map(|candidate| (candidate.to_owned(), distance(name, candidate)))
        .min_by_key(|(_, distance)| *distance)
}

/// Edits between two names (Levenshtein), without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn load(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::load(None, &environment(pairs), &[])
    }

    #[test]
    fn later_layers_win_and_say_so() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("interlock.toml");
        std::fs::write(&file, "[server]\nport = 9001\n[limits]\nrequests_per_minute = 7\n").expect("written");

        let config = Config::load(
            Some(&file),
            &environment(&[("PORT", "9002"), ("INTERLOCK__LIMITS__ENABLED", "false")]),
            &[("server.bind", "--host", Some("::1".into()))],
        )
        .expect("loaded");

        assert_eq!(
            (config.text("server.port"), config.origin("server.port")),
            ("9002", Origin::Environment("PORT".into()))
        );
        assert_eq!(config.text("limits.requests_per_minute"), "7");
        assert_eq!(config.text("limits.enabled"), "false");
        assert_eq!(config.origin("server.bind"), Origin::Flag("--host"));
    }

    #[test]
    fn an_unknown_or_almost_known_name_stops_the_start() {
        let text = |result: Result<Config, ConfigError>| result.expect_err("refused").to_string();

        assert!(text(load(&[("RATE_LIMIT_ENABLE", "true")])).contains("RATE_LIMIT_ENABLED"));
        assert!(text(load(&[("INTERLOCK__SERVER__PROT", "1")])).contains("server.port"));
        assert!(load(&[("HOME", "/root"), ("PORTAGE_CONFIG", "x"), ("LANGUAGE", "en")]).is_ok());
    }

    #[test]
    fn secrets_come_from_files_and_are_never_shown() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("key");
        std::fs::write(&file, "0123456789abcdefghijklmnopqrstuvwxyz\n").expect("written");

        let config = load(&[
            ("JWT_SECRET_KEY_FILE", file.to_str().expect("path")),
            ("DATABASE_URL", "postgres://lab:hunter2@db/lab"),
        ])
        .expect("loaded");

        assert_eq!(config.text("identity.jwt_secret_key"), "0123456789abcdefghijklmnopqrstuvwxyz");
        let shown: Vec<String> = config.shown().map(|(_, text, _)| text).collect();
        assert!(shown.contains(&"[redacted]".to_owned()));
        assert!(!shown.iter().any(|text| text.contains("hunter2") || text.contains("0123456789")));
    }
}
