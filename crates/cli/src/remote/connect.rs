//! Which server, with which authority and which token: flags, then environment, then the context.
//!
//! A token is only sent to the server that it was issued by. A context's token goes with that context's address, and
//! `INTERLOCK_TOKEN` with `INTERLOCK_URL` (or `ORCHESTRATOR_API`) when both are set.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use interlock_client::{Client, server_address};
use interlock_model::secret::Secret;
use interlock_model::{Clock as _, Timestamp};

use super::contexts::{self, Contexts, Identity, read_ca};
use super::failure::{Failure, exit};
use super::global::{Global, Lookup, process_variable};
use crate::ambient::SystemClock;

/// A server and how to talk to it.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Its address.
    pub(crate) url: String,
    /// Where tasks are, if that is another address of the same installation.
    tasks_url: Option<String>,
    /// The only authority to trust.
    pub(crate) ca_file: Option<PathBuf>,
    /// The certificate that the token is bound to.
    identity: Option<Identity>,
    /// What to sign in with.
    pub(crate) token: Option<Secret>,
    /// The context that it comes from, if any.
    pub(crate) context: Option<String>,
    /// Who the context's token belongs to.
    pub(crate) user: Option<String>,
    expires_at: Option<Timestamp>,
    /// The token is the context's own, with a refresh token beside it.
    renewable: bool,
    current: bool,
}

/// A target and the client for it.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// Where to.
    pub(crate) target: Target,
    /// The way.
    pub(crate) client: Client,
}

impl Target {
    /// What the command line, the environment and the contexts say.
    pub(crate) fn find(global: &Global) -> Result<Self, Failure> {
        resolve(global, &process_variable, &contexts::load()?)
    }

    /// The command that signs in to this server.
    pub(crate) fn login_command(&self) -> String {
        match &self.context {
            Some(_) if self.current => "interlock login".to_owned(),
            Some(name) => format!("interlock login --context {name}"),
            None => format!("interlock login --url {}", self.url),
        }
    }

    /// Since when the token is too old, by the clock here.
    pub(crate) fn expired(&self) -> Option<Timestamp> {
        self.expires_at.filter(|&end| self.token.is_some() && end <= SystemClock.now())
    }

    /// A client for it.
    pub(crate) fn client(&self, answer_timeout: Option<Duration>) -> Result<Client, Failure> {
        let mut builder = Client::builder(&self.url);
        if let Some(path) = &self.ca_file {
            builder = builder.ca_pem(read_ca(path)?);
        }
        builder = contexts::identified(builder, self.identity.as_ref())?;
        if let Some(token) = &self.token {
            builder = builder.token(token.clone());
        }
        if let Some(name) = self.context.as_ref().filter(|_| self.renewable) {
            builder = builder.renewed_by(Arc::new(contexts::Kept { name: name.clone() }));
        }
        if let Some(limit) = answer_timeout {
            builder = builder.answer_timeout(limit);
        }
        Ok(builder.build()?)
    }
}

impl Session {
    /// A client for the server in force.
    pub(crate) fn open(global: &Global) -> Result<Self, Failure> {
        let target = Target::find(global)?;
        let client = target.client(None)?;
        Ok(Self { target, client })
    }

    /// A client for the server in force, at the address of its tasks.
    pub(crate) fn for_tasks(global: &Global) -> Result<Self, Failure> {
        let mut target = Target::find(global)?;
        if let Some(url) = target.tasks_url.take() {
            target.url = url;
        }
        let client = target.client(None)?;
        Ok(Self { target, client })
    }
}

/// Whether an address is one of a context's.
fn is_of(context: &contexts::Context, url: &str) -> bool {
    same(&context.url, url) || context.tasks_url.as_ref().is_some_and(|tasks| same(tasks, url))
}

/// Whether two addresses name the same server.
pub(super) fn same(one: &str, two: &str) -> bool {
    matches!((server_address(one), server_address(two)), (Ok(one), Ok(two)) if one == two)
}

