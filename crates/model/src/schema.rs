//! The JSON Schema subset that parameters are declared in: docs/reference/worker-protocol.md, section ActionSpec.
//!
//! Answers whether one value keeps its declared limits; whether several fit together is [`crate::rule`]. Anything outside the
//! subset is refused when the file is loaded, so that no limit is silently ignored. Messages show limits, which the author of
//! the action wrote, and never the refused value, which may be a secret. `tests/schema_vectors.json` holds the cases that every
//! implementation must answer alike.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Number, Value};

use crate::Timestamp;

/// Deepest nesting of a schema, and of the values inside it.
pub const MAX_DEPTH: usize = 32;
/// Most errors that one value is answered with.
pub const MAX_ERRORS: usize = 32;
/// How far from a whole number of steps `multipleOf` lets a value be, in steps.
const STEP_TOLERANCE: f64 = 1e-9;
/// Most values of an `enum`, or names, that a message lists.
const MAX_LISTED: usize = 10;
/// Longest text that a message or a path takes from a declaration or a key, in characters.
const MAX_SHOWN_CHARS: usize = 64;

/// Why a schema cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSchema {
    /// Neither an object nor, where that is allowed, a boolean.
    #[error("{at}: a schema must be an object")]
    NotAnObject {
        /// Where, as a JSON pointer with `schema` for the root.
        at: String,
    },
    /// A keyword outside the subset.
    #[error("{at}: keyword {keyword:?} is not supported, so its limit would be ignored")]
    UnknownKeyword {
        /// Where.
        at: String,
        /// The keyword.
        keyword: String,
    },
    /// A keyword with a value of the wrong form.
    #[error("{at}: {keyword:?} {reason}")]
    BadKeyword {
        /// Where.
        at: String,
        /// The keyword.
        keyword: String,
        /// What its value must be.
        reason: &'static str,
    },
    /// More than [`MAX_DEPTH`] levels.
    #[error("the schema is nested deeper than 32 levels")]
    TooDeep,
}

/// One broken limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaError {
    /// Keys and indices from the value's root. Empty for the value itself.
    pub path: Vec<String>,
    /// `type range format`.
    pub kind: &'static str,
    /// Plain words that begin with "must"; holds limits, never the value.
    pub message: String,
}

/// A checked schema.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    types: Vec<Type>,
    choices: Option<Vec<Value>>,
    any_of: Vec<Schema>,
    number: NumberLimits,
    length: SizeLimits,
    size: SizeLimits,
    items: Option<Box<Schema>>,
    properties: BTreeMap<String, Schema>,
    required: Vec<String>,
    additional: Additional,
    format: Option<Format>,
}

#[derive(Clone, Debug, Default)]
struct NumberLimits {
    minimum: Option<Number>,
    maximum: Option<Number>,
    exclusive_minimum: Option<Number>,
    exclusive_maximum: Option<Number>,
    multiple_of: Option<Number>,
}

#[derive(Clone, Copy, Debug, Default)]
struct SizeLimits {
    minimum: Option<usize>,
    maximum: Option<usize>,
}

#[derive(Clone, Debug, Default)]
enum Additional {
    #[default]
    Allowed,
    Refused,
    Checked(Box<Schema>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Null,
    Boolean,
    Integer,
    Number,
    String,
    Array,
    Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Date,
    DateTime,
    Duration,
}

// --------------------------------------------------------------------------------------------------------------- compile

impl Schema {
    /// Checks a declared schema: only known keywords, each with a value that can be kept.
    ///
    /// # Errors
    /// [`BadSchema`] for the first thing that would make a limit meaningless, with its place.
    pub fn compile(schema: &Value) -> Result<Self, BadSchema> {
        Self::compile_at(schema, &Place { above: None, step: "schema", depth: 0 })
    }

    fn compile_at(schema: &Value, place: &Place<'_>) -> Result<Self, BadSchema> {
        if place.depth >= MAX_DEPTH {
            return Err(BadSchema::TooDeep);
        }
        let members = schema.as_object().ok_or_else(|| BadSchema::NotAnObject { at: place.show() })?;
        let mut compiled = Self::default();
        for (keyword, value) in members {
            compiled.keyword(keyword, value, &place.below(keyword))?;
        }
        if let Some(default) = members.get("default").filter(|default| !default.is_null())
            && compiled.validate(default).is_err()
        {
            return Err(place.below("default").bad("breaks the limits beside it"));
        }
        Ok(compiled)
    }

