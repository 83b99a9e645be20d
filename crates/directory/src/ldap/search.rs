//! Questions to the directory: binds and searches with bounds.

use std::collections::{BTreeMap, BTreeSet};

use ldap3::{Scope, SearchEntry, SearchOptions};

use super::config::LdapConfig;
use super::{dn, filter};
use crate::{DirectoryError, Refusal};

/// Most groups of one person.
const MAX_GROUPS: usize = 1000;
/// Longest name of a group, in bytes; longer ones and those with control characters are left out.
const MAX_GROUP: usize = 1024;
/// Longest id of a person, in bytes.
const MAX_SUBJECT: usize = 512;
/// Groups that are asked for in one search while walking.
const BATCH: usize = 50;
/// Most searches while walking.
const MAX_WALK: usize = 60;

/// Attributes that mark an account as disabled: Active Directory, OpenLDAP, 389 Directory Server and FreeIPA, eDirectory.
const MARKS: [&str; 4] = ["userAccountControl", "pwdAccountLockedTime", "nsAccountLock", "loginDisabled"];

/// Whether such an attribute says so. A lock for some time is for the server to judge; one for ever (draft-behera-ldap-password-policy,
/// section 5.3.3) is not acted on by servers without a policy for the person.
fn is_marked(entry: &SearchEntry) -> bool {
    let is_true = |name| first(entry, name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let flags = first(entry, MARKS[0]).and_then(|flags| flags.parse::<i64>().ok());
    flags.is_some_and(|flags| flags & 2 != 0)
        || first(entry, MARKS[1]).is_some_and(|time| time.starts_with("000001010000"))
        || is_true(MARKS[2])
        || is_true(MARKS[3])
}

/// What a result code means (RFC 4511, appendix A), for people.
pub(crate) fn meaning(code: u32) -> &'static str {
    match code {
        0 => "success",
        1 => "operations error; the server wants a bind first",
        2 => "protocol error",
        3 => "the server's time limit",
        4 => "the server's size limit",
        7 => "the way of signing in is not supported",
        8 => "stronger authentication required: use ldaps:// or StartTLS",
        10 => "referral to another server",
        11 => "an administrative limit of the server",
        13 => "the server wants TLS",
        18 => "a filter with an unknown matching rule",
        32 => "no such object: the base does not exist or is hidden",
        34 => "not a distinguished name",
        48 => "inappropriate authentication",
        49 => "invalid credentials",
        50 => "insufficient access rights",
        51 => "busy",
        52 => "unavailable",
        53 => "unwilling to perform",
        _ => "an error of the server",
    }
}

/// How a bind went wrong, as a number and the code that Active Directory adds.
#[derive(Debug)]
pub(crate) struct BindFailure {
    pub(crate) code: u32,
    pub(crate) data: Option<String>,
}

impl BindFailure {
    /// As it is for a person who signs in.
    pub(crate) fn refusal(&self) -> DirectoryError {
        let refusal = match (self.code, self.data.as_deref()) {
            // Codes of Active Directory: system error codes in hexadecimal.
            (49, Some("525")) => Refusal::UnknownUser,
            (49, Some("532" | "773")) => Refusal::PasswordExpired,
            // Constraint violation is a locked account in 389 Directory Server, unwilling a disabled one.
            (49, Some("530" | "531" | "533" | "701" | "775")) | (19 | 50 | 53, _) => Refusal::Disabled,
            (32 | 34 | 48 | 49, _) => Refusal::WrongPassword,
            (10, _) => Refusal::Referral,
            _ => return DirectoryError::Unavailable(self.shown()),
        };
        refusal.into()
    }

    /// As it is for the account of a setting.
    pub(crate) fn of_setting(&self) -> DirectoryError {
        match self.code {
            3 | 11 | 51 | 52 | 80 => DirectoryError::Unavailable(self.shown()),
            _ => DirectoryError::Misconfigured(self.shown()),
        }
    }

    fn shown(&self) -> String {
        let data = self.data.as_ref().map_or_else(String::new, |data| format!(", data {data}"));
        format!("the server answered the bind with {}{data} ({})", self.code, meaning(self.code))
    }
}

/// One connection with questions on it.
pub(crate) struct Questions<'a> {
    pub(crate) ldap: ldap3::Ldap,
    pub(crate) config: &'a LdapConfig,
}

