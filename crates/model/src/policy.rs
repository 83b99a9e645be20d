//! Who may do what: roles, scopes and one pure decision.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::action::Needs;
use crate::scope::{self, Scope};

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
    (
        VIEWER,
        &[
            "actions:read",
            "runs:read",
            "devices:read",
            "devices:stop",
            "tasks:read",
            "events:read",
            "approvals:read",
        ],
    ),
    (
        OPERATOR,
        &[
            "devices:execute",
            "devices:attention",
            "devices:read",
            "devices:stop",
            "runs:read",
            "runs:cancel",
            "tasks:read",
            "tasks:create",
            "tasks:update",
            "tasks:delete",
            "events:read",
            "events:publish",
            "approvals:read",
            "approvals:decide",
            "tool:*",
        ],
    ),
    (
        ADMIN,
        &[
            "users:read",
            "users:manage",
            "agents:read",
            "agents:manage",
            "roles:manage",
            "keys:manage",
            "sessions:manage",
            "security:manage",
            "tokens:manage",
            "tokens:introspect",
            "bans:read",
            "bans:manage",
            "devices:read",
            "devices:stop",
            "devices:release",
            "audit:read",
            "metrics:read",
            "docs:read",
            "tasks:read",
            "tasks:update",
            "tasks:delete",
            "events:read",
            "events:manage",
            "approvals:read",
        ],
    ),
    (AUDITOR, &["audit:read", "runs:read", "devices:stop"]),
];

/// What kind of principal somebody is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalKind {
    /// A person.
    #[default]
    User,
    /// Software.
    Agent,
}

/// What a caller holds at this moment: rights of the credential that the principal still has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    kind: PrincipalKind,
    roles: Vec<String>,
    scopes: Vec<Scope>,
}

/// Why a caller may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// What to tell the caller. People learn the role to ask for; agents learn nothing about the inventory of scopes.
    pub message: String,
}

/// Custom roles: names with their scopes.
pub type CustomRoles = HashMap<String, Vec<Scope>>;

/// The scopes of these roles, built-in or custom.
pub fn scopes_of(roles: &[String], custom: &CustomRoles) -> Vec<Scope> {
    let built_in = ROLES
        .iter()
        .filter(|(role, _)| roles.iter().any(|held| held == role))
        .flat_map(|(_, scopes)| scopes.iter().filter_map(|scope| scope.parse().ok()));
    let own = roles.iter().filter_map(|role| custom.get(role)).flatten().cloned();
    let mut scopes: Vec<Scope> = built_in.chain(own).collect();
    scopes.sort();
    scopes.dedup();
    scopes
}

impl Grants {
    /// A person's rights: the roles that both the token and the present record name, with the scopes that these have now,
    /// limited to `limit` if the credential carries scopes of its own.
    pub fn of_user(
        token: &[String],
        present: &[String],
        custom: &CustomRoles,
        limit: Option<&[Scope]>,
    ) -> Self {
        let roles: Vec<String> = token.iter().filter(|role| present.contains(role)).cloned().collect();
        let scopes = scopes_of(&roles, custom);
        match limit {
            None => Self { kind: PrincipalKind::User, roles, scopes },
            // A narrowed credential holds scopes and no role: a role would bring back what was left out.
            Some(limit) => Self {
                kind: PrincipalKind::User,
                roles: Vec::new(),
                scopes: scope::intersect(&scopes, limit),
            },
        }
    }

    /// An agent's rights: what both the token and the present record hold.
    pub fn of_agent(token: &[Scope], present: &[Scope]) -> Self {
        Self { kind: PrincipalKind::Agent, roles: Vec::new(), scopes: scope::intersect(token, present) }
    }

    /// All of these built-in roles.
    pub fn of(roles: &[&str]) -> Self {
        let roles: Vec<String> = roles.iter().map(|&role| role.to_owned()).collect();
        let scopes = scopes_of(&roles, &CustomRoles::new());
        Self { kind: PrincipalKind::User, roles, scopes }
    }

    /// What is left of them where administration is not allowed. Roles stay: what they mean for a device is no administration.
    #[must_use]
    pub fn without_administration(&self) -> Self {
        let administers =
            |scope: &&Scope| ADMINISTRATION.iter().any(|administration| scope.covers(administration));
        let scopes = self.scopes.iter().filter(|scope| !administers(scope)).cloned().collect();
        Self { kind: self.kind, roles: self.roles.clone(), scopes }
    }

    /// The roles held.
    pub fn roles(&self) -> &[String] {
        &self.roles
    }

    /// The scopes held.
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// What kind of principal holds them.
    pub fn kind(&self) -> PrincipalKind {
        self.kind
    }