    fn keyword(&mut self, keyword: &str, value: &Value, place: &Place<'_>) -> Result<(), BadSchema> {
        match keyword {
            "type" => self.types = place.types(value)?,
            "enum" => self.restrict(place.choices(value)?),
            "const" => {
                shallow(value)?;
                self.restrict(vec![value.clone()]);
            }
            "anyOf" => self.any_of = place.branches(value)?,
            "minimum" => self.number.minimum = Some(place.number(value)?),
            "maximum" => self.number.maximum = Some(place.number(value)?),
            "exclusiveMinimum" => self.number.exclusive_minimum = Some(place.number(value)?),
            "exclusiveMaximum" => self.number.exclusive_maximum = Some(place.number(value)?),
            "multipleOf" => self.number.multiple_of = Some(place.step(value)?),
            "minLength" => self.length.minimum = Some(place.count(value)?),
            "maxLength" => self.length.maximum = Some(place.count(value)?),
            "minItems" => self.size.minimum = Some(place.count(value)?),
            "maxItems" => self.size.maximum = Some(place.count(value)?),
            "items" => self.items = Some(Box::new(Self::compile_at(value, place)?)),
            "properties" => self.properties = place.properties(value)?,
            "required" => self.required = place.names(value)?,
            "additionalProperties" => {
                self.additional = match value {
                    Value::Bool(true) => Additional::Allowed,
                    Value::Bool(false) => Additional::Refused,
                    schema => Additional::Checked(Box::new(Self::compile_at(schema, place)?)),
                }
            }
            "format" => self.format = Some(place.format(value)?),
            "title" | "description" if value.is_string() => {}
            "title" | "description" => return Err(place.bad("must be a string")),
            "default" => shallow(value)?,
            _ => return Err(place.unknown()),
        }
        Ok(())
    }

    /// `enum` and `const` together allow what both do.
    fn restrict(&mut self, allowed: Vec<Value>) {
        self.choices = Some(match self.choices.take() {
            None => allowed,
            Some(earlier) => earlier.into_iter().filter(|a| allowed.iter().any(|b| same(a, b))).collect(),
        });
    }
}

/// Where in a schema the compiler is. A list along the stack, so that nothing is allocated unless there is an error.
struct Place<'a> {
    above: Option<&'a Place<'a>>,
    step: &'a str,
    depth: usize,
}