impl Questions<'_> {
    /// Binds. Callers never come with an empty password.
    pub(crate) async fn bind(
        &mut self,
        name: &str,
        password: &str,
    ) -> Result<Result<(), BindFailure>, DirectoryError> {
        if password.is_empty() {
            return Err(Refusal::EmptyPassword.into());
        }
        let result = self.ldap.simple_bind(name, password).await.map_err(|_| lost())?;
        let data = result.text.strip_prefix("data ").map(str::to_owned);
        Ok(if result.rc == 0 { Ok(()) } else { Err(BindFailure { code: result.rc, data }) })
    }

    /// At most `limit` entries and the result code. Entries past the limit are not waited for.
    async fn entries(
        &mut self,
        base: &str,
        scope: Scope,
        filter: &str,
        attributes: Vec<String>,
        limit: usize,
    ) -> Result<(Vec<SearchEntry>, u32), DirectoryError> {
        let seconds = i32::try_from(self.config.timeout.as_secs().max(1)).unwrap_or(60);
        let options =
            SearchOptions::new().sizelimit(i32::try_from(limit).unwrap_or(i32::MAX)).timelimit(seconds);
        let mut stream = self
            .ldap
            .with_search_options(options)
            .streaming_search(base, scope, filter, attributes)
            .await
            .map_err(|_| lost())?;
        let mut entries = Vec::new();
        while let Some(entry) = stream.next().await.map_err(|_| lost())? {
            if entries.len() == limit {
                // The server ignores the limit that it was given.
                return Ok((entries, 4));
            }
            entries.push(SearchEntry::construct(entry));
        }
        Ok((entries, stream.finish().await.rc))
    }

    /// The one entry of this person.
    pub(crate) async fn person(&mut self, username: &str) -> Result<SearchEntry, DirectoryError> {
        let config = self.config;
        let carries = filter::carries(&config.user_filter).map_err(DirectoryError::Misconfigured)?;
        let mut wanted: BTreeSet<String> = carries.iter().map(|one| one.attribute.clone()).collect();
        for name in [
            &config.name_attribute,
            &config.display_name_attribute,
            &config.mail_attribute,
            &config.id_attribute,
        ] {
            wanted.insert(name.to_ascii_lowercase());
        }
        wanted.extend(MARKS.map(str::to_ascii_lowercase));
        wanted.insert("cn".to_owned());
        if config.group_base.is_none() {
            wanted.insert("memberof".to_owned());
        }
        let filter = filter::fill(&config.user_filter, "{username}", username);
        let (base, scope) = match &config.user_dn_template {
            Some(template) => (filter::fill_dn(template, username), Scope::Base),
            None => (config.user_base.clone(), Scope::Subtree),
        };
        let (mut found, code) = self.entries(&base, scope, &filter, wanted.into_iter().collect(), 2).await?;
        match (code, found.len()) {
            (0, 0) => return Err(Refusal::UnknownUser.into()),
            (0, 1) => {}
            (0 | 4, _) => return Err(Refusal::Ambiguous.into()),
            (10, _) => return Err(Refusal::Referral.into()),
            (32, _) if scope == Scope::Base => return Err(Refusal::UnknownUser.into()),
            (32, _) => {
                return Err(DirectoryError::misconfigured(
                    "LDAP_USER_BASE does not exist or is hidden from LDAP_BIND_DN",
                ));
            }
            _ => return Err(failed("search for the person", code)),
        }
        let entry = found.remove(0);
        let below = dn::normal(&base)
            .zip(dn::normal(&entry.dn))
            .is_some_and(|(base, dn)| !dn.is_empty() && dn::is_under(&dn, &base));
        let is_asked_for = carries
            .iter()
            .any(|one| values(&entry, &one.attribute).iter().any(|value| one.matches(value, username)));
        if !below || !is_asked_for {
            return Err(Refusal::ForeignEntry.into());
        }
        Ok(entry)
    }

    /// Whether the entry is marked as disabled, in a way that is known or by the filter of the settings.
    pub(crate) async fn is_disabled(&mut self, entry: &SearchEntry) -> Result<bool, DirectoryError> {
        if is_marked(entry) {
            return Ok(true);
        }
        let Some(filter) = &self.config.disabled_filter else { return Ok(false) };
        // "1.1" asks for no attributes (RFC 4511, section 4.5.1.8).
        let (found, code) = self.entries(&entry.dn, Scope::Base, filter, vec!["1.1".to_owned()], 1).await?;
        match code {
            0 => Ok(!found.is_empty()),
            code => Err(failed("search with the filter for disabled accounts", code)),
        }
    }

    /// Names of the groups, direct and through other groups, and whether there were more than are taken.
    pub(crate) async fn groups(
        &mut self,
        entry: &SearchEntry,
        username: &str,
    ) -> Result<(Vec<String>, bool), DirectoryError> {
        let config = self.config;
        let Some(base) = &config.group_base else {
            let mut groups = values(entry, "memberOf");
            groups.retain(|group| is_group_name(group));
            groups.sort();
            let more = groups.len() > MAX_GROUPS;
            groups.truncate(MAX_GROUPS);
            return Ok((groups, more));
        };
        // By normal form, so that a group that is written in two ways is walked once and a circle ends.
        let mut found: BTreeMap<String, String> = BTreeMap::new();
        let (mut members, mut searches) = (vec![entry.dn.clone()], 0);
        for level in 0..=config.nested_depth {
            let mut next = Vec::new();
            for batch in members.chunks(BATCH) {
                searches += 1;
                if searches > MAX_WALK {
                    return Ok((found.into_values().collect(), true));
                }
                let filter = group_filter(config, batch, username, level);
                let (groups, code) =
                    self.entries(base, Scope::Subtree, &filter, vec!["1.1".to_owned()], MAX_GROUPS).await?;
                match code {
                    0 | 4 => {}
                    10 => return Err(Refusal::Referral.into()),
                    32 => {
                        return Err(DirectoryError::misconfigured(
                            "LDAP_GROUP_BASE does not exist or is hidden from LDAP_BIND_DN",
                        ));
                    }
                    code => return Err(failed("search for groups", code)),
                }
                let mut more = code == 4;
                for group in groups {
                    let Some(normal) =
                        dn::normal(&group.dn).filter(|dn| !dn.is_empty() && is_group_name(&group.dn))
                    else {
                        continue;
                    };
                    if found.len() >= MAX_GROUPS && !found.contains_key(&normal) {
                        more = true;
                    } else if found.insert(normal, group.dn.clone()).is_none() {
                        next.push(group.dn);
                    }
                }
                if more {
                    return Ok((found.into_values().collect(), true));
                }
            }
            if next.is_empty() {
                break;
            }
            members = next;
        }
        Ok((found.into_values().collect(), false))
    }
}

