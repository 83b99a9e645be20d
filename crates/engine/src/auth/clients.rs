//! Which ways to a token are open to an agent, and what it must prove itself with.
//!
//! Grants are judged as scopes are: whatever a token says, the agent must be allowed that way now. What an agent must prove
//! itself with is judged as credentials are: [`crate::agents`] ends everything from before a change.

use std::net::IpAddr;

use interlock_model::grant::{GrantType, KeyMethod};
use ipnet::IpNet;

use super::documents::Agent;
use super::tokens::{Claims, TokenKind};

/// How sessions call a proof by what the agent's surroundings say of it.
pub(super) const WORKLOAD: &str = "workload";

/// What an installation asks beyond a right credential.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRules {
    /// Of agents.
    pub clients: ClientPolicy,
    /// Agents get scopes of administration by the word of two people.
    pub two_people: bool,
    /// From where administration is allowed; from anywhere if there are none.
    pub admin_networks: Vec<IpNet>,
}

impl AccessRules {
    /// Whether whoever calls from there may administer.
    pub fn administers_from(&self, ip: IpAddr) -> bool {
        self.admin_networks.is_empty() || self.admin_networks.iter().any(|network| network.contains(&ip))
    }
}

/// What is asked of every agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientPolicy {
    /// Agents prove who they are with a key that the server does not know; secrets and API keys of agents count for nothing.
    pub keys_only: bool,
}

impl ClientPolicy {
    /// Whether a secret that the server shares can be the agent's proof.
    pub(crate) fn takes_secrets_of(self, agent: &Agent) -> bool {
        !self.keys_only && agent.key_method.is_none()
    }

    /// Whether a proof by this means counts, as sessions name it.
    pub(super) fn takes(self, agent: &Agent, method: &str) -> bool {
        match KeyMethod::ALL.iter().find(|key| key.name() == method) {
            Some(key) => agent.key_method.is_none_or(|only| only == *key),
            // Whether that way is open at all is for the grants to say.
            None if method == WORKLOAD => true,
            None => self.takes_secrets_of(agent),
        }
    }

    /// Whether the agent may still use such a token.
    pub(super) fn keeps(self, agent: &Agent, claims: &Claims) -> bool {
        let method = claims.amr.first().map_or("", String::as_str);
        let ways: &[GrantType] = if method == WORKLOAD {
            &[GrantType::JwtBearer, GrantType::TokenExchange]
        } else {
            &[GrantType::ClientCredentials]
        };
        self.takes(agent, method)
            && ways.iter().any(|way| agent.grant_types.contains(way))
            && (claims.kind == TokenKind::Access || agent.grant_types.contains(&GrantType::RefreshToken))
    }
}
