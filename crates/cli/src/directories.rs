//! Puts the directory connectors behind the engine's ports, and tries them for people (`interlock directory test`).

use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use interlock_directory::{DirectoryError, Identity, Ldap, Oidc, PendingFlow, Step, Workloads};
use interlock_engine::Ambient;
use interlock_engine::auth::{
    Directories, Elsewhere, External, PasswordDirectory, SignedOut, WebArrival, WebBegun, WebDirectory,
    Workload, WorkloadDirectory,
};
use interlock_model::secret::Secret;

use crate::config::ServerSettings;

struct LdapPort(Ldap);

struct OidcPort {
    oidc: Oidc,
    ambient: Ambient,
    /// Where the provider sends a browser that has signed out.
    back_to: Option<String>,
}

struct WorkloadPort {
    workloads: Workloads,
    ambient: Ambient,
}

fn elsewhere(error: &DirectoryError) -> Elsewhere {
    match error {
        DirectoryError::Refused(_) => Elsewhere::Refused(error.reason()),
        DirectoryError::Unavailable(_) | DirectoryError::Misconfigured(_) => {
            Elsewhere::Unavailable(error.reason())
        }
    }
}

fn external(identity: Identity, method: &'static str) -> External {
    External { subject: identity.subject, name: identity.name, roles: identity.roles, method }
}

#[async_trait]
impl PasswordDirectory for LdapPort {
    async fn authenticate(&self, name: &str, password: &Secret) -> Result<External, Elsewhere> {
        let found = self.0.authenticate(name, password).await.map_err(|error| elsewhere(&error))?;
        Ok(external(found, "ldap"))
    }
}

#[async_trait]
impl WebDirectory for OidcPort {
    async fn begin(&self) -> Result<WebBegun, Elsewhere> {
        let Ambient { clock, entropy } = &self.ambient;
        let begun = self.oidc.begin(clock.now(), &**entropy).await.map_err(|error| elsewhere(&error))?;
        Ok(WebBegun { url: begun.url, flow: begun.flow.into_stored() })
    }

    async fn finish(&self, flow: Secret, query: &str) -> Result<WebArrival, Elsewhere> {
        let lost = || Elsewhere::Refused("the sign-in that was begun cannot be read".to_owned());
        let flow = PendingFlow::from_stored(&flow).ok_or_else(lost)?;
        let Ambient { clock, entropy } = &self.ambient;
        let signed_in = self.oidc.finish(clock.now(), &**entropy, flow, query).await;
        let signed_in = signed_in.map_err(|error| elsewhere(&error))?;
        Ok(WebArrival {
            external: external(signed_in.identity, "oidc"),
            session: signed_in.session.sid,
            proof: signed_in.session.id_token,
        })
    }

    async fn signed_out(&self, token: &str) -> Result<SignedOut, Elsewhere> {
        let judged = self.oidc.back_channel_logout(self.ambient.clock.now(), token).await;
        let order = judged.map_err(|error| elsewhere(&error))?;
        Ok(SignedOut { subject: order.subject, session: order.sid, id: order.jti, until: order.expires })
    }

    async fn sign_out(&self, proof: Option<&Secret>) -> Result<Option<String>, Elsewhere> {
        let place = self.oidc.logout_url(proof, self.back_to.as_deref(), None).await;
        place.map_err(|error| elsewhere(&error))
    }
}

#[async_trait]
impl WorkloadDirectory for WorkloadPort {
    async fn identify(&self, token: &Secret) -> Result<Workload, Elsewhere> {
        let identified = self.workloads.validate(self.ambient.clock.now(), token.expose()).await;
        let identity = identified.map_err(|error| elsewhere(&error))?;
        Ok(Workload {
            agent: identity.principal,
            subject: identity.subject,
            once: identity.once,
            until: identity.expires,
        })
    }
}

/// The directories that the settings name. Connects to nothing.
///
/// # Errors
/// When a setting cannot be used.
pub(crate) fn directories(settings: &ServerSettings, ambient: &Ambient) -> anyhow::Result<Directories> {
    let ldap = settings.ldap.clone().map(Ldap::new).transpose().context("set up LDAP")?;
    let oidc = settings.oidc.clone().map(Oidc::new).transpose().context("set up OpenID Connect")?;
    let trusts = settings.workloads.clone();
    let workloads = Some(trusts).filter(|trusts| !trusts.is_empty()).map(Workloads::new).transpose()?;
    Ok(Directories {
        workloads: workloads.map(|workloads| {
            Arc::new(WorkloadPort { workloads, ambient: ambient.clone() }) as Arc<dyn WorkloadDirectory>
        }),
        certificates: settings.tls_users.clone(),
        password: ldap.map(|ldap| Arc::new(LdapPort(ldap)) as Arc<dyn PasswordDirectory>),
        web: oidc.map(|oidc| {
            let back_to = settings.oidc_back_to.clone();
            Arc::new(OidcPort { oidc, ambient: ambient.clone(), back_to }) as Arc<dyn WebDirectory>
        }),
    })
}

/// Tries a sign-in against LDAP and returns every step.
///
/// # Errors
/// When a setting cannot be used.
pub(crate) async fn try_ldap(
    settings: &ServerSettings,
    name: &str,
    password: Option<&Secret>,
) -> anyhow::Result<Vec<Step>> {
    let config = settings.ldap.clone().context("LDAP_URL is not set: there is no LDAP directory to try")?;
    Ok(Ldap::new(config)?.test(name, password).await)
}

/// Tries the token of a program and returns every step.
///
/// # Errors
/// When a setting cannot be used.
pub(crate) async fn try_workload(
    settings: &ServerSettings,
    ambient: &Ambient,
    token: &Secret,
) -> anyhow::Result<Vec<Step>> {
    anyhow::ensure!(!settings.workloads.is_empty(), "WORKLOADS_FILE is not set: no issuer is trusted");
    let workloads = Workloads::new(settings.workloads.clone())?;
    Ok(workloads.test(ambient.clock.now(), token.expose()).await)
}

/// Tries the OpenID provider as far as it goes without a browser, and returns every step and where a browser would go.
///
/// # Errors
/// When a setting cannot be used.
pub(crate) async fn try_oidc(
    settings: &ServerSettings,
    ambient: &Ambient,
) -> anyhow::Result<(Vec<Step>, Option<String>)> {
    let config = settings.oidc.clone().context("OIDC_ISSUER is not set: there is no provider to try")?;
    let (steps, begun) = Oidc::new(config)?.test(ambient.clock.now(), &*ambient.entropy).await;
    Ok((steps, begun.map(|begun| begun.url)))
}
