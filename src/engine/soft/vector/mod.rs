pub(super) mod state;
