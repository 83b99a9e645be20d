//! Sign-in against LDAP and Active Directory: find the person, bind as the person, read the groups.
//!
//! One connection for each sign-in: connect, TLS, bind as the searching account, search, bind as the person, bind as the
//! searching account again, search the groups. The connection ends with the sign-in, so no right outlives it.

mod config;
pub(crate) mod dn;
mod filter;
mod link;
mod search;
pub(crate) mod wire;

use std::time::Duration;

use interlock_model::secret::Secret;
use ldap3::SearchEntry;
use rustls::RootCertStore;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use config::{AD_GROUP_FILTER, AD_USER_FILTER, GROUP_FILTER, LdapConfig, MAX_DEPTH, USER_FILTER};

use crate::step::{Trace, printable};
use crate::{DirectoryError, Identity, Refusal, Step};

/// Most sign-ins at one time; more wait within their time limit.
const MAX_AT_ONCE: usize = 16;
/// Longest text of an identity, in bytes, before the mark that it was cut.
const MAX_NAME: usize = 253;
/// Refusals are answered at whole multiples of this after the question, so that the time does not tell an unknown name from a
/// wrong password.
const REFUSAL_STEP: Duration = Duration::from_millis(250);

/// One directory.
#[derive(Debug)]
pub struct Ldap {
    config: LdapConfig,
    address: config::Address,
    roots: RootCertStore,
    slots: Semaphore,
}

impl Ldap {
    /// Takes the settings. Connects to nothing.
    ///
    /// # Errors
    /// [`DirectoryError::Misconfigured`] with what [`LdapConfig::validate`] says.
    pub fn new(config: LdapConfig) -> Result<Self, DirectoryError> {
        config.validate().map_err(|wrong| DirectoryError::Misconfigured(wrong.join("; ")))?;
        let address = config.address().map_err(DirectoryError::Misconfigured)?;
        let roots = if address.tls == config::Tls::Never {
            RootCertStore::empty()
        } else {
            crate::tls::roots(config.ca_pem.as_deref()).map_err(DirectoryError::Misconfigured)?
        };
        Ok(Self { config, address, roots, slots: Semaphore::new(MAX_AT_ONCE) })
    }

    /// Signs somebody in. Ends within the time limit of the settings (a refusal up to 250 ms later). Safe to cancel.
    ///
    /// # Errors
    /// [`DirectoryError`]. Every refusal is to look the same from outside.
    pub async fn authenticate(&self, username: &str, password: &Secret) -> Result<Identity, DirectoryError> {
        let begun = Instant::now();
        let result = self.run(username, Some(password), &mut Trace::default()).await;
        if matches!(result, Err(DirectoryError::Refused(_))) {
            let steps =
                u32::try_from(begun.elapsed().as_millis() / REFUSAL_STEP.as_millis() + 1).unwrap_or(1);
            tokio::time::sleep_until(begun + REFUSAL_STEP * steps).await;
        }
        result
    }

    /// Tries a sign-in and tells each step. Without a password everything but the bind as the person.
    pub async fn test(&self, username: &str, password: Option<&Secret>) -> Vec<Step> {
        let mut trace = Trace::default();
        let _ = self.run(username, password, &mut trace).await;
        trace.into_steps()
    }

    async fn run(
        &self,
        username: &str,
        password: Option<&Secret>,
        trace: &mut Trace,
    ) -> Result<Identity, DirectoryError> {
        trace.begin("input");
        let result = match check_input(username, password) {
            Ok(()) => {
                trace.pass("name and password can be ones");
                let limit = self.config.timeout;
                let attempt = Box::pin(self.attempt(username, password, trace));
                tokio::time::timeout(limit, attempt).await.unwrap_or_else(|_| {
                    Err(DirectoryError::Unavailable(format!("no answer within {} ms", limit.as_millis())))
                })
            }
            Err(refusal) => Err(refusal.into()),
        };
        if let Err(error) = &result {
            trace.fail(error);
        }
        result
    }

    async fn attempt(
        &self,
        username: &str,
        password: Option<&Secret>,
        trace: &mut Trace,
    ) -> Result<Identity, DirectoryError> {
        let _slot = self.slots.acquire().await.map_err(|_| DirectoryError::unavailable("shutting down"))?;
        let server = link::connect(&self.address, &self.roots, trace).await?;
        link::with_library(server, async |ldap| {
            let mut questions = search::Questions { ldap, config: &self.config };
            self.talk(&mut questions, username, password, trace).await
        })
        .await
    }

