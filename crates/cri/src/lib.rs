//! x
#![allow(dead_code)]
mod check;
