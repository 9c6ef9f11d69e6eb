//! Where a connection goes: a pure decision over the workload data.
