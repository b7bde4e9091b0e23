//! What one pane says of the data itself, for the checks of the rule's `quality` section.

use super::assign::Place;
use serde::{Deserialize, Serialize};

/// One experiment in one pane. Partials of the same pane merge in any order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QualityPartial {
    /// Records that name or join the experiment and came too late to count.
    pub late: u64,
    /// Those whose id had been seen.
    pub duplicate: u64,
    /// Refused ones from beyond the wall clock.
    pub future: u64,
    /// By bucket; empty when there is nothing to say.
    pub buckets: Vec<BucketQuality>,
}

/// One bucket of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BucketQuality {
    /// Units that turned out to be in two buckets, of this one at first: age of their cohort.
    pub mixed: Vec<u32>,
    /// Exposures of ineligible units, and the units of whom that was the first one.
    pub ineligible: u64,
    pub ineligible_units: u64,
    /// Units of whom nobody can tell.
    pub unknown_units: u64,
    /// Units exposed for the first time, where the rule says how they are assigned: age of their cohort, and where they belong.
    pub placed: Vec<(u32, Place)>,
    /// Units with their first event: age of their cohort.
    pub heard: Vec<u32>,
    /// By field of the `missing` check: events that should carry it, and those without.
    pub fields: Vec<Lacking>,
}

/// Events that should carry a field, and those without it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacking {
    pub n: u64,
    pub x: u64,
}

impl QualityPartial {
    pub fn bucket(&mut self, bucket: usize) -> &mut BucketQuality {
        if self.buckets.len() <= bucket {
            self.buckets.resize_with(bucket + 1, BucketQuality::default);
        }
        &mut self.buckets[bucket]
    }

    pub fn merge(&mut self, from: QualityPartial) {
        self.late += from.late;
        self.duplicate += from.duplicate;
        self.future += from.future;
        for (bucket, from) in from.buckets.into_iter().enumerate() {
            self.bucket(bucket).merge(from);
        }
    }
}

impl BucketQuality {
    pub fn field(&mut self, index: usize) -> &mut Lacking {
        if self.fields.len() <= index {
            self.fields.resize(index + 1, Lacking::default());
        }
        &mut self.fields[index]
    }

    /// Leaves out what the rules ask otherwise now.
    pub fn forget(&mut self, exposures: bool, fields: bool) {
        if exposures {
            (self.ineligible, self.ineligible_units, self.unknown_units) = (0, 0, 0);
            self.placed.clear();
        }
        if fields {
            self.heard.clear();
            self.fields.clear();
        }
    }

    fn merge(&mut self, from: BucketQuality) {
        self.mixed.extend(from.mixed);
        self.ineligible += from.ineligible;
        self.ineligible_units += from.ineligible_units;
        self.unknown_units += from.unknown_units;
        self.placed.extend(from.placed);
        self.heard.extend(from.heard);
        for (index, more) in from.fields.into_iter().enumerate() {
            let field = self.field(index);
            field.n += more.n;
            field.x += more.x;
        }
    }
}
