//! Templates: JSON in which strings hold `${expression}`.
//!
//! Everything is compiled when a task is made, so that a mistake is told then and with its place. Rendering pays for what it
//! looks at ([`Fuel`]) and for what it writes ([`Budget`]).

use serde_json::{Map, Value};

use super::{Loc, PipelineError};
use crate::Timestamp;
use crate::jmespath::{EvalError, Expression, Fuel};

/// Most expressions in the templates of one pipeline.
pub(super) const MOST_EXPRESSIONS: usize = 1_000;
/// Farthest that `${now+…}` reaches: a hundred years.
const FARTHEST_SECONDS: i64 = 100 * 366 * 86_400;

/// JSON with holes.
#[derive(Clone, Debug)]
pub(super) enum Template {
    /// None.
    Fixed(Value),
    /// A string with holes; each is written as text.
    Text(Vec<Piece>),
    /// `{"$expr": …}`: the value with its type.
    Typed(Source),
    List(Vec<Template>),
    Object(Vec<(String, Template)>),
}

#[derive(Clone, Debug)]
pub(super) enum Piece {
    Plain(String),
    Hole(Source),
}

#[derive(Clone, Debug)]
pub(super) enum Source {
    Expression(Box<Expression>),
    /// The time of the run and so many seconds more.
    Now(i64),
}

/// What one rendering may cost.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) fuel: Fuel,
    /// Bytes that may still be written.
    pub(super) bytes: usize,
}

/// Why a template could not be rendered. May be shown to whoever may see the task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RenderError(pub(super) String);

/// Collects what is wrong while a pipeline is compiled.
pub(super) struct Compiler {
    pub(super) errors: Vec<PipelineError>,
    pub(super) expressions: usize,
}

/// More errors than this help nobody.
const MOST_ERRORS: usize = 20;

impl Compiler {
    pub(super) fn wrong(&mut self, loc: &[Loc], message: impl Into<String>) {
        if self.errors.len() < MOST_ERRORS {
            self.errors.push(PipelineError { loc: loc.to_vec(), message: message.into() });
        }
    }

    pub(super) fn expression(&mut self, text: &str, loc: &[Loc]) -> Option<Expression> {
        self.expressions += 1;
        if self.expressions == MOST_EXPRESSIONS + 1 {
            self.wrong(loc, format!("a pipeline has at most {MOST_EXPRESSIONS} expressions"));
        }
        if self.expressions > MOST_EXPRESSIONS {
            return None;
        }
        match Expression::compile(text) {
            Ok(expression) => Some(expression),
            Err(error) => {
                self.wrong(loc, format!("{error} of the expression"));
                None
            }
        }
    }

    fn source(&mut self, text: &str, loc: &[Loc]) -> Option<Source> {
        match now_and(text.trim()) {
            Some(Ok(seconds)) => Some(Source::Now(seconds)),
            Some(Err(message)) => {
                self.wrong(loc, message);
                None
            }
            None => self.expression(text, loc).map(|expression| Source::Expression(Box::new(expression))),
        }
    }

    /// Compiles a value. After an error something is returned that must not be used.
    pub(super) fn template(&mut self, value: &Value, loc: &mut Vec<Loc>) -> Template {
        match value {
            Value::String(text) => self.text(text, loc),
            Value::Array(items) => {
                let items: Vec<Template> =
                    (0..).zip(items).map(|(at, item)| self.inside(Loc::Index(at), item, loc)).collect();
                Template::List(items).settled()
            }
            Value::Object(members) => {
                if let (Some(inner), 1) = (members.get("$expr"), members.len()) {
                    let source = if let Value::String(text) = inner {
                        self.source(text, loc)
                    } else {
                        self.wrong(loc, "$expr wants an expression, as a string");
                        None
                    };
                    return source.map_or(Template::Fixed(Value::Null), Template::Typed);
                }
                let members = members
                    .iter()
                    .map(|(name, value)| (name.clone(), self.inside(Loc::Name(name.clone()), value, loc)))
                    .collect();
                Template::Object(members).settled()
            }
            plain => Template::Fixed(plain.clone()),
        }
    }

