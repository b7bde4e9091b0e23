//! Which bucket a unit should be in: the flag service's hash, computed anew from the unit's names.
//!
//! A hash gives each unit a **position** in [0, 1). The first `holdback` of it belongs to the baseline; the buckets follow by their weights,
//! in the order of the rule file. How each algorithm gets there: docs/rules.md, "Assignment"; the vectors in `tests/assign` come from
//! GrowthBook's SDK and the hashes' reference libraries.

use super::event::Event;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// How a position is computed from namespace and unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// GrowthBook's `hashVersion` 2: FNV-1a of the decimal digits of an FNV-1a, in 10,000 steps.
    GrowthbookV2,
    /// MurmurHash3, x86 32 bits, seed 0.
    Murmur3,
    /// The upper 32 bits of XXH3-64, seed 0.
    Xxh3,
    /// The first 32 bits of SHA-256.
    Sha256,
}

impl Algorithm {
    /// In how many steps the position is told.
    fn steps(self) -> f64 {
        match self {
            Algorithm::GrowthbookV2 => 10_000.0,
            Algorithm::Murmur3 | Algorithm::Xxh3 | Algorithm::Sha256 => 4_294_967_296.0,
        }
    }

    fn step(self, namespace: &str, value: &str) -> u32 {
        let text = || format!("{namespace}:{value}");
        match self {
            Algorithm::GrowthbookV2 => {
                let first = fnv1a(namespace.encode_utf16().chain(value.encode_utf16()));
                fnv1a(first.to_string().encode_utf16()) % 10_000
            }
            Algorithm::Murmur3 => murmur3(text().as_bytes()),
            Algorithm::Xxh3 => (xxh3_64(text().as_bytes()) >> 32) as u32,
            Algorithm::Sha256 => {
                let digest = Sha256::digest(text());
                u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
            }
        }
    }
}

/// The part of a unit that is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitField {
    Tenant,
    User,
}

/// How the flag service assigns.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    pub algorithm: Algorithm,
    pub namespace: String,
    /// What is hashed: the values of these fields, joined by `|`.
    pub unit: Vec<UnitField>,
    /// Bucket of units that always get it, by the text that would be hashed.
    pub overrides: BTreeMap<String, u8>,
    /// Share of positions, the first ones, that is the baseline's whatever the weights: part of its weight. In [0, 1).
    pub holdback: f64,
    /// Index of the baseline bucket.
    pub baseline: usize,
}

/// Where a unit belongs, as far as its names tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// Its position, in steps of the algorithm.
    Step(u32),
    /// An override names the bucket.
    Bucket(u8),
}

/// By how much the edges of buckets may differ from those that the flag service computes in its own arithmetic.
const ROUNDING: f64 = 1e-9;

impl Assignment {
    /// Place of the event's unit; `None` if it does not name what is hashed.
    pub fn place(&self, event: &Event<'_>) -> Option<Place> {
        let text = |field: &UnitField| match field {
            UnitField::Tenant => event.tenant_id.as_deref(),
            UnitField::User => event.user_id.as_deref(),
        };
        let value: Cow<'_, str> = match self.unit.as_slice() {
            [field] => text(field)?.into(),
            fields => fields.iter().map(text).collect::<Option<Vec<_>>>()?.join("|").into(),
        };
        Some(match self.overrides.get(value.as_ref()) {
            Some(bucket) => Place::Bucket(*bucket),
            None => Place::Step(self.algorithm.step(&self.namespace, &value)),
        })
    }

    /// Whether a unit of that place belongs to `bucket`, while the buckets have these weights (which add up to 1).
    pub fn fits(&self, place: Place, bucket: usize, weights: &[f64]) -> bool {
        let step = match place {
            Place::Bucket(named) => return usize::from(named) == bucket,
            Place::Step(step) => f64::from(step),
        };
        let position = step / self.algorithm.steps();
        if bucket == self.baseline && position < self.holdback + ROUNDING {
            return true;
        }
        let width = |b: usize| weights.get(b).unwrap_or(&0.0) - if b == self.baseline { self.holdback } else { 0.0 };
        let from = self.holdback + (0..bucket).map(|b| width(b).max(0.0)).sum::<f64>();
        position >= from - ROUNDING && position < from + width(bucket) + ROUNDING
    }
}

/// FNV-1a, 32 bits, over UTF-16 code units as the SDKs in JavaScript and Python do; of ASCII these are the bytes.
fn fnv1a(units: impl Iterator<Item = u16>) -> u32 {
    units.fold(0x811c_9dc5, |hash, unit| (hash ^ u32::from(unit)).wrapping_mul(0x0100_0193))
}

