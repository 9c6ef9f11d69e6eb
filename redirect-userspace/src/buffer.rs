//! Large I/O buffers, shared by everything that runs on one worker thread.
//!
//! Bulk transfer wants about a mebibyte per system call, and an idle connection wants no buffer at all. So nothing owns a
//! buffer while it waits: it takes one when bytes are there and gives it back when they are gone. Pages that were never
//! written cost nothing, so a large buffer is as cheap as the bytes that went through it.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

use bytes::Bytes;

/// Bytes of a pooled buffer: 1 MiB of payload and the framing of its TLS records.
pub const CAPACITY: usize = (1 << 20) + 64 * 64;

/// Received runs of up to this length are copied out, so that a small message does not hold on to a large buffer.
const COPY_LIMIT: usize = 16 * 1024;

/// Buffers that a thread keeps for later; the rest goes back to the allocator.
const KEPT: usize = 4;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`CAPACITY`] bytes with unspecified content; dropping it returns it to the pool of the current thread.
pub struct Buffer(Option<Box<[u8]>>);

impl Buffer {
    pub fn take() -> Self {
        let pooled = POOL.with_borrow_mut(Vec::pop);
        // A fresh zeroed vector of this size comes from the kernel as untouched pages.
        Self(Some(
            pooled.unwrap_or_else(|| vec![0; CAPACITY].into_boxed_slice()),
        ))
    }

    /// The first `len` bytes as a shared value, by copy or by giving the buffer away, whichever is cheaper.
    pub fn into_bytes(self, len: usize) -> Bytes {
        if len <= COPY_LIMIT {
            Bytes::copy_from_slice(&self[..len])
        } else {
            Bytes::from_owner(self).slice(..len)
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(bytes) = self.0.take() else { return };
        // `try_with`: the thread may be ending, with its pool gone.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(bytes);
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().expect("taken only in drop")
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().expect("taken only in drop")
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_runs_are_copied_and_large_ones_given_away() {
        let mut buffer = Buffer::take();
        buffer[..4].copy_from_slice(b"abcd");
        let place = buffer.as_ptr();
        let small = buffer.into_bytes(4);
        assert_eq!(&small[..], b"abcd");
        assert_ne!(small.as_ptr(), place);

        let buffer = Buffer::take();
        let place = buffer.as_ptr();
        let large = buffer.into_bytes(COPY_LIMIT + 1);
        assert_eq!((large.as_ptr(), large.len()), (place, COPY_LIMIT + 1));
        drop(large);
        assert_eq!(
            Buffer::take().as_ptr(),
            place,
            "a dropped buffer is used again"
        );
    }
}