    fn inside(&mut self, place: Loc, value: &Value, loc: &mut Vec<Loc>) -> Template {
        loc.push(place);
        let template = self.template(value, loc);
        loc.pop();
        template
    }

    fn text(&mut self, text: &str, loc: &[Loc]) -> Template {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some(begin) = rest.find("${") {
            if begin > 0 {
                pieces.push(Piece::Plain(rest[..begin].to_owned()));
            }
            let inside = &rest[begin + 2..];
            let Some(end) = closing(inside) else {
                self.wrong(loc, "a \"${\" is not closed: a } is missing");
                return Template::Fixed(Value::Null);
            };
            if let Some(source) = self.source(&inside[..end], loc) {
                pieces.push(Piece::Hole(source));
            }
            rest = &inside[end + 1..];
        }
        if pieces.is_empty() {
            return Template::Fixed(Value::String(text.to_owned()));
        }
        if !rest.is_empty() {
            pieces.push(Piece::Plain(rest.to_owned()));
        }
        Template::Text(pieces)
    }
}

/// Where the brace that closes a hole stands: not inside quotes, and not one that closes another.
fn closing(text: &str) -> Option<usize> {
    let (mut open, mut quote, mut escaped) = (0_usize, None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(inside), c) if c == inside => quote = None,
            (None, '"' | '\'' | '`') => quote = Some(c),
            (None, '{') => open += 1,
            (None, '}') if open == 0 => return Some(at),
            (None, '}') => open -= 1,
            // Plain text, in quotes or not.
            _ => {}
        }
    }
    None
}

/// `now+24h`, `now - 30m`, `now+1d-2h`; None if the text is none of these.
fn now_and(text: &str) -> Option<Result<i64, String>> {
    let mut rest = text.strip_prefix("now")?.trim_start();
    if !rest.starts_with(['+', '-']) {
        return None;
    }
    let wrong = || {
        "this is not a time: write now, a plus or minus, a number and one of s, m, h, d, w, such as now+24h"
            .to_owned()
    };
    let mut seconds = 0_i64;
    while let Some(sign) = rest.chars().next() {
        let sign = match sign {
            '+' => 1,
            '-' => -1,
            _ => return Some(Err(wrong())),
        };
        let after = rest[1..].trim_start();
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        let unit = match after[digits..].chars().next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3_600,
            Some('d') => 86_400,
            Some('w') => 604_800,
            _ => return Some(Err(wrong())),
        };
        let Ok(number) = after[..digits].parse::<i64>() else { return Some(Err(wrong())) };
        seconds = seconds.saturating_add(number.saturating_mul(unit).saturating_mul(sign));
        rest = after[digits + 1..].trim_start();
    }
    if seconds.abs() > FARTHEST_SECONDS {
        return Some(Err("this time is more than a hundred years away".to_owned()));
    }
    Some(Ok(seconds))
}

/// What an expression sees, and the time of the run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    pub(super) data: &'a Value,
    pub(super) now: Timestamp,
}

impl Source {
    fn value(&self, scope: Scope<'_>, budget: &mut Budget) -> Result<Value, RenderError> {
        match self {
            Self::Now(seconds) => {
                let micros = scope.now.micros().saturating_add(seconds.saturating_mul(1_000_000));
                Ok(Value::String(Timestamp::from_micros(micros).to_string()))
            }
            Self::Expression(expression) => expression
                .search(scope.data, &mut budget.fuel)
                .map_err(|error| RenderError(told(expression, &error))),
        }
    }
}

/// An evaluation that failed, with its expression.
pub(super) fn told(expression: &Expression, error: &EvalError) -> String {
    let text = expression.text();
    let short: String = text.chars().take(100).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("the expression {short:?}{dots} failed: {error}")
}

impl Template {
    /// A list or object without a hole is fixed.
    fn settled(self) -> Self {
        match self {
            Self::List(items) if items.iter().all(|item| matches!(item, Self::Fixed(_))) => {
                Self::Fixed(Value::Array(items.into_iter().filter_map(Self::fixed).collect()))
            }
            Self::Object(members) if members.iter().all(|(_, value)| matches!(value, Self::Fixed(_))) => {
                let members = members.into_iter().filter_map(|(name, value)| Some((name, value.fixed()?)));
                Self::Fixed(Value::Object(members.collect()))
            }
            other => other,
        }
    }

