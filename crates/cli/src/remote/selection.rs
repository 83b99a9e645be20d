//! Parts of documents: what `--json id,device.state` leaves of them.

use std::str::FromStr;

use serde::Serialize;
use serde_json::{Map, Value};

/// Most fields that can be asked for.
const MOST: usize = 64;

/// Names of fields, in the order in which they were asked for. A dot goes into an object, or by number into a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fields(Vec<String>);

impl FromStr for Fields {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        if names.iter().any(|name| name.split('.').any(str::is_empty)) {
            return Err(
                "names of fields with commas between them are wanted, such as id,device.state".to_owned()
            );
        }
        if names.len() > MOST {
            return Err(format!("at most {MOST} fields can be asked for"));
        }
        Ok(Self(names))
    }
}

impl Fields {
    /// The names as they were asked for.
    pub(super) fn names(&self) -> &[String] {
        &self.0
    }

    /// The document with these fields only, each in its place; `null` for those that it has not.
    pub(super) fn nested<T: Serialize>(&self, document: &T) -> Value {
        let document = serde_json::to_value(document).unwrap_or_default();
        let mut left = Value::Object(Map::new());
        for name in &self.0 {
            put(&mut left, name, at(&document, name).clone());
        }
        left
    }

    /// The fields side by side, each under the name that it was asked for by.
    pub(super) fn flat<T: Serialize>(&self, document: &T) -> Value {
        let document = serde_json::to_value(document).unwrap_or_default();
        self.0.iter().map(|name| (name.clone(), at(&document, name).clone())).collect::<Map<_, _>>().into()
    }
}

fn at<'a>(document: &'a Value, name: &str) -> &'a Value {
    name.split('.').fold(document, |place, part| match place {
        Value::Array(items) => {
            part.parse::<usize>().ok().and_then(|number| items.get(number)).unwrap_or(&Value::Null)
        }
        other => &other[part],
    })
}

/// Puts a value in its place. Where a field above it was asked for, too, it is there already.
fn put(left: &mut Value, name: &str, value: Value) {
    let mut place = left;
    for part in name.split('.') {
        if place.is_null() {
            *place = Value::Object(Map::new());
        }
        let Value::Object(members) = place else { return };
        place = members.entry(part).or_insert(Value::Null);
    }
    *place = value;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(text: &str) -> Fields {
        text.parse().expect("fields")
    }

    #[test]
    fn what_was_asked_for_is_left_in_its_place() {
        let document = json!({ "id": 7, "device": { "name": "ot2", "state": "ready" }, "list": [{ "x": 1 }, { "x": 2 }], "more": true });

        assert_eq!(
            fields("id, device.state,list.1.x,gone.deep").nested(&document),
            json!({ "id": 7, "device": { "state": "ready" }, "list": { "1": { "x": 2 } }, "gone": { "deep": null } })
        );
        assert_eq!(fields("device,device.state").nested(&document), json!({ "device": document["device"] }));
        assert_eq!(fields("device.state,device").nested(&document), json!({ "device": document["device"] }));
        assert_eq!(fields("id,id.x").nested(&document), json!({ "id": 7 }));
        assert_eq!(fields("device.state,id").flat(&document), json!({ "id": 7, "device.state": "ready" }));
        assert_eq!(fields("id").nested(&json!("a text")), json!({ "id": null }));
    }

    #[test]
    fn names_are_wanted() {
        for text in ["", ",", "a,,b", "a.", ".a", "a..b", &vec!["a"; MOST + 1].join(",")] {
            assert!(text.parse::<Fields>().is_err(), "{text}");
        }
    }
}
