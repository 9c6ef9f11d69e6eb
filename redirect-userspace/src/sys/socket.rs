//! Socket options that the standard library does not have.
