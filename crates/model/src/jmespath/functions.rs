//! The standard functions.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Value;

use super::Fuel;
use super::eval::{EvalError, eval};
use super::parser::Node;
use super::value::Val;

macro_rules! functions {
    ($($variant:ident = $name:literal $usage:literal $least:literal..=$most:tt $reference:expr;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Function { $($variant,)* }

        const ALL: &[Function] = &[$(Function::$variant,)*];

        impl Function {
            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it takes, for people.
            pub(super) fn usage(self) -> &'static str {
                match self { $(Self::$variant => concat!($name, $usage),)* }
            }

            /// Fewest and most arguments.
            pub(super) fn arity(self) -> (usize, usize) {
                match self { $(Self::$variant => ($least, $most),)* }
            }

            /// Which argument is a reference to an expression.
            pub(super) fn reference(self) -> Option<usize> {
                match self { $(Self::$variant => $reference,)* }
            }
        }
    };
}

const MANY: usize = 256;

functions! {
    Abs = "abs" "(number)" 1..=1 None;
    Avg = "avg" "(array of numbers)" 1..=1 None;
    Ceil = "ceil" "(number)" 1..=1 None;
    Contains = "contains" "(array or string, element)" 2..=2 None;
    EndsWith = "ends_with" "(string, string)" 2..=2 None;
    Floor = "floor" "(number)" 1..=1 None;
    Join = "join" "(string, array of strings)" 2..=2 None;
    Keys = "keys" "(object)" 1..=1 None;
    Length = "length" "(string, array or object)" 1..=1 None;
    Map = "map" "(&expression, array)" 2..=2 Some(0);
    Max = "max" "(array of numbers or of strings)" 1..=1 None;
    MaxBy = "max_by" "(array, &expression that gives numbers or strings)" 2..=2 Some(1);
    Merge = "merge" "(object, ...)" 1..=MANY None;
    Min = "min" "(array of numbers or of strings)" 1..=1 None;
    MinBy = "min_by" "(array, &expression that gives numbers or strings)" 2..=2 Some(1);
    NotNull = "not_null" "(any, ...)" 1..=MANY None;
    Reverse = "reverse" "(string or array)" 1..=1 None;
    Sort = "sort" "(array of numbers or of strings)" 1..=1 None;
    SortBy = "sort_by" "(array, &expression that gives numbers or strings)" 2..=2 Some(1);
    StartsWith = "starts_with" "(string, string)" 2..=2 None;
    Sum = "sum" "(array of numbers)" 1..=1 None;
    ToArray = "to_array" "(any)" 1..=1 None;
    ToNumber = "to_number" "(any)" 1..=1 None;
    ToString = "to_string" "(any)" 1..=1 None;
    Type = "type" "(any)" 1..=1 None;
    Values = "values" "(object)" 1..=1 None;
}

impl Function {
    pub(super) fn named(name: &str) -> Option<Self> {
        ALL.iter().copied().find(|function| function.name() == name)
    }

    pub(super) fn names() -> String {
        ALL.iter().map(|function| function.name()).collect::<Vec<_>>().join(", ")
    }