impl Place<'_> {
    fn below<'a>(&'a self, step: &'a str) -> Place<'a> {
        Place { above: Some(self), step, depth: self.depth + 1 }
    }

    fn show(&self) -> String {
        let mut steps = vec![shorten(self.step)];
        let mut place = self.above;
        while let Some(here) = place {
            steps.push(shorten(here.step));
            place = here.above;
        }
        steps.reverse();
        steps.join("/")
    }

    fn bad(&self, reason: &'static str) -> BadSchema {
        let at = self.above.map(Place::show).unwrap_or_default();
        BadSchema::BadKeyword { at, keyword: self.step.to_owned(), reason }
    }

    fn unknown(&self) -> BadSchema {
        BadSchema::UnknownKeyword {
            at: self.above.map(Place::show).unwrap_or_default(),
            keyword: shorten(self.step),
        }
    }

    fn types(&self, value: &Value) -> Result<Vec<Type>, BadSchema> {
        let kind = |value: &Value| value.as_str().and_then(Type::named);
        let types = match value {
            Value::Array(names) => {
                names.iter().map(kind).collect::<Option<Vec<_>>>().filter(|types| !types.is_empty())
            }
            name => kind(name).map(|only| vec![only]),
        };
        types.ok_or_else(|| {
            self.bad(
                "must be one or a list of \"null\", \"boolean\", \"integer\", \"number\", \"string\", \"array\", \
                 \"object\"",
            )
        })
    }

    fn choices(&self, value: &Value) -> Result<Vec<Value>, BadSchema> {
        let choices = value.as_array().filter(|choices| !choices.is_empty());
        let choices = choices.ok_or_else(|| self.bad("must be a list with at least one value"))?;
        choices.iter().try_for_each(shallow)?;
        Ok(choices.clone())
    }

    fn branches(&self, value: &Value) -> Result<Vec<Schema>, BadSchema> {
        let branches = value.as_array().filter(|branches| !branches.is_empty());
        let branches = branches.ok_or_else(|| self.bad("must be a list with at least one schema"))?;
        branches.iter().map(|branch| Schema::compile_at(branch, self)).collect()
    }

    fn properties(&self, value: &Value) -> Result<BTreeMap<String, Schema>, BadSchema> {
        let members = value.as_object().ok_or_else(|| self.bad("must be an object of schemas"))?;
        members
            .iter()
            .map(|(name, schema)| {
                let place = Place { above: Some(self), step: name, depth: self.depth };
                Ok((name.clone(), Schema::compile_at(schema, &place)?))
            })
            .collect()
    }

    fn names(&self, value: &Value) -> Result<Vec<String>, BadSchema> {
        let name = |value: &Value| value.as_str().map(str::to_owned);
        let names = value.as_array().and_then(|names| names.iter().map(name).collect::<Option<Vec<_>>>());
        let mut names = names.ok_or_else(|| self.bad("must be a list of names"))?;
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        Ok(names)
    }

    fn format(&self, value: &Value) -> Result<Format, BadSchema> {
        match value.as_str() {
            Some("date") => Ok(Format::Date),
            Some("date-time") => Ok(Format::DateTime),
            Some("duration") => Ok(Format::Duration),
            _ => Err(self.bad("must be \"date\", \"date-time\" or \"duration\"")),
        }
    }

    fn number(&self, value: &Value) -> Result<Number, BadSchema> {
        match value {
            Value::Number(number) if number.as_f64().is_some_and(f64::is_finite) => Ok(number.clone()),
            _ => Err(self.bad("must be a number")),
        }
    }

    fn step(&self, value: &Value) -> Result<Number, BadSchema> {
        let step = self.number(value)?;
        if float(&step) > 0.0 { Ok(step) } else { Err(self.bad("must be more than 0")) }
    }

    fn count(&self, value: &Value) -> Result<usize, BadSchema> {
        let whole = if let Value::Number(number) = value { whole(number) } else { None };
        whole
            .and_then(|count| usize::try_from(count).ok())
            .ok_or_else(|| self.bad("must be a whole number that is not negative"))
    }
}

/// Refuses a value that could not be compared with bounded recursion.
fn shallow(value: &Value) -> Result<(), BadSchema> {
    fn fits(value: &Value, levels: usize) -> bool {
        let Some(levels) = levels.checked_sub(1) else { return false };
        match value {
            Value::Array(items) => items.iter().all(|item| fits(item, levels)),
            Value::Object(members) => members.values().all(|member| fits(member, levels)),
            _ => true,
        }
    }
    if fits(value, MAX_DEPTH) { Ok(()) } else { Err(BadSchema::TooDeep) }
}

// -------------------------------------------------------------------------------------------------------------- validate

impl Schema {
    /// Checks a value. Bounded by the depth of the schema, whatever the depth of the value.
    ///
    /// # Errors
    /// The broken limits, at most [`MAX_ERRORS`]. A value of the wrong type is answered with that alone.
    pub fn validate(&self, value: &Value) -> Result<(), Vec<SchemaError>> {
        let mut found = Found { path: Vec::new(), errors: Vec::new() };
        self.check(value, &mut found);
        if found.errors.is_empty() { Ok(()) } else { Err(found.errors) }
    }

    fn check(&self, value: &Value, found: &mut Found) {
        if found.is_full() {
            return;
        }
        if !self.types.is_empty() && !self.types.iter().any(|kind| kind.holds(value)) {
            return found
                .report("type", format!("must be {}", one_of(self.types.iter().map(|kind| kind.words()))));
        }
        if let Some(choices) = &self.choices
            && !choices.iter().any(|choice| same(choice, value))
        {
            return found.report("range", list_choices(choices));
        }
        match value {
            Value::Number(number) => self.number.check(number, found),
            Value::String(text) => self.check_text(text, found),
            Value::Array(items) => self.check_items(items, found),
            Value::Object(members) => self.check_members(members, found),
            Value::Null | Value::Bool(_) => {}
        }
        self.check_branches(value, found);
    }

