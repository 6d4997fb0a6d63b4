//! Reports of what came of tests. Each is a function from an [`Outcome`](super::outcome::Outcome) to text; all that guests
//! printed is taken for hostile, and cannot become part of a report's own language.
//!
//! | file | what it is |
//! | --- | --- |
//! | `diagnostics` | what belljar itself has to say while tests run |
//! | `github` | annotations, folded logs and the page of a step in GitHub Actions |
//! | `gitlab` | folded logs in GitLab CI |
//! | `html` | a page for people, in one file |
//! | `json` | all there is, for programs |
//! | `junit` | what CI servers read |
//! | `kcidb` | what the kernel community's database takes |
//! | `live` | what is shown while tests run |
//! | `matrix` | tests in rows, kernels with machines in columns |
//! | `paint` | colours on terminals |
//! | `place` | the place in the source that a failure speaks of |
//! | `summary` | what is shown at the end |
//! | `text` | guests' text made harmless; numbers and times as people write them |

pub mod diagnostics;
pub mod github;
pub mod gitlab;
mod html;
mod json;
mod junit;
mod kcidb;
pub mod live;
mod matrix;
pub mod paint;
mod place;
#[cfg(test)]
mod sample;
pub mod summary;
mod text;

pub use html::html;
pub use json::{SCHEMA, json};
pub use junit::junit;
pub use kcidb::{KcidbOrigin, kcidb};
