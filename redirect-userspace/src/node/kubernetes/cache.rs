//! The objects of a kind as far as they are known, whatever order their changes come in. Pure.

use std::collections::{BTreeMap, VecDeque};

use super::{objects::Object, watch::Change};

/// Of so many objects it is remembered that they are gone, for news of them that comes late.
const REMEMBERED: usize = 256;

/// By namespace and name.
#[derive(Clone, Debug)]
pub struct Cache<T> {
    objects: BTreeMap<(String, String), T>,
    /// Their uids.
    gone: VecDeque<String>,
    /// Whether all were listed once.
    is_complete: bool,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            gone: VecDeque::new(),
            is_complete: false,
        }
    }
}

impl<T: Object> Cache<T> {
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<&T> {
        // Borrowed pairs cannot be looked up in a map of owned ones.
        self.objects.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.objects.values()
    }

    /// Whether anything is other than before. What is older than what is known changes nothing.
    pub fn apply(&mut self, change: Change<T>) -> bool {
        match change {
            Change::All(objects) => {
                let objects = objects.into_iter().map(|object| (key(&object), object));
                self.objects = objects.collect();
                self.is_complete = true;
                true
            }
            Change::Put(object) => {
                let key = key(&object);
                let known = self.objects.get(&key);
                if known.is_some_and(|known| !is_newer(&object, known)) || self.is_gone(&object) {
                    return false;
                }
                self.objects.insert(key, object);
                true
            }
            // The end of an earlier one of the same name says nothing of this one.
            Change::Gone(object) => {
                let key = key(&object);
                let known = self.objects.get(&key);
                let is_it = known.is_some_and(|known| known.meta().uid == object.meta().uid);
                if is_it {
                    self.objects.remove(&key);
                }
                if !self.is_gone(&object) {
                    self.gone.push_back(object.meta().uid.clone());
                    if self.gone.len() > REMEMBERED {
                        self.gone.pop_front();
                    }
                }
                is_it
            }
            Change::Down(_) => false,
        }
    }

    fn is_gone(&self, object: &T) -> bool {
        self.gone.contains(&object.meta().uid)
    }
}

fn key<T: Object>(object: &T) -> (String, String) {
    let meta = object.meta();
    (meta.namespace.clone(), meta.name.clone())
}

/// Versions are opaque, but all servers that there are count them up. Where one is no number, what comes later is newer.
fn is_newer<T: Object>(object: &T, known: &T) -> bool {
    let version = |object: &T| object.meta().resource_version.parse::<u64>().ok();
    match (version(object), version(known)) {
        (Some(version), Some(known)) => version > known,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::objects::{Meta, Pod},
        *,
    };

    fn pod(name: &str, uid: &str, version: &str) -> Pod {
        Pod {
            metadata: Meta {
                name: name.to_owned(),
                uid: uid.to_owned(),
                resource_version: version.to_owned(),
                ..Meta::default()
            },
            ..Pod::default()
        }
    }

    fn known(cache: &Cache<Pod>) -> Vec<(&str, &str, &str)> {
        let metas = cache.iter().map(|pod| &pod.metadata);
        metas
            .map(|meta| (&*meta.name, &*meta.uid, &*meta.resource_version))
            .collect()
    }

    #[test]
    fn changes_that_come_twice_or_late_change_nothing() {
        let mut cache = Cache::default();
        assert!(!cache.is_complete());
        assert!(cache.apply(Change::All(vec![pod("a", "1", "5"), pod("b", "2", "6")])));
        assert!(cache.is_complete());
        assert!(!cache.apply(Change::Put(pod("a", "1", "5"))));
        assert!(!cache.apply(Change::Put(pod("a", "1", "4"))));
        assert!(cache.apply(Change::Put(pod("a", "1", "10"))));
        // Deleted and made anew: the end of the first comes last.
        assert!(cache.apply(Change::Put(pod("a", "3", "12"))));
        assert!(!cache.apply(Change::Gone(pod("a", "1", "11"))));
        assert!(!cache.apply(Change::Put(pod("a", "1", "10"))));
        assert_eq!(known(&cache), [("a", "3", "12"), ("b", "2", "6")]);
        assert!(cache.apply(Change::Gone(pod("a", "3", "13"))));
        assert!(!cache.apply(Change::Gone(pod("a", "3", "13"))));
        // Somebody had asked for it before it went, and has the answer now.
        assert!(!cache.apply(Change::Put(pod("a", "3", "12"))));
        assert!(!cache.apply(Change::Down("x".to_owned())));
        assert_eq!(known(&cache), [("b", "2", "6")]);
    }

    #[test]
    fn a_full_list_is_all_that_there_is_whatever_was_known() {
        let mut cache = Cache::default();
        cache.apply(Change::All(vec![pod("a", "1", "50"), pod("b", "2", "51")]));
        // Restored from a backup, the API counts from further back.
        cache.apply(Change::All(vec![pod("a", "1", "7")]));
        assert_eq!(known(&cache), [("a", "1", "7")]);
        assert!(cache.apply(Change::Put(pod("a", "1", "8"))));
    }

    #[test]
    fn versions_that_are_no_numbers_are_taken_as_they_come() {
        let mut cache = Cache::default();
        cache.apply(Change::Put(pod("a", "1", "x")));
        assert!(cache.apply(Change::Put(pod("a", "1", "w"))));
    }
}
