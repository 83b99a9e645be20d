//! Settings of an LDAP directory, and what can be wrong with them.

use std::time::Duration;

use interlock_model::secret::Secret;
use url::{Host, Url};

use super::{dn, filter};
use crate::RoleMap;

/// Finds people in most directories.
pub const USER_FILTER: &str = "(&(objectClass=person)(uid={username}))";
/// Finds people in Active Directory, except disabled ones (bit 2 of `userAccountControl`).
pub const AD_USER_FILTER: &str =
    "(&(objectClass=user)(sAMAccountName={username})(!(userAccountControl:1.2.840.113556.1.4.803:=2)))";
/// Finds the groups that name somebody as a member.
pub const GROUP_FILTER: &str = "(|(&(objectClass=groupOfNames)(member={dn}))(&(objectClass=groupOfUniqueNames)(uniqueMember={dn}))(&(objectClass=group)(member={dn})))";
/// Finds the groups of somebody in Active Directory, through any number of groups (LDAP_MATCHING_RULE_IN_CHAIN).
pub const AD_GROUP_FILTER: &str = "(&(objectClass=group)(member:1.2.840.113556.1.4.1941:={dn}))";
/// Most levels of groups in groups.
pub const MAX_DEPTH: u8 = 8;

/// How to sign people in against one directory. Make it with [`LdapConfig::new`] or [`LdapConfig::active_directory`], then set
/// the public fields.
#[derive(Debug, Clone)]
pub struct LdapConfig {
    /// `ldaps://host[:636]`, or `ldap://host[:389]`, which is turned into TLS by StartTLS before anything is said.
    pub url: String,
    /// Authorities to trust, as PEM. Without it, those of this machine.
    pub ca_pem: Option<String>,
    /// Speak `ldap://` without TLS: passwords can be read on the network. Off.
    pub insecure_plaintext: bool,
    /// Account that searches. Without it and without `user_dn_template`, the search is anonymous.
    pub bind_dn: Option<String>,
    /// Its password.
    pub bind_password: Option<Secret>,
    /// Where a person is, with `{username}`: `uid={username},ou=people,dc=example`. Then nobody searches for people.
    pub user_dn_template: Option<String>,
    /// Below which people are searched.
    pub user_base: String,
    /// Finds a person, with `{username}`. Exactly one entry must match, and must carry the name.
    pub user_filter: String,
    /// An entry that matches this is refused, such as `(pwdAccountLockedTime=*)`.
    pub disabled_filter: Option<String>,
    /// Below which groups are searched. Without it the values of the attribute `memberOf` are the groups.
    pub group_base: Option<String>,
    /// Finds groups, with `{dn}` for the member and, if wanted, `{username}`.
    pub group_filter: String,
    /// How many levels of groups in groups are walked, 0 to 8. 0 where the server walks itself.
    pub nested_depth: u8,
    /// Attribute with the sign-in name.
    pub name_attribute: String,
    /// Attribute with the name for people.
    pub display_name_attribute: String,
    /// Attribute with the mail address.
    pub mail_attribute: String,
    /// Attribute with an id that never changes hands, if the directory has one: `entryUUID`, `objectGUID`, `nsUniqueId`.
    /// Where the entry has none, its distinguished name stands in.
    pub id_attribute: String,
    /// Which groups give which role.
    pub roles: RoleMap,
    /// Longest time for a whole sign-in, 100 ms to 60 s. Default 5 s.
    pub timeout: Duration,
}

