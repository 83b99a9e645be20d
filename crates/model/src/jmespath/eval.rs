//! The answer of a tree for data.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::Fuel;
use super::functions;
use super::lexer::Comparison;
use super::parser::Node;
use super::value::Val;

/// An expression has no answer. May be shown to whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// It costs more than it may.
    #[error("the expression looks at more values, or makes more, than it may")]
    TooMuch,
    /// A function got what it does not take.
    #[error("{function} takes {takes}, and was given {given}")]
    Type {
        /// Its name.
        function: &'static str,
        /// What it takes.
        takes: &'static str,
        /// Types of what it was given; never the values.
        given: String,
    },
}

pub(super) fn eval<'a>(node: &'a Node, data: &Val<'a>, fuel: &mut Fuel) -> Result<Val<'a>, EvalError> {
    fuel.spend(1)?;
    match node {
        Node::Current => Ok(data.clone()),
        Node::Field(name) => Ok(data.field(name)),
        Node::Index(index) => Ok(data.at(*index)),
        Node::Slice(start, end, step) => slice(data, *start, *end, *step, fuel),
        Node::Literal(value) => Ok(Val::Ref(value)),
        Node::Then(left, right) => {
            let left = eval(left, data, fuel)?;
            eval(right, &left, fuel)
        }
        Node::Flatten(inner) => flatten(&eval(inner, data, fuel)?, fuel),
        Node::Each(left, right) => {
            let items = eval(left, data, fuel)?.items(fuel)?;
            items.map_or_else(|| Ok(Val::null()), |items| each(items, None, right, fuel))
        }
        Node::EachValue(left, right) => {
            let members = eval(left, data, fuel)?.members(fuel)?;
            let values = members.map(|members| members.into_iter().map(|(_, value)| value).collect());
            values.map_or_else(|| Ok(Val::null()), |values| each(values, None, right, fuel))
        }
        Node::EachWhere(left, condition, right) => {
            let items = eval(left, data, fuel)?.items(fuel)?;
            items.map_or_else(|| Ok(Val::null()), |items| each(items, Some(condition), right, fuel))
        }
        Node::List(_) | Node::Object(_) if data.is_null() => Ok(Val::null()),
        Node::List(nodes) => {
            let items = nodes.iter().map(|node| eval(node, data, fuel)).collect::<Result<_, _>>()?;
            Ok(Val::list(items))
        }
        Node::Object(nodes) => {
            let mut members = BTreeMap::new();
            for (name, node) in nodes {
                members.insert(name.clone(), eval(node, data, fuel)?);
            }
            Ok(Val::Object(Rc::new(members)))
        }
        Node::Or(left, right) => {
            let left = eval(left, data, fuel)?;
            if left.is_true() { Ok(left) } else { eval(right, data, fuel) }
        }
        Node::And(left, right) => {
            let left = eval(left, data, fuel)?;
            if left.is_true() { eval(right, data, fuel) } else { Ok(left) }
        }
        Node::Not(inner) => Ok(Val::bool(!eval(inner, data, fuel)?.is_true())),
        Node::Compare(how, left, right) => {
            let (left, right) = (eval(left, data, fuel)?, eval(right, data, fuel)?);
            compare(*how, &left, &right, fuel)
        }
        Node::Call(function, arguments) => functions::call(*function, arguments, data, fuel),
        // The parser lets it stand only where the function itself evaluates it.
        Node::Reference(inner) => eval(inner, data, fuel),
    }
}

fn each<'a>(
    items: Vec<Val<'a>>,
    condition: Option<&'a Node>,
    right: &'a Node,
    fuel: &mut Fuel,
) -> Result<Val<'a>, EvalError> {
    let mut all = Vec::new();
    for item in items {
        if let Some(condition) = condition
            && !eval(condition, &item, fuel)?.is_true()
        {
            continue;
        }
        let found = eval(right, &item, fuel)?;
        if !found.is_null() {
            all.push(found);
        }
    }
    Ok(Val::list(all))
}

fn flatten<'a>(list: &Val<'a>, fuel: &mut Fuel) -> Result<Val<'a>, EvalError> {
    let Some(items) = list.items(fuel)? else { return Ok(Val::null()) };
    let mut all = Vec::new();
    for item in items {
        match item.items(fuel)? {
            Some(inner) => all.extend(inner),
            None => all.push(item),
        }
    }
    Ok(Val::list(all))
}

/// Slices as in Python.
fn slice<'a>(
    list: &Val<'a>,
    start: Option<i64>,
    end: Option<i64>,
    step: i64,
    fuel: &mut Fuel,
) -> Result<Val<'a>, EvalError> {
    let Some(items) = list.items(fuel)? else { return Ok(Val::null()) };
    let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let place = |given: Option<i64>, otherwise: i64| match given {
        None => otherwise,
        Some(at) if at < 0 => at.saturating_add(length).max(lowest),
        Some(at) => at.min(highest),
    };
    let (mut at, end) = if step > 0 {
        (place(start, 0), place(end, length))
    } else {
        (place(start, length - 1), place(end, -1))
    };
    let mut all = Vec::new();
    while if step > 0 { at < end } else { at > end } {
        all.extend(usize::try_from(at).ok().and_then(|at| items.get(at)).cloned());
        at = at.saturating_add(step);
    }
    Ok(Val::list(all))
}

fn compare<'a>(
    how: Comparison,
    left: &Val<'a>,
    right: &Val<'a>,
    fuel: &mut Fuel,
) -> Result<Val<'a>, EvalError> {
    if matches!(how, Comparison::Equal | Comparison::Unequal) {
        return Ok(Val::bool(left.equals(right, fuel)? == (how == Comparison::Equal)));
    }
    let Some(order) = left.order(right) else { return Ok(Val::null()) };
    Ok(Val::bool(match how {
        Comparison::Less => order.is_lt(),
        Comparison::LessOrEqual => order.is_le(),
        Comparison::Greater => order.is_gt(),
        _ => order.is_ge(),
    }))
}
