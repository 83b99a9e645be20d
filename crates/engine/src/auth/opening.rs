//! Who opens a session, and with what.

use interlock_model::Timestamp;
use interlock_model::policy::{self, PrincipalKind};
use interlock_model::scope::Scope;
use interlock_store::UserRow;

use super::Origin;
use super::documents::Agent;

/// Who opens a session.
pub(crate) struct Opening<'a> {
    pub(crate) kind: PrincipalKind,
    pub(crate) principal: String,
    pub(crate) name: String,
    pub(crate) epoch: Timestamp,
    pub(crate) roles: Vec<String>,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) limited: bool,
    /// How identity was proved.
    pub(crate) method: &'static str,
    pub(crate) amr: Vec<String>,
    /// When that was; now if nothing is said.
    pub(crate) auth_time: Option<Timestamp>,
    pub(crate) with_refresh: bool,
    /// Nothing of the session lasts longer than this.
    pub(crate) until: Option<Timestamp>,
    /// Who else says who this is, for the audit trail.
    pub(crate) vouched_by: Option<String>,
    pub(crate) origin: &'a Origin,
    /// Name of the act in the audit trail.
    pub(crate) action: &'static str,
}

impl<'a> Opening<'a> {
    /// A person's session, with all of the person's roles.
    pub(crate) fn user(
        user: &UserRow,
        roles: &policy::CustomRoles,
        method: &'static str,
        amr: &[&str],
        origin: &'a Origin,
    ) -> Self {
        Self {
            kind: PrincipalKind::User,
            principal: user.name.clone(),
            name: user.name.clone(),
            epoch: user.tokens_valid_from,
            roles: user.roles.clone(),
            scopes: policy::scopes_of(&user.roles, roles),
            limited: false,
            method,
            amr: amr.iter().map(|&factor| factor.to_owned()).collect(),
            auth_time: None,
            with_refresh: true,
            until: None,
            vouched_by: None,
            origin,
            action: "device.login",
        }
    }

    /// An agent's session with these of its scopes.
    pub(crate) fn agent(agent: &Agent, scopes: Vec<Scope>, method: &'static str, origin: &'a Origin) -> Self {
        Self {
            kind: PrincipalKind::Agent,
            principal: agent.id.to_string(),
            name: agent.name.clone(),
            epoch: agent.tokens_valid_from,
            roles: Vec::new(),
            limited: scopes != agent.scopes,
            scopes,
            method,
            amr: vec![method.to_owned()],
            auth_time: None,
            with_refresh: true,
            until: None,
            vouched_by: None,
            origin,
            action: "agent.authenticated",
        }
    }
}
