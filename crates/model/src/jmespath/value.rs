//! What comes about while an expression is evaluated: parts of the data by reference, the rest shared.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::{Map, Number, Value};

use super::{EvalError, Fuel};

/// A value. A copy costs nothing, whatever it holds.
#[derive(Clone, Debug)]
pub(super) enum Val<'a> {
    Ref(&'a Value),
    /// Null, a boolean, a number or a string.
    Plain(Rc<Value>),
    List(Rc<Vec<Val<'a>>>),
    Object(Rc<BTreeMap<String, Val<'a>>>),
}

impl Val<'_> {
    pub(super) fn null() -> Self {
        Self::Ref(&Value::Null)
    }

    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(Rc::new(items))
    }

    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Plain(Rc::new(Value::String(text.into())))
    }

    pub(super) fn bool(yes: bool) -> Self {
        Self::Ref(if yes { &Value::Bool(true) } else { &Value::Bool(false) })
    }

    pub(super) fn integer(number: i64) -> Self {
        Self::Plain(Rc::new(Value::from(number)))
    }

    /// Null for what JSON cannot say.
    pub(super) fn float(number: f64) -> Self {
        Self::Plain(Rc::new(Number::from_f64(number).map_or(Value::Null, Value::Number)))
    }

    /// The value, if it is no list and no object that was made.
    fn plain(&self) -> Option<&Value> {
        match self {
            Self::Ref(value) => Some(value),
            Self::Plain(value) => Some(value),
            _ => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        self.plain().is_some_and(Value::is_null)
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        self.plain().and_then(Value::as_bool)
    }

    pub(super) fn as_number(&self) -> Option<&Number> {
        match self.plain() {
            Some(Value::Number(number)) => Some(number),
            _ => None,
        }
    }

    pub(super) fn as_f64(&self) -> Option<f64> {
        self.as_number().and_then(Number::as_f64)
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        self.plain().and_then(Value::as_str)
    }

    pub(super) fn is_object(&self) -> bool {
        matches!(self, Self::Object(_) | Self::Ref(Value::Object(_)))
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self, Self::List(_) | Self::Ref(Value::Array(_)))
    }

    /// How many elements, members or characters.
    pub(super) fn length(&self) -> Option<usize> {
        match self {
            Self::List(items) => Some(items.len()),
            Self::Object(members) => Some(members.len()),
            Self::Ref(Value::Array(items)) => Some(items.len()),
            Self::Ref(Value::Object(members)) => Some(members.len()),
            _ => self.as_str().map(|text| text.chars().count()),
        }
    }

    /// The elements of a list.
    pub(super) fn items(&self, fuel: &mut Fuel) -> Result<Option<Vec<Self>>, EvalError> {
        Ok(match self {
            Self::List(items) => {
                fuel.spend(items.len())?;
                Some(items.as_ref().clone())
            }
            Self::Ref(Value::Array(items)) => {
                fuel.spend(items.len())?;
                Some(items.iter().map(Self::Ref).collect())
            }
            _ => None,
        })
    }

    /// The members of an object.
    pub(super) fn members(&self, fuel: &mut Fuel) -> Result<Option<Vec<(String, Self)>>, EvalError> {
        Ok(match self {
            Self::Object(members) => {
                fuel.spend(members.len())?;
                Some(members.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
            }
            Self::Ref(Value::Object(members)) => {
                fuel.spend(members.len())?;
                Some(members.iter().map(|(name, value)| (name.clone(), Self::Ref(value))).collect())
            }
            _ => None,
        })
    }

    pub(super) fn field(&self, name: &str) -> Self {
        match self {
            Self::Object(members) => members.get(name).cloned(),
            Self::Ref(Value::Object(members)) => members.get(name).map(Self::Ref),
            _ => None,
        }
        .unwrap_or_else(Self::null)
    }

    pub(super) fn at(&self, index: i64) -> Self {
        let length = if self.is_list() { self.length().unwrap_or(0) } else { 0 };
        let index = if index < 0 { index.saturating_add_unsigned(length as u64) } else { index };
        let Ok(index) = usize::try_from(index) else { return Self::null() };
        match self {
            Self::List(items) => items.get(index).cloned(),
            Self::Ref(Value::Array(items)) => items.get(index).map(Self::Ref),
            _ => None,
        }
        .unwrap_or_else(Self::null)
    }

    /// As the standard has it: no are null, false and what is empty.
    pub(super) fn is_true(&self) -> bool {
        match self.as_bool() {
            Some(yes) => yes,
            None => !self.is_null() && self.length() != Some(0),
        }
    }

    pub(super) fn equals(&self, other: &Self, fuel: &mut Fuel) -> Result<bool, EvalError> {
        fuel.spend(1)?;
        if let (Some(one), Some(two)) = (self.as_number(), other.as_number()) {
            return Ok(one == two || one.as_f64() == two.as_f64());
        }
        if let (Some(one), Some(two)) = (self.as_str(), other.as_str()) {
            fuel.spend_text(one.len())?;
            return Ok(one == two);
        }
        if self.is_list() && other.is_list() {
            if self.length() != other.length() {
                return Ok(false);
            }
            let (one, two) = (self.items(fuel)?.unwrap_or_default(), other.items(fuel)?.unwrap_or_default());
            for (one, two) in one.iter().zip(&two) {
                if !one.equals(two, fuel)? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        if self.is_object() && other.is_object() {
            if self.length() != other.length() {
                return Ok(false);
            }
            let (one, two) =
                (self.members(fuel)?.unwrap_or_default(), other.members(fuel)?.unwrap_or_default());
            for ((name, one), (other_name, two)) in one.iter().zip(&two) {
                if name != other_name || !one.equals(two, fuel)? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        Ok(match (self.plain(), other.plain()) {
            (Some(Value::Null), Some(Value::Null)) => true,
            (Some(Value::Bool(one)), Some(Value::Bool(two))) => one == two,
            _ => false,
        })
    }

    /// The order of two numbers or of two strings (by code points).
    pub(super) fn order(&self, other: &Self) -> Option<Ordering> {
        match (self.as_number(), other.as_number()) {
            (Some(one), Some(two)) => match (one.as_i64(), two.as_i64()) {
                (Some(one), Some(two)) => Some(one.cmp(&two)),
                _ => one.as_f64()?.partial_cmp(&two.as_f64()?),
            },
            _ => Some(self.as_str()?.cmp(other.as_str()?)),
        }
    }

    pub(super) fn into_value(self, fuel: &mut Fuel) -> Result<Value, EvalError> {
        self.value(fuel)
    }

    /// As JSON of its own. What is shared is paid for as often as it is written.
    pub(super) fn value(&self, fuel: &mut Fuel) -> Result<Value, EvalError> {
        Ok(match self {
            Self::Ref(value) => {
                charge(value, fuel)?;
                (*value).clone()
            }
            Self::Plain(value) => {
                charge(value, fuel)?;
                value.as_ref().clone()
            }
            Self::List(items) => {
                fuel.spend(1)?;
                Value::Array(items.iter().map(|item| item.value(fuel)).collect::<Result<_, _>>()?)
            }
            Self::Object(members) => {
                fuel.spend(1)?;
                let mut all = Map::new();
                for (name, value) in members.iter() {
                    fuel.spend_text(name.len())?;
                    all.insert(name.clone(), value.value(fuel)?);
                }
                Value::Object(all)
            }
        })
    }

    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::List(_) => "array",
            Self::Object(_) => "object",
            Self::Ref(value) => type_name(value),
            Self::Plain(value) => type_name(value),
        }
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn charge(value: &Value, fuel: &mut Fuel) -> Result<(), EvalError> {
    match value {
        Value::String(text) => fuel.spend_text(text.len()),
        Value::Array(items) => {
            fuel.spend(1)?;
            items.iter().try_for_each(|item| charge(item, fuel))
        }
        Value::Object(members) => members.iter().try_for_each(|(name, value)| {
            fuel.spend_text(name.len())?;
            charge(value, fuel)
        }),
        _ => fuel.spend(1),
    }
}
