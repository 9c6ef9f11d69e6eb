//! The headers of a CONNECT that tell the other side who is calling, and on whose behalf.

use std::{fmt::Write as _, net::SocketAddr};

use http::HeaderValue;

/// The W3C Trace Context of one connection: joins the access logs of its two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    pub trace_id: u128,
    parent_id: u64,
}

impl TraceParent {
    pub fn random() -> Self {
        let mut bytes = [0; 24];
        // The generator of aws-lc cannot fail once it is seeded; a zero id would only be an unhelpful one.
        let _ = aws_lc_rs::rand::fill(&mut bytes);
        let (trace, parent) = bytes.split_at(16);
        Self {
            trace_id: u128::from_be_bytes(trace.try_into().expect("16 bytes")) | 1,
            parent_id: u64::from_be_bytes(parent.try_into().expect("8 bytes")) | 1,
        }
    }

    /// Reads `00-TRACE-PARENT-FLAGS`; `None` for anything else, which is no error: the header is a courtesy.
    pub fn parse(value: &HeaderValue) -> Option<Self> {
        let mut fields = value.to_str().ok()?.split('-');
        let (version, trace, parent) = (fields.next()?, fields.next()?, fields.next()?);
        if version != "00" || trace.len() != 32 || parent.len() != 16 {
            return None;
        }
        let trace_id = u128::from_str_radix(trace, 16).ok().filter(|&id| id != 0)?;
        let parent_id = u64::from_str_radix(parent, 16).ok().filter(|&id| id != 0)?;
        Some(Self {
            trace_id,
            parent_id,
        })
    }

    pub fn header(self) -> HeaderValue {
        let value = format!("00-{:032x}-{:016x}-01", self.trace_id, self.parent_id);
        HeaderValue::from_str(&value).expect("hexadecimal digits and dashes")
    }
}

/// RFC 7239: `for="ip:port"`, IPv6 in brackets.
pub fn forwarded(client: SocketAddr) -> HeaderValue {
    HeaderValue::from_str(&format!("for=\"{client}\""))
        .expect("a socket address is printable ASCII")
}

/// W3C Baggage of `members`; empty values are left out, others percent-encoded where the grammar asks for it.
pub fn baggage<'a>(members: impl IntoIterator<Item = (&'a str, &'a str)>) -> HeaderValue {
    let mut text = String::new();
    for (key, value) in members.into_iter().filter(|(_, value)| !value.is_empty()) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(key);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                0x21 | 0x23..=0x24 | 0x26..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e => {
                    text.push(char::from(byte))
                }
                other => write!(text, "%{other:02X}").expect("writing to a string"),
            }
        }
    }
    HeaderValue::from_str(&text).expect("encoded to printable ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_goes_round() {
        let sent = TraceParent::random();
        assert_eq!(TraceParent::parse(&sent.header()), Some(sent));
        for bad in [
            "",
            "00-1-1-01",
            "01-00000000000000000000000000000001-0000000000000001-01",
            "00-x",
        ] {
            assert_eq!(
                TraceParent::parse(&HeaderValue::from_static(bad)),
                None,
                "{bad}"
            );
        }
    }

    #[test]
    fn addresses_and_names_are_spelt_as_the_standards_ask() {
        assert_eq!(
            forwarded("10.1.2.3:4".parse().unwrap()),
            "for=\"10.1.2.3:4\""
        );
        assert_eq!(
            forwarded("[fd00::1]:4".parse().unwrap()),
            "for=\"[fd00::1]:4\""
        );
        let header = baggage([
            ("k8s.namespace.name", "a b"),
            ("service.version", ""),
            ("k8s.pod.name", "x,y=z"),
        ]);
        assert_eq!(header, "k8s.namespace.name=a%20b,k8s.pod.name=x%2Cy=z");
    }
}