fn is_group_name(name: &str) -> bool {
    name.len() <= MAX_GROUP && !name.chars().any(char::is_control)
}

/// The filter for all groups that have one of these as a member. A group has no sign-in name, so past the first level only
/// what names the member by its distinguished name counts.
fn group_filter(config: &LdapConfig, members: &[String], username: &str, level: u8) -> String {
    let one = |member: &String| {
        let name = if level == 0 { username } else { "" };
        filter::fill(&filter::fill(&config.group_filter, "{username}", name), "{dn}", member)
    };
    match members {
        [member] => one(member),
        members => format!("(|{})", members.iter().map(one).collect::<String>()),
    }
}

/// Values of an attribute, whatever case its name came in. Values that are no text are left out.
pub(crate) fn values(entry: &SearchEntry, name: &str) -> Vec<String> {
    entry
        .attrs
        .iter()
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .flat_map(|(_, values)| values.clone())
        .collect()
}

/// The first value of an attribute that is not empty.
pub(crate) fn first(entry: &SearchEntry, name: &str) -> Option<String> {
    values(entry, name).into_iter().find(|value| !value.trim().is_empty())
}

/// The id that stays with the person, and whether it is one (or the distinguished name that stands in).
pub(crate) fn subject(entry: &SearchEntry, attribute: &str) -> Result<(String, bool), DirectoryError> {
    let kind = attribute.to_ascii_lowercase();
    let binary = entry
        .bin_attrs
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(attribute))
        .and_then(|(_, values)| values.first());
    let text = first(entry, attribute);
    // 16 bytes that happen to be text are still the 16 bytes of an objectGUID.
    let bytes = binary
        .cloned()
        .or_else(|| text.as_ref().filter(|_| kind == "objectguid").map(|text| text.clone().into_bytes()));
    let (subject, lasting) = match (bytes, text) {
        (Some(bytes), _) => (format!("{kind}:{}", interlock_model::id::hexadecimal(&bytes)), true),
        (None, Some(text)) => (format!("{kind}:{}", text.to_ascii_lowercase()), true),
        (None, None) => (format!("dn:{}", dn::normal(&entry.dn).unwrap_or_else(|| entry.dn.clone())), false),
    };
    // Cut, it would no longer be one person's alone.
    if subject.len() > MAX_SUBJECT || subject.chars().any(char::is_control) {
        return Err(DirectoryError::misconfigured("the id of the entry is longer than 512 bytes or no text"));
    }
    Ok((subject, lasting))
}

fn lost() -> DirectoryError {
    DirectoryError::unavailable("the server closed the connection")
}

fn failed(what: &str, code: u32) -> DirectoryError {
    let text = format!("the server answered the {what} with {code} ({})", meaning(code));
    match code {
        1 | 3 | 11 | 51 | 52 | 80 => DirectoryError::Unavailable(text),
        _ => DirectoryError::Misconfigured(text),
    }
}
