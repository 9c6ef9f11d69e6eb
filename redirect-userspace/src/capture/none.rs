//! No capture: the proxy listens, and whatever reaches it must have been sent there by somebody else.