    fn check_text(&self, text: &str, found: &mut Found) {
        if self.length.minimum.is_some() || self.length.maximum.is_some() {
            self.length.check(text.chars().count(), "character", found);
        }
        if let Some(format) = self.format
            && !format.holds(text)
        {
            found.report("format", format!("must be {}", format.words()));
        }
    }

    fn check_items(&self, items: &[Value], found: &mut Found) {
        self.size.check(items.len(), "item", found);
        let Some(schema) = &self.items else { return };
        for (index, item) in items.iter().enumerate() {
            found.inside(index.to_string(), |found| schema.check(item, found));
            if found.is_full() {
                return;
            }
        }
    }

    fn check_members(&self, members: &Map<String, Value>, found: &mut Found) {
        for name in self.required.iter().filter(|name| !members.contains_key(*name)) {
            found.inside(shorten(name), |found| found.report("type", "must be given".to_owned()));
        }
        let mut unexpected = false;
        for (name, member) in members {
            let schema = match (self.properties.get(name), &self.additional) {
                (Some(schema), _) => schema,
                (None, Additional::Checked(schema)) => schema,
                (None, Additional::Allowed) => continue,
                (None, Additional::Refused) => {
                    unexpected = true;
                    continue;
                }
            };
            found.inside(shorten(name), |found| schema.check(member, found));
        }
        if unexpected {
            found.report("type", self.list_members());
        }
    }

    /// Does not name the unexpected member: its name is the caller's text.
    fn list_members(&self) -> String {
        if self.properties.is_empty() {
            return "must be empty".to_owned();
        }
        format!(
            "must have no members other than {}",
            listed(self.properties.keys().map(|name| format!("'{}'", shorten(name))))
        )
    }

    fn check_branches(&self, value: &Value, found: &mut Found) {
        if self.any_of.is_empty() {
            return;
        }
        let mut near: Vec<Vec<SchemaError>> = Vec::new();
        for branch in &self.any_of {
            let Err(errors) = branch.validate(value) else { return };
            if branch.types.iter().any(|kind| kind.holds(value))
                || (branch.types.is_empty() && branch.choices.is_none())
            {
                near.push(errors);
            }
        }
        match near.as_mut_slice() {
            // The value has the type of one branch, so that is the one meant.
            [only] => found.append(std::mem::take(only)),
            [] => self.report_far(found),
            _ => found.report("type", DECLARED_FORMS.to_owned()),
        }
    }

    /// No branch takes values of this type.
    fn report_far(&self, found: &mut Found) {
        if self.any_of.iter().all(|branch| !branch.types.is_empty()) {
            let mut words: Vec<&str> = Vec::new();
            for kind in self.any_of.iter().flat_map(|branch| &branch.types) {
                if !words.contains(&kind.words()) {
                    words.push(kind.words());
                }
            }
            return found.report("type", format!("must be {}", one_of(words.into_iter())));
        }
        if self.any_of.iter().all(|branch| branch.types.is_empty()) {
            let choices: Vec<Value> =
                self.any_of.iter().flat_map(|branch| branch.choices.iter().flatten()).cloned().collect();
            return found.report("range", list_choices(&choices));
        }
        found.report("type", DECLARED_FORMS.to_owned());
    }
}

const DECLARED_FORMS: &str = "must have one of the declared forms";

/// The errors so far, and where the check is.
struct Found {
    path: Vec<String>,
    errors: Vec<SchemaError>,
}

impl Found {
    fn is_full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }

    fn report(&mut self, kind: &'static str, message: String) {
        if !self.is_full() {
            self.errors.push(SchemaError { path: self.path.clone(), kind, message });
        }
    }

    /// Adds errors whose paths begin here.
    fn append(&mut self, errors: Vec<SchemaError>) {
        for error in errors {
            if !self.is_full() {
                self.errors.push(SchemaError {
                    path: self.path.iter().cloned().chain(error.path).collect(),
                    ..error
                });
            }
        }
    }

    fn inside(&mut self, step: String, check: impl FnOnce(&mut Self)) {
        self.path.push(step);
        check(self);
        self.path.pop();
    }
}

