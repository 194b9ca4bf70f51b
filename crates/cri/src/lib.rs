//! The kubelet's front door: checks requests, converts, maps errors. (The services follow; see ARCHITECTURE.md.)

#![cfg_attr(not(test), allow(dead_code))]

mod check;
