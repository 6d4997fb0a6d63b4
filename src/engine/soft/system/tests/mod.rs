//! Tests of this directory, on CPUs of [`super::testing`].

mod accesses;
mod control;
mod events;
mod io;
mod lowering;
mod segments;
mod states;
mod transfers;
