//! The objects of the API and the history of their changes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    Added,
    Modified,
    Deleted,
    Bookmark,
}

impl WatchEvent {
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
        }
    }
}

/// By kind, namespace and name.
type Key = (String, String, String);

#[derive(Default)]
pub struct Store {
    version: u64,
    uids: u64,
    objects: BTreeMap<Key, Value>,
    history: Vec<Entry>,
    /// What is not newer than this is forgotten.
    forgotten: u64,
}

pub struct Entry {
    pub version: u64,
    /// Empty: of all kinds.
    pub kind: String,
    pub event: WatchEvent,
    pub object: Value,
}

impl Store {
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn put(&mut self, kind: &str, mut object: Value) -> Value {
        self.version += 1;
        let key = key(kind, &object);
        let meta = &mut object["metadata"];
        meta["resourceVersion"] = self.version.to_string().into();
        let before = self.objects.get(&key);
        if meta.get("uid").is_none() {
            let uid = before.map(|before| before["metadata"]["uid"].clone());
            self.uids += 1;
            meta["uid"] = uid.unwrap_or_else(|| format!("uid-{}", self.uids).into());
        }
        let event = match before {
            Some(_) => WatchEvent::Modified,
            None => WatchEvent::Added,
        };
        self.objects.insert(key, object.clone());
        self.record(kind, event, object.clone());
        object
    }

    /// An error is the status to answer with.
    pub fn patch(
        &mut self,
        kind: &str,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Value, u16> {
        let mut object = self.get(kind, namespace, name).cloned().ok_or(404_u16)?;
        let uid = &patch["metadata"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return Err(409);
        }
        merge(&mut object, patch);
        Ok(self.put(kind, object))
    }

    pub fn delete(&mut self, kind: &str, namespace: &str, name: &str) -> bool {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let Some(mut object) = self.objects.remove(&key) else {
            return false;
        };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.record(kind, WatchEvent::Deleted, object);
        true
    }

    pub fn tell(&mut self, kind: &str, event: WatchEvent, object: Value) {
        self.version += 1;
        self.record(kind, event, object);
    }

    pub fn bookmark(&mut self) {
        self.version += 1;
        let meta = json!({
            "kind": "Any", "apiVersion": "v1",
            "metadata": {"resourceVersion": self.version.to_string()},
        });
        self.record("", WatchEvent::Bookmark, meta);
    }

    pub fn forget(&mut self) {
        self.version += 1;
        self.forgotten = self.version;
        self.history.clear();
    }

    pub fn is_forgotten(&self, version: u64) -> bool {
        version < self.forgotten
    }

    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.objects.get(&key)
    }

    pub fn list(&self, kind: &str, node: Option<&str>) -> Vec<&Value> {
        let of_kind = self.objects.iter().filter(|(key, _)| key.0 == kind);
        of_kind
            .map(|(_, object)| object)
            .filter(|object| is_on(object, node))
            .collect()
    }

    /// What a watch of the kind is told that has come to `version`.
    pub fn after(&self, version: u64, kind: &str, node: Option<&str>) -> Vec<&Entry> {
        let news = self.history.iter().filter(|entry| entry.version > version);
        news.filter(|entry| match entry.event {
            WatchEvent::Bookmark => true,
            _ => entry.kind == kind && is_on(&entry.object, node),
        })
        .collect()
    }

    fn record(&mut self, kind: &str, event: WatchEvent, object: Value) {
        self.history.push(Entry {
            version: self.version,
            kind: kind.to_owned(),
            event,
            object,
        });
    }
}

fn is_on(object: &Value, node: Option<&str>) -> bool {
    node.is_none_or(|node| object["spec"]["nodeName"] == node)
}

fn key(kind: &str, object: &Value) -> Key {
    let text = |name: &str| {
        let text = object["metadata"][name].as_str();
        text.unwrap_or_default().to_owned()
    };
    (kind.to_owned(), text("namespace"), text("name"))
}

/// RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let into = into.as_object_mut().expect("it was made one");
    for (key, value) in patch {
        if value.is_null() {
            into.remove(key);
        } else {
            merge(into.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