    fn refuse(self, arguments: &[Val<'_>]) -> EvalError {
        let given = arguments.iter().map(Val::type_name).collect::<Vec<_>>().join(", ");
        EvalError::Type { function: self.name(), takes: self.usage(), given }
    }
}

pub(super) fn call<'a>(
    function: Function,
    nodes: &'a [Node],
    data: &Val<'a>,
    fuel: &mut Fuel,
) -> Result<Val<'a>, EvalError> {
    if let Some(place) = function.reference() {
        let list = eval(&nodes[1 - place], data, fuel)?;
        return by(function, &list, &nodes[place], fuel);
    }
    let arguments = nodes.iter().map(|node| eval(node, data, fuel)).collect::<Result<Vec<_>, _>>()?;
    let refused = || function.refuse(&arguments);
    let first = &arguments[0];
    let found = match function {
        Function::Abs | Function::Ceil | Function::Floor => rounded(function, first),
        Function::Avg | Function::Sum => total(function, first, fuel)?,
        Function::Contains => contains(first, &arguments[1], fuel)?,
        Function::StartsWith | Function::EndsWith => {
            first.as_str().zip(arguments[1].as_str()).map(|(text, part)| {
                Val::bool(if function == Function::StartsWith {
                    text.starts_with(part)
                } else {
                    text.ends_with(part)
                })
            })
        }
        Function::Join => join(first, &arguments[1], fuel)?,
        Function::Keys => first
            .members(fuel)?
            .map(|members| Val::list(members.into_iter().map(|(name, _)| Val::text(name)).collect())),
        Function::Values => first
            .members(fuel)?
            .map(|members| Val::list(members.into_iter().map(|(_, value)| value).collect())),
        Function::Length => {
            first.length().map(|length| Val::integer(i64::try_from(length).unwrap_or(i64::MAX)))
        }
        Function::Max | Function::Min => extreme(function, first, fuel)?,
        Function::Merge => merge(&arguments, fuel)?,
        Function::NotNull => {
            Some(arguments.iter().find(|argument| !argument.is_null()).cloned().unwrap_or_else(Val::null))
        }
        Function::Reverse => reverse(first, fuel)?,
        Function::Sort => sorted(first, fuel)?.map(Val::list),
        Function::ToArray => {
            Some(if first.is_list() { first.clone() } else { Val::list(vec![first.clone()]) })
        }
        Function::ToNumber => Some(to_number(first)),
        Function::ToString => Some(match first.as_str() {
            Some(_) => first.clone(),
            None => Val::text(first.value(fuel)?.to_string()),
        }),
        Function::Type => Some(Val::text(first.type_name())),
        // They have a reference and were answered above.
        Function::Map | Function::MaxBy | Function::MinBy | Function::SortBy => None,
    };
    found.ok_or_else(refused)
}

fn rounded<'a>(function: Function, number: &Val<'a>) -> Option<Val<'a>> {
    let given = number.as_number()?;
    if let Some(whole) = given.as_i64() {
        return Some(Val::integer(if function == Function::Abs { whole.saturating_abs() } else { whole }));
    }
    let float = given.as_f64()?;
    Some(match function {
        Function::Abs => Val::float(float.abs()),
        Function::Ceil => whole(float.ceil()),
        _ => whole(float.floor()),
    })
}

/// A whole number as an integer where it is one without loss.
fn whole<'a>(float: f64) -> Val<'a> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^53")]
    if float.abs() <= EXACT { Val::integer(float as i64) } else { Val::float(float) }
}

fn total<'a>(function: Function, list: &Val<'a>, fuel: &mut Fuel) -> Result<Option<Val<'a>>, EvalError> {
    let Some(items) = list.items(fuel)? else { return Ok(None) };
    let Some(numbers) = items.iter().map(Val::as_number).collect::<Option<Vec<_>>>() else { return Ok(None) };
    let whole = numbers.iter().try_fold(0_i64, |sum, number| sum.checked_add(number.as_i64()?));
    let float: f64 = numbers.iter().filter_map(|number| number.as_f64()).sum();
    if function == Function::Sum {
        return Ok(Some(whole.map_or_else(|| Val::float(float), Val::integer)));
    }
    if numbers.is_empty() {
        return Ok(Some(Val::null()));
    }
    #[expect(clippy::cast_precision_loss, reason = "a list has far fewer than 2^52 elements")]
    let count = numbers.len() as f64;
    Ok(Some(Val::float(float / count)))
}

fn contains<'a>(whole: &Val<'a>, part: &Val<'a>, fuel: &mut Fuel) -> Result<Option<Val<'a>>, EvalError> {
    if let Some(text) = whole.as_str() {
        fuel.spend_text(text.len())?;
        return Ok(Some(Val::bool(part.as_str().is_some_and(|part| text.contains(part)))));
    }
    let Some(items) = whole.items(fuel)? else { return Ok(None) };
    for item in &items {
        if item.equals(part, fuel)? {
            return Ok(Some(Val::bool(true)));
        }
    }
    Ok(Some(Val::bool(false)))
}

