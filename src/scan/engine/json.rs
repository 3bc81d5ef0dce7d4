//! Reads JSON that has exactly one meaning.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};

/// Reads an answer. The error says what is wrong with the answer. If a name occurs twice in one object, RFC 8259 section 4
/// leaves open which value counts. An attacker who can add to an answer could then change its meaning. So a name that occurs
/// twice is an error, at any depth.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let what = |error: serde_json::Error| error.to_string();
    let _: Distinct = serde_json::from_slice(body).map_err(what)?;
    serde_json::from_slice(body).map_err(what)
}

/// Any value in which no object has two members of the same name.
struct Distinct;

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Distinct {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self, A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            if names.contains(&name) {
                return Err(de::Error::custom(format!(
                    "{name:.50?} occurs twice in one object"
                )));
            }
            names.insert(name);
            members.next_value::<Self>()?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// An attacker who can add a member to an answer must not be able to change its meaning: at no depth, and in no spelling
    /// of the name.
    #[test]
    fn an_object_with_a_duplicate_name_is_an_error() {
        for body in [
            r#"{"a": 1, "a": 1}"#,
            r#"{"a": 1, "\u0061": 2}"#,
            r#"{"b": {"a": 1, "c": [], "a": null}}"#,
            r#"[[{"b": [true, {"a": 1.5, "a": "x"}]}]]"#,
        ] {
            let wrong = read::<Value>(body.as_bytes()).expect_err(body);
            assert!(wrong.contains("twice in one object"), "{body}: {wrong}");
        }
        for body in [
            r#"{"a": {"a": 1}, "b": {"a": 2}}"#,
            r#"[{"a": 1}, {"a": 1}]"#,
            r#"{"a": -1, "A": 1e3}"#,
        ] {
            let value = read::<Value>(body.as_bytes()).expect(body);
            assert_eq!(value, serde_json::from_str::<Value>(body).expect(body));
        }
    }
}
