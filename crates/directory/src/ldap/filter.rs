//! Filters with a place for a name (RFC 4515), and what the entry that comes back must carry.

use super::dn;

/// Longest filter in a setting, in bytes.
const MAX_BYTES: usize = 2048;
/// Most brackets in a filter; the library's reader goes one level deeper for each.
const MAX_BRACKETS: usize = 64;

/// Puts a value into a filter. Nothing in it can end the place where it stands.
pub(crate) fn fill(filter: &str, place: &str, value: &str) -> String {
    filter.replace(place, &ldap3::ldap_escape(value))
}

/// Puts a name into a distinguished name.
pub(crate) fn fill_dn(template: &str, username: &str) -> String {
    template.replace("{username}", &dn::escape(username))
}

/// Checks a filter out of a setting.
///
/// # Errors
/// A sentence.
pub(crate) fn check(filter: &str, place: Option<&str>) -> Result<(), String> {
    if filter.len() > MAX_BYTES || filter.matches('(').count() > MAX_BRACKETS {
        return Err(format!("is longer than {MAX_BYTES} bytes or has more than {MAX_BRACKETS} brackets"));
    }
    if let Some(place) = place
        && !filter.contains(place)
    {
        return Err(format!("has no {place}, so it would match anyone"));
    }
    let sample =
        ["{username}", "{dn}"].iter().fold(filter.to_owned(), |text, place| text.replace(place, "x"));
    if sample.contains('{') || sample.contains('}') {
        return Err("holds a place that is neither {username} nor {dn}".to_owned());
    }
    if !sample.starts_with('(') || ldap3::parse_filter(&sample).is_err() {
        return Err("is no filter such as (&(objectClass=person)(uid={username}))".to_owned());
    }
    Ok(())
}

/// One way in which an entry may carry the name: the attribute, and its value around the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Carries {
    pub(crate) attribute: String,
    before: String,
    after: String,
}

impl Carries {
    /// Whether this value of the attribute is what was asked for. Case does not matter, everything else does: the matching
    /// rules of directories also take many other spellings, and each would be a new name to count guesses under.
    pub(crate) fn matches(&self, value: &str, username: &str) -> bool {
        value.to_lowercase() == format!("{}{username}{}", self.before, self.after).to_lowercase()
    }
}

/// Where a filter puts the name.
///
/// # Errors
/// A sentence, for a name beside a wildcard or an escape.
pub(crate) fn carries(filter: &str) -> Result<Vec<Carries>, String> {
    let mut found = Vec::new();
    for (at, place) in filter.match_indices("{username}") {
        let from = filter[..at].rfind('(').map_or(0, |at| at + 1);
        let to = filter[at..].find(')').map_or(filter.len(), |end| at + end);
        let item = &filter[from..to];
        let (attribute, pattern) =
            item.split_once('=').ok_or("has {username} where no value can stand".to_owned())?;
        let attribute = attribute.trim_end_matches(['~', '<', '>', ':']);
        let attribute = attribute.split(':').next().unwrap_or(attribute).to_ascii_lowercase();
        let (before, after) = pattern.split_once(place).unwrap_or_default();
        if attribute.is_empty() || pattern.contains(['*', '\\']) || after.contains(place) {
            return Err("has {username} beside a wildcard or an escape".to_owned());
        }
        let one = Carries { attribute, before: before.to_owned(), after: after.to_owned() };
        if !found.contains(&one) {
            found.push(one);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_says_what_the_entry_must_carry() {
        let found =
            carries("(&(objectClass=person)(|(uid={username})(mail={username}@lab.example)))").expect("two");

        assert_eq!(found.iter().map(|one| one.attribute.as_str()).collect::<Vec<_>>(), ["uid", "mail"]);
        assert!(found[0].matches("Ana", "ana") && !found[0].matches("ana ", "ana"));
        assert!(found[1].matches("ana@lab.example", "ana") && !found[1].matches("ana@evil.example", "ana"));
        assert_eq!(carries("(cn:caseExactMatch:={username})").expect("one")[0].attribute, "cn");
        assert!(carries("(uid={username}*)").is_err());
    }

    #[test]
    fn filters_that_cannot_work_are_named() {
        assert!(check("(uid={username})", Some("{username}")).is_ok());
        assert!(check("(uid=ana)", Some("{username}")).is_err());
        assert!(check("(uid={username}", Some("{username}")).is_err());
        assert!(check("uid={username}", Some("{username}")).is_err());
        assert!(check("(uid={user})", None).is_err());
        assert!(check(&"(".repeat(65), None).is_err());
    }

    proptest::proptest! {
        // What the library parses is one comparison with exactly that name, whatever the name is.
        #[test]
        fn a_name_never_changes_the_shape_of_a_filter(name in "(\\PC|[()*\\\\\u{0}&|!=]){1,40}") {
            let tag = ldap3::parse_filter(fill("(uid={username})", "{username}", &name));
            let expected = ldap3::parse_filter("(uid=x)").expect("a filter");
            let shown = format!("{:?}", tag.expect("still a filter"));
            let wanted = format!("{expected:?}").replace("[120]", &format!("{:?}", name.as_bytes()));
            proptest::prop_assert_eq!(shown, wanted);
        }
    }
}