/// MurmurHash3_x86_32 (Appleby) with seed 0.
fn murmur3(bytes: &[u8]) -> u32 {
    let scramble = |k: u32| k.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    let (words, rest) = bytes.as_chunks::<4>();
    let mut hash = words
        .iter()
        .fold(0u32, |hash, word| (hash ^ scramble(u32::from_le_bytes(*word))).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64));
    hash ^= scramble(rest.iter().rev().fold(0, |k, byte| (k << 8) | u32::from(*byte)));
    hash ^= bytes.len() as u32;
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::event::{Event, Kind};
    use smallvec::SmallVec;

    fn assignment(algorithm: Algorithm, namespace: &str) -> Assignment {
        let unit = vec![UnitField::Tenant, UnitField::User];
        Assignment { algorithm, namespace: namespace.to_owned(), unit, overrides: BTreeMap::new(), holdback: 0.0, baseline: 0 }
    }

    fn exposed<'a>(tenant: &'a str, user: &'a str) -> Event<'a> {
        Event {
            ts: 0,
            id: None,
            tenant_id: Some(tenant.into()),
            user_id: Some(user.into()),
            experiment: None,
            bucket: None,
            attributes: Vec::new(),
            kind: Kind::Exposure,
            fields: SmallVec::new(),
        }
    }

    #[test]
    fn positions_and_buckets_are_those_of_the_sdks() {
        let vectors = include_str!("../../tests/assign/vectors.jsonl");
        let mut seen = BTreeMap::new();
        for line in vectors.lines() {
            let vector: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| vector[key].as_str().unwrap();
            let algorithm = match text("algorithm") {
                "growthbook_v2" => Algorithm::GrowthbookV2,
                "murmur3" => Algorithm::Murmur3,
                "xxh3" => Algorithm::Xxh3,
                "sha256" => Algorithm::Sha256,
                other => panic!("{other}"),
            };
            let step = algorithm.step(text("namespace"), text("value"));
            assert_eq!(u64::from(step), vector["position"].as_u64().unwrap(), "{line}");
            if let Some(bucket) = vector["bucket"].as_u64() {
                let weights: Vec<f64> = vector["weights"].as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).collect();
                let fits = |b: &usize| assignment(algorithm, "").fits(Place::Step(step), *b, &weights);
                assert_eq!((0..weights.len()).filter(fits).collect::<Vec<_>>(), [bucket as usize], "{line}");
            }
            *seen.entry(text("algorithm").to_owned()).or_insert(0) += 1;
        }
        assert!(seen.len() == 4 && seen.values().all(|n| *n > 50), "{seen:?}");
    }

    #[test]
    fn an_override_outranks_the_hash() {
        let mut rule = assignment(Algorithm::GrowthbookV2, "checkout");
        rule.overrides.insert("t-qa|u-1".into(), 1);
        assert_eq!(rule.place(&exposed("t-qa", "u-1")), Some(Place::Bucket(1)));
        assert!(rule.fits(Place::Bucket(1), 1, &[1.0, 0.0]) && !rule.fits(Place::Bucket(1), 0, &[1.0, 0.0]));
        assert_eq!(rule.place(&exposed("t-17", "u-90210")), Some(Place::Step(8_856)));
        rule.unit = vec![UnitField::Tenant];
        assert_eq!(rule.place(&exposed("t-17", "a")), rule.place(&exposed("t-17", "b")), "whole tenants are assigned");
    }

    #[test]
    fn the_holdback_is_the_baselines_and_part_of_its_weight() {
        let mut rule = Assignment { holdback: 0.1, ..assignment(Algorithm::GrowthbookV2, "checkout") };
        let buckets = |rule: &Assignment, weights: [f64; 2]| {
            [999, 1_001, 4_999, 5_001, 5_999, 6_001].map(|step| (0..2).find(|b| rule.fits(Place::Step(step), *b, &weights)))
        };
        let [c, t] = [Some(0), Some(1)];
        assert_eq!(buckets(&rule, [0.5, 0.5]), [c, c, c, t, t, t], "nothing changes where the baseline comes first");
        assert_eq!(buckets(&rule, [0.1, 0.9]), [c, t, t, t, t, t]);
        assert_eq!(buckets(&rule, [0.0, 1.0]), [c, t, t, t, t, t], "nor where it has no other traffic");
        rule.baseline = 1;
        assert_eq!(buckets(&rule, [0.5, 0.5]), [t, c, c, c, c, t], "its part is split where it comes second");
    }

    #[test]
    fn weights_move_the_edges() {
        let rule = assignment(Algorithm::GrowthbookV2, "checkout");
        let place = Place::Step(6_000);
        assert!(rule.fits(place, 1, &[0.5, 0.5]) && rule.fits(place, 0, &[0.75, 0.25]));
    }
}