fn join<'a>(between: &Val<'a>, list: &Val<'a>, fuel: &mut Fuel) -> Result<Option<Val<'a>>, EvalError> {
    let (Some(between), Some(items)) = (between.as_str(), list.items(fuel)?) else { return Ok(None) };
    let Some(texts) = items.iter().map(Val::as_str).collect::<Option<Vec<_>>>() else { return Ok(None) };
    fuel.spend_text(texts.iter().map(|text| text.len() + between.len()).sum())?;
    Ok(Some(Val::text(texts.join(between))))
}

fn merge<'a>(arguments: &[Val<'a>], fuel: &mut Fuel) -> Result<Option<Val<'a>>, EvalError> {
    let mut all = BTreeMap::new();
    for argument in arguments {
        let Some(members) = argument.members(fuel)? else { return Ok(None) };
        all.extend(members);
    }
    Ok(Some(Val::Object(Rc::new(all))))
}

fn reverse<'a>(whole: &Val<'a>, fuel: &mut Fuel) -> Result<Option<Val<'a>>, EvalError> {
    if let Some(text) = whole.as_str() {
        fuel.spend_text(text.len())?;
        return Ok(Some(Val::text(text.chars().rev().collect::<String>())));
    }
    Ok(whole.items(fuel)?.map(|mut items| {
        items.reverse();
        Val::list(items)
    }))
}

/// A list of numbers or of strings, in order; None for any other.
fn sorted<'a>(list: &Val<'a>, fuel: &mut Fuel) -> Result<Option<Vec<Val<'a>>>, EvalError> {
    let Some(mut items) = list.items(fuel)? else { return Ok(None) };
    if !comparable(&items) {
        return Ok(None);
    }
    fuel.spend(items.len() * 8)?;
    items.sort_by(|one, other| one.order(other).unwrap_or(Ordering::Equal));
    Ok(Some(items))
}

fn comparable(items: &[Val<'_>]) -> bool {
    items.iter().all(|item| item.as_number().is_some()) || items.iter().all(|item| item.as_str().is_some())
}

fn extreme<'a>(function: Function, list: &Val<'a>, fuel: &mut Fuel) -> Result<Option<Val<'a>>, EvalError> {
    let sorted = sorted(list, fuel)?;
    Ok(sorted.map(|items| {
        let found = if function == Function::Max { items.last() } else { items.first() };
        found.cloned().unwrap_or_else(Val::null)
    }))
}

fn to_number<'a>(value: &Val<'a>) -> Val<'a> {
    if value.as_number().is_some() {
        return value.clone();
    }
    let parsed = value.as_str().and_then(|text| serde_json::from_str(text.trim()).ok());
    match parsed {
        Some(number @ Value::Number(_)) => Val::Plain(Rc::new(number)),
        _ => Val::null(),
    }
}

/// The functions that apply an expression to each element.
fn by<'a>(function: Function, list: &Val<'a>, node: &'a Node, fuel: &mut Fuel) -> Result<Val<'a>, EvalError> {
    let refused = || function.refuse(std::slice::from_ref(list));
    let items = list.items(fuel)?.ok_or_else(refused)?;
    let keys = items.iter().map(|item| eval(node, item, fuel)).collect::<Result<Vec<_>, _>>()?;
    if function == Function::Map {
        return Ok(Val::list(keys));
    }
    if !comparable(&keys) {
        return Err(function.refuse(&keys[..keys.len().min(3)]));
    }
    fuel.spend(items.len() * 8)?;
    let mut pairs: Vec<_> = keys.into_iter().zip(items).collect();
    let order = |one: &(Val<'a>, Val<'a>), other: &(Val<'a>, Val<'a>)| {
        one.0.order(&other.0).unwrap_or(Ordering::Equal)
    };
    Ok(match function {
        Function::SortBy => {
            pairs.sort_by(order);
            Val::list(pairs.into_iter().map(|(_, item)| item).collect())
        }
        // The first of equals.
        Function::MaxBy => pairs.into_iter().rev().max_by(order).map_or_else(Val::null, |(_, item)| item),
        _ => pairs.into_iter().min_by(order).map_or_else(Val::null, |(_, item)| item),
    })
}
