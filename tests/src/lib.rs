//! Testbed of nodes and pods.
