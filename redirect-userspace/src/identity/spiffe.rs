//! SPIFFE names: parsing is strict, so that two spellings never name one workload.

use std::{fmt, str::FromStr, sync::Arc};

/// `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    pub trust_domain: Arc<str>,
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}

impl Identity {
    /// Checks each part; see [`check_trust_domain`] and [`check_segment`].
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, InvalidName> {
        check_trust_domain(trust_domain)?;
        check_segment("namespace", namespace)?;
        check_segment("service account", service_account)?;
        Ok(Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }

    /// Parses exactly the form that [`fmt::Display`] writes: no other case, port, query, fragment or escape.
    pub fn parse(uri: &str) -> Result<Self, InvalidName> {
        let form = || InvalidName::Form(uri.to_owned());
        let rest = uri.strip_prefix("spiffe://").ok_or_else(form)?;
        let mut parts = rest.split('/');
        match (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) {
            (
                Some(trust_domain),
                Some("ns"),
                Some(namespace),
                Some("sa"),
                Some(service_account),
                None,
            ) => Self::new(trust_domain, namespace, service_account),
            _ => Err(form()),
        }
    }
}

impl FromStr for Identity {
    type Err = InvalidName;

    fn from_str(uri: &str) -> Result<Self, InvalidName> {
        Self::parse(uri)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("{0:?} is not of the form spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT")]
    Form(String),
    #[error(
        "{0:?} cannot be a trust domain: lower-case letters, digits, `.`, `-` and `_`, at most 255"
    )]
    TrustDomain(String),
    #[error(
        "{name:?} cannot be a {part}: letters, digits, `.`, `-` and `_`, at most 253, not `.` or `..`"
    )]
    Segment { part: &'static str, name: String },
}

/// The character set of the SPIFFE ID specification, section 2.1.
pub fn check_trust_domain(name: &str) -> Result<(), InvalidName> {
    let allowed =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > 255 || !name.bytes().all(allowed) {
        return Err(InvalidName::TrustDomain(name.to_owned()));
    }
    Ok(())
}

/// A path segment, SPIFFE ID specification, section 2.2. Such a name is safe as a file name, too.
pub fn check_segment(part: &'static str, name: &str) -> Result<(), InvalidName> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty()
        || name.len() > 253
        || name == "."
        || name == ".."
        || !name.bytes().all(allowed)
    {
        return Err(InvalidName::Segment {
            part,
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// The trust domain of any SPIFFE URI, also of one that is not in Istio's form; `None` for what is no SPIFFE URI.
pub fn trust_domain_of(uri: &str) -> Option<&str> {
    let (trust_domain, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
    let valid_path = path
        .split('/')
        .all(|segment| check_segment("path segment", segment).is_ok());
    (valid_path && check_trust_domain(trust_domain).is_ok()).then_some(trust_domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_form_is_the_parsed_form() {
        let uri = "spiffe://cluster.local/ns/default/sa/client";
        let identity = Identity::parse(uri).unwrap();
        assert_eq!(
            (&*identity.trust_domain, &*identity.namespace),
            ("cluster.local", "default")
        );
        assert_eq!(identity.to_string(), uri);
    }

    #[test]
    fn other_spellings_are_refused() {
        for uri in [
            "",
            "spiffe://",
            "spiffe://cluster.local",
            "SPIFFE://cluster.local/ns/a/sa/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://cluster.local:80/ns/a/sa/b",
            "spiffe://user@cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a/sa/b?x",
            "spiffe://cluster.local/ns/a/sa/b#x",
            "spiffe://cluster.local/ns/a/sa/%62",
            "spiffe://cluster.local/sa/b/ns/a",
            "https://cluster.local/ns/a/sa/b",
        ] {
            assert!(Identity::parse(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn the_trust_domain_of_a_foreign_form_is_found() {
        assert_eq!(
            trust_domain_of("spiffe://example.org/node/7"),
            Some("example.org")
        );
        assert_eq!(trust_domain_of("spiffe://example.org"), None);
        assert_eq!(trust_domain_of("spiffe://example.org/a//b"), None);
        assert_eq!(trust_domain_of("https://example.org/a"), None);
    }

    proptest::proptest! {
        /// Whatever is accepted has one spelling, and is safe as a path.
        #[test]
        fn no_two_spellings_name_one_identity(uri in "(spiffe://)?[a-zA-Z0-9./%:@ -]{0,12}(/ns/)?[a-zA-Z0-9._/-]{0,8}(/sa/)?[a-zA-Z0-9._/-]{0,8}") {
            if let Ok(identity) = Identity::parse(&uri) {
                proptest::prop_assert_eq!(identity.to_string(), uri);
                for part in [&identity.namespace, &identity.service_account] {
                    proptest::prop_assert!(!part.contains('/') && &**part != "..");
                }
            }
        }
    }
}
