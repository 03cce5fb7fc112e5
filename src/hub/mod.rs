//! Downloads models from the Hugging Face hub into its local cache, in the layout that huggingface_hub writes, so that
//! Hugging Face's own tools find them there, too. Knows HTTP and the cache; knows nothing of what a model computes.
//!
//! [`Hub::plan`] asks the hub for a revision's files and chooses; [`Hub::pull`] fetches what is missing: four files at
//! a time, each resumed where an earlier download was cut, checked against the hash that the hub names, and only then
//! linked into the snapshot. The revision's reference is written last: until then an older snapshot stays the current
//! one.
//!
//! ```no_run
//! use rigel::checkpoint::HubId;
//! use rigel::hub::Hub;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let hub = Hub::from_env()?;
//! let id = HubId::parse("bigcode/starcoder2-3b").ok_or("no hub id")?;
//! let plan = hub.plan(&id, &[], &|_| ())?;
//! let snapshot = hub.pull(&plan, &|_| ())?;
//! println!("{}", snapshot.display());
//! # Ok(())
//! # }
//! ```

mod blob;
mod client;
mod digest;
mod error;
mod listing;
mod partial;
mod pull;
mod retry;
mod selection;
mod settings;
mod snapshot;
mod url;

pub use error::HubError;
pub use listing::RemoteFile;
pub use pull::{Hub, PullEvent, PullPlan};