    fn fixed(self) -> Option<Value> {
        match self {
            Self::Fixed(value) => Some(value),
            _ => None,
        }
    }

    /// The members that have no holes, and the names of those that have.
    pub(super) fn known(&self) -> (Map<String, Value>, Vec<String>) {
        let (mut fixed, mut open) = (Map::new(), Vec::new());
        match self {
            Self::Fixed(Value::Object(members)) => fixed.clone_from(members),
            Self::Object(members) => {
                for (name, value) in members {
                    match value {
                        Self::Fixed(value) => {
                            fixed.insert(name.clone(), value.clone());
                        }
                        _ => open.push(name.clone()),
                    }
                }
            }
            _ => {}
        }
        (fixed, open)
    }

    pub(super) fn render(&self, scope: Scope<'_>, budget: &mut Budget) -> Result<Value, RenderError> {
        Ok(match self {
            Self::Fixed(value) => {
                budget.write(size(value))?;
                value.clone()
            }
            Self::Typed(source) => {
                let value = source.value(scope, budget)?;
                budget.write(size(&value))?;
                value
            }
            Self::Text(pieces) => {
                let mut text = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Plain(plain) => text.push_str(plain),
                        Piece::Hole(source) => match source.value(scope, budget)? {
                            Value::String(value) => text.push_str(&value),
                            other => text.push_str(&other.to_string()),
                        },
                    }
                    if text.len() > budget.bytes {
                        return Err(Budget::exceeded());
                    }
                }
                budget.write(text.len() + 2)?;
                Value::String(text)
            }
            Self::List(items) => {
                budget.write(2)?;
                Value::Array(items.iter().map(|item| item.render(scope, budget)).collect::<Result<_, _>>()?)
            }
            Self::Object(members) => {
                let mut all = Map::new();
                for (name, value) in members {
                    budget.write(name.len() + 4)?;
                    all.insert(name.clone(), value.render(scope, budget)?);
                }
                Value::Object(all)
            }
        })
    }
}

impl Budget {
    fn write(&mut self, bytes: usize) -> Result<(), RenderError> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(Self::exceeded)?;
        Ok(())
    }

    fn exceeded() -> RenderError {
        RenderError(format!("the parameters of a step have at most {} bytes", super::LARGEST_INPUT))
    }
}

/// About how many bytes a value has as JSON.
pub(super) fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 12,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| size(item) + 1).sum::<usize>(),
        Value::Object(members) => {
            2 + members.iter().map(|(name, value)| name.len() + 4 + size(value)).sum::<usize>()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_relative_to_now_are_read() {
        for (text, expected) in [
            ("now+24h", 86_400),
            ("now - 30m", -1_800),
            ("now+1w2", i64::MAX),
            ("now+1d-2h", 79_200),
            ("now +10s", 10),
        ] {
            match now_and(text) {
                Some(Ok(seconds)) => assert_eq!(seconds, expected, "{text}"),
                other => assert!(expected == i64::MAX && matches!(other, Some(Err(_))), "{text}: {other:?}"),
            }
        }
        for none in ["now", "nowhere", "now.x", "then+1h"] {
            assert!(now_and(none).is_none(), "{none}");
        }
        for bad in
            ["now+", "now+h", "now+1", "now+1y", "now+99999999999999999999s", "now+9999999999w", "now+1h+"]
        {
            assert!(matches!(now_and(bad), Some(Err(_))), "{bad}");
        }
    }

    #[test]
    fn a_hole_ends_at_its_own_brace() {
        for (text, expected) in [
            ("a}", Some(1)),
            ("{a: b}} rest", Some(6)),
            ("'}'}", Some(3)),
            ("`{\"a\": \"}\"}`}", Some(12)),
            ("'\\'}'}", Some(5)),
            ("a", None),
            ("'}", None),
        ] {
            assert_eq!(closing(text), expected, "{text}");
        }
    }
}
