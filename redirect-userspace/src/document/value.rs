//! The tree, and how text becomes one.

use std::{fmt, marker::PhantomData, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    /// In the document's order. Keys that are numbers in YAML are kept as their decimal text.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// For messages: `"x"`, `a list`.
    pub fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Integer(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(value) => format!("{value:?}"),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a map".to_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Yaml,
    Toml,
}

impl Format {
    /// By extension: `.toml` is TOML, all else YAML (of which JSON is a part).
    pub fn of(path: &Path) -> Self {
        if path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("toml"))
        {
            Self::Toml
        } else {
            Self::Yaml
        }
    }
}

/// The text is not YAML or TOML at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SyntaxError(pub String);

/// An empty document is an empty map.
pub fn parse(text: &str, format: Format) -> Result<Value, SyntaxError> {
    let value = match format {
        Format::Yaml => {
            let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
            serde_saphyr::from_str_with_options::<Yaml>(text, options)
                .map(|yaml| yaml.0)
                .map_err(|e| SyntaxError(e.to_string()))?
        }
        Format::Toml => toml::from_str::<Plain<Nested>>(text)
            .map(|plain| plain.0)
            .map_err(|e| SyntaxError(e.to_string().trim_end().to_owned()))?,
    };
    Ok(match value {
        Value::Null => Value::Map(Vec::new()),
        value => value,
    })
}

/// A YAML node. A local tag becomes a map of one entry, so that `!Exact x` and `Exact: x` are the same.
struct Yaml(Value);

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let serde_saphyr::Tagged(Plain(value, _), tag) =
            serde_saphyr::Tagged::<Plain<Self>>::deserialize(deserializer)?;
        Ok(Self(
            match tag
                .as_deref()
                .and_then(|tag| tag.strip_prefix('!'))
                .filter(|name| !name.is_empty())
            {
                Some(name) => Value::Map(vec![(name.to_owned(), value)]),
                None => value,
            },
        ))
    }
}

impl From<Yaml> for Value {
    fn from(yaml: Yaml) -> Self {
        yaml.0
    }
}

/// A node without a tag, whose children are of type `C`.
struct Plain<C>(Value, PhantomData<C>);

/// A TOML node: no tags.
struct Nested(Value);

impl<'de> Deserialize<'de> for Nested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Plain::<Self>::deserialize(deserializer).map(|plain| Self(plain.0))
    }
}

impl From<Nested> for Value {
    fn from(nested: Nested) -> Self {
        nested.0
    }
}

impl<'de, C: Deserialize<'de> + Into<Value>> Deserialize<'de> for Plain<C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(PlainVisitor::<C>(PhantomData))
            .map(|value| Self(value, PhantomData))
    }
}

struct PlainVisitor<C>(PhantomData<C>);

impl<'de, C: Deserialize<'de> + Into<Value>> Visitor<'de> for PlainVisitor<C> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        C::deserialize(deserializer).map(Into::into)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<C>()? {
            list.push(item.into());
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key::<Key>()? {
            map.push((key.0, entries.next_value::<C>()?.into()));
        }
        Ok(Value::Map(map))
    }
}

/// A scalar key, as text.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;

        impl Visitor<'_> for KeyVisitor {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name or a number as the key")
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Key, E> {
                Ok(Key(value.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }
        }

        deserializer.deserialize_any(KeyVisitor)
    }
}