    /// Whether what belongs to others may be seen and changed (given the scope for it). Agents without `admin` have their own
    /// things only.
    pub fn reaches_others(&self) -> bool {
        self.kind == PrincipalKind::User || self.scopes.iter().any(|scope| scope.as_str() == scope::ADMIN)
    }

    /// Whether some scope held covers `needed`.
    pub fn holds_scope(&self, needed: &str) -> bool {
        let withheld = self.kind == PrincipalKind::Agent
            && scope::PEOPLE_ONLY
                .iter()
                .any(|only| needed == *only || needed.starts_with(&format!("{only}:")));
        !withheld && self.scopes.iter().any(|scope| scope.covers(needed))
    }

    fn holds_role(&self, role: &str) -> bool {
        self.roles.iter().any(|held| held == role)
    }
}

/// Whether a built-in role of this name exists.
pub fn is_role(name: &str) -> bool {
    ROLES.iter().any(|(role, _)| *role == name)
}

/// Whether `grants` are enough. Deny is the default.
///
/// # Errors
/// [`Denied`] with what to tell the caller.
pub fn decide(grants: &Grants, needs: &Needs) -> Result<(), Denied> {
    if is_enough(grants, needs) { Ok(()) } else { Err(Denied { message: refusal(grants, needs) }) }
}

fn is_enough(grants: &Grants, needs: &Needs) -> bool {
    match needs {
        Needs::SignedIn => true,
        // A narrowed credential holds no role, and must not get at what would widen it.
        Needs::Person => grants.kind == PrincipalKind::User && !grants.roles.is_empty(),
        Needs::Scope(scope) => grants.holds_scope(scope),
        Needs::Execute { target, role } => {
            let narrowed = format!("devices:execute:{target}");
            grants.holds_role(role)
                // A role of its own keeps an action apart: a scope for everything is not enough, one that names it is.
                || if role == OPERATOR { grants.holds_scope(&narrowed) } else { names(grants, &narrowed) }
        }
    }
}

/// Whether a scope held narrows execution to this very action or a prefix of it.
fn names(grants: &Grants, narrowed: &str) -> bool {
    grants.scopes.iter().any(|scope| scope.as_str().starts_with("devices:execute:") && scope.covers(narrowed))
}

/// What software and keys are told where only a person may act.
pub const NOT_A_PERSON: &str = "Only a person who has signed in can do this";

fn refusal(grants: &Grants, needs: &Needs) -> String {
    let role = match needs {
        Needs::Person => return NOT_A_PERSON.to_owned(),
        _ if grants.kind == PrincipalKind::Agent || grants.roles.is_empty() => {
            return "The credential does not hold the scope for this".to_owned();
        }
        Needs::SignedIn => "",
        Needs::Execute { role, .. } => role.as_str(),
        Needs::Scope(scope) => {
            ROLES.iter().find(|(_, scopes)| scopes.contains(scope)).map_or(ADMIN, |(role, _)| role)
        }
    };
    format!("Role '{role}' required")
}

/// Who may do what, and who is let in: what `ADMIN_NETWORKS` keeps to certain networks. Motion, its stop and its release are not
/// in it.
pub const ADMINISTRATION: &[&str] = &[
    "users:read",
    "users:manage",
    "agents:read",
    "agents:manage",
    "roles:manage",
    "keys:manage",
    "sessions:manage",
    "security:manage",
    "tokens:manage",
    "bans:read",
    "bans:manage",
];

/// Scopes over things that belong to somebody.
pub const OWNED: &[&str] = &[
    "runs:read",
    "runs:cancel",
    "tasks:create",
    "tasks:read",
    "tasks:update",
    "tasks:delete",
    "events:publish",
    "events:read",
];

/// Whether an agent may do this with its own things where scopes are not enforced for them (`SCOPE_MODE=owner`). What belongs
/// to others stays hidden from it.
pub fn is_own(grants: &Grants, needs: &Needs) -> bool {
    grants.kind == PrincipalKind::Agent && matches!(needs, Needs::Scope(scope) if OWNED.contains(scope))
}

/// A decision with its reasons, for people who ask "why".
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The decision.
    pub allowed: bool,
    /// What was asked for.
    pub needs: String,
    /// The scope or role that decided, if one did.
    pub by: Option<String>,
    /// A sentence.
    pub because: String,
}