impl LdapConfig {
    /// For OpenLDAP, 389 Directory Server, FreeIPA and kin.
    pub fn new(url: impl Into<String>, user_base: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ca_pem: None,
            insecure_plaintext: false,
            bind_dn: None,
            bind_password: None,
            user_dn_template: None,
            user_base: user_base.into(),
            user_filter: USER_FILTER.to_owned(),
            disabled_filter: None,
            group_base: None,
            group_filter: GROUP_FILTER.to_owned(),
            nested_depth: MAX_DEPTH,
            name_attribute: "uid".to_owned(),
            display_name_attribute: "displayName".to_owned(),
            mail_attribute: "mail".to_owned(),
            id_attribute: "entryUUID".to_owned(),
            roles: RoleMap::default(),
            timeout: Duration::from_secs(5),
        }
    }

    /// For Active Directory: its attributes, its disabled accounts, its own walk through nested groups.
    pub fn active_directory(url: impl Into<String>, base: impl Into<String>) -> Self {
        let base = base.into();
        Self {
            user_filter: AD_USER_FILTER.to_owned(),
            group_base: Some(base.clone()),
            group_filter: AD_GROUP_FILTER.to_owned(),
            nested_depth: 0,
            name_attribute: "sAMAccountName".to_owned(),
            id_attribute: "objectGUID".to_owned(),
            ..Self::new(url, base)
        }
    }

    /// Checks every setting by itself; connects to nothing.
    ///
    /// # Errors
    /// One sentence for each setting that is wrong, with the setting's name.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        if let Err(reason) = self.address() {
            wrong.push(format!("LDAP_URL {reason}"));
        }
        if let Err(reason) = crate::tls::roots(self.ca_pem.as_deref())
            && (self.ca_pem.is_some() || !self.insecure_plaintext)
        {
            wrong.push(format!("LDAP_CA_FILE: {reason}"));
        }
        self.validate_accounts(&mut wrong);
        self.validate_searches(&mut wrong);
        for (name, value) in [
            ("name", &self.name_attribute),
            ("display name", &self.display_name_attribute),
            ("mail", &self.mail_attribute),
            ("id", &self.id_attribute),
        ] {
            let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
            if value.is_empty() || !value.chars().all(letters) {
                wrong.push(format!("the attribute for the {name} is no attribute name"));
            }
        }
        if self.nested_depth > MAX_DEPTH {
            wrong.push(format!("nested groups are walked at most {MAX_DEPTH} levels deep"));
        }
        if !(Duration::from_millis(100)..=Duration::from_mins(1)).contains(&self.timeout) {
            wrong.push("the time limit must be 100 ms to 60 s".to_owned());
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn validate_accounts(&self, wrong: &mut Vec<String>) {
        let has_password = self.bind_password.as_ref().is_some_and(|password| !password.expose().is_empty());
        match &self.bind_dn {
            Some(name) if name.trim().is_empty() => {
                wrong.push("LDAP_BIND_DN is empty; leave it unset".to_owned());
            }
            // Without a password the bind would count as anonymous and still succeed (RFC 4513, section 5.1.2).
            Some(_) if !has_password => {
                wrong
                    .push("LDAP_BIND_PASSWORD is needed with LDAP_BIND_DN, and must not be empty".to_owned());
            }
            None if self.bind_password.is_some() => {
                wrong.push("LDAP_BIND_PASSWORD is set without LDAP_BIND_DN".to_owned());
            }
            _ => {}
        }
        if let Some(template) = &self.user_dn_template {
            if template.matches("{username}").count() != 1 {
                wrong.push("the template for people must hold {username} once".to_owned());
            } else if dn::normal(&template.replace("{username}", "x")).is_none_or(|name| name.is_empty()) {
                wrong.push("the template for people must be a distinguished name such as uid={username},ou=people,dc=example".to_owned());
            }
        }
    }

    fn validate_searches(&self, wrong: &mut Vec<String>) {
        for (name, base) in
            [("LDAP_USER_BASE", Some(&self.user_base)), ("LDAP_GROUP_BASE", self.group_base.as_ref())]
        {
            if base.is_some_and(|base| dn::normal(base).is_none()) {
                wrong.push(format!("{name} is no distinguished name such as ou=people,dc=example"));
            }
        }
        if self.user_base.trim().is_empty() && self.user_dn_template.is_none() {
            wrong.push("LDAP_USER_BASE is not set".to_owned());
        }
        if let Err(reason) = filter::check(&self.user_filter, Some("{username}"))
            .and_then(|()| filter::carries(&self.user_filter))
        {
            wrong.push(format!("LDAP_USER_FILTER {reason}"));
        }
        if self.group_base.is_some() {
            let place = if self.group_filter.contains("{username}") { "{username}" } else { "{dn}" };
            if let Err(reason) = filter::check(&self.group_filter, Some(place)) {
                wrong.push(format!("LDAP_GROUP_FILTER {reason}"));
            }
        }
        if let Some(Err(reason)) = self.disabled_filter.as_ref().map(|text| filter::check(text, None)) {
            wrong.push(format!("the filter for disabled accounts {reason}"));
        }
    }

    pub(crate) fn address(&self) -> Result<Address, String> {
        let url =
            Url::parse(self.url.trim()).map_err(|_| "is no URL such as ldaps://ldap.example".to_owned())?;
        let (tls, default_port) = match url.scheme() {
            "ldaps" => (Tls::FromTheStart, 636),
            "ldap" if self.insecure_plaintext => (Tls::Never, 389),
            "ldap" => (Tls::Upgrade, 389),
            _ => return Err("must begin with ldaps:// or ldap://".to_owned()),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user name or password".to_owned());
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err("must hold nothing but host and port; bases and filters have settings of their own"
                .to_owned());
        }
        // For schemes that are not of the web the parser leaves hosts as they are, IPv4 addresses included.
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            _ => return Err("names no host".to_owned()),
        };
        Ok(Address { host, port: url.port().unwrap_or(default_port), tls })
    }
}

/// Where to connect.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: Tls,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    FromTheStart,
    Upgrade,
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(change: impl FnOnce(&mut LdapConfig)) -> String {
        let mut config = LdapConfig::new("ldaps://ldap.example", "ou=people,dc=example");
        change(&mut config);
        config.validate().expect_err("a setting is wrong").join("\n")
    }

    #[test]
    fn the_presets_are_valid() {
        LdapConfig::new("ldaps://ldap.example", "ou=people,dc=example").validate().expect("valid");
        LdapConfig::active_directory("ldap://10.0.0.1:3389", "dc=corp,dc=example").validate().expect("valid");
    }

    #[test]
    fn each_wrong_setting_is_named() {
        assert!(wrong(|c| c.url = "https://x".to_owned()).contains("LDAP_URL must begin"));
        assert!(wrong(|c| c.url = "ldap://u:p@x".to_owned()).contains("password"));
        assert!(wrong(|c| c.url = "ldaps://x/dc=example??sub".to_owned()).contains("nothing but host"));
        assert!(wrong(|c| c.bind_dn = Some("cn=s,dc=x".to_owned())).contains("LDAP_BIND_PASSWORD is needed"));
        assert!(
            wrong(|c| {
                c.bind_dn = Some("cn=s".to_owned());
                c.bind_password = Some(Secret::new(""));
            })
            .contains("empty")
        );
        assert!(
            wrong(|c| c.user_filter = "(uid=*)".to_owned()).contains("LDAP_USER_FILTER has no {username}")
        );
        assert!(wrong(|c| c.user_base = "people".to_owned()).contains("LDAP_USER_BASE"));
        assert!(
            wrong(|c| c.user_dn_template = Some("{username}@corp.example".to_owned()))
                .contains("distinguished name")
        );
        assert!(wrong(|c| c.ca_pem = Some("nonsense".to_owned())).contains("LDAP_CA_FILE"));
        assert!(wrong(|c| c.timeout = Duration::ZERO).contains("time limit"));
        assert!(wrong(|c| c.nested_depth = 9).contains("8 levels"));
    }
}
