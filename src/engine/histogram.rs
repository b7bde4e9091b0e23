//! Log-linear bins in the layout of HdrHistogram, sparse at rest.

use serde::{Deserialize, Serialize};

/// Bins of one pane: index of the bin and count, by index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SparseBins(pub Vec<(u16, u32)>);