    async fn talk(
        &self,
        questions: &mut search::Questions<'_>,
        username: &str,
        password: Option<&Secret>,
        trace: &mut Trace,
    ) -> Result<Identity, DirectoryError> {
        // Without a searching account the person's own bind comes first where the template says who they are.
        let own_eyes = self.config.bind_dn.is_none() && self.config.user_dn_template.is_some();
        if own_eyes {
            if let (Some(template), Some(password)) = (&self.config.user_dn_template, password) {
                bind_person(questions, &filter::fill_dn(template, username), password, trace).await?;
            }
        } else {
            self.bind_service(questions, trace).await?;
        }

        trace.begin("search");
        let entry = questions.person(username).await.map_err(|error| remedy_for_search(error, trace))?;
        trace.pass(format!("found {}", printable(&entry.dn, 300)));
        trace.begin("account");
        if questions.is_disabled(&entry).await? {
            return Err(trace.failed(Refusal::Disabled.into(), "enable the account at the directory"));
        }
        trace.pass("enabled");

        if !own_eyes {
            match password {
                Some(password) => {
                    bind_person(questions, &entry.dn, password, trace).await?;
                    self.bind_service(questions, trace).await?;
                }
                None => trace.skip("password", "none was given"),
            }
        } else if password.is_none() {
            trace.skip("password", "none was given");
        }

        trace.begin("groups");
        let (groups, more) = questions.groups(&entry, username).await?;
        let shown = if groups.is_empty() { "none".to_owned() } else { groups.join(" | ") };
        if more {
            trace
                .warn(format!("more than are taken; {shown}"), "narrow LDAP_GROUP_BASE or LDAP_GROUP_FILTER");
        } else {
            trace.pass(shown);
        }
        self.identity(&entry, username, groups, trace)
    }

    async fn bind_service(
        &self,
        questions: &mut search::Questions<'_>,
        trace: &mut Trace,
    ) -> Result<(), DirectoryError> {
        trace.begin("bind");
        let Some((name, password)) = self.config.bind_dn.as_ref().zip(self.config.bind_password.as_ref())
        else {
            trace.warn(
                "anonymous: the directory answers anyone",
                "set LDAP_BIND_DN to an account that may only read",
            );
            return Ok(());
        };
        match questions.bind(name, password.expose()).await? {
            Ok(()) => {
                trace.pass(format!("as {}", printable(name, 300)));
                Ok(())
            }
            Err(failure) => {
                Err(trace.failed(failure.of_setting(), "check LDAP_BIND_DN and LDAP_BIND_PASSWORD"))
            }
        }
    }

    fn identity(
        &self,
        entry: &SearchEntry,
        username: &str,
        groups: Vec<String>,
        trace: &mut Trace,
    ) -> Result<Identity, DirectoryError> {
        let clean =
            |attribute: &str| search::first(entry, attribute).map(|text| printable(text.trim(), MAX_NAME));
        let roles = self.config.roles.roles(groups.iter().map(String::as_str));
        trace.begin("roles");
        if roles.is_empty() {
            trace.warn(
                "none: this person could sign in and do nothing",
                "add one of the groups to LDAP_ROLE_MAP",
            );
        } else {
            trace.pass(roles.join(", "));
        }
        trace.begin("identity");
        let (subject, lasting) = search::subject(entry, &self.config.id_attribute)?;
        let identity = Identity {
            subject,
            name: clean(&self.config.name_attribute).unwrap_or_else(|| username.to_owned()),
            display_name: clean(&self.config.display_name_attribute).or_else(|| clean("cn")),
            mail: clean(&self.config.mail_attribute).filter(|mail| mail.contains('@')),
            groups,
            roles,
        };
        let shown = format!("{} ({})", identity.name, identity.subject);
        if lasting {
            trace.pass(shown);
        } else {
            trace.warn(
                format!(
                    "{shown}: {} cannot be read, so the place of the entry stands in",
                    self.config.id_attribute
                ),
                "let LDAP_BIND_DN read it: a person whose entry moves is somebody new otherwise",
            );
        }
        Ok(identity)
    }
}

async fn bind_person(
    questions: &mut search::Questions<'_>,
    dn: &str,
    password: &Secret,
    trace: &mut Trace,
) -> Result<(), DirectoryError> {
    trace.begin("password");
    match questions.bind(dn, password.expose()).await? {
        Ok(()) => {
            trace.pass("accepted");
            Ok(())
        }
        Err(failure) => Err(failure.refusal()),
    }
}

/// What can be told before anything is sent.
fn check_input(username: &str, password: Option<&Secret>) -> Result<(), Refusal> {
    let valid = (1..=256).contains(&username.len())
        && username.trim() == username
        && !username.chars().any(char::is_control);
    if !valid {
        return Err(Refusal::BadName);
    }
    match password.map(Secret::expose) {
        Some("") => Err(Refusal::EmptyPassword),
        Some(password) if password.len() > 1024 || password.contains('\0') => Err(Refusal::BadPassword),
        _ => Ok(()),
    }
}

fn remedy_for_search(error: DirectoryError, trace: &mut Trace) -> DirectoryError {
    let remedy = match &error {
        DirectoryError::Refused(Refusal::UnknownUser) => {
            "check LDAP_USER_BASE and LDAP_USER_FILTER, and that LDAP_BIND_DN may read the entry"
        }
        DirectoryError::Refused(Refusal::Ambiguous) => {
            "narrow LDAP_USER_BASE or LDAP_USER_FILTER to one entry"
        }
        DirectoryError::Refused(Refusal::ForeignEntry) => {
            "let LDAP_BIND_DN read the attributes that LDAP_USER_FILTER compares, and type the name as the directory has it"
        }
        DirectoryError::Refused(Refusal::Referral) => "name the server that holds LDAP_USER_BASE in LDAP_URL",
        _ => "check LDAP_USER_BASE and LDAP_USER_FILTER",
    };
    trace.failed(error, remedy)
}
