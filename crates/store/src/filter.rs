//! Conditions of list queries: fixed fragments of text, values only as bound parameters.

use crate::codec::has_nul;
use crate::{AuditBy, AuditFilter, RunFilter};
use interlock_model::run::RunState;

/// Which runs are not over, in words that their index is recognised by.
pub(crate) const OPEN: &str = "state <> 'succeeded' AND state IN ('queued', 'running')";

/// A value to bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parameter {
    Text(String),
    Number(i64),
}

/// A `WHERE` clause under construction. `sign` is what the database puts before a parameter's number.
#[derive(Debug)]
pub(crate) struct Conditions {
    sign: char,
    text: String,
    values: Vec<Parameter>,
    /// A text is asked for that no row can have.
    impossible: bool,
}

impl Conditions {
    fn new(sign: char) -> Self {
        Self { sign, text: String::new(), values: Vec::new(), impossible: false }
    }

    /// Conditions of a list of runs.
    pub(crate) fn runs(sign: char, filter: &RunFilter) -> Self {
        let mut conditions = Self::new(sign);
        if filter.state.is_some_and(|state| state != RunState::Succeeded) {
            // Word for word what the index is limited to: no planner infers it from a parameter.
            conditions.fixed("state <> 'succeeded'");
        }
        conditions.text("state =", filter.state.map(|state| state.as_str().to_owned()));
        conditions.text("action =", filter.action.clone());
        conditions.text("actor =", filter.actor.clone());
        conditions
    }

    /// Conditions of a list of audit rows.
    pub(crate) fn audit(sign: char, filter: &AuditFilter) -> Self {
        let mut conditions = Self::new(sign);
        if filter.action.as_ref().is_some_and(|action| action != "device.executed") {
            // Word for word what the index is limited to, as above.
            conditions.fixed("action <> 'device.executed'");
        }
        conditions.text("action =", filter.action.clone());
        conditions.text("actor =", filter.actor.clone());
        conditions.text("subject =", filter.subject.clone());
        conditions.text("client_ip =", filter.source.clone());
        let members = Members::of(sign);
        conditions.text(members.rule_is, filter.rule.clone());
        conditions.text(members.route_is, filter.route.clone());
        conditions.text(members.result_is, filter.result.clone());
        conditions.number("at >=", filter.since.map(interlock_model::Timestamp::micros));
        conditions.number("at <", filter.until.map(interlock_model::Timestamp::micros));
        conditions
    }

    fn text(&mut self, test: &'static str, value: Option<String>) {
        if let Some(value) = value {
            self.impossible |= has_nul(&[&value]);
            self.add(test, Parameter::Text(value));
        }
    }

    fn number(&mut self, test: &'static str, value: Option<i64>) {
        if let Some(value) = value {
            self.add(test, Parameter::Number(value));
        }
    }

    fn fixed(&mut self, test: &'static str) {
        self.text.push_str(if self.text.is_empty() { " WHERE " } else { " AND " });
        self.text.push_str(test);
    }

    fn add(&mut self, test: &'static str, value: Parameter) {
        self.fixed(test);
        self.text.push(' ');
        let place = self.bind(value);
        self.text.push_str(&place);
    }

    /// Adds a parameter and returns its place, such as `$3`.
    pub(crate) fn bind(&mut self, value: Parameter) -> String {
        self.values.push(value);
        format!("{}{}", self.sign, self.values.len())
    }

    /// The clause with its leading space, or nothing.
    pub(crate) fn clause(&self) -> &str {
        &self.text
    }

    /// The values, in order of their numbers.
    pub(crate) fn values(&self) -> &[Parameter] {
        &self.values
    }

    /// Whether nothing can match.
    pub(crate) fn is_impossible(&self) -> bool {
        self.impossible
    }
}

/// Members of the details of audit rows, in the words of each database.
struct Members {
    rule: &'static str,
    rule_is: &'static str,
    route: &'static str,
    route_is: &'static str,
    reason: &'static str,
    result_is: &'static str,
}

macro_rules! sqlite {
    ($member:literal) => {
        concat!("CAST(json_extract(details, '$.", $member, "') AS TEXT)")
    };
}

// No document that holds U+0000 anywhere can be read in PostgreSQL.
macro_rules! postgres {
    ($member:literal) => {
        concat!("CASE WHEN strpos(details, '\\u0000') = 0 THEN details::json ->> '", $member, "' END")
    };
}

macro_rules! members {
    ($in:ident) => {
        Members {
            rule: $in!("rule"),
            rule_is: concat!($in!("rule"), " ="),
            route: $in!("route"),
            route_is: concat!($in!("route"), " ="),
            reason: $in!("reason"),
            result_is: concat!($in!("result"), " ="),
        }
    };
}

impl Members {
    const fn of(sign: char) -> Self {
        if sign == '$' { members!(postgres) } else { members!(sqlite) }
    }
}

/// The query that counts audit rows by a value; its parameters are those of [`Conditions::audit`] and the limit.
pub(crate) fn audit_counted(conditions: &mut Conditions, by: AuditBy, limit: u32) -> String {
    let members = Members::of(conditions.sign);
    let value = match by {
        AuditBy::Actor => "actor",
        AuditBy::Action => "action",
        AuditBy::Subject => "subject",
        AuditBy::Source => "client_ip",
        AuditBy::Rule => members.rule,
        AuditBy::Route => members.route,
        AuditBy::Reason => members.reason,
    };
    let rows = format!("SELECT {value} AS value FROM audit{}", conditions.clause());
    let limit = conditions.bind(Parameter::Number(limit.into()));
    format!(
        "SELECT value, count(*) FROM ({rows}) AS rows WHERE value IS NOT NULL GROUP BY value \
         ORDER BY count(*) DESC, value LIMIT {limit}"
    )
}

/// The query that counts the runs of a filter; its parameters are those of [`Conditions::runs`].
///
/// Runs that succeeded are in no index of their own, so they are counted as what remains of all: two small indexes instead of
/// every row.
pub(crate) fn runs_counted(sign: char, filter: &RunFilter) -> String {
    if *filter == (RunFilter { state: Some(RunState::Succeeded), action: None, actor: None }) {
        return format!(
            "SELECT (SELECT count(*) FROM runs) - (SELECT count(*) FROM runs WHERE state <> 'succeeded') \
             WHERE 'succeeded' = {sign}1"
        );
    }
    format!("SELECT count(*) FROM runs{}", Conditions::runs(sign, filter).clause())
}

#[cfg(test)]
mod tests {
    use interlock_model::Timestamp;

    use super::*;

    #[test]
    fn values_never_become_text() {
        let filter = AuditFilter {
            action: Some("' OR 1=1 --".to_owned()),
            until: Some(Timestamp::from_micros(7)),
            ..AuditFilter::default()
        };

        let mut conditions = Conditions::audit('$', &filter);

        assert_eq!(conditions.clause(), " WHERE action <> 'device.executed' AND action = $1 AND at < $2");
        assert_eq!(conditions.bind(Parameter::Number(1)), "$3");
        assert_eq!(
            conditions.values(),
            [Parameter::Text("' OR 1=1 --".to_owned()), Parameter::Number(7), Parameter::Number(1)]
        );
    }

    #[test]
    fn no_filter_is_no_clause() {
        assert_eq!(Conditions::runs('?', &RunFilter::default()).clause(), "");
    }
}