impl SizeLimits {
    fn check(self, size: usize, noun: &str, found: &mut Found) {
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        if let Some(minimum) = self.minimum.filter(|minimum| size < *minimum) {
            found.report("range", format!("must have at least {minimum} {noun}{}", plural(minimum)));
        }
        if let Some(maximum) = self.maximum.filter(|maximum| size > *maximum) {
            found.report("range", format!("must have at most {maximum} {noun}{}", plural(maximum)));
        }
    }
}

impl NumberLimits {
    fn check(&self, value: &Number, found: &mut Found) {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let limits: [(&Option<Number>, &[_], &str); 4] = [
            (&self.minimum, &[Greater, Equal], "at least"),
            (&self.exclusive_minimum, &[Greater], "more than"),
            (&self.maximum, &[Less, Equal], "at most"),
            (&self.exclusive_maximum, &[Less], "less than"),
        ];
        for (limit, allowed, words) in limits {
            if let Some(limit) = limit
                && !allowed.contains(&compare(value, limit))
            {
                found.report("range", format!("must be {words} {}", show_number(limit)));
            }
        }
        if let Some(step) = &self.multiple_of
            && !on_step(value, self.minimum.as_ref(), step)
        {
            found.report("range", self.step_words(step));
        }
    }

    fn step_words(&self, step: &Number) -> String {
        match self.minimum.as_ref().filter(|minimum| float(minimum).abs() > 0.0) {
            None => format!("must be a multiple of {}", show_number(step)),
            Some(minimum) => {
                format!("must be {} plus a multiple of {}", show_number(minimum), show_number(step))
            }
        }
    }
}

/// Whether `value` is a whole number of steps from `base`. Exact for integers, else with [`STEP_TOLERANCE`].
fn on_step(value: &Number, base: Option<&Number>, step: &Number) -> bool {
    let exact = || {
        let distance = whole(value)?.checked_sub(base.map_or(Some(0), whole)?)?;
        let step = whole(step).filter(|step| *step > 0)?;
        let past = distance.checked_rem_euclid(step)?;
        Some((past.min(step - past), step))
    };
    if let Some((off, step)) = exact() {
        return off == 0 || ratio(off, step) <= STEP_TOLERANCE;
    }
    let steps = (float(value) - base.map_or(0.0, float)) / float(step);
    (steps - steps.round()).abs() <= STEP_TOLERANCE
}

// --------------------------------------------------------------------------------------------------------------- numbers

/// The number as an integer, if it is one that fits.
fn whole(number: &Number) -> Option<i128> {
    if let Some(integer) = number.as_i64() {
        return Some(integer.into());
    }
    if let Some(integer) = number.as_u64() {
        return Some(integer.into());
    }
    let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 1e38)?;
    #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^127, so the conversion is exact")]
    let integer = float as i128;
    Some(integer)
}

/// The nearest double. serde_json's numbers all have one.
fn float(number: &Number) -> f64 {
    number.as_f64().unwrap_or(f64::NAN)
}

#[expect(clippy::cast_precision_loss, reason = "compared with a tolerance")]
fn ratio(a: i128, b: i128) -> f64 {
    a as f64 / b as f64
}

fn compare(a: &Number, b: &Number) -> std::cmp::Ordering {
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => float(a).total_cmp(&float(b)),
    }
}

/// Equality as JSON Schema has it: 1 is 1.0, true is not 1. Recursion follows `a`, which `shallow` has bounded.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare(a, b).is_eq(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
        }
        (a, b) => a == b,
    }
}

// ----------------------------------------------------------------------------------------------------- types and formats

impl Type {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "null" => Self::Null,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "string" => Self::String,
            "array" => Self::Array,
            "object" => Self::Object,
            _ => return None,
        })
    }

    fn holds(self, value: &Value) -> bool {
        match self {
            Self::Null => value.is_null(),
            Self::Boolean => value.is_boolean(),
            Self::Integer => {
                matches!(value, Value::Number(number) if number.is_i64() || number.is_u64() || float(number).fract() == 0.0)
            }
            Self::Number => value.is_number(),
            Self::String => value.is_string(),
            Self::Array => value.is_array(),
            Self::Object => value.is_object(),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "true or false",
            Self::Integer => "a whole number",
            Self::Number => "a number",
            Self::String => "text",
            Self::Array => "a list",
            Self::Object => "an object",
        }
    }
}