fn resolve(global: &Global, lookup: Lookup<'_>, contexts: &Contexts) -> Result<Target, Failure> {
    let named = global.context.clone();
    let variable = url_variable(lookup);
    let name = named.clone().or_else(|| lookup("INTERLOCK_CONTEXT")).or_else(|| contexts.current.clone());
    let chosen = name.as_ref().and_then(|name| contexts.contexts.get(name).map(|context| (name, context)));
    let url = match global.url.as_ref().or_else(|| variable.as_ref().filter(|_| named.is_none())) {
        Some(url) => url.clone(),
        None => match (chosen, name.as_ref()) {
            (Some((_, context)), _) => context.url.clone(),
            (None, Some(name)) => {
                let error = format!("there is no context '{name}'");
                return Err(Failure::new(
                    exit::NOT_FOUND,
                    error,
                    "`interlock context list` shows them; to make one: interlock login --url URL",
                ));
            }
            (None, None) => {
                let hint = "sign in to a server: interlock login --url https://robot.example.org:8000 (to try Interlock here: interlock dev)";
                return Err(Failure::usage("no server is known", hint));
            }
        },
    };
    let url = server_address(&url)?.as_str().trim_end_matches('/').to_owned();
    let chosen = chosen.filter(|(_, context)| is_of(context, &url));
    let chosen = chosen.or_else(|| contexts.contexts.iter().find(|(_, context)| is_of(context, &url)));
    let given =
        secret_variable(lookup)?.filter(|_| variable.as_ref().is_none_or(|variable| same(variable, &url)));
    let ca_file = global.ca_file.clone().or_else(|| lookup("INTERLOCK_CA_FILE").map(PathBuf::from));
    let (context, kept) = chosen.map(|(name, context)| (name.clone(), context.clone())).unzip();
    let kept = kept.unwrap_or_default();
    let key = kept.client_key;
    Ok(Target {
        identity: kept.client_cert.map(|certificate| Identity { certificate, key }),
        ca_file: ca_file.or(kept.ca_file),
        renewable: given.is_none() && kept.refresh_token.is_some(),
        expires_at: if given.is_some() { None } else { kept.expires_at },
        user: if given.is_some() { None } else { kept.user },
        token: given.or(kept.token),
        current: context.is_some() && context == contexts.current,
        // Whoever names the address of the device means it for everything.
        tasks_url: kept.tasks_url.filter(|_| global.url.is_none() && variable.is_none()),
        url,
        context,
    })
}

/// `INTERLOCK_URL`, or what programs around the earlier system call it.
pub(super) fn url_variable(lookup: Lookup<'_>) -> Option<String> {
    lookup("INTERLOCK_URL").or_else(|| lookup("ORCHESTRATOR_API"))
}

