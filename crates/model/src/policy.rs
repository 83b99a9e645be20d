//! Who may do what: roles, scopes and one pure decision.

use crate::action::Needs;

/// Manages users, releases the emergency stop, reads the audit trail. Cannot execute.
pub const ADMIN: &str = "admin";
/// Executes actions and cancels runs.
pub const OPERATOR: &str = "operator";
/// Looks.
pub const VIEWER: &str = "viewer";
/// Reads the audit trail and runs; acts on nothing but the emergency stop.
pub const AUDITOR: &str = "auditor";

/// The roles that exist, each with its scopes. None implies another.
pub const ROLES: [(&str, &[&str]); 4] = [
    (VIEWER, &["actions:read", "runs:read", "devices:read", "devices:stop"]),
    (
        OPERATOR,
        &["devices:execute", "devices:attention", "devices:read", "devices:stop", "runs:read", "runs:cancel"],
    ),
    (
        ADMIN,
        &[
            "users:read",
            "users:manage",
            "bans:read",
            "bans:manage",
            "devices:read",
            "devices:stop",
            "devices:release",
            "audit:read",
            "metrics:read",
            "docs:read",
        ],
    ),
    (AUDITOR, &["audit:read", "runs:read", "devices:stop"]),
];

/// What a caller holds at this moment: rights of the token that the principal still has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    roles: Vec<String>,
}

/// Why a caller may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// What to tell the caller: the role that would be needed. Public by contract.
    pub message: String,
}

impl Grants {
    /// The roles that both the token and the principal's present record name.
    pub fn intersect(token: &[String], present: &[String]) -> Self {
        Self { roles: token.iter().filter(|role| present.contains(role)).cloned().collect() }
    }

    /// All of these roles.
    pub fn of(roles: &[&str]) -> Self {
        Self { roles: roles.iter().map(|&role| role.to_owned()).collect() }
    }

    /// The roles held.
    pub fn roles(&self) -> &[String] {
        &self.roles
    }

    fn holds_scope(&self, scope: &str) -> bool {
        ROLES.iter().any(|(role, scopes)| scopes.contains(&scope) && self.holds_role(role))
    }

    fn holds_role(&self, role: &str) -> bool {
        self.roles.iter().any(|held| held == role)
    }
}

/// Whether a role of this name exists.
pub fn is_role(name: &str) -> bool {
    ROLES.iter().any(|(role, _)| *role == name)
}

/// Whether `grants` are enough. Deny is the default.
///
/// # Errors
/// [`Denied`] with the role to ask for.
pub fn decide(grants: &Grants, needs: &Needs) -> Result<(), Denied> {
    let (granted, role) = match needs {
        Needs::SignedIn => (true, ""),
        Needs::Role(role) => (grants.holds_role(role), role.as_str()),
        Needs::Scope(scope) => {
            let role =
                ROLES.iter().find(|(_, scopes)| scopes.contains(scope)).map_or(ADMIN, |(role, _)| role);
            (grants.holds_scope(scope), role)
        }
    };
    if granted { Ok(()) } else { Err(Denied { message: format!("Role '{role}' required") }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_role_implies_another() {
        let admin = Grants::of(&[ADMIN]);
        let operator = Grants::of(&[OPERATOR]);

        assert_eq!(
            decide(&admin, &Needs::Role(OPERATOR.into())),
            Err(Denied { message: "Role 'operator' required".into() })
        );
        assert_eq!(decide(&operator, &Needs::Role(OPERATOR.into())), Ok(()));
        assert!(decide(&operator, &Needs::Scope("actions:read")).is_err());
        assert!(decide(&operator, &Needs::Scope("users:manage")).is_err());
    }

    #[test]
    fn every_role_may_stop_and_only_an_admin_may_release() {
        for (role, _) in ROLES {
            assert_eq!(decide(&Grants::of(&[role]), &Needs::Scope("devices:stop")), Ok(()));
            assert_eq!(decide(&Grants::of(&[role]), &Needs::Scope("devices:release")).is_ok(), role == ADMIN);
        }
    }

    #[test]
    fn a_role_taken_away_is_gone_at_once() {
        let token = ["operator".to_owned(), "viewer".to_owned()];
        let grants = Grants::intersect(&token, &["viewer".to_owned(), "admin".to_owned()]);

        assert_eq!(grants.roles(), ["viewer".to_owned()]);
    }

    #[test]
    fn nothing_held_means_nothing_allowed() {
        for (_, scopes) in ROLES {
            for scope in scopes {
                assert!(decide(&Grants::default(), &Needs::Scope(scope)).is_err());
            }
        }
        assert!(decide(&Grants::of(&["Admin", "admin ", "*"]), &Needs::Scope("users:manage")).is_err());
        assert!(decide(&Grants::of(&[ADMIN]), &Needs::Scope("no:such")).is_err());
    }
}
