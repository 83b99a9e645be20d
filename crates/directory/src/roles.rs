//! From groups to roles: `LDAP_ROLE_MAP` and `OIDC_ROLE_MAP`.

use std::collections::BTreeSet;

use crate::ldap::dn;

/// Which group gives which role. One group may give several roles, several groups may give one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoleMap {
    /// `(group in its normal form, role)`
    entries: Vec<(String, String)>,
    by_dn: bool,
}

/// Most entries in one map.
const MAX_ENTRIES: usize = 1000;

impl RoleMap {
    /// Reads `cn=lab-ops,ou=groups,dc=example=operator;…`: a distinguished name, `=`, one role or several with commas; entries
    /// end with `;` or a new line. A `;` inside a name is written `\;`. Upper and lower case do not matter in the name.
    ///
    /// Whole names only: whoever may create groups somewhere below the base could otherwise take the name of another's.
    ///
    /// # Errors
    /// A sentence that names the entry.
    pub fn for_dns(text: &str) -> Result<Self, String> {
        Self::read(text, true)
    }

    /// Reads `lab-ops=operator;…`: the name of a group as the provider writes it, `=`, one role or several with commas.
    /// Upper and lower case matter, as they do at the provider.
    ///
    /// # Errors
    /// A sentence that names the entry.
    pub fn for_names(text: &str) -> Result<Self, String> {
        Self::read(text, false)
    }

    fn read(text: &str, by_dn: bool) -> Result<Self, String> {
        let mut entries = Vec::new();
        for entry in split(text) {
            let (group, roles) = entry
                .rsplit_once('=')
                .ok_or_else(|| format!("'{entry}' in the role map has no '='; write group=role"))?;
            let roles: Vec<&str> = roles.split(',').map(str::trim).collect();
            if let Some(role) = roles.iter().find(|role| !interlock_model::policy::is_role(role)) {
                let known: Vec<&str> = interlock_model::policy::ROLES.iter().map(|(name, _)| *name).collect();
                return Err(format!(
                    "'{entry}' in the role map: there is no role '{role}'; the roles are {}",
                    known.join(", ")
                ));
            }
            let group = group.trim();
            let normal = if by_dn {
                dn::normal(group).filter(|name| !name.is_empty()).ok_or_else(|| {
                    format!("'{group}' in the role map is no distinguished name such as cn=lab-ops,ou=groups,dc=example")
                })?
            } else if group.is_empty() {
                return Err(format!("'{entry}' in the role map names no group"));
            } else {
                group.to_owned()
            };
            entries.extend(roles.into_iter().map(|role| (normal.clone(), role.to_owned())));
        }
        if entries.len() > MAX_ENTRIES {
            return Err(format!("the role map has more than {MAX_ENTRIES} entries"));
        }
        Ok(Self { entries, by_dn })
    }

    /// Whether it gives nobody anything.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Roles for these groups, sorted, each once.
    pub fn roles<'a>(&self, groups: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let mut roles = BTreeSet::new();
        for group in groups {
            let normal = if self.by_dn { dn::normal(group) } else { Some(group.to_owned()) };
            let Some(normal) = normal else { continue };
            roles.extend(
                self.entries.iter().filter(|(name, _)| *name == normal).map(|(_, role)| role.clone()),
            );
        }
        roles.into_iter().collect()
    }
}

/// Entries between `;` that are not escaped, and between lines.
fn split(text: &str) -> Vec<&str> {
    let (mut entries, mut from, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        if !escaped && matches!(c, ';' | '\n') {
            entries.push(&text[from..at]);
            from = at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    entries.push(&text[from..]);
    entries.into_iter().map(str::trim).filter(|entry| !entry.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_by_distinguished_name_give_roles() {
        let map = RoleMap::for_dns(
            "cn=lab-ops,ou=Groups,dc=example=operator,viewer;\n CN=IT\\; Admins, OU=groups, DC=example =admin;",
        )
        .expect("a map");

        assert_eq!(map.roles(["CN=Lab-Ops, ou=groups,DC=EXAMPLE"]), ["operator", "viewer"]);
        assert_eq!(map.roles(["cn=it\\3b admins,ou=groups,dc=example"]), ["admin"]);
        assert!(map.roles(["cn=lab-ops,ou=students,dc=example", "cn=lab-ops", ""]).is_empty());
    }

    #[test]
    fn groups_by_name_are_exact() {
        let map = RoleMap::for_names("lab-ops=operator; team=a=viewer").expect("a map");

        assert_eq!(map.roles(["lab-ops", "team=a", "other"]), ["operator", "viewer"]);
        assert!(map.roles(["Lab-Ops", "lab-ops "]).is_empty());
    }

    #[test]
    fn a_map_that_is_wrong_says_where() {
        for (text, says) in [
            ("cn=ops,dc=example", "no role 'example'"),
            ("nonsense", "no '='"),
            ("ops=operator", "no distinguished name"),
            ("cn=ops,dc=x=operater", "the roles are"),
            ("=admin", "no distinguished name"),
        ] {
            assert!(RoleMap::for_dns(text).expect_err(text).contains(says), "{text}");
        }
        assert!(RoleMap::for_names("=admin").is_err());
        assert!(RoleMap::for_dns(" ; \n").expect("nothing").is_empty());
    }
}