impl Format {
    fn holds(self, text: &str) -> bool {
        match self {
            Self::Date => is_date(text),
            Self::DateTime => is_date_time(text),
            Self::Duration => is_duration(text),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Date => "a date such as 2026-01-31",
            Self::DateTime => "a time with a zone such as 2026-01-31T12:00:00Z",
            Self::Duration => "a duration such as PT1H30M",
        }
    }
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && is_date_time(&format!("{text}T00:00:00Z"))
}

/// RFC 3339 section 5.6 in capitals, with at most 9 decimals, without what Python's `datetime` cannot hold: the year 0 and
/// leap seconds.
fn is_date_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    let decimals = bytes.get(20..).map_or(0, |rest| rest.iter().take_while(|c| c.is_ascii_digit()).count());
    text.parse::<Timestamp>().is_ok()
        && !text.starts_with("0000")
        && bytes.get(10) == Some(&b'T')
        && bytes.get(17..19) != Some(b"60")
        && !text.ends_with('z')
        && (bytes.get(19) != Some(&b'.') || decimals <= 9)
}

/// ISO 8601: weeks, or days, hours, minutes and seconds, with a fraction of a second. Years and months have no fixed length.
fn is_duration(text: &str) -> bool {
    duration_seconds(text).is_some_and(|seconds| seconds < MAX_DURATION_SECONDS)
}

/// 10^9 days, where Python's `timedelta` ends.
const MAX_DURATION_SECONDS: u64 = 86_400_000_000_000;

/// Whole seconds.
fn duration_seconds(text: &str) -> Option<u64> {
    let rest = text.strip_prefix('P')?;
    if let Some(weeks) = rest.strip_suffix('W') {
        return Some(part(weeks)? * 604_800);
    }
    let (date, time) = match rest.split_once('T') {
        Some((date, time)) if !time.is_empty() => (date, time),
        None if !rest.is_empty() => (rest, ""),
        _ => return None,
    };
    Some(sum_parts(date, &[('D', 86_400)])? + sum_parts(time, &[('H', 3_600), ('M', 60), ('S', 1)])?)
}

/// Numbers, each followed by its own one of `units`, in their order.
fn sum_parts(mut text: &str, units: &[(char, u64)]) -> Option<u64> {
    let mut total = 0;
    for (unit, seconds) in units {
        let Some((number, rest)) = text.split_once(*unit) else { continue };
        let whole = match number.split_once('.') {
            Some((whole, decimals)) if *unit == 'S' => part(decimals).map(|_| whole)?,
            _ => number,
        };
        total += part(whole)? * seconds;
        text = rest;
    }
    text.is_empty().then_some(total)
}

/// One to nine digits, so that no sum overflows.
fn part(text: &str) -> Option<u64> {
    if (1..=9).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

// ----------------------------------------------------------------------------------------------------------------- words

/// "a", "a or b", "a, b or c".
fn one_of<'a>(words: impl ExactSizeIterator<Item = &'a str>) -> String {
    let count = words.len();
    let mut text = String::new();
    for (index, word) in words.enumerate() {
        text.push_str(if index == 0 {
            ""
        } else if index + 1 == count {
            " or "
        } else {
            ", "
        });
        text.push_str(word);
    }
    text
}

fn list_choices(choices: &[Value]) -> String {
    match choices {
        [] => "cannot be given: no value keeps its limits".to_owned(),
        [only] => format!("must be {}", show(only)),
        many => format!("must be one of {}", listed(many.iter().map(show))),
    }
}

fn listed(words: impl ExactSizeIterator<Item = String>) -> String {
    let more = if words.len() > MAX_LISTED { ", …" } else { "" };
    words.take(MAX_LISTED).collect::<Vec<_>>().join(", ") + more
}

fn show(value: &Value) -> String {
    match value {
        Value::Number(number) => show_number(number),
        other => shorten(&other.to_string()),
    }
}

/// `300.0` is written `300`.
fn show_number(number: &Number) -> String {
    match whole(number).filter(|integer| integer.unsigned_abs() < 1 << 53) {
        Some(integer) => integer.to_string(),
        None => number.to_string(),
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}