/// `INTERLOCK_TOKEN`, or the content of the file that `INTERLOCK_TOKEN_FILE` names.
fn secret_variable(lookup: Lookup<'_>) -> Result<Option<Secret>, Failure> {
    if let Some(token) = lookup("INTERLOCK_TOKEN") {
        return Ok(Some(Secret::new(token.trim())));
    }
    let Some(path) = lookup("INTERLOCK_TOKEN_FILE").map(PathBuf::from) else { return Ok(None) };
    let text = std::fs::read_to_string(&path);
    let text = text.map_err(|error| {
        Failure::file("cannot read INTERLOCK_TOKEN_FILE", &path, &error, "check the variable and the file")
    })?;
    Ok(Some(Secret::new(text.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::contexts::Context;

    fn known() -> Contexts {
        let context = |url: &str, token: &str| Context {
            url: url.to_owned(),
            token: Some(Secret::new(token)),
            ..Context::default()
        };
        let contexts = [
            ("dev", context("http://127.0.0.1:8000", "ilk_dev")),
            ("lab", context("https://lab.example.org", "ilk_lab")),
        ];
        Contexts {
            current: Some("dev".to_owned()),
            contexts: contexts.into_iter().map(|(name, one)| (name.to_owned(), one)).collect(),
        }
    }

    fn target(global: &Global, variables: &[(&str, &str)]) -> Target {
        let lookup =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        resolve(global, &lookup, &known()).expect("a target")
    }

    fn has_token(target: &Target, token: &str) -> bool {
        target.token.as_ref().is_some_and(|found| found.matches(token))
    }

    #[test]
    fn flags_come_before_the_environment_and_that_before_the_context() {
        let flag = Global { url: Some("https://lab.example.org/".to_owned()), ..Global::default() };
        let named = Global { context: Some("lab".to_owned()), ..Global::default() };
        let variables = [("INTERLOCK_URL", "https://other.example.org")];

        assert_eq!(target(&flag, &variables).url, "https://lab.example.org");
        assert_eq!(target(&named, &variables).url, "https://lab.example.org");
        assert_eq!(target(&Global::default(), &variables).url, "https://other.example.org");
        assert_eq!(
            target(&Global::default(), &[("INTERLOCK_CONTEXT", "lab")]).url,
            "https://lab.example.org"
        );
        assert_eq!(target(&Global::default(), &[]).url, "http://127.0.0.1:8000");
        // The name of the earlier system, behind ours.
        let earlier = ("ORCHESTRATOR_API", "https://lab.example.org");
        assert_eq!(target(&Global::default(), &[earlier]).url, "https://lab.example.org");
        assert_eq!(target(&Global::default(), &[earlier, variables[0]]).url, "https://other.example.org");
        let elsewhere = Global { url: Some("https://evil.example.org".to_owned()), ..Global::default() };
        assert!(target(&elsewhere, &[earlier, ("INTERLOCK_TOKEN", "ilk_ci")]).token.is_none());
    }

    #[test]
    fn a_token_is_never_sent_to_another_server() {
        let elsewhere = Global { url: Some("https://evil.example.org".to_owned()), ..Global::default() };
        let variables = [("INTERLOCK_URL", "https://lab.example.org"), ("INTERLOCK_TOKEN", "ilk_ci")];

        assert!(target(&elsewhere, &[]).token.is_none());
        assert!(target(&elsewhere, &variables).token.is_none());
        assert!(has_token(&target(&Global::default(), &variables), "ilk_ci"));
        assert!(has_token(
            &target(&Global { url: Some("https://lab.example.org".into()), ..Global::default() }, &[]),
            "ilk_lab"
        ));
        assert!(has_token(&target(&Global::default(), &[("INTERLOCK_TOKEN", "ilk_ci")]), "ilk_ci"));
    }

    #[test]
    fn a_token_is_good_for_both_addresses_of_an_installation_and_tasks_are_at_theirs() {
        let mut all = known();
        all.contexts.get_mut("dev").expect("a context").tasks_url = Some("http://127.0.0.1:8001".to_owned());
        let tasks = Global { url: Some("http://127.0.0.1:8001".to_owned()), ..Global::default() };
        let device = Global { url: Some("http://127.0.0.1:8000".to_owned()), ..Global::default() };
        let find = |global: &Global| resolve(global, &|_| None, &all).expect("a target");

        assert_eq!(find(&Global::default()).tasks_url.as_deref(), Some("http://127.0.0.1:8001"));
        assert!(has_token(&find(&tasks), "ilk_dev"));
        assert_eq!(find(&tasks).url, "http://127.0.0.1:8001");
        assert_eq!(find(&device).tasks_url, None);
    }

    #[test]
    fn an_unknown_context_is_not_found() {
        let named = Global { context: Some("moon".to_owned()), ..Global::default() };

        let failure = resolve(&named, &|_| None, &known()).expect_err("a failure");

        assert_eq!(failure.code, exit::NOT_FOUND);
    }

    #[test]
    fn the_sign_in_command_names_the_server_that_is_meant() {
        let named = Global { context: Some("lab".to_owned()), ..Global::default() };
        let other = Global { url: Some("https://new.example.org".to_owned()), ..Global::default() };

        assert_eq!(target(&Global::default(), &[]).login_command(), "interlock login");
        assert_eq!(target(&named, &[]).login_command(), "interlock login --context lab");
        assert_eq!(target(&other, &[]).login_command(), "interlock login --url https://new.example.org");
    }
}
