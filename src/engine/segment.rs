//! Segments of units: their names, and the profiles that say which ones a unit is in.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Value of an attribute that a unit does not have.
pub const MISSING: &str = "(none)";
/// Values of an attribute that have no segment of their own, together.
pub const REST: &str = "other";

/// A unit's values of the attributes that its experiment is sliced by, in the order of the rule.
pub type Profile = Arc<[String]>;

/// A profile that a pane has seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    pub experiment: u32,
    /// As the partition counts the profiles of the experiment.
    pub number: u16,
    #[serde(with = "profile")]
    pub values: Profile,
}

/// A profile as a list of texts.
mod profile {
    use super::Profile;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(profile: &Profile, serializer: S) -> Result<S::Ok, S::Error> {
        profile.as_ref().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Profile, D::Error> {
        Vec::<String>::deserialize(deserializer).map(Into::into)
    }
}

/// [`crate::engine::pane::Observation::profile`] of an experiment that is not sliced, or of a unit whose values are not known.
pub const NO_PROFILE: u32 = u32::MAX;
