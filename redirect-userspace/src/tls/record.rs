//! Protection of TLS 1.3 records (RFC 8446 section 5.2): one AEAD key, one sequence number, one direction.

use std::{io, ops::Range};

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, Nonce, TlsProtocolId, TlsRecordOpeningKey,
    TlsRecordSealingKey,
};
use rustls::{ConnectionTrafficSecrets, ContentType};

use super::TlsError;

pub const HEADER: usize = 5;
const TAG: usize = 16;
/// Longest content of one record (RFC 8446 section 5.1).
pub const MAX_CONTENT: usize = 1 << 14;
/// What protection adds to a record: header, inner content type, tag.
pub const OVERHEAD: usize = HEADER + 1 + TAG;
/// Longest protected body: RFC 8446 section 5.2 allows 256 bytes beyond the content.
const MAX_BODY: usize = MAX_CONTENT + 256;
/// Records under one key before it is replaced; RFC 8446 section 5.5 allows 2^24.5 for AES-GCM.
pub const REKEY_AFTER: u64 = 1 << 23;

/// Seals records of one direction.
pub struct Sealer {
    key: TlsRecordSealingKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Sealer {
    /// `sequence` must be zero: aws-lc learns the IV from the first nonce, to refuse one that repeats.
    pub fn new(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, TlsError> {
        if sequence != 0 {
            return Err(TlsError::Rustls(rustls::Error::General(
                "rustls sent records of its own; are session tickets on?".into(),
            )));
        }
        let (algorithm, key, iv) = parts(secrets)?;
        let key = TlsRecordSealingKey::new(algorithm, TlsProtocolId::TLS13, key)
            .map_err(|_| bad_key())?;
        Ok(Self { key, iv, sequence })
    }

    /// Records sealed so far.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Seals `parts`, together at most [`MAX_CONTENT`] bytes, as one record at the start of `out`; returns its length.
    pub fn seal(&mut self, content_type: ContentType, parts: &[&[u8]], out: &mut [u8]) -> usize {
        let content: usize = parts.iter().map(|part| part.len()).sum();
        debug_assert!(content <= MAX_CONTENT);
        let (header, body) = out[..OVERHEAD + content].split_at_mut(HEADER);
        header.copy_from_slice(&record_header(content + 1 + TAG));
        let nonce = nonce(&self.iv, self.sequence);
        let aad = Aad::from(&*header);
        let sealed = if let [only] = parts {
            // Straight from the sender's buffer: the content type and the tag follow the ciphertext.
            let (ciphertext, type_and_tag) = body.split_at_mut(content);
            self.key.seal_out_of_place_scatter(
                nonce,
                aad,
                only,
                ciphertext,
                &[content_type.into()],
                type_and_tag,
            )
        } else {
            let mut at = 0;
            for part in parts {
                body[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            body[at] = content_type.into();
            let (inner, tag) = body.split_at_mut(content + 1);
            self.key
                .seal_in_place_separate_tag(nonce, aad, inner)
                .map(|sealed| tag.copy_from_slice(sealed.as_ref()))
        };
        // Fails only for lengths beyond the algorithm's limit or a repeated nonce; neither can happen here.
        sealed.expect("a TLS record is within the limits of AES-GCM");
        self.sequence += 1;
        OVERHEAD + content
    }
}

/// Opens records of one direction.
pub struct Opener {
    key: TlsRecordOpeningKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Opener {
    pub fn new(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, TlsError> {
        let (algorithm, key, iv) = parts(secrets)?;
        let key = TlsRecordOpeningKey::new(algorithm, TlsProtocolId::TLS13, key)
            .map_err(|_| bad_key())?;
        Ok(Self { key, iv, sequence })
    }

    /// Opens in place the record that fills `record`; returns its type and where in `record` its content lies.
    pub fn open(&mut self, record: &mut [u8]) -> io::Result<(ContentType, Range<usize>)> {
        let (header, body) = record.split_at_mut(HEADER);
        if header[0] != u8::from(ContentType::ApplicationData) {
            return Err(invalid("a record that is not protected"));
        }
        let nonce = nonce(&self.iv, self.sequence);
        let inner = self
            .key
            .open_in_place(nonce, Aad::from(&*header), body)
            .map_err(|_| invalid("a record that does not authenticate"))?;
        self.sequence += 1;
        // The content type is the last byte that is not zero; zeros behind it are padding.
        let Some(at) = inner.iter().rposition(|&byte| byte != 0) else {
            return Err(invalid("a record without a content type"));
        };
        if at > MAX_CONTENT {
            return Err(invalid("a record longer than 16 KiB"));
        }
        Ok((ContentType::from(inner[at]), HEADER..HEADER + at))
    }
}

/// The length of the record at the start of `bytes`, header included, or `None` while the header is incomplete.
pub fn record_len(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let body = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if body > MAX_BODY {
        return Err(invalid("a record longer than TLS allows"));
    }
    Ok(Some(HEADER + body))
}

fn record_header(body: usize) -> [u8; HEADER] {
    let [high, low] = u16::try_from(body)
        .expect("a record body is shorter than 64 KiB")
        .to_be_bytes();
    [ContentType::ApplicationData.into(), 3, 3, high, low]
}

/// RFC 8446 section 5.3: the sequence number, padded to the left, XOR the static IV.
fn nonce(iv: &[u8; 12], sequence: u64) -> Nonce {
    let mut nonce = *iv;
    for (byte, sequence) in nonce[4..].iter_mut().zip(sequence.to_be_bytes()) {
        *byte ^= sequence;
    }
    Nonce::assume_unique_for_key(nonce)
}

fn parts(
    secrets: &ConnectionTrafficSecrets,
) -> Result<(&'static Algorithm, &[u8], [u8; 12]), TlsError> {
    let (algorithm, key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
        _ => {
            return Err(TlsError::Suite(
                rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            ));
        }
    };
    let iv = iv.as_ref().try_into().map_err(|_| bad_key())?;
    Ok((algorithm, key.as_ref(), iv))
}

fn bad_key() -> TlsError {
    TlsError::Rustls(rustls::Error::General(
        "traffic secrets of an unexpected length".into(),
    ))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("TLS: the peer sent {what}"),
    )
}