/// As [`decide`], with the reason.
pub fn explain(grants: &Grants, needs: &Needs) -> Explanation {
    let (asked, by) = match needs {
        Needs::SignedIn => ("to be signed in".to_owned(), Some("any credential".to_owned())),
        Needs::Person => {
            let person = is_enough(grants, needs);
            ("to be a person in a session".to_owned(), person.then(|| "a session".to_owned()))
        }
        Needs::Scope(needed) => {
            let held = grants.scopes.iter().find(|scope| scope.covers(needed));
            (format!("scope {needed}"), held.map(ToString::to_string))
        }
        Needs::Execute { target, role } => {
            let narrowed = format!("devices:execute:{target}");
            let by_role = grants.holds_role(role).then(|| format!("role {role}"));
            let by_scope =
                || grants.scopes.iter().find(|scope| scope.covers(&narrowed)).map(ToString::to_string);
            (format!("role {role} or scope {narrowed}"), by_role.or_else(by_scope))
        }
    };
    let allowed = is_enough(grants, needs);
    let because = match (allowed, &by) {
        (true, Some(by)) => format!("{by} covers {asked}"),
        (true, None) => format!("nothing more than {asked} is needed"),
        (false, Some(by)) => format!(
            "{by} would cover {asked}, but agents never hold it, or the action asks for a role of its own"
        ),
        (false, None) => format!("nothing that is held covers {asked}"),
    };
    Explanation { allowed, needs: asked, by: by.filter(|_| allowed), because }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs_execute(target: &str, role: &str) -> Needs {
        Needs::Execute { target: target.to_owned(), role: role.to_owned() }
    }

    fn execute(role: &str) -> Needs {
        needs_execute("ot2/mix", role)
    }

    fn scopes(texts: &[&str]) -> Vec<Scope> {
        scope::parse_all(texts).expect("scopes")
    }

    #[test]
    fn no_role_implies_another() {
        let admin = Grants::of(&[ADMIN]);
        let operator = Grants::of(&[OPERATOR]);

        assert_eq!(
            decide(&admin, &execute(OPERATOR)),
            Err(Denied { message: "Role 'operator' required".into() })
        );
        assert_eq!(decide(&operator, &execute(OPERATOR)), Ok(()));
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
        let present = ["viewer".to_owned(), "admin".to_owned()];
        let grants = Grants::of_user(&token, &present, &CustomRoles::new(), None);

        assert_eq!(grants.roles(), ["viewer".to_owned()]);
        assert!(!grants.holds_scope("runs:cancel"));
        assert!(!grants.holds_scope("users:manage"));
    }

    #[test]
    fn a_custom_role_holds_its_scopes_and_no_more() {
        let custom =
            CustomRoles::from([("washer".to_owned(), scopes(&["devices:execute:ot2/wash_*", "runs:read"]))]);
        let role = ["washer".to_owned()];
        let grants = Grants::of_user(&role, &role, &custom, None);

        assert_eq!(decide(&grants, &needs_execute("ot2/wash_tips", OPERATOR)), Ok(()));
        assert!(decide(&grants, &needs_execute("ot2/mix", OPERATOR)).is_err());
        assert!(grants.holds_scope("runs:read"));
        assert!(!grants.holds_scope("runs:cancel"));
        // A role that was deleted is held by name and covers nothing.
        assert!(!Grants::of_user(&role, &role, &CustomRoles::new(), None).holds_scope("runs:read"));
    }

    #[test]
    fn an_agent_holds_what_token_and_record_share_and_never_what_is_for_people() {
        let grants = Grants::of_agent(&scopes(&["admin", "devices:*"]), &scopes(&["admin", "devices:*"]));

        assert!(grants.holds_scope("agents:manage"));
        assert!(grants.holds_scope("devices:stop"));
        for only in scope::PEOPLE_ONLY {
            assert!(!grants.holds_scope(only), "{only}");
        }
        assert_eq!(decide(&grants, &execute(OPERATOR)), Ok(()));
        assert!(
            decide(&Grants::of_agent(&scopes(&["admin"]), &scopes(&["admin"])), &execute(OPERATOR)).is_err()
        );
        assert!(!Grants::of_agent(&scopes(&["admin"]), &scopes(&["runs:read"])).holds_scope("audit:read"));
    }

    #[test]
    fn an_action_with_a_role_of_its_own_wants_that_role_or_a_scope_that_names_it() {
        let wide = scopes(&["devices:execute"]);
        let exact = scopes(&["devices:execute:ot2/open_door"]);
        let needs = needs_execute("ot2/open_door", "service");

        assert!(decide(&Grants::of(&[OPERATOR]), &needs).is_err());
        assert!(decide(&Grants::of_agent(&wide, &wide), &needs).is_err());
        assert_eq!(decide(&Grants::of_agent(&exact, &exact), &needs), Ok(()));
    }

    #[test]
    fn a_narrowed_credential_of_a_person_holds_no_role() {
        let roles = [OPERATOR.to_owned(), ADMIN.to_owned()];
        let limit = scopes(&["devices:execute:ot2/mix", "runs:read"]);
        let grants = Grants::of_user(&roles, &roles, &CustomRoles::new(), Some(&limit));

        assert!(grants.roles().is_empty());
        assert!(decide(&grants, &Needs::Person).is_err());
        assert_eq!(decide(&Grants::of(&[VIEWER]), &Needs::Person), Ok(()));
        assert_eq!(decide(&grants, &needs_execute("ot2/mix", OPERATOR)), Ok(()));
        assert!(decide(&grants, &needs_execute("ot2/wash", OPERATOR)).is_err());
        assert!(!grants.holds_scope("users:manage"));
    }

    #[test]
    fn only_agents_and_only_what_can_be_owned_go_without_a_scope() {
        let agent = Grants::of_agent(&[], &[]);

        assert!(is_own(&agent, &Needs::Scope("runs:read")));
        for other in ["agents:manage", "audit:read", "devices:read", "metrics:read"] {
            assert!(!is_own(&agent, &Needs::Scope(other)), "{other}");
        }
        assert!(!is_own(&agent, &execute(OPERATOR)));
        assert!(!is_own(&Grants::of(&[VIEWER]), &Needs::Scope("runs:cancel")));
        assert!(OWNED.iter().all(|scope| scope::KNOWN.contains(scope)));
    }

    #[test]
    fn a_role_of_the_action_s_own_is_enough_without_any_scope() {
        let roles = ["service".to_owned()];
        let grants = Grants::of_user(&roles, &roles, &CustomRoles::new(), None);

        assert_eq!(decide(&grants, &needs_execute("ot2/open_door", "service")), Ok(()));
        assert!(decide(&grants, &needs_execute("ot2/open_door", "owner")).is_err());
        assert!(is_role(ADMIN) && is_role(VIEWER) && !is_role("service") && !is_role(""));
    }

    #[test]
    fn without_administration_the_rest_stays() {
        let of_agent = scopes(&["admin", "users:read", "runs:read", "devices:stop"]);
        for grants in [Grants::of(&[ADMIN, OPERATOR]), Grants::of_agent(&of_agent, &of_agent)] {
            let left = grants.without_administration();

            assert_eq!((left.kind(), left.roles()), (grants.kind(), grants.roles()));
            assert!(grants.holds_scope("bans:manage") && grants.holds_scope("devices:stop"));
            assert!(left.holds_scope("devices:stop") && !left.scopes().is_empty());
            for scope in ADMINISTRATION {
                assert!(!left.holds_scope(scope), "{scope}");
            }
        }
    }

    #[test]
    fn people_and_administering_agents_reach_what_is_of_others() {
        let (plain, admin) = (scopes(&["runs:read"]), scopes(&["runs:read", "admin"]));

        assert!(Grants::of(&[VIEWER]).reaches_others());
        assert!(Grants::of_agent(&admin, &admin).reaches_others());
        assert!(!Grants::of_agent(&plain, &plain).reaches_others());
        assert!(!Grants::of_agent(&[], &[]).reaches_others());
        assert_eq!(Grants::of(&[VIEWER]).kind(), PrincipalKind::User);
        assert_eq!(Grants::of_agent(&admin, &admin).kind(), PrincipalKind::Agent);
    }

    #[test]
    fn a_refusal_names_a_role_to_those_only_who_could_have_one() {
        let told =
            |grants: &Grants| decide(grants, &Needs::Scope("users:manage")).expect_err("refused").message;
        let roles = [VIEWER.to_owned()];
        let limit = scopes(&["runs:read"]);

        assert_eq!(told(&Grants::of(&[VIEWER])), "Role 'admin' required");
        let narrowed = Grants::of_user(&roles, &roles, &CustomRoles::new(), Some(&limit));
        for grants in [Grants::of_agent(&limit, &limit), narrowed] {
            assert_eq!(told(&grants), "The credential does not hold the scope for this");
        }
    }

    #[test]
    fn an_explanation_agrees_with_the_decision() {
        for roles in [&[ADMIN][..], &[OPERATOR], &[VIEWER], &[]] {
            let grants = Grants::of(roles);
            for scope in scope::KNOWN {
                let needs = Needs::Scope(scope);
                assert_eq!(
                    explain(&grants, &needs).allowed,
                    decide(&grants, &needs).is_ok(),
                    "{roles:?} {scope}"
                );
            }
            assert_eq!(
                explain(&grants, &execute(OPERATOR)).allowed,
                decide(&grants, &execute(OPERATOR)).is_ok()
            );
        }
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
